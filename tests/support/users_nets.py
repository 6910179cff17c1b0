"""Networks as users write them, each with one thing that a federation must notice or put up with; predictor `head`."""

import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class PlainNet(nn.Module):
    """A convolution, a normalisation layer, dropout and a linear layer: what the others are made of."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.mix = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def features(self, images: Tensor) -> Tensor:
        features = self.drop(self.norm(self.conv(images)).relu())
        return self.mix(features).relu().mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def _with_known_statistics(network: Any) -> Any:
    with torch.no_grad():
        network.norm.running_mean.fill_(0.25)
        network.norm.running_var.fill_(4.0)
    return network


def norm_in_eval_mode(**sizes: int) -> nn.Module:
    network = _with_known_statistics(PlainNet(**sizes))
    network.norm.eval()
    return network


def dropout_in_eval_mode(**sizes: int) -> nn.Module:
    network = PlainNet(**sizes)
    network.drop.eval()
    return network


def norm_without_gradients(**sizes: int) -> nn.Module:
    network = _with_known_statistics(PlainNet(**sizes))
    network.norm.requires_grad_(False)
    return network


def norm_of_momentum_zero(**sizes: int) -> nn.Module:
    network = _with_known_statistics(PlainNet(**sizes))
    network.norm.momentum = 0.0
    return network


class _KeepsNormInEval(PlainNet):
    def train(self, mode: bool = True) -> "_KeepsNormInEval":
        super().train(mode)
        self.norm.eval()
        return self


def norm_kept_in_eval_by_train(**sizes: int) -> nn.Module:
    return _with_known_statistics(_KeepsNormInEval(**sizes))


def all_but_the_head_in_eval_mode(**sizes: int) -> nn.Module:
    network = _with_known_statistics(PlainNet(**sizes)).eval()
    network.head.train()
    return network


class FrozenBackbone(nn.Module):
    """Its normalisation layer has no parameters of its own, and goes with what is around it."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False))
        self.stem.requires_grad_(False)
        self.norm = self.stem[1]
        self.mix = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)
        _with_known_statistics(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.stem(images).relu()).relu().mean((2, 3)))
        return logits


FROZEN: dict[str, Callable[..., nn.Module]] = {
    each.__name__: each
    for each in (
        norm_in_eval_mode, norm_without_gradients, norm_of_momentum_zero, norm_kept_in_eval_by_train,
        all_but_the_head_in_eval_mode, FrozenBackbone,
    )
}  # fmt: skip


class Forgetful(PlainNet):
    """Keeps all sorts of things that no state dict has, and lets every one of them into its logits."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.steps = 0
        self.average = [0.0]
        self.scale = torch.ones(())
        self.seen: dict[str, Any] = {}
        self.array = np.zeros(2)
        self.blocks = [self.conv, self.mix]  # parts under a second name
        self.last: Tensor | None = None
        self.register_buffer("moving", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if self.training:
            self.steps += 1
            self.average[0] = 0.9 * self.average[0] + 0.1 * float(images.mean())
            self.scale = self.scale * (1 + 0.01 * images.std())
            self.moving = 0.9 * self.moving + 0.1 * features.detach().mean()
            self.seen["batch"] = torch.tensor(float(len(images)))
            self.array += 1
            self.later = 0.01 * self.steps  # not there at first
        self.last = features  # with its graph
        drift = self.steps + self.average[0] + float(self.array[0]) + getattr(self, "later", 0.0)
        drift = drift + float(self.seen.get("batch", 0.0))
        logits: Tensor = self.head(features * self.scale) * (1 + 0.01 * drift + 0.01 * self.moving)
        return logits


class DrawsElsewhere(PlainNet):
    """Draws from numpy's and Python's global generators, as stochastic depth is often written."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            images = images * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand())
        return super().forward(images)


_COUNTER = [0]


class KeepsAGlobal(PlainNet):
    """Keeps a counter outside of itself, where nothing can put it back."""

    def forward(self, images: Tensor) -> Tensor:
        _COUNTER[0] += 1
        return super().forward(images) * (1 + _COUNTER[0])


def of_dtype(dtype: str, **sizes: int) -> nn.Module:
    """A network all of one dtype, which leaves the casting of its inputs to whoever calls it."""
    return PlainNet(**sizes).to(getattr(torch, dtype))


