"""Standing of a client: how its classes, its accuracy and its profiles differ from those of the federation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from spatl.artifacts.description import read_description
from spatl.artifacts.model_files import read_model
from spatl.artifacts.names import MODEL
from spatl.data import Examples
from spatl.diagnosis.subject import Subject
from spatl.json_files import parse_object
from spatl.rounds.blueprint import Blueprint
from spatl.runs.files import SUMMARY
from spatl.runs.marks import read_marked
from spatl.saliency.filters import filters_of
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.profiles import Progress, profiles
from spatl.seeding import generator

MOST_CLIENTS: Final = 64
"""Clients that a client's profiles are compared with, at most; drawn by the run's seed where there are more."""
MOST_EACH: Final = 32
"""Validation examples of each client that are compared, at most."""


@dataclass(frozen=True)
class ClassCount:
    """Training examples of one class.

    Attributes:
        own: The client's.
        all: All clients'.
    """

    own: int
    all: int


@dataclass(frozen=True)
class LayerPlace:
    """Mean z of a client's profiles in one layer, beside those of the others.

    Attributes:
        layer: Name.
        own: The client's.
        lowest: Of the others.
        median: Of the others, the lower one of two.
        highest: Of the others.
    """

    layer: str
    own: float
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class Standing:
    """Standing of a client in its federation.

    Attributes:
        classes: By class.
        accuracy: On its test split after the last round, as the run has reported it; None where it has not.
        accuracy_mean: Over all clients.
        accuracy_lowest: Of any client.
        accuracy_highest: Of any client.
        rank: The client's place among all by accuracy, from 1, the best; equal ones share the best place.
        num_clients: Clients with an accuracy.
        layers: In the network's order; empty where there is nobody to compare with.
        num_compared: Other clients that the layers are compared over.
        by_own_model: Whether profiles are by the client's own model, as there is none of the federation alone.
    """

    classes: tuple[ClassCount, ...]
    accuracy: float | None
    accuracy_mean: float | None
    accuracy_lowest: float | None
    accuracy_highest: float | None
    rank: int | None
    num_clients: int
    layers: tuple[LayerPlace, ...]
    num_compared: int
    by_own_model: bool


def standing_of(subject: Subject, *, seed: int, progress: Progress) -> Standing | None:
    """Return how a client differs from its federation; None for the federation's model, and on a device.

    Args:
        subject: The client's model and data.
        seed: Draws whom it is compared with, and by which examples.
        progress: As of `profiles`.
    """
    client, blueprint = subject.client, subject.blueprint
    if client is None or blueprint is None:
        return None
    number = blueprint.config.partition.num_clients
    num_classes = blueprint.dataset.num_classes
    training = [blueprint.client_data(each).train.targets.bincount(minlength=num_classes) for each in range(number)]
    classes = tuple(
        ClassCount(own, everybody)
        for own, everybody in zip(training[client].tolist(), torch.stack(training).sum(0).tolist(), strict=True)
    )
    reported = {int(name): value for name, value in _reported(subject).items() if value is not None}
    own = reported.get(client)
    network, by_own_model = _common_network(subject)
    layers, num_compared = _layers(subject, blueprint, client, network, seed=seed, progress=progress)
    return Standing(
        classes=classes,
        accuracy=own,
        accuracy_mean=sum(reported.values()) / len(reported) if reported else None,
        accuracy_lowest=min(reported.values(), default=None),
        accuracy_highest=max(reported.values(), default=None),
        rank=None if own is None else 1 + sum(value > own for value in reported.values()),
        num_clients=len(reported),
        layers=layers,
        num_compared=num_compared,
        by_own_model=by_own_model,
    )


def _reported(subject: Subject) -> Mapping[str, float | None]:
    path = subject.run / SUMMARY
    found: Mapping[str, float | None] = (
        parse_object(path, read_marked(subject.run, SUMMARY)).get("clients", {}) if path.is_file() else {}
    )
    return found


def _common_network(subject: Subject) -> tuple[nn.Module, bool]:
    """Return the federation's network, without anybody's offset; the client's own where a part is each client's."""
    if read_description(subject.run / MODEL).lacks:
        return subject.network, True
    return read_model(subject.run).network.to(subject.device), False


def _layers(
    subject: Subject, blueprint: Blueprint, client: int, network: nn.Module, *, seed: int, progress: Progress
) -> tuple[tuple[LayerPlace, ...], int]:
    """Return the mean z of each layer, standardised over the examples of all who are compared; and how many others."""
    with_examples = [each for each, (_, validation, _) in enumerate(blueprint.split_sizes) if validation]
    others = [each for each in with_examples if each != client and client in with_examples]
    order = torch.randperm(len(others), generator=generator(seed, "explain/others"))[:MOST_CLIENTS].tolist()
    others = sorted(others[place] for place in order)
    if not others:
        return (), 0
    splits = {each: blueprint.client_data(each).validation for each in (client, *others)}
    parts = {each: split.drawn(MOST_EACH, seed, f"explain/client-{each}") for each, split in splits.items()}
    together = Examples.joined(list(parts.values())).to(subject.device)
    filters = filters_of(network)
    found = profiles(network, together, filters, progress=progress)
    z = standardised(found.absolute, Moments.of(found.absolute))
    means = [each.mean(0) for each in torch.split(z, [len(part) for part in parts.values()])]
    places = list[LayerPlace]()
    for layer in filters.layers:
        own, *rest = (float(each[layer.places].mean()) for each in means)
        places.append(LayerPlace(layer.name, own, min(rest), _lower_median(rest), max(rest)))
    return tuple(places), len(others)


def _lower_median(values: list[float]) -> float:
    return float(Tensor(values).double().median()) if values else 0.0
