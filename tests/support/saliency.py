"""Networks and examples that tests of saliency share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.data import Examples
from spatl.saliency.filters import Filters

NUM_CLASSES = 4


class ManyKinds(nn.Module):
    """Grouped, depthwise, strided, dilated and pointwise convolutions, a residual part, two normalisation layers."""

    def __init__(self, *, inplace: bool = False, transposed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=inplace)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 12, 1, stride=2)
        self.group = nn.GroupNorm(3, 12)
        grouped = nn.ConvTranspose2d(12, 6, 3, groups=3) if transposed else nn.Conv2d(12, 6, (1, 3), groups=3)
        self.grouped = grouped
        self.head = nn.Linear(6, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.norm(self.stem(images)))
        features = features + self.relu(self.depthwise(features))
        features = self.group(self.pointwise(features))
        logits: Tensor = self.head(self.relu(self.grouped(features)).mean((2, 3)))
        return logits


def many_kinds(seed: int = 0, *, inplace: bool = False, transposed: bool = False) -> ManyKinds:
    """Return such a network in float64 and eval mode, with running statistics that are not the initial ones."""
    draws = torch.Generator().manual_seed(seed)
    network = ManyKinds(inplace=inplace, transposed=transposed).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.4)
        network.norm.running_mean.copy_(torch.randn(8, generator=draws, dtype=torch.float64))
        network.norm.running_var.copy_(torch.rand(8, generator=draws, dtype=torch.float64) + 0.5)
    return network


def some_examples(number: int, seed: int = 0) -> Examples:
    """Return so many examples of 3 x 8 x 8 in float64."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 3, 8, 8, generator=draws, dtype=torch.float64)
    return Examples(images, torch.randint(NUM_CLASSES, (number,), generator=draws))


def double_loop(network: nn.Module, examples: Examples, filters: Filters) -> tuple[Tensor, Tensor]:
    """Return mean |gradient| and sum of gradient x weight, `[N, F]`: a loop over examples and one over filters."""
    parameters, absolute, signed = dict(network.named_parameters()), [], []
    for image, label in zip(examples.inputs, examples.targets, strict=True):
        loss = F.cross_entropy(network(image[None]), label[None])
        sizes, sums = [], []
        for layer in filters.layers:
            weight = parameters[layer.weight]
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            for place in range(layer.num_filters):
                own, values = (_filter_of(each, layer.groups, layer.num_filters, place) for each in (gradient, weight))
                sizes.append(own.abs().mean())
                sums.append((own * values).sum().detach())
        absolute.append(torch.stack(sizes))
        signed.append(torch.stack(sums))
    return torch.stack(absolute), torch.stack(signed)


def _filter_of(weight: Tensor, groups: int, num_filters: int, place: int) -> Tensor:
    if not groups:
        return weight[place]
    each = num_filters // groups  # output channels of a group; a transposed weight has them second
    inputs = weight.shape[0] // groups
    group = place // each
    return weight[group * inputs : (group + 1) * inputs, place % each]
