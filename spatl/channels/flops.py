"""Multiply-accumulates of an encoder as a function of how many channels each of its layers keeps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn

from spatl.errors import ModelError, told
from spatl.tensors.inputs import Inputs, shapes_of

OUTPUT_IN_DIMENSION_1 = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding)
"""Layers whose weight has its output channels along dimension 1 instead of 0."""
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers whose multiply-accumulates are counted, and whose inputs are read channel by channel."""
_MOST_PIECES = 2**20  # beyond it sums are not exact any more, as no network's were seen to be


@dataclass(frozen=True, eq=False)
class FlopsModel:
    """Multiply-accumulates of the encoder as a function of how many channels of each group are kept.

    A layer costs `share of its outputs kept * share of its inputs kept` of its whole; both are linear in the counts.
    All numbers are whole ones, so that sums are exact: the ratio of everything is 1, and a budget can name any ratio.

    Attributes:
        macs: float64 [L], of each convolution and linear layer of the encoder, whole, for one example.
        sizes: float64 [G], how many channels each group has.
        outputs: float64 [L, G], how many parts of a layer's outputs one channel of a group carries.
        inputs: float64 [L, G], likewise for its inputs.
        fixed_outputs: float64 [L], how many parts of the outputs belong to no group and always stay.
        fixed_inputs: float64 [L], likewise for its inputs (the image).
        prices: float64 [L], what one part of the outputs costs with one part of the inputs; the unit is the same for
            all layers.
    """

    macs: Tensor
    sizes: Tensor
    outputs: Tensor
    inputs: Tensor
    fixed_outputs: Tensor
    fixed_inputs: Tensor
    prices: Tensor

    def ratio(self, counts: Tensor) -> float:
        """The share of the encoder's multiply-accumulates left when `counts` [G] channels of each group stay."""
        if self.macs.numel() == 0 or torch.equal(counts.to(torch.float64), self.sizes):
            return 1.0
        return min(1.0, self._price(counts) / self._whole)

    def marginal(self, counts: Tensor) -> Tensor:
        """float64 [G]: the share of the encoder's multiply-accumulates that one channel of a group adds at `counts`."""
        if self.macs.numel() == 0:
            return torch.zeros(counts.numel(), dtype=torch.float64)
        outputs, inputs = self._kept(counts)
        return ((self.prices * inputs) @ self.outputs + (self.prices * outputs) @ self.inputs) / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._price(self.sizes)

    def _price(self, counts: Tensor) -> float:
        outputs, inputs = self._kept(counts)
        return float((self.prices * outputs * inputs).sum())

    def _kept(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        kept = counts.to(torch.float64)
        return self.outputs @ kept + self.fixed_outputs, self.inputs @ kept + self.fixed_inputs


def whole_flops_model(
    macs: Sequence[int], sizes: Tensor, outputs: Tensor, inputs: Tensor, widths: Tensor
) -> FlopsModel:
    """Choose parts and unit so that every number of the model is a whole one.

    Args:
        macs: Of each layer.
        sizes: int64 [G], how many channels each group has.
        outputs: int64 [L, G], how many of a layer's outputs belong to each group.
        inputs: int64 [L, G], likewise for its inputs.
        widths: int64 [2, L], how many outputs and inputs each layer has.
    """
    prices = [Fraction(number) for number in macs]
    parts: list[Tensor] = []
    for matrix, width in zip((outputs, inputs), widths, strict=True):
        # A channel carries as many parts as any other of its group, be it that a layer reads only some of them.
        pieces = [math.lcm(*row) for row in (sizes // torch.gcd(matrix, sizes)).tolist()]
        pieces = [number if number <= _MOST_PIECES else 1 for number in pieces]
        scale = torch.tensor(pieces, dtype=torch.float64)
        parts += [matrix * scale[:, None] / sizes, (width - matrix.sum(1)).clamp(min=0) * scale]
        prices = [price / (number * each) for price, number, each in zip(prices, width.tolist(), pieces, strict=True)]
    unit = math.lcm(*(price.denominator for price in prices))
    unit = unit if unit <= _MOST_PIECES else 1
    return FlopsModel(
        macs=torch.tensor(macs, dtype=torch.float64),
        sizes=sizes.to(torch.float64),
        outputs=parts[0],
        inputs=parts[2],
        fixed_outputs=parts[1],
        fixed_inputs=parts[3],
        prices=torch.tensor([float(price * unit) for price in prices], dtype=torch.float64),
    )


def measure_macs(network: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-accumulates per example of every convolution and linear layer, by layer name, in the model's order."""
    macs: dict[str, int] = {}
    with _output_hooks(network, macs), torch.no_grad():
        try:
            network(example)
        except Exception as error:
            raise ModelError(f"the model fails on an input of {shapes_of(example)}: {told(error)}") from error
    return {name: macs[name] for name, _ in network.named_modules() if name in macs}


@contextmanager
def _output_hooks(network: nn.Module, macs: dict[str, int]) -> Iterator[None]:
    def record(name: str, module: nn.Module, images: Tensor, output: Tensor) -> None:
        num_outputs, num_inputs = layer_widths(module)
        num_weights: int = module.weight.numel()  # type: ignore[operator]  # layers have one
        if isinstance(module, OUTPUT_IN_DIMENSION_1):  # every input position is spread by the kernel
            count = images[0].numel() * num_weights // num_inputs
        else:
            count = output[0].numel() * num_weights // num_outputs
        macs[name] = macs.get(name, 0) + count

    handles = [
        module.register_forward_hook(lambda m, images, output, name=name: record(name, m, images[0], output))
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_widths(layer: nn.Module) -> tuple[int, int]:
    """Number of output and input channels of a convolution or linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return layer.out_channels, layer.in_channels
