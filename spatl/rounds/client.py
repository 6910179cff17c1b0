"""A round of a client: follow the server, evaluate, train, choose, send (SPATL, section IV; SCAFFOLD, algorithm 1).

State goes in and comes out. The new state's control variate is pending: it counts once the server says that it has
folded the update in (`ClientState.settle`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from spatl.channels.costs import BUDGET_KINDS, Budget
from spatl.channels.selection import Selection, select_all
from spatl.channels.vectors import all_finite, give_back
from spatl.data.dataset import misfits
from spatl.errors import ControlLost, DataError, DivergedError, ModelError, UpdateRejected
from spatl.models.copies import check_parts
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.client_evaluation import evaluated_arrival, private_part, told_of_arrival, train_epochs_
from spatl.rounds.client_state import ClientState
from spatl.rounds.control import fading, followed_gradient, half_life_of, refresh_control
from spatl.rounds.feedback import Feedback
from spatl.rounds.following import encoder_again, follow
from spatl.rounds.own_model import contrast_of, trained_own_model, whole_state
from spatl.rounds.parts import chosen_part, cut_part
from spatl.rounds.stop_watch import StopWatch
from spatl.rounds.workplace import ClientRound, Workplace, trainable
from spatl.sealed_files import as_tensor
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.tasks.task import Measure
from spatl.tensors.inputs import finite_rows
from spatl.training.evaluate import Evaluation
from spatl.training.hooks import GradientHook, correction_hook, linear_hook, masking_hook, proximal_hook
from spatl.training.local import TrainingResult
from spatl.training.meeting import train_here_
from spatl.training.together import Training
from spatl.wire.download import Download, Model
from spatl.wire.reports import LARGEST_METRIC, TrainReport
from spatl.wire.statistics import Arrival
from spatl.wire.update import Update, pack_update_with_memory, unpack_update

Tensors = dict[str, Tensor]


def receive(workplace: Workplace, download: Download, state: ClientState | None) -> tuple[Model, ClientState]:
    """Follow what the server sent.

    Args:
        workplace: Where the client trains.
        download: What came.
        state: The client's state, None before its first round.

    Returns:
        The model of the round, and the state, settled for it, that holds the model.

    Raises:
        UpdateRejected: The download is damaged, of another method, or starts from what this client does not hold.
    """
    config, layout = workplace.config, workplace.blueprint.layout
    if (download.selection is not None) != config.row.static_mask:
        raise UpdateRejected("the server and this method disagree on whether only some channels are trained")
    settled = (state or ClientState.initial(layout)).settle(
        acknowledged_round=download.acknowledged_round,
        server_round=download.server_round,
        half_life=half_life_of(config),
    )
    del state  # and with it the control variate that settling has dropped
    if not config.row.corrects:
        zeros = torch.zeros(1).expand(layout.num_parameter_entries)  # in no memory
        settled = replace(settled, control=zeros, unfaded=None)
    give_back(layout.num_entries)
    fade, initial = fading(config.control.half_life, 1), workplace.blueprint.initial_encoder()
    encoder, held = follow(download, settled.held, initial, layout, fading=fade)
    control = None
    if download.control is not None:
        control = download.codec.decode(memoryview(download.control), layout.parameter_places)
        if not all_finite(control):
            raise UpdateRejected("the control variates contain NaN or infinity")
    elif download.derived is not None and download.derived.valid:
        control = None if held.control is None else as_tensor(held.control)
    x = encoder_again(download, held, initial, layout) or encoder
    model = Model(download.server_round, download.version, x, control, download.selection, download.statistics)
    return model, replace(settled, held=held)


def with_its_control(workplace: Workplace, download: Download, state: ClientState | None) -> ClientState | None:
    """Return a client's state before a round, if its c_i is the one that the server's c contains.

    Raises:
        ControlLost: It is another one, which the server has to know.
    """
    contained = download.acknowledged_round
    if not workplace.config.row.corrects or contained == 0:
        return state
    if state is None:
        raise ControlLost(
            f"no state of this client is here, and the server has folded in its round {contained}: its own parts and "
            "its control variate are lost; it begins anew"
        )
    if not state.has_control_of(contained):
        raise ControlLost(
            f"the client's state has its control variate of round {state.folded_round}, the server that of round "
            f"{contained}: the state is an older one; the control variate begins anew"
        )
    return state


def train_round(
    workplace: Workplace, client: int, received: Model, state: ClientState, *, budget: Budget | None = None
) -> tuple[bytes, ClientState]:
    """Do one round of local training.

    Args:
        workplace: Where the client trains.
        client: The client's partition id.
        received: The server's model, as `receive` returns it.
        state: The client's state, likewise.
        budget: The device's own budget; the config's if not given.

    Returns:
        The packed update, its report in it, and the new state, whose control variate is pending until acknowledged.

    Raises:
        DivergedError: The local training left the finite numbers.
        ModelError: The model changed its parts in training.
        UpdateRejected: What came is not for training.
        BudgetError: No selection meets the device's own budget.
    """
    if received.statistics is not None:
        raise UpdateRejected("statistics of all clients came with a round's download; they are for the evaluation")
    watch = StopWatch()
    with workplace.prepared(client, received, state, own_budget=budget) as own:
        start = own.rounded_start()
        with evaluated_arrival(own) as arrival:
            told = told_of_arrival(own)
        give_back(own.blueprint.layout.num_entries)
        with watch.timed("selection"):
            part = chosen_part(own)
        with watch.timed("training"):
            result, kept = _trained_(own, part)
        watch.leave_out("training", result.waited)
        weights = own.blueprint.layout.flatten(own.blueprint.layout.tensors_of(own.model))
        private = private_part(own)
        _check_finite(own, arrival, result, weights)
        give_back(own.blueprint.layout.num_entries)
        update = _update_(own, start, weights)
        del start
        with watch.timed("selection"):
            choice = part or _chosen(own, weights, update, result.num_steps)
        del weights
        report = _report(own, arrival, result, choice, watch)
        values = choice.selection.take(update, own.blueprint.layout)
        del update
        give_back(own.blueprint.layout.num_entries)
        blob, feedback = _packed(own, choice.selection, values, result.step_weight, report, told, arrival.measures)
        del values
        give_back(own.blueprint.layout.num_entries)
    control = _refreshed_control(own, blob)
    state = replace(state, private=private, selector=choice.state, own_model=kept)
    if own.blueprint.config.row.corrects:  # an update that was not corrected leaves c_i as it is
        pending = torch.zeros(0) if control is None else control
        state = replace(state, pending_round=received.server_round, pending_control=pending)
    if feedback is not None:
        state = replace(state, pending_round=received.server_round, pending_feedback=feedback)
    return blob, state


def _update_(own: ClientRound, start: Tensor | None, weights: Tensor) -> Tensor:
    """What training did, float32 [N], in the memory of the weights, or of where it started if a selector sees them."""
    is_own = start is not None or not isinstance(own.received.encoder, Tensor)
    start = own.received.start() if start is None else start
    return torch.sub(weights, start, out=start if is_own else None) if own.budget else weights.sub_(start)


def _trained_(own: ClientRound, part: Choice | None) -> tuple[TrainingResult, Mapping[str, Tensor]]:
    """Local training, in place, with the encoder's gradients g + c - c_i where the method corrects them.

    Of the whole network, or of the part that was chosen. And what the client keeps of it for itself: a model of its
    own, or nothing.
    """
    config, small = own.blueprint.config, cut_part(own, part)
    model = own.model if small is None else small.network
    parameters, hooks = trainable(model), _gradient_hooks(own, model, dict if small is None else small.of)
    order = own.generator("batches")
    if config.row.head_first:
        encoder = own.blueprint.split.encoder_parameters(own.model)
        head = {name: p for name, p in parameters.items() if name not in encoder}
        parameters = {name: p for name, p in parameters.items() if name in encoder}
        # FedRep, algorithm 1. BatchNorm uses the batches' own statistics here too, and gathers them.
        train_epochs_(own, head, config.training.head_epochs, "head", own.received.server_round, own.training)
    training = Training(
        model, own.blueprint.model, parameters, own.data.train, own.training, order, hooks, contrast_of(own),
        own.blueprint.task, own.workplace.offset(own.data),
    )  # fmt: skip
    result = train_here_(training, alone=small is not None or training.contrast is not None)
    if small is not None:
        small.put_back_(own.model)
    check_parts(own.model, own.blueprint.model)
    if config.row.personal:
        return result, trained_own_model(own)
    return result, whole_state(own.model) if config.row.contrasts else {}


def _gradient_hooks(own: ClientRound, model: nn.Module, of: Callable[[Tensors], Tensors]) -> list[GradientHook]:
    """Return what changes the gradients of local training, in the order in which it does.

    Args:
        own: The client's round.
        model: What is trained: the client's model, or a part of it.
        of: Returns what of tensors by parameter is part of it.
    """
    config, layout, received = own.blueprint.config, own.blueprint.layout, own.received
    hooks: list[GradientHook] = []
    if config.row.proximal or config.row.dynamic:
        views = of(layout.unflatten(received.start()))
        names = own.blueprint.split.encoder_parameters(own.model)
        pull = own.training.dynamic_alpha if config.row.dynamic else own.training.proximal_mu
        hooks.append(proximal_hook({name: views[name] for name in names}, pull))
    if config.row.dynamic:
        hooks.append(linear_hook(of(layout.unflatten(as_tensor(own.state.control)))))
    if config.row.controls and received.control is not None:
        common, private = (of(layout.unflatten(each)) for each in (received.control, as_tensor(own.state.control)))
        hooks.append(correction_hook(common, private))
    if received.selection is not None:
        kept = torch.ones(layout.num_parameter_entries)
        for part, travels in received.selection.parts(layout, layout.num_parameter_entries):
            kept[part] = 1.0 if travels is None else travels.float()
        hooks.append(masking_hook(layout.unflatten(kept)))
    if config.predictor_row.residual:
        residual = own.blueprint.split.predictor_parameters(model)
        zeros = {name: torch.zeros_like(parameter) for name, parameter in residual.items()}
        hooks.append(proximal_hook(zeros, config.predictor.shrinkage))
    return hooks


def _check_finite(own: ClientRound, arrival: Evaluation, result: TrainingResult, weights: Tensor) -> None:
    """Raise where training left the finite numbers, for the reason that it did.

    Raises:
        DataError: Inputs are not finite.
        ModelError: Finite images and weights make a loss that is not, before any step was taken.
        DivergedError: It diverged.
    """
    rest = (p for name, p in own.model.named_parameters() if name not in own.blueprint.layout.shapes)
    finite = all(map(all_finite, (weights, *rest)))
    losses = [result.loss, *([arrival.loss] if arrival.is_known else [])]  # of no test examples there is none
    if finite and all(loss <= LARGEST_METRIC for loss in losses):
        return
    for name, inputs in (("training", own.data.train.inputs), ("test", own.data.test.inputs)):
        fits = finite_rows(inputs).numpy()
        if not fits.all():
            raise DataError(f"client {own.client}: its {name} examples must be finite, got {misfits(fits)}")
    where = _where_the_model_fails(own, arrival, result)
    if where is not None:
        raise ModelError(
            f"client {own.client}: the loss is {result.loss:g} on the first batch, before any step, {where}; inputs "
            "and weights are finite, so that it is the model's forward pass that makes it so, and no learning rate "
            "helps"
        )
    raise DivergedError(
        f"client {own.client} diverged in round {own.received.server_round} (loss {arrival.loss:g} on arrival, "
        f"{result.loss:g} in training): lower training.learning_rate"
        f"{' or control.damping' if own.blueprint.config.row.controls else ''}"
    )


def _where_the_model_fails(own: ClientRound, arrival: Evaluation, result: TrainingResult) -> str | None:
    """In which mode the model as it was made has a loss that is not finite; None where training came before that."""
    untrained = own.received.version == 0 and result.finite_steps == 0 and not math.isfinite(result.loss)
    if untrained and arrival.is_known and not math.isfinite(arrival.loss):
        return "both in training mode and in eval mode"
    if untrained and not own.blueprint.config.row.head_first:  # whose head was trained before
        return "in training mode, though not in eval mode: its normalisation may divide by a variance of 0"
    return None


def _chosen(own: ClientRound, weights: Tensor, update: Tensor, num_steps: int) -> Choice:
    """The channels to send (m_i), under the client's budget."""
    budget = own.budget
    if budget is None:
        return Choice(own.received.selection or select_all(own.blueprint.layout))
    request = SelectionRequest(
        model=own.model,
        weights=weights,
        update=update,
        costs=own.blueprint.costs,
        budget=budget,
        train=own.data.train,
        validation=own.data.validation,
        num_steps=num_steps,
        batch_size=own.training.batch_size,
        server_round=own.received.server_round,
        generator=own.generator("selection"),
        state=own.state.selector,
        task=own.blueprint.task,
    )
    return own.workplace.selector(request)