class MixedDtypes(PlainNet):
    """A float64 head behind a float32 encoder, a bfloat16 layer between, and integers that are parameters."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.mix.to(torch.bfloat16)
        self.head.double()
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu().to(torch.bfloat16)
        logits: Tensor = self.head(self.mix(features).relu().mean((2, 3)).double())
        return logits


def in_data_parallel(**sizes: int) -> nn.Module:
    return nn.DataParallel(PlainNet(**sizes))


def _compiled(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own of what its compiler imports
        wrapped = torch.compile(network)
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled(**sizes: int) -> nn.Module:
    return _compiled(PlainNet(**sizes))


def wrapped_inside(**sizes: int) -> nn.Module:
    network = PlainNet(**sizes)
    network.mix = nn.DataParallel(_compiled(network.mix))
    network.head.compile()
    return network


class Auxiliary(PlainNet):
    """Returns two heads in training and one in evaluation."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class OneDimensionalNorm(PlainNet):
    """BatchNorm over vectors, which a batch of one has no variance for."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.flat_norm = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flat_norm(self.features(images)))
        return logits


class Late(PlainNet):
    """Makes a part in its first forward pass in training."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not hasattr(self, "late"):
            self.late = nn.Linear(8, 8)
        return super().forward(images)


class Lazy(PlainNet):
    """Leaves a width to be found out."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.head = nn.LazyLinear(num_classes)


class Growing(PlainNet):
    """Appends to a buffer with every batch."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.register_buffer("memory", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.memory = torch.cat([self.memory, images.mean().reshape(1)])
        return super().forward(images)


class Replacing(PlainNet):
    """Puts a new parameter in the place of one in every training step."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.head.weight = nn.Parameter(self.head.weight.detach() * 0.9)
        return super().forward(images)


class Unfreezing(PlainNet):
    """Freezes its first layer from the second batch on."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.conv.weight.requires_grad_(False)
        return super().forward(images)


class Renaming(PlainNet):
    """Gives a part another name when it first trains."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training and "drop" in self._modules:
            self.dropout = self.drop
            del self.drop
            self.drop = lambda features: features  # type: ignore[assignment]
        return logits


class NotANumber(PlainNet):
    """Divides zero by zero, in training only."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * (torch.zeros(()) / torch.zeros(())) if self.training else logits


class AlwaysNotANumber(PlainNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.nan


class Detached(PlainNet):
    """Cuts its own graph, so that nothing has a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class FixedBatch(PlainNet):
    """Has the batch size written into it."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            images = images.view(16, *images.shape[1:])
        return super().forward(images)


class Raising(PlainNet):
    """Multiplies matrices that do not fit, in training only."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if self.training:
            features = features @ torch.ones(9, 8)  # the line that errors name
        logits: Tensor = self.head(features)
        return logits


class RaisingLate(PlainNet):
    """Fails on what a rehearsal does not come to: in its fourth training step."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps == 4:
                raise RuntimeError("the fourth step\nand what comes after the first line")
        return super().forward(images)


class GrowingLate(RaisingLate):
    """Makes a part in its fourth training step."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.steps == 3:
            self.steps += 1
            self.late = nn.Linear(8, 8)
        return super().forward(images)


class FromTheEnvironment(PlainNet):
    """Holds something that the machine it is built on says: what, and how much."""

    def __init__(self, *, num_classes: int, in_channels: int, kind: str) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        number = float(os.environ.get("SPATL_TEST_NUMBER", "1"))
        if kind == "frozen":
            self.mix.weight.requires_grad_(False).fill_(number)
        elif kind == "buffer":
            self.register_buffer("constant", torch.tensor(number), persistent=False)
        elif kind == "tensor":
            self.constant = torch.tensor(number)
        elif kind == "number":
            self.constant = number  # type: ignore[assignment]
        elif kind == "layer":
            self.drop.p = min(1.0, 0.25 * number)
        elif kind == "statistics":
            self.norm.eval()
            assert self.norm.running_mean is not None
            self.norm.running_mean.fill_(number)


def no_convolution(*, num_classes: int, in_channels: int, image_size: int = 8) -> nn.Module:
    """A network of linear layers alone."""
    sizes = in_channels * image_size * image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(sizes, 8), nn.ReLU(), nn.Linear(8, num_classes))


class Placed(PlainNet):
    """Leaves in a file on which node of Ray's it trains."""

    def __init__(self, *, places: str, **sizes: int) -> None:
        super().__init__(**sizes)
        self.places = places

    def forward(self, images: Tensor) -> Tensor:
        ray = sys.modules.get("ray")
        if self.training and ray is not None and ray.is_initialized():
            with open(self.places, "a") as file:
                file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return super().forward(images)
