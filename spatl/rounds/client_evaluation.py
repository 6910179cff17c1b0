"""A client after the rounds: it evaluates the encoder that all have arrived at, and tells what its data are like.

Nothing of the rounds' state is settled by it, so that the rounds may go on afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.config.training import TrainingConfig
from spatl.errors import UpdateRejected
from spatl.models.weights import state_of
from spatl.rounds.client_state import ClientState
from spatl.rounds.following import Held
from spatl.rounds.own_model import load_own_model_, put_back
from spatl.rounds.statistics import gathered, load_statistics_
from spatl.rounds.workplace import ClientRound, Workplace
from spatl.training.evaluate import NOT_EVALUATED, Evaluation, evaluate, recalibrate_
from spatl.training.local import train_
from spatl.wire.download import Model
from spatl.wire.reports import EvaluateReport
from spatl.wire.statistics import Arrival, pack_statistics


def arrived(state: ClientState | None, new: Held, layout: EncoderLayout) -> ClientState:
    """Return the state of a client that was sent an encoder which it does not train from.

    It is the one before, and holds the encoder besides: nothing is settled, and the rounds may go on from where they
    were.

    Args:
        state: Before; None for a client that never trained.
        new: What it holds besides by now, as of the state that `receive` returned with the encoder.
        layout: The encoder's.
    """
    before = state or ClientState.initial(layout)
    return replace(
        before,
        held=Held({**before.held.offsets, **new.offsets}, new.base, before.held.control, before.held.control_version),
    )


def gather_round(workplace: Workplace, client: int, received: Model, state: ClientState) -> bytes:
    """Estimate BatchNorm statistics on the client's training split under a received encoder.

    Args:
        workplace: Where the client works.
        client: The client's partition id.
        received: The server's model, as `receive` returns it.
        state: The client's state, likewise.

    Returns:
        The packed statistics.

    Raises:
        UpdateRejected: The run puts none together, whatever the server says.
    """
    blueprint = workplace.blueprint
    if not blueprint.asks_after_the_rounds:
        raise UpdateRejected("the server asks for BatchNorm statistics, which this run does not put together")
    with workplace.prepared(client, received, state) as own:
        if blueprint.config.training.batch_norm != "shared":
            recalibrate_(own.model, own.data.train, batch_size=own.blueprint.config.training.batch_size)
        arrival = told_of_arrival(own) or Arrival(gathered(own.model, blueprint.statistics))
    return pack_statistics(
        arrival, blueprint.layout, blueprint.codecs.uplink,
        server_round=received.server_round, version=received.version,
    )  # fmt: skip


def told_of_arrival(own: ClientRound) -> Arrival | None:
    """Return what a client tells of the model as it is evaluated on arrival; None where nobody asks."""
    config = own.blueprint.config
    if not config.keeps_best:
        return None
    result = evaluate(own.model, own.data.validation, task=own.blueprint.task, precision=config.training.precision)
    return Arrival(gathered(own.model, own.blueprint.statistics), result.accuracy)


@dataclass(frozen=True, eq=False)
class ClientModel:
    """Model of a client as it was evaluated.

    Attributes:
        tensors: By the network's own names, on the CPU.
        offset: float32 [K], what it adds to the logits; None for nothing.
    """

    tensors: Mapping[str, Tensor]
    offset: Tensor | None


def evaluate_round(
    workplace: Workplace, client: int, received: Model, state: ClientState, *, whole: bool = False
) -> tuple[EvaluateReport, ClientModel]:
    """Evaluate a received encoder under the client's own predictor on its test split.

    Args:
        workplace: As of `gather_round`.
        client: Likewise.
        received: Likewise.
        state: Likewise.
        whole: Whether all of the model is returned, and not what is the client's own alone.

    Returns:
        The report, and the model that was evaluated.
    """
    with workplace.prepared(client, received, state) as own, evaluated_model(own, received.server_round + 1) as result:
        tensors = _all_of(own) if whole else own_part(own)
        offset = workplace.offset(own.data)
    report = EvaluateReport(
        num_examples=len(own.data.train), accuracy=result.accuracy, loss=result.loss, measures=result.measures
    )
    return report, ClientModel(tensors, None if offset is None else offset.cpu())


def evaluated_arrival(own: ClientRound) -> AbstractContextManager[Evaluation]:
    """Return the evaluation of the model as it arrived in a round, as a context; none where the round has none."""
    config = own.blueprint.config
    if config.report.evaluates_arrived(own.received.server_round):
        return evaluated_model(own, own.received.server_round)
    if config.row.contrasts:  # whose training compares with what the model that arrived makes of the examples
        take_statistics_(own)
    return nullcontext(NOT_EVALUATED)


@contextmanager
def evaluated_model(own: ClientRound, server_round: int) -> Iterator[Evaluation]:
    """Yield the evaluation of the model as it arrived for a round, while it is what was evaluated.

    For a method that fine-tunes that is a little later, and for one with models of its clients' own it is this
    client's; the instance is as the model arrived afterwards.
    """
    config, model = own.blueprint.config, own.model
    examples = own.data.test if config.report.split == "test" else own.data.validation
    with put_back(own) if config.row.evaluates_own else nullcontext():
        if config.row.personal:
            load_own_model_(own)
        if config.row.fine_tunes:
            full = config.training_of(own.client)  # whatever the schedule: it is no step of the round
            train_epochs_(own, own.trainable(), config.training.finetune_epochs, "fine-tuning", server_round, full)
        take_statistics_(own)
        yield evaluate(model, examples, task=own.blueprint.task, precision=config.training.precision)


def take_statistics_(own: ClientRound) -> None:
    """Give the model the BatchNorm statistics that it is evaluated with, in place: those that came, or its own."""
    training = own.blueprint.config.training
    if own.received.statistics is not None:
        load_statistics_(own.model, own.received.statistics, own.blueprint.statistics)
    elif training.batch_norm != "shared":
        most = training.calibration_examples
        recalibrate_(own.model, own.data.train, batch_size=training.batch_size, most=most)


def own_part(own: ClientRound) -> dict[str, Tensor]:
    """Return what of a client's model as it stands is not in the federation's, by the model's names, on the CPU.

    The predictor where it is private, and BatchNorm statistics unless they are shared or aggregated; of a method that
    fine-tunes, or has models of its clients' own, everything.
    """
    if own.blueprint.config.row.evaluates_own or not own.blueprint.layout.num_entries:
        return _all_of(own)
    private = private_part(own)
    if own.received.statistics is None:
        return private
    aggregated = {name for pair in own.blueprint.statistics.values() for name in pair}
    return {name: each for name, each in private.items() if name not in aggregated}


def _all_of(own: ClientRound) -> dict[str, Tensor]:
    """Return all of a client's model as it stands; another client's work on the instance does not change it."""
    return {name: each.clone() for name, each in state_of(own.model).items()}


def private_part(own: ClientRound) -> dict[str, Tensor]:
    """Return the part of the model that never travels (theta_i), on the CPU."""
    local = own.blueprint.config.training.batch_norm != "shared"
    state = own.blueprint.split.private_state(own.model, statistics=local)
    return {name: tensor.cpu() for name, tensor in state.items()}


def train_epochs_(
    own: ClientRound,
    parameters: Mapping[str, nn.Parameter],
    epochs: int,
    purpose: str,
    server_round: int,
    settings: TrainingConfig,
) -> None:
    """Train some parameters for so many epochs beside the round's own training, with batches of their own."""
    order = own.generator(purpose, server_round)
    train_(own.model, parameters, own.data.train, settings, generator=order, epochs=epochs, task=own.blueprint.task)
