"""Situations of the study of attacks: ten clients of the digits, two of whom may have poisoned data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import load_dataset, partition
from spatl.data.own import as_found
from spatl.seeding import numpy_generator

NUM_CLIENTS, NUM_BAD, NUM_CLASSES = 10, 2, 10
TARGET = 0
"""The class that the backdoor is to lead to."""
_CORNER = (..., slice(-2, None), slice(-2, None))
SMALL = {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}}
_WITH_STATISTICS = {"name": "resnet8", "options": {"width": 0.25}}


@dataclass(frozen=True)
class Situation:
    """A way of sharing the digits out.

    Attributes:
        deal: Returns the owner of each example, given the labels and the seed.
        settings: Sections of the config that are not the study's.
    """

    deal: Callable[[NDArray[np.int64], int], NDArray[np.int64]]
    settings: Mapping[str, Any]


def _dealt(labels: NDArray[np.int64], seed: int, **settings: Any) -> NDArray[np.int64]:
    parts = partition(
        torch.from_numpy(labels), num_clients=NUM_CLIENTS, seed=seed,
        **{"alpha": 0.5, "labels_per_client": None, "min_examples": 20, **settings},
    )  # fmt: skip
    owners = np.zeros(len(labels), dtype=np.int64)
    for client, part in enumerate(parts):
        owners[part.numpy()] = client
    return owners


def _by_size(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Owners of 7, 12, 20, ... 700 digits, in an order that is drawn."""
    draw = numpy_generator(seed, "sizes")
    shares = 100.0 ** (draw.permutation(NUM_CLIENTS) / (NUM_CLIENTS - 1))
    ends = np.ceil(np.cumsum(shares) / shares.sum() * len(labels))
    owners = np.empty(len(labels), dtype=np.int64)
    owners[draw.permutation(len(labels))] = np.searchsorted(ends, np.arange(len(labels)), side="right")
    return owners


SITUATIONS: dict[str, Situation] = {
    "iid": Situation(lambda labels, seed: _dealt(labels, seed, name="iid"), {}),
    "Dirichlet 0.3": Situation(lambda labels, seed: _dealt(labels, seed, name="dirichlet", alpha=0.3), {}),
    "one class each": Situation(lambda labels, seed: labels.copy(), {}),
    "sizes 1:100": Situation(_by_size, {}),
    "Dirichlet 0.3, four in a round": Situation(
        lambda labels, seed: _dealt(labels, seed, name="dirichlet", alpha=0.3), {"server": {"fraction_train": 0.4}}
    ),
    "FedAvg, one class each": Situation(lambda labels, seed: labels.copy(), {"method": "fedavg"}),
    "FedAvg, Dirichlet 0.3": Situation(
        lambda labels, seed: _dealt(labels, seed, name="dirichlet", alpha=0.3), {"method": "fedavg"}
    ),
    "shared BatchNorm": Situation(
        lambda labels, seed: _dealt(labels, seed, name="dirichlet", alpha=0.3),
        {"model": _WITH_STATISTICS, "training": {"batch_norm": "shared", "learning_rate": 0.1}},
    ),
}


def bad_clients(seed: int, number: int = NUM_BAD) -> tuple[int, ...]:
    """Return who cheats, drawn from the seed."""
    draw = numpy_generator(seed, "bad clients")
    return tuple(sorted(draw.choice(NUM_CLIENTS, number, replace=False).tolist()))


def write_shares(path: Path, situation: Situation, *, seed: int, bad: tuple[int, ...], poison: str = "") -> None:
    """Write the digits with their owners to a file for `npz`.

    Args:
        path: The file.
        situation: Who gets what.
        seed: Draws it.
        bad: Who cheats.
        poison: `"labels"` turns those of the bad around, `"backdoor"` marks half of their images with a bright corner
            and labels them `TARGET`; nothing otherwise.
    """
    with as_found():
        digits = load_dataset("digits", seed=seed, options={})
    images, labels = digits.inputs.numpy().copy(), digits.targets.numpy().copy()
    owners = situation.deal(labels, seed)
    of_bad = np.flatnonzero(np.isin(owners, bad))
    if poison == "labels":
        labels[of_bad] = NUM_CLASSES - 1 - labels[of_bad]
    elif poison == "backdoor":
        marked = of_bad[numpy_generator(seed, "backdoor").random(len(of_bad)) < 0.5]
        labels[marked] = TARGET
        corner = images[marked]
        corner[_CORNER] = images.max()
        images[marked] = corner
    np.savez(path, images=images, labels=labels, groups=owners)


def with_mark(images: Tensor, brightest: float) -> Tensor:
    """Return images `[B, C, H, W]` with the backdoor's mark."""
    marked = images.clone()
    marked[_CORNER] = brightest
    return marked


def config_of(
    situation: Situation, path: Path, server: Mapping[str, Any], *, seed: int, rounds: int
) -> ExperimentConfig:
    """Return the config of a federation on the shares in a file, under a rule."""
    values: dict[str, Any] = {"model": SMALL, **situation.settings}
    training = {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.04, "momentum": 0.9, "device": "cpu"}
    return parse_config(
        {
            **values,
            "seed": seed,
            "rounds": rounds,
            "data": {"name": "npz", "options": {"path": str(path)}},
            "partition": {"name": "natural", "num_clients": NUM_CLIENTS, "min_examples": 1},
            "training": {**training, **values.get("training", {})},
            "selection": {"selector": "update", "keep_ratio": 0.8} if values.get("method", "spatl") == "spatl" else {},
            "server": {**values.get("server", {}), **server},
            "report": {"split": "validation"},
        }
    )
