"""Data of clients: shares of one data set in a simulation, what lies on a device in a deployment."""

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from spatl.config.experiment import ExperimentConfig
from spatl.data import ClientData, Dataset, client_data, load_dataset, partition
from spatl.data.dataset import SPLITS
from spatl.data.labels import listed
from spatl.data.official import training_indices, with_official
from spatl.data.own import Description, as_found, describe, fit
from spatl.data.partition_file import read_partition
from spatl.data.partitioners import check_partition
from spatl.data.scaling import scaled_by_training, targets_scaled_by_training
from spatl.data.splits import split_places, taken
from spatl.errors import ConfigError, DataError
from spatl.tasks.targets import TASKS

OWN_IN_A_SIMULATION = (
    "partition.name: own is for devices that each have data of their own (spatl deploy); a simulation has one data set "
    "for all clients: take natural where it says whose its examples are, or dirichlet, iid"
)


def check_simulated(config: ExperimentConfig) -> None:
    """Raise where each client is a device with data of its own: what lies here is no client's, or one's alone.

    Raises:
        ConfigError: That is so.
    """
    if config.has_own_data:
        raise ConfigError(OWN_IN_A_SIMULATION)


def load_clients(config: ExperimentConfig) -> tuple[Dataset, tuple[Tensor, ...]]:
    """Return all examples, and the indices of each client's.

    Raises:
        DataError: The data set is not there, or cannot be partitioned like this.
    """
    if config.has_own_data:
        if config.data.agreed is None:
            raise ConfigError(OWN_IN_A_SIMULATION)
        dataset = fit(load_own(config), config.data.agreed.agreement())
        return dataset, (torch.arange(len(dataset)),) * config.partition.num_clients
    with contextlib.nullcontext() if config.data.normalisation == "dataset" else as_found():
        dataset = _loaded(config, config.data.options)
    if dataset.num_classes < 2 and TASKS[dataset.task].labels:  # of one device's own data this may be so
        raise DataError(
            f"data set {dataset.name!r}: expected two classes or more, got {dataset.class_names[0]!r} alone"
        )
    dealt = training_indices(dataset)
    check_partition(config.partition.name, dataset.task)
    untrained = _without_training(dataset, dealt) if config.partition.name == "natural" else ""
    try:
        parts = partition(
            dataset.strata()[dealt],
            name=config.partition.name,
            num_clients=config.partition.num_clients,
            seed=config.seed,
            alpha=config.partition.alpha,
            labels_per_client=config.partition.labels_per_client,
            min_examples=config.partition.min_examples,
            groups=None if dataset.groups is None else dataset.groups[dealt],
            path=config.partition.path,
        )
    except DataError as error:
        raise DataError(f"{error}; {untrained}") if untrained else error from None
    if untrained:
        dataset = replace(dataset, notes=(*dataset.notes, f"{dataset.name}: {untrained}"))
    if len(dealt) < len(dataset):
        parts = tuple(dealt[part] for part in parts)
    parts = with_official(
        dataset, parts, seed=config.seed, by_owner=config.partition.name == "natural",
        splits=[split for split in SPLITS[1:] if split not in kept_apart(config)],
    )  # fmt: skip
    scale = config.data.normalisation
    if scale != "dataset" or TASKS[dataset.task].is_scaled:
        training = [part[places[0]] for part, places in zip(parts, _places_of_all(config, dataset, parts), strict=True)]
        dataset = targets_scaled_by_training(dataset, training)
        dataset = dataset if scale == "dataset" else scaled_by_training(dataset, training, scale)
    return dataset, parts


def _without_training(dataset: Dataset, dealt: Tensor) -> str:
    """Return which owners of a data set have examples of other splits than `train` alone, in words; empty for none."""
    if dataset.groups is None:
        return ""
    owners = sorted({*dataset.groups.tolist()} - {*dataset.groups[dealt].tolist()})
    if not owners:
        return ""
    names = [dataset.group_names[owner] if dataset.group_names else str(owner) for owner in owners]
    return f"{len(owners)} owners have no training examples, and are no clients: {listed(names)}"


