"""Cases that are measured: networks on the digits, methods, and how long each client trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config

MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "cnn": {
        "model": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
        "training": {"local_epochs": 2, "batch_size": 8},
    },
    "resnet8": {"model": {"name": "resnet8"}, "training": {"local_epochs": 2, "batch_size": 32}},
    "resnet20": {"model": {"name": "resnet20"}, "training": {"local_epochs": 1, "batch_size": 32}},
    "vgg11": {"model": {"name": "vgg11"}, "training": {"local_epochs": 1, "batch_size": 32}},
}
"""Networks and their local training, by name."""

METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fedavg": {"method": "fedavg"},
    "spatl-update": {"method": "spatl", "selection": {"selector": "update"}},
    "spatl": {"method": "spatl"},
}
"""What the server and its clients do, by name: `spatl-update` is SPATL with a selector that measures nothing."""

QUICK: Final = (("cnn", "fedavg"), ("cnn", "spatl-update"), ("cnn", "spatl"), ("resnet8", "fedavg"))
"""What is measured where nothing is said; it takes about a minute."""

QUICK_CLIENTS: Final = (10, 100)
FULL_CLIENTS: Final = (10, 100, 1_000, 10_000)
"""Numbers of clients, of which one in a hundred takes part, ten at least."""

_IMAGES_A_CLIENT: Final = 10


@dataclass(frozen=True)
class Case:
    """Case: a network and a method.

    Attributes:
        model: A key of `MODELS`.
        method: A key of `METHODS`.
        num_clients: All of them take part.
        memory_format: As of `training.memory_format`.
        group_size: As of `training.group_size`.
    """

    model: str
    method: str
    num_clients: int = 20
    memory_format: str = "contiguous"
    group_size: int = 1

    def config(self, rounds: int) -> ExperimentConfig:
        """Return the config of so many rounds."""
        own = MODELS[self.model]
        training = {
            **own["training"], "device": "cpu", "threads": 1, "memory_format": self.memory_format,
            "group_size": self.group_size,
        }  # fmt: skip
        return parse_config({
            "seed": 1, "rounds": rounds, "data": {"name": "digits"},
            "partition": {"num_clients": self.num_clients, "alpha": 0.5},
            "model": own["model"], **METHODS[self.method], "training": training,
        })  # fmt: skip


def many_clients(num_clients: int, *, rounds: int, method: str = "fedavg") -> ExperimentConfig:
    """Return the config of a federation of many clients with few small images each, of which few take part."""
    return parse_config({
        "seed": 1, "rounds": rounds, **METHODS[method],
        "data": {"name": "synthetic", "options": {"num_examples": _IMAGES_A_CLIENT * num_clients, "image_size": 8}},
        "partition": {"name": "iid", "num_clients": num_clients},
        "model": {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}},
        "training": {"local_epochs": 1, "batch_size": 8, "device": "cpu", "threads": 1},
        "server": {"fraction_train": max(10, num_clients // 100) / num_clients},
    })  # fmt: skip
