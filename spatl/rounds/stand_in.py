"""Examples that stand in for data that lie elsewhere: random inputs of the shape that devices have agreed on."""

import torch
from torch import Tensor

from spatl.config.experiment import ExperimentConfig
from spatl.data import Dataset
from spatl.errors import ConfigError
from spatl.rounds.client_data import OWN_IN_A_SIMULATION
from spatl.seeding import generator
from spatl.tasks.targets import TASKS


def stand_in(config: ExperimentConfig, number: int | None = None) -> Dataset:
    """Return random inputs of the shape and the outputs that were agreed upon: so many, or a batch.

    Raises:
        ConfigError: Nothing was agreed upon, as in a simulation.
    """
    agreed = config.data.agreed
    if agreed is None:
        raise ConfigError(OWN_IN_A_SIMULATION)
    number = max(2, config.training.batch_size) if number is None else number
    inputs = torch.rand((number, *agreed.shape), generator=generator(config.seed, "stand-in")) * 2 - 1
    return Dataset(
        config.data.name, inputs, _targets(config, number, len(agreed.classes)), num_classes=len(agreed.classes),
        class_names=agreed.classes, normalisation=agreed.agreement().normalisation, task=config.task.name,
    )  # fmt: skip


def _targets(config: ExperimentConfig, number: int, num_outputs: int) -> Tensor:
    classes = torch.arange(number) % num_outputs
    if TASKS[config.task.name].labels:
        return classes
    return torch.nn.functional.one_hot(classes, num_outputs).float()
