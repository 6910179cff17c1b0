"""Multilayer perceptron, for tables and for other numbers of any shape."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from spatl.errors import ModelError


class MLP(nn.Module):
    """Linear layers with ReLU between them, `layers`, and the last one, `classifier`.

    Args:
        num_classes: Width of the output.
        num_features: Numbers of one example.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, *, num_classes: int, num_features: int, hidden: Sequence[int] = (64, 32)) -> None:
        super().__init__()
        widths = [num_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs `[N, num_classes]` of inputs `[N, ...]`."""
        outputs: Tensor = self.classifier(self.layers(inputs.flatten(1)))
        return outputs


def mlp(*, num_classes: int, num_features: int, hidden: Sequence[int] = (64, 32)) -> MLP:
    """Return a multilayer perceptron.

    Raises:
        ModelError: A width is not a whole number of at least 1, or there is no hidden layer.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence) or not hidden:
        raise ModelError(f"model 'mlp': hidden must be a list of widths such as [64, 32], got {hidden!r:.60}")
    if wrong := [width for width in hidden if type(width) is not int or not 1 <= width <= 1 << 20]:
        raise ModelError(f"model 'mlp': the width of a layer must be a whole number from 1, got {wrong[0]!r:.60}")
    return MLP(num_classes=num_classes, num_features=num_features, hidden=hidden)
