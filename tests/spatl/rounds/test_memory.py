"""Memory of a run, estimated without its network: of as many numbers as the network has and its layers give."""

import inspect

import pytest
import torch

from spatl.config.sections import ModelConfig
from spatl.errors import NotAllowed
from spatl.models import MODELS
from spatl.rounds.client_data import load_clients
from spatl.rounds.memory import check_memory
from tests.support.federations import tiny_config

DATA = {"name": "synthetic", "options": {"num_examples": 60, "image_size": 16}}


def passed(model, inputs):
    """How many numbers each layer gives for one example, by a pass of its own."""
    numbers = list[int]()
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: numbers.append(output.numel() // len(output)))
    with torch.no_grad():
        model(inputs)
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_is_that_of_the_network_as_it_is_built_and_run(name):
    """12 copies of its numbers, and three times what the layers give for a batch, or one of them for all examples.

    Each number has four bytes; the data are there twice.
    """
    config = tiny_config(method="fedavg", data=DATA, partition={"num_clients": 2}).model_copy(
        update={"model": ModelConfig(name=name)}
    )
    dataset, _ = load_clients(config)
    channels, side, _ = dataset.inputs[0].shape
    sizes = {"num_classes": 10, "in_channels": channels, "image_size": side, "num_features": channels * side**2}
    taken = inspect.signature(MODELS[name].factory).parameters
    model = MODELS[name].factory(**{key: size for key, size in sizes.items() if key in taken})
    numbers = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    given = passed(model, dataset.inputs[:2])
    passes = max(3 * sum(given) * config.training.batch_size, 3 * max(given) * 60)
    expected = 2 * dataset.inputs.nbytes + 4 * (12 * numbers + passes)
    check_memory(config, dataset, expected)
    with pytest.raises(NotAllowed, match=r"limits\.memory_megabytes"):
        check_memory(config, dataset, expected - 1)
