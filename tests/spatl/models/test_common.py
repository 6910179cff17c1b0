import pytest
import torch
from torch import nn

from spatl.models.common import initialise_, scaled


def initialised(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        initialise_(layer)
    return layer.weight.detach()


def test_convolutions_keep_the_variance_of_what_passes_a_relu() -> None:
    """Var(w) = 2 / fan_in, and fan_in = 16 channels * 3 * 3 = 144; 64 * 144 draws estimate it to about 1 %."""
    weight = initialised(nn.Conv2d(16, 64, 3))
    assert weight.var().item() == pytest.approx(2 / 144, rel=0.05)
    assert weight.abs().max().item() <= (6 / 144) ** 0.5


def test_a_grouped_convolution_counts_the_inputs_of_one_group() -> None:
    """Depthwise: fan_in = 1 * 3 * 3 = 9, whatever the number of channels."""
    weight = initialised(nn.Conv2d(1024, 1024, 3, groups=1024))
    assert weight.var().item() == pytest.approx(2 / 9, rel=0.05)


def test_linear_layers_have_a_third_of_one_over_fan_in() -> None:
    """Uniform in ±1/sqrt(f) has variance 1 / (3 f)."""
    weight = initialised(nn.Linear(100, 100))
    assert weight.var().item() == pytest.approx(1 / 300, rel=0.05)


def test_biases_start_at_zero() -> None:
    layers = nn.Conv2d(2, 3, 1), nn.Linear(2, 3)
    for layer in layers:
        initialised(layer)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_a_layer_without_bias_is_initialised_too() -> None:
    assert initialised(nn.Conv2d(2, 3, 1, bias=False)).any()


@pytest.mark.parametrize(("width", "expected"), [(1, 16), (0.5, 8), (1.5, 24), (0.1, 2), (0.001, 1)])
def test_the_width_multiplies_channels_and_leaves_at_least_one(width: float, expected: int) -> None:
    assert scaled(16, width) == expected
