"""Workplace of a process: one model instance on one device, and the data of the clients that train on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget
from spatl.config.experiment import ExperimentConfig
from spatl.config.training import TrainingConfig
from spatl.data import ClientData, Examples
from spatl.errors import ModelError
from spatl.extensions.references import is_reference
from spatl.models.copies import duplicate, restore_
from spatl.models.frozen import train_mode_
from spatl.rounds.blueprint import Blueprint, check_client_budget, load_encoder_
from spatl.rounds.client_data import places_of
from spatl.rounds.client_state import ClientState
from spatl.rounds.offsets import check_of
from spatl.seeding import generator, seeded_globals
from spatl.selection.common_mask import channel_saliency
from spatl.selection.selectors import SELECTORS, make_selector
from spatl.tensors.inputs import NamedInputs
from spatl.training.calibration import calibrated, target_offset
from spatl.training.device import channels_last, check_channels_last, choose_device, reproducible
from spatl.wire.download import Model

CLIENTS_BYTES: Final = 1 << 26
"""Bytes of the clients' splits that are kept in memory beside the data set that they are copied from."""


class Workplace:
    """One model instance on one device, and the data of the clients that train on it, shared by all of a process.

    Args:
        blueprint: The federation.

    Attributes:
        blueprint: The same.
        device: Where the model and the data lie.
        model: The model instance, as the last client left it.
        data: The splits of the clients that have worked here last; of all of them on a GPU.
        selector: What chooses the channels that travel.
        narrows: Whether it is asked though the budget pays for everything.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.device = choose_device(self.config.training.device)
        # Only where it is used: the agent reads its policy's file.
        name, agent = self.config.selection.selector if self.config.row.selects else "all", self.config.agent
        if self.config.trains_parts:  # nothing is sent yet that could be measured
            agent = agent.model_copy(update={"reward": "pruned"})
        self.selector = make_selector(name, agent)
        self.narrows = is_reference(name) or SELECTORS[name].narrows
        self.model = self._new_instance()
        self._instances = [self.model]  # that nobody works on; of a group that trains together, each has its own
        self.data: dict[int, ClientData] = {}
        self._num_bytes = 0

    @property
    def config(self) -> ExperimentConfig:
        """The run's config."""
        return self.blueprint.config

    @cached_property
    def initial_check(self) -> bytes:
        """Check of the initial encoder, the same for all clients of a process."""
        return check_of(self.blueprint.initial_encoder())

    def num_examples(self, client: int) -> int:
        """The number of training examples of a client (n_i)."""
        blueprint = self.blueprint
        return len(places_of(blueprint.config, blueprint.dataset, blueprint.partition[client], client)[0])

    def client_data(self, client: int) -> ClientData:
        """The splits of a client, on the device."""
        if client not in self.data:
            data = self.blueprint.client_data(client)
            self.data[client] = ClientData(*map(self._placed, (data.train, data.validation, data.test)))
            self._num_bytes += self.data[client].nbytes
            while self._num_bytes > CLIENTS_BYTES and len(self.data) > 1 and self.device.type == "cpu":
                self._num_bytes -= self.data.pop(next(iter(self.data))).nbytes
        return self.data[client]

    def _placed(self, examples: Examples) -> Examples:
        """Examples on the device, images in memory as the config says."""
        there = examples.to(self.device)
        if self.config.training.memory_format != "channels-last":
            return there
        inputs = there.inputs
        laid_out = inputs.each(channels_last) if isinstance(inputs, NamedInputs) else channels_last(inputs)
        return Examples(laid_out, there.targets)

    def budget(self, client: int, own: Budget | None = None) -> Budget | None:
        """Return what a client may spend, or None where nothing is selected by budget.

        Args:
            client: The client's partition id.
            own: What the device itself says, which goes before the config.

        Raises:
            BudgetError: No selection meets the device's own budget.
        """
        if not self.config.chooses_channels:
            return None
        if own is not None:
            check_client_budget(self.blueprint, own, source=f"client {client}: the node's")
        return own or self.config.budget(client)

    def saliency(self, client: int) -> Tensor:
        """Return how much the client's loss depends on each channel of the initial encoder, float32 [C].

        For methods that agree on a mask before the first round (`spatl.selection.common_mask`).
        """
        with reproducible(self.config.training.threads), seeded_globals(self.config.seed, "layers", client=client):
            model = self._taken()
            self._instances.append(model)
            parameters = self.blueprint.split.encoder_parameters(model)
            data = self.client_data(client).train
            return channel_saliency(model, parameters, self.blueprint.layout, data, task=self.blueprint.task)

    @contextmanager
    def prepared(
        self, client: int, received: Model, state: ClientState, *, own_budget: Budget | None = None,
        with_offset: bool = True,
    ) -> Iterator["ClientRound"]:  # fmt: skip
        """A model instance, loaded for one client's round; nothing of another client is left in it.

        Args:
            client: The client's partition id.
            received: The server's model.
            state: The client's state, settled for this round.
            own_budget: The device's own budget; the config's if not given.
            with_offset: Whether the model adds the client's offset to the logits, where it has one.

        Raises:
            BudgetError: No selection meets the device's own budget.
        """
        budget = self.budget(client, own_budget)
        with (
            reproducible(self.config.training.threads),
            seeded_globals(self.config.seed, "layers", server_round=received.server_round, client=client),
        ):
            model = self._taken()
            try:
                train_mode_(model)
                load_encoder_(model, self.blueprint.layout, received.start())
                if state.private:
                    self.blueprint.split.load_private_state_(model, state.private)
                data = self.client_data(client)
                with calibrated(model, self.offset(data) if with_offset else None):
                    yield ClientRound(self, client, model, data, received, state, budget)
            finally:
                self._instances.append(model)

    def offset(self, data: ClientData) -> Tensor | None:
        """Return what a client adds to the logits of its classes, or None for a predictor without such an offset."""
        predictor = self.config.predictor
        if not self.config.predictor_row.offset or predictor.strength == 0:
            return None
        return target_offset(
            self.blueprint.task.name,
            data.train.targets,
            num_classes=self.blueprint.dataset.num_classes,
            strength=predictor.strength,
            smoothing=predictor.smoothing,
        )

    def _taken(self) -> nn.Module:
        """Take an instance and put it back to the blueprint's; one that a client left in pieces is made anew."""
        self.model = self._instances.pop() if self._instances else self._new_instance()
        try:
            restore_(self.model, self.blueprint.model)
        except ModelError:
            self.model = self._new_instance()
        return self.model

    def _new_instance(self) -> nn.Module:
        """A model instance of its own, on the device, its filters in memory as the config says."""
        model = duplicate(self.blueprint.model).to(self.device)
        if self.config.training.memory_format == "channels-last":
            check_channels_last(model, self.device)
            for parameter in model.parameters():
                parameter.data = channels_last(parameter.data)
        return model


