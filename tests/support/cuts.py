"""Networks to cut, as if they were trained, and choices of their channels."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spatl.channels.prunable import Prunable, find_prunable
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.models import build_model
from spatl.selection.protocol import SelectionRequest
from tests.support.networks import BroadNet

NETWORKS = ("cnn", "resnet8", "resnet20", "resnet32", "resnet56", "vgg11", "mobilenet", "broad")
"""The built-in ones, and one of a user's own."""
SIZE = 8
EXAMPLE = torch.zeros(1, 1, SIZE, SIZE)
WIDTHS = {"resnet32": 0.5, "resnet56": 0.5, "vgg11": 0.25, "mobilenet": 0.5}


CHOICES = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def whatever_is_chosen(test: Callable[..., None]) -> Callable[..., None]:
    """A test of a network by `name` and of a choice of its channels, for `chosen`: by `seed` and `share`."""
    drawn = CHOICES(given(seed=st.integers(0, 2**31), share=st.floats(0.05, 0.95))(test))
    return pytest.mark.slow(pytest.mark.parametrize("name", NETWORKS)(drawn))


def settled(network: nn.Module) -> nn.Module:
    """A network in eval mode whose biases and BatchNorm statistics are not those of the start."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
        network.train()
        network(torch.randn(32, 1, SIZE, SIZE, generator=draws))
    return network.eval()


@cache
def dense(name: str) -> tuple[nn.Module, Prunable]:
    """A network by name, and what may be cut of it; shared by all who ask, so that nobody may change it."""
    if name == "broad":
        torch.manual_seed(0)
        network: nn.Module = BroadNet(num_classes=10, in_channels=1)
    else:
        options = {"width": WIDTHS[name]} if name in WIDTHS else {}
        network, _ = build_model(name, num_classes=10, in_channels=1, image_size=SIZE, options=options, seed=1)
    network = settled(network)
    return network, find_prunable(network, EXAMPLE)


def chosen(prunable: Prunable, seed: int, *, share: float = 0.5) -> Selection:
    """A random choice of channels, with all that must stay."""
    draws = torch.Generator().manual_seed(seed)
    mask = torch.rand(prunable.layout.num_channels, generator=draws) < share
    for group in prunable.layout.groups:
        mask[group.first + int(torch.randint(group.size, (), generator=draws))] = True
    worth = torch.rand(prunable.layout.num_channels, generator=draws, dtype=torch.float64)
    return prunable.completed(Selection(mask), worth)


def images(number: int = 16, seed: int = 3) -> Tensor:
    """Random images."""
    return torch.randn(number, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def examples(number: int = 48, seed: int = 4) -> Examples:
    """Random images with random labels."""
    draws = torch.Generator().manual_seed(seed)
    return Examples(images(number, seed), torch.randint(10, (number,), generator=draws))


def last_first(request: SelectionRequest) -> Tensor:
    """The worth of channels to a selector of a user's own, for whom the last of each group are best."""
    return torch.arange(request.costs.layout.num_channels, dtype=torch.float64)
