"""Training of networks to choose channels of: one for all clients first, then each client's own local run from it.

That is the place an agent has in a federation: it sees an encoder that came from elsewhere, and what a client made of
it. Pooling the clients' training splits stands for the rounds before, at a fraction of their cost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.measurement import Trial, pruned_trial, sent_trial
from agents.selection_problem import Objective
from spatl.config.training import TrainingConfig
from spatl.data import ClientData, Examples
from spatl.errors import DivergedError
from spatl.models.copies import duplicate, restore_
from spatl.rounds.blueprint import Blueprint, encoder_tensors
from spatl.seeding import generator, seeded_globals
from spatl.selection.energy import update_energy
from spatl.selection.signal import channel_signal
from spatl.training.device import reproducible
from spatl.training.evaluate import recalibrate_
from spatl.training.local import train_

OnEpoch = Callable[[int], None]
_BATCH_SIZE = 64
_LEARNING_RATE = 0.05
_FINE = 0.1  # the last epochs' share of the learning rate


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Snapshot of a network: all its tensors by name, on the CPU."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        """Copy a network's parameters and buffers."""
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return cls({name: tensor.detach().cpu().clone() for name, tensor in named.items()})

    def load_(self, model: nn.Module) -> None:
        """Copy the tensors back, in place."""
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(self.tensors[name])


@dataclass(frozen=True, eq=False)
class Trained:
    """Network of a client after local training.

    Attributes:
        client: The client's partition id.
        received: float32 [N], the encoder before it (x).
        snapshot: The network after it (y_i with the client's head).
    """

    client: int
    received: Tensor
    snapshot: Snapshot


@dataclass(frozen=True, eq=False)
class Candidate:
    """Candidate for selections: a trained network; `model` holds its weights.

    Attributes:
        model: The network.
        weights: float32 [N], y_i.
        update: float32 [N], y_i - x.
        data: The client's splits.
        signal: float64 [C], `channel_signal` on the training split.
    """

    model: nn.Module
    weights: Tensor
    update: Tensor
    data: ClientData
    signal: Tensor


def pooled_training(
    blueprint: Blueprint, *, stages: Sequence[int], on_epoch: OnEpoch = lambda epoch: None
) -> Iterator[Snapshot]:
    """Train one network on all clients' training splits together.

    Args:
        blueprint: The federation: model, data, seed.
        stages: Numbers of epochs, ascending; a snapshot is taken after each. The last fifth of the last stage goes on
            with a tenth of the learning rate.
        on_epoch: Called with the number of epochs done.

    Yields:
        One snapshot per stage.
    """
    data = [blueprint.client_data(client).train for client in range(len(blueprint.partition))]
    pooled = Examples(torch.cat([each.images for each in data]), torch.cat([each.targets for each in data]))
    seed = blueprint.config.seed
    model = duplicate(blueprint.model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fine_from = stages[-1] - stages[-1] // 5
    with reproducible(blueprint.config.training.threads), seeded_globals(seed, "agent-layers"):
        for epoch in range(1, stages[-1] + 1):
            settings = TrainingConfig(
                local_epochs=1,
                batch_size=_BATCH_SIZE,
                learning_rate=_LEARNING_RATE * (_FINE if epoch > fine_from else 1),
                momentum=0.9,
                weight_decay=5e-4,
                nesterov=True,
            )
            order = generator(seed, "agent-pooled", server_round=epoch)
            train_(model, parameters, pooled, settings, generator=order)
            on_epoch(epoch)
            if epoch in stages:
                yield Snapshot.of(model)


def local_training(blueprint: Blueprint, start: Snapshot, clients: Sequence[int]) -> list[Trained]:
    """Let clients train from one network, as the config's `training` section says.

    Raises:
        DivergedError: A weight is no longer finite.
    """
    settings, seed = blueprint.config.training, blueprint.config.seed
    model = duplicate(blueprint.model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = []
    for client in clients:
        data = blueprint.client_data(client)
        with (
            reproducible(blueprint.config.training.threads),
            seeded_globals(seed, "agent-layers", client=client),
        ):
            restore_(model, blueprint.model)  # what is no tensor, too
            start.load_(model)
            received = blueprint.layout.flatten(encoder_tensors(model, blueprint.split))
            order = generator(seed, "agent-local", client=client)
            train_(model, parameters, data.train, settings, generator=order)
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise DivergedError(f"client {client} diverged in its local training: lower training.learning_rate")
        trained.append(Trained(client, received, Snapshot.of(model)))
    return trained


def candidate(blueprint: Blueprint, trained: Trained) -> Candidate:
    """Load a trained network and measure its channels."""
    model = duplicate(blueprint.model)
    trained.snapshot.load_(model)
    data = blueprint.client_data(trained.client)
    weights = blueprint.layout.flatten(encoder_tensors(model, blueprint.split))
    signal = channel_signal(model, blueprint.layout, blueprint.costs.trace.readers, data.train.images)
    return Candidate(model, weights, weights - trained.received, data, signal)


def worth_and_trial(
    blueprint: Blueprint, made: Candidate, examples: Examples, objective: Objective
) -> tuple[Tensor, Trial]:
    """Return the worth of the channels for an objective, and the trial that measures selections."""
    if objective == "pruned":
        return made.signal, pruned_trial(made.model, blueprint.costs.trace, examples)
    layout = blueprint.layout
    trial = sent_trial(made.model, layout, trained=made.weights, update=made.update, examples=examples)
    return update_energy(made.update, layout), trial


def recalibrated_copy(blueprint: Blueprint, made: Candidate, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with some weights replaced and its BatchNorm statistics re-estimated on the training split."""
    model = duplicate(made.model)
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    recalibrate_(model, made.data.train, batch_size=_BATCH_SIZE)
    return model
