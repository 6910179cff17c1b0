"""Time that profiles take, against the plain loop over examples, on one thread.

`python -m tests.studies.profiles [NETWORK ...]` takes the profiles of 64 images by `spatl.saliency.profiles` and by a
plain loop (a forward and a backward pass and the mean absolute gradient of each filter, one example at a time), in
turns, and prints the ratio: its median over the blocks of turns, the lowest and the highest. Processes beside it change
what is measured: leave the machine to it.
"""

import argparse
from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.artifacts.latency import medians_in_turns
from spatl.data import Examples
from spatl.models import build_model
from spatl.saliency.filters import Filters, filters_of
from spatl.saliency.profiles import profiles
from spatl.seeding import generator

FLOOR = 1.8
"""How many times as fast as the loop ResNet-20 is at least."""
IMAGES = 64
BLOCKS = 7
_SECONDS = 4.0  # of each block


def plain_loop(model: nn.Module, examples: Examples, filters: Filters) -> Tensor:
    """Return the mean absolute gradients [N, F], as anyone would write it."""
    rows = []
    for image, label in zip(examples.inputs, examples.targets, strict=True):
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            F.cross_entropy(model(image[None]), label[None]).backward()
        row = [
            parameter.grad.flatten(1).abs().mean(1)
            for parameter in _weights(model, filters)
            if parameter.grad is not None
        ]
        rows.append(torch.cat(row))
    return torch.stack(rows)


def _weights(model: nn.Module, filters: Filters) -> list[nn.Parameter]:
    parameters = dict(model.named_parameters())
    return [parameters[layer.weight] for layer in filters.layers]


def measure(name: str) -> list[float]:
    """Return the ratio of the loop's time to that of `profiles` in each block of turns."""
    model, _ = build_model(name, num_classes=10, in_channels=3, image_size=32, seed=1)
    model.eval()
    filters, draws = filters_of(model), generator(1, "images")
    images, labels = torch.randn(IMAGES, 3, 32, 32, generator=draws), torch.randint(10, (IMAGES,), generator=draws)
    examples = Examples(images, labels)
    found = []
    for _ in range(BLOCKS):
        medians = medians_in_turns(
            {
                "loop": lambda: plain_loop(model, examples, filters),
                "together": lambda: profiles(model, examples, filters),
            },
            seconds=_SECONDS, turns=range(3, 20),
        )  # fmt: skip
        found.append(medians["loop"] / medians["together"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet20", "vgg11"])
    torch.set_num_threads(1)
    for name in parser.parse_args(arguments).networks:
        ratios = measure(name)
        floor = f"  (at least {FLOOR:g}: {'yes' if median(ratios) >= FLOOR else 'NO'})" if name == "resnet20" else ""
        print(f"{name:12s} {median(ratios):5.2f} x  {min(ratios):.2f} to {max(ratios):.2f}{floor}", flush=True)


if __name__ == "__main__":
    main()
