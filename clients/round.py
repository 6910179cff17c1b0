"""One round on one client, without Flower: evaluate, train, select, encode (DESIGN 2.2)."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from spatl.channels.costs import BUDGET_KINDS, Budget, check_budget
from spatl.channels.selection import Selection, select_all
from spatl.channels.vectors import all_finite, give_back
from spatl.data import ClientData
from spatl.data.dataset import misfits
from spatl.errors import DataError, DivergedError, ModelError, UpdateRejected
from spatl.models.copies import check_parts, duplicate, restore_
from spatl.models.frozen import train_mode_
from spatl.rounds.blueprint import Blueprint, encoder_tensors, load_encoder_
from spatl.rounds.client_state import ClientState
from spatl.rounds.control import fading, refresh_control
from spatl.rounds.downlink import follow
from spatl.seeding import generator, seeded_globals
from spatl.selection.common_mask import channel_saliency
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.selection.selectors import SELECTORS
from spatl.training.calibration import calibrated, class_offset
from spatl.training.device import choose_device, reproducible
from spatl.training.evaluate import Evaluation, evaluate, recalibrate_
from spatl.training.hooks import GradientHook, correction_hook, masking_hook, proximal_hook
from spatl.training.local import TrainingResult, train_
from spatl.wire.codecs import CODECS
from spatl.wire.download import Download, Model
from spatl.wire.reports import LARGEST_METRIC, EvaluateReport, TrainReport
from spatl.wire.update import Update, pack_update, unpack_update


class Workplace:
    """One model instance on one device, and the data of the clients that train on it, shared by all of a process.

    Args:
        blueprint: The federation.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.config = blueprint.config
        self.device = choose_device(self.config.training.device)
        self._model = duplicate(blueprint.model).to(self.device)
        self._data: dict[int, ClientData] = {}
        # Only where it is used: the agent reads its policy's file.
        name = self.config.selection.selector if self.config.row.selects else "all"
        self._selector = SELECTORS[name].make(self.config.agent.settings())

    def receive(self, download: Download, state: ClientState | None) -> tuple[Model, ClientState]:
        """Follow what the server sent.

        Args:
            download: What came.
            state: The client's state, None before its first round.

        Returns:
            The model of the round, and the state that holds it.

        Raises:
            UpdateRejected: The download is damaged, of another method, or starts from what this client does not hold.
        """
        layout = self.blueprint.layout
        if (download.selection is not None) != self.config.row.static_mask:
            raise UpdateRejected("the server and this method disagree on whether only some channels are trained")
        before = (state or ClientState.initial(layout)).settle(
            acknowledged_round=download.acknowledged_round,
            server_round=download.server_round,
            half_life=self.config.control.half_life,
        )
        del state  # and with it the control variate that settling has dropped
        give_back(layout.num_entries)
        fade = fading(self.config.control.half_life, 1)
        initial = self.blueprint.initial_encoder()
        encoder, held = follow(download, before.held, initial, layout, fading=fade)
        control = None
        if download.control is not None:
            places = layout.parameter_places
            control = download.codec.decode(memoryview(download.control), places)
            if not bool(torch.isfinite(control).all()):
                raise UpdateRejected("the control variates contain NaN or infinity")
        elif download.derived is not None and download.derived.valid:
            control = held.control
        model = Model(download.server_round, download.version, encoder, control, download.selection)
        return model, replace(before, held=held)

    def train(
        self,
        client: int,
        received: Model,
        state: ClientState | None,
        *,
        acknowledged_round: int,
        budget: Budget | None = None,
    ) -> tuple[bytes, ClientState]:
        """Do one round.

        Args:
            client: The client's partition id.
            received: The server's model.
            state: The client's state, None before its first round.
            acknowledged_round: The last round of this client that the server folded in, 0 for none.
            budget: The device's own budget; the config's if not given.

        Returns:
            The packed update, its report in it, and the new state, whose control variate is pending until acknowledged.

        Raises:
            DivergedError: The local training left the finite numbers.
            ModelError: The model changed its parts in training.
            BudgetError: No selection meets the device's own budget.
        """
        started = time.perf_counter()
        with self._prepared(client, received, state, acknowledged_round) as (model, data, settled):
            start = self._loaded(model, received.encoder)
            arrival = self._evaluate(model, data, received.server_round, client)
            settings, method, layout = self.config.training, self.config.row, self.blueprint.layout
            give_back(layout.num_entries)
            hooks: list[GradientHook] = []
            if method.proximal:
                views = layout.unflatten(received.encoder)
                names = self.blueprint.split.encoder_parameters(model)
                hooks.append(proximal_hook({name: views[name] for name in names}, settings.proximal_mu))
            if method.controls and received.control is not None:
                hooks.append(correction_hook(layout.unflatten(received.control), layout.unflatten(settled.control)))
            if received.selection is not None:
                kept = torch.ones(layout.num_parameter_entries)
                for part, travels in received.selection.parts(layout, layout.num_parameter_entries):
                    kept[part] = 1.0 if travels is None else travels.float()
                hooks.append(masking_hook(layout.unflatten(kept)))
            if self.config.predictor_mode == "residual":
                residual = self.blueprint.split.predictor_parameters(model)
                zeros = {name: torch.zeros_like(parameter) for name, parameter in residual.items()}
                hooks.append(proximal_hook(zeros, self.config.predictor.shrinkage))
            parameters = _trainable(model)
            order = self._generator("batches", received.server_round, client)
            training_started = time.perf_counter()
            if method.head_first:
                encoder = self.blueprint.split.encoder_parameters(model)
                head = {name: p for name, p in parameters.items() if name not in encoder}
                parameters = {name: p for name, p in parameters.items() if name in encoder}
                # FedRep, algorithm 1. BatchNorm uses the batches' own statistics here too, and gathers them.
                self._train_epochs(model, head, data, settings.head_epochs, "head", received.server_round, client)
            result = train_(model, parameters, data.train, settings.settings(), generator=order, hooks=hooks)
            training_seconds = time.perf_counter() - training_started
            check_parts(model, self.blueprint.model)
            weights = layout.flatten(encoder_tensors(model, self.blueprint.split))
            private = self._private(model)
            hooks.clear()
            finite = all(map(all_finite, (weights, *model.parameters())))
            if not finite or not all(loss <= LARGEST_METRIC for loss in (arrival.loss, result.loss)):
                self._blame(client, data, arrival, result, trained=received.version > 0)
                raise DivergedError(
                    f"client {client} diverged in round {received.server_round} (loss {arrival.loss:g} on arrival, "
                    f"{result.loss:g} in training): lower training.learning_rate"
                    f"{' or control.damping' if method.controls else ''}"
                )
            give_back(layout.num_entries)
            budget = self.budget(client, budget)
            selection_started = time.perf_counter()
            update = weights - start
            del start
            choice = self._select(model, data, received, weights, update, settled, client, budget, result.num_steps)
            del weights
            selection_seconds = time.perf_counter() - selection_started
            report = TrainReport(
                num_examples=len(data.train),
                accuracy=arrival.accuracy,
                loss=arrival.loss,
                train_loss=result.loss,
                keep_ratio=choice.selection.keep_ratio(self.blueprint.layout),
                flops_ratio=self._flops_ratio(choice.selection),
                budget_kind=1 + BUDGET_KINDS.index(budget.kind) if budget else 0,
                budget_limit=budget.limit if budget else 0.0,
                validation_gain=choice.gain,
                training_seconds=training_seconds,
                selection_seconds=selection_seconds,
                decision_seconds=choice.decision_seconds,
                seconds=time.perf_counter() - started,
            )
            corrected = method.controls and received.control is not None
            raw = Update(
                received.server_round, received.version, choice.selection, choice.selection.take(update, layout),
                result.step_weight, corrected, report,
            )  # fmt: skip
            del update
            give_back(layout.num_entries)
            blob = self._packed(raw, budget, client)
            del raw

        pending = replace(settled, private=private, selector=choice.state)
        if corrected:
            assert received.control is not None
            # As the server will see it.
            sent = unpack_update(blob, layout, server_round=received.server_round, base_version=received.version)
            refreshed = refresh_control(
                settled.control, received.control, sent, self.blueprint.layout, damping=self.config.control.damping
            )
            pending = replace(pending, pending_round=received.server_round, pending_control=refreshed)
        return blob, pending

    def _blame(
        self, client: int, data: ClientData, arrival: Evaluation, result: TrainingResult, *, trained: bool
    ) -> None:
        """Raise where numbers left all bounds for another reason than the learning rate.

        `trained` says whether the weights that arrived are other than the initial ones.

        Raises:
            DataError: Images are not finite.
            ModelError: Finite images and weights make a loss that is not, before any step was taken.
        """
        for name, images in (("training", data.train.images), ("test", data.test.images)):
            fits = images.isfinite().flatten(1).all(1).cpu().numpy()
            if not fits.all():
                raise DataError(f"client {client}: its {name} images must be finite, got {misfits(fits)}")
        untrained = not trained and result.finite_steps == 0 and not math.isfinite(result.loss)
        if untrained and not math.isfinite(arrival.loss):
            where = "both in training mode and in eval mode"
        elif untrained and not self.config.row.head_first:  # whose head was trained before
            where = "in training mode, though not in eval mode: its normalisation may divide by a variance of 0"
        else:
            return
        raise ModelError(
            f"client {client}: the loss is {result.loss:g} on the first batch, before any step, {where}; images and "
            "weights are finite, so that it is the model's forward pass that makes it so, and no learning rate helps"
        )

    def evaluate(
        self, client: int, received: Model, state: ClientState | None, *, acknowledged_round: int
    ) -> tuple[EvaluateReport, ClientState]:
        """Evaluate a received encoder under the client's own predictor on its test split; arguments as of `train`."""
        with self._prepared(client, received, state, acknowledged_round) as (model, data, settled):
            result = self._evaluate(model, data, received.server_round + 1, client)
        report = EvaluateReport(num_examples=len(data.train), accuracy=result.accuracy, loss=result.loss)
        return report, settled

    def budget(self, client: int, own: Budget | None = None) -> Budget | None:
        """Return what a client may spend, or None where nothing is selected by budget.

        Args:
            client: The client's partition id.
            own: What the device itself says, which goes before the config.

        Raises:
            BudgetError: No selection meets the device's own budget.
        """
        if not self.config.row.selects or self.config.selection.selector == "all":
            return None
        if own is not None:
            check_budget(own, self.blueprint.costs, source=f"client {client}: the node's")
        return own or self.config.budget(client)

    def saliency(self, client: int) -> Tensor:
        """How much the client's loss depends on each channel of the initial encoder, float32 [C] (`selection.static`).

        For methods that agree on a mask before the first round.
        """
        with reproducible(self.config.training.threads), seeded_globals(self.config.seed, "layers", client=client):
            self._renew()
            parameters = self.blueprint.split.encoder_parameters(self._model)
            return channel_saliency(self._model, parameters, self.blueprint.layout, self._client_data(client).train)

    def num_examples(self, client: int) -> int:
        """The number of training examples of a client (n_i)."""
        return len(self._client_data(client).train)

    @contextmanager
    def _prepared(
        self, client: int, received: Model, state: ClientState | None, acknowledged_round: int
    ) -> Iterator[tuple[nn.Module, ClientData, ClientState]]:
        """The shared model instance, loaded for one client; nothing of another client is left in it."""
        settled = (state or ClientState.initial(self.blueprint.layout)).settle(
            acknowledged_round=acknowledged_round,
            server_round=received.server_round,
            half_life=self.config.control.half_life,
        )
        training = self.config.training
        seed = self.config.seed
        with (
            reproducible(training.threads),
            seeded_globals(seed, "layers", server_round=received.server_round, client=client),
        ):
            self._renew()
            train_mode_(self._model)
            load_encoder_(self._model, self.blueprint.split, self.blueprint.layout, received.encoder)
            if settled.private:
                self.blueprint.split.load_private_state_(self._model, settled.private)
            data = self._client_data(client)
            with calibrated(self._model, self._offset(data)):
                yield self._model, data, settled

    def _offset(self, data: ClientData) -> Tensor | None:
        """What a client adds to the logits of its classes, or None for a predictor without such an offset."""
        predictor = self.config.predictor
        if self.config.predictor_mode not in ("calibrated", "residual") or predictor.strength == 0:
            return None
        return class_offset(
            data.train.labels,
            num_classes=self.blueprint.dataset.num_classes,
            strength=predictor.strength,
            smoothing=predictor.smoothing,
        )

    def _renew(self) -> None:
        """Put the model instance back to the blueprint's; one that another client left in pieces is made anew."""
        try:
            restore_(self._model, self.blueprint.model)
        except ModelError:
            self._model = duplicate(self.blueprint.model).to(self.device)

    def _loaded(self, model: nn.Module, encoder: Tensor) -> Tensor:
        """float32 [N]: the encoder as the model holds it, which in half precision is a rounded one.

        Local training starts there, and an update is what training did.
        """
        tensors = encoder_tensors(model, self.blueprint.split)
        if all(tensors[name].dtype in (torch.float32, torch.float64) for name in self.blueprint.layout.shapes):
            return encoder
        return self.blueprint.layout.flatten(tensors)

    def _evaluate(self, model: nn.Module, data: ClientData, server_round: int, client: int) -> Evaluation:
        """Evaluate the model as it arrived for a round, or, for a method that fine-tunes, a little later."""
        training = self.config.training
        examples = data.test if self.config.report.split == "test" else data.validation
        arrived = duplicate(model) if self.config.row.fine_tunes else None
        if arrived is not None:
            epochs = training.finetune_epochs
            self._train_epochs(model, _trainable(model), data, epochs, "fine-tuning", server_round, client)
        if training.batch_norm == "local":
            recalibrate_(model, data.train, batch_size=training.batch_size)
        result = evaluate(model, examples, precision=training.precision)
        if arrived is not None:
            restore_(model, arrived)
        return result

    def _train_epochs(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        data: ClientData,
        epochs: int,
        purpose: str,
        server_round: int,
        client: int,
    ) -> None:
        """Train some parameters for so many epochs beside the round's own training, with batches of their own."""
        settings = replace(self.config.training.settings(), epochs=epochs, steps=None)
        train_(model, parameters, data.train, settings, generator=self._generator(purpose, server_round, client))

    def _select(
        self,
        model: nn.Module,
        data: ClientData,
        received: Model,
        weights: Tensor,
        update: Tensor,
        state: ClientState,
        client: int,
        budget: Budget | None,
        num_steps: int,
    ) -> Choice:
        if budget is None:
            return Choice(received.selection or select_all(self.blueprint.layout))
        request = SelectionRequest(
            model=model,
            weights=weights,
            update=update,
            costs=self.blueprint.costs,
            budget=budget,
            train=data.train,
            validation=data.validation,
            num_steps=num_steps,
            batch_size=self.config.training.batch_size,
            server_round=received.server_round,
            generator=self._generator("selection", received.server_round, client),
            state=state.selector,
        )
        return self._selector(request)

    def _packed(self, raw: Update, budget: Budget | None, client: int) -> bytes:
        """Pack an update."""
        limits = [self.blueprint.message_bytes]
        if budget is not None and budget.kind == "uplink_bytes":
            limits.append(int(budget.limit))
        return pack_update(
            raw,
            self.blueprint.layout,
            CODECS[self.config.wire.uplink],
            generator=self._generator("rounding", raw.server_round, client),
            max_bytes=min((limit for limit in limits if limit is not None), default=None),
        )

    def _private(self, model: nn.Module) -> dict[str, Tensor]:
        local = self.config.training.batch_norm == "local"
        return {n: t.cpu() for n, t in self.blueprint.split.private_state(model, statistics=local).items()}

    def _flops_ratio(self, selection: Selection) -> float:
        if not self.blueprint.layout.groups:
            return 1.0
        return self.blueprint.costs.flops.ratio(selection.counts(self.blueprint.layout))

    def _client_data(self, client: int) -> ClientData:
        if client not in self._data:
            data = self.blueprint.client_data(client)
            self._data[client] = ClientData(
                data.train.to(self.device), data.validation.to(self.device), data.test.to(self.device)
            )
        return self._data[client]

    def _generator(self, purpose: str, server_round: int, client: int) -> torch.Generator:
        return generator(self.config.seed, purpose, server_round=server_round, client=client)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have a gradient to step along, by name: a frozen one has none."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