def owners_of(config: ExperimentConfig, dataset: Dataset, parts: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the name of each client's owner; none where nobody has named them.

    Args:
        config: The run.
        dataset: As `load_clients` returned it.
        parts: Likewise.

    Raises:
        DataError: The file of the partition has changed meanwhile.
    """
    name, path = config.partition.name, config.partition.path
    if name == "file" and path is not None:
        number = len(training_indices(dataset))
        return read_partition(path, num_examples=number, num_clients=len(parts)).names
    if name == "natural" and dataset.groups is not None and dataset.group_names:
        return tuple(dataset.group_names[int(dataset.groups[part[0]])] for part in parts)
    return ()


def remarks_on_splits(sizes: Sequence[tuple[int, int, int]], owners: Sequence[str]) -> list[str]:
    """Return what a user should know of clients that lack a split, a line each.

    Args:
        sizes: Training, validation and test examples of each client.
        owners: Their owners' names; none where they have none.
    """

    def those(place: int) -> list[str]:
        lacking = [client for client, each in enumerate(sizes) if not each[place]]
        return [f"{client} ({owners[client]})" if owners else str(client) for client in lacking]

    told = []
    if untested := those(2):
        told.append(
            f"{len(untested)} of {len(sizes)} clients have no test examples and count in no accuracy: "
            f"{listed(untested)}"
        )
    if blind := those(1):
        told.append(
            f"{len(blind)} of {len(sizes)} clients have no validation examples, so that what they choose rests on no "
            f"measurement: {listed(blind)}"
        )
    return told


def kept_apart(config: ExperimentConfig) -> tuple[str, ...]:
    """Return the splits that a data set was published with and of which no client gets any."""
    return ("test",) if config.data.official_test == "apart" and not config.has_own_data else ()


def places_of(config: ExperimentConfig, dataset: Dataset, indices: Tensor, client: int) -> tuple[Tensor, ...]:
    """Return the places of a client's training, validation and test examples among its own.

    Raises:
        DataError: There are too few.
    """
    return _drawn_once(dataset, indices, client, _division(config))


def _places_of_all(config: ExperimentConfig, dataset: Dataset, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield what `places_of` returns of each client."""
    division = _division(config)
    return (_drawn_once(dataset, part, client, division) for client, part in enumerate(parts))


def _drawn_once(dataset: Dataset, indices: Tensor, client: int, division: Mapping[str, Any]) -> tuple[Tensor, ...]:
    key = client, tuple(division.values())
    known = _PLACES.get(indices)
    if known is None or known[0] != key:
        known = _PLACES[indices] = key, split_places(dataset, indices, client=client, **division)
    return known[1]


_PLACES: MutableMapping[Tensor, tuple[tuple[object, ...], tuple[Tensor, ...]]] = WeakIdKeyDictionary()
"""Places by the indices that they are of: all that asks for a client's draws them once in a process."""


def sizes_of(config: ExperimentConfig, dataset: Dataset, parts: Sequence[Tensor]) -> Iterator[tuple[int, int, int]]:
    """Yield the training, validation and test examples of each client."""
    for places in _places_of_all(config, dataset, parts):
        train, validation, test = map(len, places)
        yield train, validation, test


def _division(config: ExperimentConfig) -> dict[str, Any]:
    """Return by what each client's examples are divided, as `split_places` takes it."""
    return {
        "seed": config.seed, "validation_fraction": config.data.validation_fraction,
        "test_fraction": config.data.test_fraction, "apart": kept_apart(config),
    }  # fmt: skip


def load_as_found(config: ExperimentConfig, *, path: str | None = None) -> Dataset:
    """Return the data set of a config, its values as they lie on disk.

    Args:
        config: The run.
        path: Where it is read from instead, if that is given.

    Raises:
        DataError: It is not there, or cannot be read.
    """
    options = config.data.options if path is None else {**config.data.options, "path": path}
    with as_found():
        return _loaded(config, options)


def _loaded(config: ExperimentConfig, options: Mapping[str, Any]) -> Dataset:
    """Return the data set of a config, given its options."""
    return load_dataset(
        config.data.name, seed=config.seed, options=options, task=config.task.name, num_tokens=config.data.num_tokens
    )


def load_own(config: ExperimentConfig) -> Dataset:
    """Return the data that lie on this device, as found: their values are not scaled yet.

    Raises:
        DataError: They are not there, or too few.
    """
    dataset = load_as_found(config)
    if len(dataset) < config.partition.min_examples:
        raise DataError(
            f"{len(dataset)} examples lie here, expected at least {config.partition.min_examples} "
            "(partition.min_examples)"
        )
    return dataset


def describe_own(config: ExperimentConfig, client: int) -> Description:
    """Return what a device tells of its data before the clients agree on a model and a scale.

    Raises:
        DataError: The data are not there, too few, or none that anybody could agree upon.
    """
    dataset = load_own(config)
    data = client_data(dataset, torch.arange(len(dataset)), client=client, **_division(config))
    scale = None if config.data.normalisation == "dataset" else config.data.normalisation
    # By the same rules as the server's.
    described = describe(dataset, data.train.inputs, scale, targets=data.train.targets)
    return Description.from_bytes(described.to_bytes())


def data_digest(config: ExperimentConfig) -> bytes:
    """Return a digest of the data set that lies here, of which clients get shares (SHA-256).

    Of the values as found, so that it depends on no library but those that decode images.

    Raises:
        DataError: It is not there.
    """
    return load_as_found(config).digest()


def split_client(config: ExperimentConfig, dataset: Dataset, parts: Sequence[Tensor], client: int) -> ClientData:
    """Return the splits of one client, given what `load_clients` returned.

    Raises:
        DataError: The client has too few examples to split.
    """
    noise_variance = config.partition.feature_noise * (client + 1) / len(parts)
    places = places_of(config, dataset, parts[client], client)
    return taken(dataset, parts[client], places, client=client, seed=config.seed, noise_variance=noise_variance)