@dataclass(frozen=True, eq=False)
class ClientRound:
    """One client's round: the model loaded for it, and all that the steps of the round read.

    Attributes:
        workplace: Where it takes place.
        client: The client's partition id.
        model: The model instance, with the received encoder and the client's own part.
        data: The client's splits, on the model's device.
        received: The server's model.
        state: The client's state, settled for this round.
        budget: What the client may spend; None where nothing is selected by budget.
    """

    workplace: Workplace
    client: int
    model: nn.Module
    data: ClientData
    received: Model
    state: ClientState
    budget: Budget | None

    @property
    def blueprint(self) -> Blueprint:
        """The federation."""
        return self.workplace.blueprint

    @property
    def training(self) -> TrainingConfig:
        """Local training of the client in this round."""
        return self.blueprint.config.training_of(self.client, self.received.server_round)

    def rounded_start(self) -> Tensor | None:
        """float32 [N]: the encoder as a model in half precision holds it; None where it is the one that arrived.

        Local training starts there, and an update is what training did.
        """
        tensors = self.blueprint.layout.tensors_of(self.model)
        if all(tensors[name].dtype in (torch.float32, torch.float64) for name in self.blueprint.layout.shapes):
            return None
        return self.blueprint.layout.flatten(tensors)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters of the model that have a gradient to step along, by name."""
        return trainable(self.model)

    def generator(self, purpose: str, server_round: int | None = None) -> torch.Generator:
        """The random numbers of this client for one purpose, in this round or another one."""
        server_round = self.received.server_round if server_round is None else server_round
        return generator(self.blueprint.config.seed, purpose, server_round=server_round, client=self.client)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that have a gradient to step along, by name: a frozen one has none."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