def _report(
    own: ClientRound, arrival: Evaluation, result: TrainingResult, choice: Choice, watch: StopWatch
) -> TrainReport:
    """Return the report that goes with the update."""
    layout, budget = own.blueprint.layout, own.budget
    return TrainReport(
        num_examples=len(own.data.train),
        accuracy=arrival.accuracy,
        loss=arrival.loss,
        train_loss=result.loss,
        keep_ratio=choice.selection.keep_ratio(layout),
        flops_ratio=_flops_ratio(own.blueprint, choice.selection),
        budget_kind=1 + BUDGET_KINDS.index(budget.kind) if budget else 0,
        budget_limit=budget.limit if budget else 0.0,
        validation_gain=min(choice.gain, 1.0),
        training_seconds=watch.seconds["training"],
        selection_seconds=watch.seconds["selection"],
        decision_seconds=choice.decision_seconds,
        seconds=watch.total,
    )


def _flops_ratio(blueprint: Blueprint, selection: Selection) -> float:
    if not blueprint.layout.groups:
        return 1.0
    return blueprint.costs.flops.ratio(selection.counts(blueprint.layout))


def _packed(
    own: ClientRound, selection: Selection, values: Tensor, step_weight: float, report: TrainReport,
    arrival: Arrival | None, measures: tuple[Measure, ...],
) -> tuple[bytes, Feedback | None]:  # fmt: skip
    """The update of the chosen channels, encoded (m_i, D_i, a_i and what is told of the round in one blob).

    And what the codec lost of it, where that goes into the next one.
    """
    config, layout, received = own.blueprint.config, own.blueprint.layout, own.received
    codec, before = own.blueprint.codecs.uplink, own.state.feedback or Feedback.none()
    if codec.feeds_back:
        values = before.wanted(values, selection, layout)
    corrected = config.row.dynamic or (config.row.controls and received.control is not None)
    raw = Update(
        received.server_round, received.version, selection, values, step_weight, corrected, report, arrival, measures
    )
    limits = [own.blueprint.message_bytes]
    if own.budget is not None and own.budget.kind == "uplink_bytes":
        limits.append(int(own.budget.limit))
    blob, memory = pack_update_with_memory(
        raw, layout, codec, generator=own.generator("rounding"), memory=before.memory,
        max_bytes=min((limit for limit in limits if limit is not None), default=None), judging=own.blueprint.judging,
    )  # fmt: skip
    if not codec.feeds_back:
        return blob, None
    return blob, before.after(values, _as_decoded(own, blob).values, selection, layout, memory)


def _as_decoded(own: ClientRound, blob: bytes) -> Update:
    """The update as the server will decode it."""
    return unpack_update(
        blob, own.blueprint.layout, own.blueprint.codecs.uplink, server_round=own.received.server_round,
        base_version=own.received.version, num_arrived=own.blueprint.num_arrived, judging=own.blueprint.judging,
    )  # fmt: skip


def _refreshed_control(own: ClientRound, blob: bytes) -> Tensor | None:
    """c_i after the round, from the values that the server will decode; None where gradients were not corrected."""
    received, layout, config = own.received, own.blueprint.layout, own.blueprint.config
    if not config.row.dynamic and (not config.row.controls or received.control is None):
        return None
    sent = _as_decoded(own, blob)
    if config.row.dynamic or received.control is None:
        return followed_gradient(as_tensor(own.state.control), sent, layout, alpha=own.training.dynamic_alpha)
    return refresh_control(as_tensor(own.state.control), received.control, sent, layout, damping=config.control.damping)
