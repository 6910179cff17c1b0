"""Examples that stand in for data that lie elsewhere: random inputs of the shape that devices have agreed on."""

import torch

from spatl.config.experiment import ExperimentConfig
from spatl.data import Dataset
from spatl.errors import ConfigError
from spatl.rounds.client_data import OWN_IN_A_SIMULATION
from spatl.seeding import generator
from spatl.tasks.targets import TASKS
from spatl.tensors.inputs import Inputs


def stand_in(config: ExperimentConfig, number: int | None = None) -> Dataset:
    """Return random inputs of the shape and the outputs that were agreed upon: so many, or a batch.

    Raises:
        ConfigError: Nothing was agreed upon, as in a simulation.
    """
    agreed = config.data.agreed
    if agreed is None:
        raise ConfigError(OWN_IN_A_SIMULATION)
    number = max(2, config.training.batch_size) if number is None else number
    draws, sides = generator(config.seed, "stand-in"), (number, *agreed.shape)
    if agreed.num_tokens:
        inputs = torch.randint(agreed.num_tokens, sides, generator=draws)
    else:
        inputs = torch.rand(sides, generator=draws) * 2 - 1
    targets = torch.arange(number) % len(agreed.classes)
    row = TASKS[config.task.name]
    if row.by_place:
        targets = targets[:, None].repeat(1, agreed.shape[0])
    elif not row.labels:
        targets = torch.nn.functional.one_hot(targets, len(agreed.classes)).float()
    return Dataset(
        config.data.name, inputs, targets, num_classes=len(agreed.classes), class_names=agreed.classes,
        normalisation=agreed.agreement().normalisation, num_tokens=agreed.num_tokens or None, task=config.task.name,
        target_scale=agreed.agreement().target_scale,
    )  # fmt: skip


def example_of(config: ExperimentConfig, dataset: Dataset) -> Inputs:
    """Return one input: the same on all sides, so that nothing that is built depends on what lies on one of them."""
    return (stand_in(config, 1) if config.has_own_data else dataset).inputs[:1]
