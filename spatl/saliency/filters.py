"""Filters of a network: the parts of its weights that make one channel each.

A filter of a convolution is the slice of its weight that makes one output channel; of a linear layer it is a row; of a
normalisation layer its one scale. Biases belong to none. Filters are numbered through, layer by layer in the order of
the network's modules, whatever the network (Levin et al., arXiv 2108.01335).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spatl.errors import ModelError

CONVOLUTION: Final = "convolution"
LINEAR: Final = "linear"
NORMALISATION: Final = "normalisation"
KINDS: Final[Mapping[str, tuple[type[nn.Module], ...]]] = {
    CONVOLUTION: (_ConvNd,), LINEAR: (nn.Linear,), NORMALISATION: (_BatchNorm, nn.GroupNorm, nn.InstanceNorm2d),
}  # fmt: skip
"""Layers that have filters, by kind."""


@dataclass(frozen=True)
class FilterLayer:
    """Layer that has filters.

    Attributes:
        name: Of the module.
        kind: One of `KINDS`.
        start: Number of its first filter.
        num_filters: How many it has.
        groups: Of a transposed convolution, whose weight has output channels within groups; 0 for all others.
    """

    name: str
    kind: str
    start: int
    num_filters: int
    groups: int = 0

    @property
    def weight(self) -> str:
        """Name of the parameter."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def places(self) -> slice:
        """Numbers of its filters."""
        return slice(self.start, self.start + self.num_filters)

    def rows(self, weight: Tensor, leading: int = 0) -> Tensor:
        """Return a weight with one row a filter.

        Args:
            weight: `[..., *shape of the parameter]`, or its gradient.
            leading: The number of dimensions before those of the parameter.

        Returns:
            `[..., num_filters, values of a filter]`.
        """
        before = weight.shape[:leading]
        if not self.groups:
            return weight.reshape(*before, self.num_filters, -1)
        grouped = weight.reshape(
            *before, self.groups, -1, self.num_filters // self.groups, *weight.shape[leading + 2 :]
        )
        return grouped.movedim(leading + 2, leading + 1).reshape(*before, self.num_filters, -1)

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Return one value a filter at the place of every weight of it: what `rows` undoes.

        Args:
            values: `[num_filters]`.
            shape: Of the parameter.
        """
        rest = [1] * (len(shape) - 1)
        if not self.groups:
            return values.reshape(-1, *rest).expand(shape)
        grouped = values.reshape(self.groups, 1, -1, *rest[1:])
        return grouped.expand(self.groups, shape[0] // self.groups, *shape[1:]).reshape(shape)


@dataclass(frozen=True)
class Filters:
    """All filters of a network.

    Attributes:
        layers: In the network's order.
    """

    layers: tuple[FilterLayer, ...]

    @property
    def num_filters(self) -> int:
        """F."""
        return sum(layer.num_filters for layer in self.layers)

    @property
    def layer_of(self) -> Tensor:
        """int64 [F]: the place in `layers` of each filter's layer."""
        return torch.repeat_interleave(torch.tensor([layer.num_filters for layer in self.layers]))

    def absolute_means(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the mean absolute value of each filter, `[F]`.

        Args:
            gradients: By the name of the parameter.
        """
        return torch.cat([layer.rows(gradients[layer.weight]).abs().mean(-1) for layer in self.layers])

    def inner_products(self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Return the inner product of each filter's gradient with its weights, `[F]`; arguments by name."""
        return torch.cat(
            [(layer.rows(gradients[layer.weight]) * layer.rows(weights[layer.weight])).sum(-1) for layer in self.layers]
        )

    def find(self, number: int) -> tuple[str, int]:
        """Return the name of a filter's layer, and its place in it.

        Args:
            number: Of the filter, in [0, F).
        """
        layer = next(each for each in self.layers if each.start <= number < each.start + each.num_filters)
        return layer.name, number - layer.start


def filters_of(model: nn.Module, kinds: Sequence[str] = (CONVOLUTION,)) -> Filters:
    """Return the filters of a network; a weight that several layers share counts once.

    Args:
        model: Any network. A layer whose weight is no parameter of its own, as under a parametrisation, has no filters.
        kinds: Of layers, from `KINDS`.

    Raises:
        ModelError: There is no layer of these kinds, or no such kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ModelError(f"filters are of the kinds {', '.join(KINDS)}, got {unknown[0]!r}")
    layers, start, seen = list[FilterLayer](), 0, set[int]()
    for name, module in model.named_modules():
        kind = next((each for each in kinds if isinstance(module, KINDS[each])), None)
        weight = module._parameters.get("weight")
        if kind is None or weight is None or id(weight) in seen:
            continue
        seen.add(id(weight))
        transposed = isinstance(module, _ConvTransposeNd)
        groups = module.groups if isinstance(module, _ConvNd) and transposed else 0
        number = int(module.out_channels) if isinstance(module, _ConvNd) else int(weight.shape[0])
        layers.append(FilterLayer(name, kind, start, number, groups))
        start += number
    if not layers:
        raise ModelError(
            f"expected a network with a layer of the kind {' or '.join(kinds)}, got {type(model).__name__} without any"
        )
    return Filters(tuple(layers))


def main_filters(model: nn.Module) -> Filters:
    """Return the filters of a network's convolutions, or of its linear layers where it has none.

    Args:
        model: Any network.

    Raises:
        ModelError: It has neither.
    """
    has_convolutions = any(isinstance(each, KINDS[CONVOLUTION]) for each in model.modules())
    return filters_of(model, (CONVOLUTION if has_convolutions else LINEAR,))


def values_per_filter(filters: Filters, model: nn.Module) -> Tensor:
    """Return the number of weights of each filter, int64 [F]."""
    parameters = dict(model.named_parameters())
    return torch.cat(
        [
            torch.full((layer.num_filters,), parameters[layer.weight].numel() // layer.num_filters)
            for layer in filters.layers
        ]
    )


def layer_names(filters: Filters, chosen: Iterable[int]) -> list[str]:
    """Return how each filter is called in a text: its layer and its place, `layer1.0.conv1[3]`."""
    return [f"{name}[{place}]" for name, place in map(filters.find, chosen)]
