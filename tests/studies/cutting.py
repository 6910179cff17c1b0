"""What cutting costs in accuracy: networks of half the multiply-accumulates, and of the paper's share on VGG-11.

`python -m tests.studies.cutting [SEED ...] [--tasks NAME ...] [--fashion DIRECTORY]` trains each network, cuts it by
the signal and by the agent, and trains both the dense and the cut one for up to three more epochs in the same way, each
at its best epoch by validation. It prints test accuracies, the mean over the seeds and the smallest and the largest
difference of a seed. The paper (arXiv 2111.14345) has 39.7 % fewer FLOPs on VGG-11.

Tasks on Fashion-MNIST need its four IDX files (Debian: dataset-fashion-mnist); images are halved to 14 x 14.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spatl.artifacts.cutting import cut_network
from spatl.artifacts.refinement import evaluated, refined
from spatl.artifacts.widths import CutBudget
from spatl.data import Examples, load_dataset
from spatl.models import build_model
from spatl.seeding import generator, seeded_globals
from spatl.training.evaluate import recalibrate_
from spatl.training.local import train_

PAPER = 1 - 0.397
"""Share of VGG-11's FLOPs that is left in the paper."""
MORE_EPOCHS = 3


@dataclass(frozen=True)
class Training:
    """Plain SGD, for the dense network and whatever comes after."""

    learning_rate: float = 0.05
    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    precision: str = "float32"


@dataclass(frozen=True)
class Task:
    """A network on some data.

    Attributes:
        data: `"digits"`, `"synthetic"` or `"fashion"`.
        model: The network's name.
        options: Keywords for its factory.
        budget: Share of its multiply-accumulates that may be left.
        epochs: Passes over the training split before the cut.
        sizes: Number of training, validation and test examples.
    """

    data: str
    model: str
    budget: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 8
    sizes: tuple[int, int, int] = (997, 400, 400)


_FASHION = (2000, 500, 4000)
_SYNTHETIC = (2000, 500, 2000)
TASKS = {
    "digits-resnet20": Task("digits", "resnet20"),
    "fashion-vgg11-paper": Task("fashion", "vgg11", PAPER, {"width": 0.5}, sizes=_FASHION, epochs=5),
    "fashion-vgg11": Task("fashion", "vgg11", options={"width": 0.5}, sizes=_FASHION, epochs=5),
    "fashion-resnet8": Task("fashion", "resnet8", sizes=_FASHION),
    "synthetic-resnet8": Task("synthetic", "resnet8", sizes=_SYNTHETIC),
    "fashion-cnn": Task("fashion", "cnn", sizes=_FASHION),
}
SELECTORS = ("signal", "agent")


def _fashion(directory: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 14, 14] and labels: all examples, of which each seed draws its own splits."""
    found = load_dataset("idx", seed=seed, options={"path": str(directory), "pool": True})
    pixels = nn.functional.avg_pool2d(found.inputs, 2)
    return (pixels - pixels.mean()) / pixels.std(), found.targets


def splits_of(task: Task, seed: int, fashion: Path | None) -> list[Examples]:
    """Training, validation and test split, drawn by the seed."""
    if task.data == "fashion":
        assert fashion is not None
        images, labels = _fashion(fashion, seed)
    else:
        options = {"num_examples": sum(task.sizes), "difficulty": 0.4, "image_size": 16}
        found = load_dataset(task.data, seed=seed, options=options if task.data == "synthetic" else {})
        images, labels = found.inputs, found.targets
    order = torch.randperm(len(labels), generator=generator(seed, "splits of the study"))
    ends = np.cumsum((0, *task.sizes)).tolist()
    return [Examples(images[own], labels[own]) for own in (order[a:b] for a, b in pairwise(ends))]


def trained(task: Task, seed: int, train: Examples) -> nn.Module:
    """The dense network after its first epochs, in eval mode."""
    _, in_channels, image_size, _ = train.inputs.shape
    network, _ = build_model(
        task.model, num_classes=10, in_channels=in_channels, image_size=image_size, options=task.options, seed=seed
    )
    with seeded_globals(seed, "study"):
        train_(
            network, dict(network.named_parameters()), train, Training(), generator=generator(seed, "study"),
            epochs=task.epochs,
        )  # fmt: skip
    recalibrate_(network, train, batch_size=64)
    return network.eval()


@dataclass(frozen=True)
class Row:
    """Test accuracies of one seed, and what was left of the network."""

    dense: float
    dense_later: float
    cut: float
    cut_later: float
    flops_ratio: float
    parameters_ratio: float

    @property
    def difference(self) -> float:
        """The cut network's accuracy less the dense one's, both after as many more epochs."""
        return self.cut_later - self.dense_later


def rows_of(task: Task, seed: int, selectors: Sequence[str], fashion: Path | None) -> dict[str, Row]:
    """One seed of a task, by selector."""
    train, validation, test = splits_of(task, seed, fashion)
    network = trained(task, seed, train)
    dense_later = evaluated(later_of(network, train, validation, seed), test, None).accuracy
    rows = {}
    for selector in selectors:
        found = cut_network(
            network, train.inputs[:1], budget=CutBudget("flops", task.budget), train=train, validation=validation,
            selector=selector, seed=seed,
        )  # fmt: skip
        later = later_of(found.network, train, validation, seed)
        accuracies = [evaluated(each, test, None).accuracy for each in (network, found.network, later)]
        rows[selector] = Row(
            dense=accuracies[0], dense_later=dense_later, cut=accuracies[1], cut_later=accuracies[2],
            flops_ratio=found.flops_ratio, parameters_ratio=found.parameters_ratio,
        )  # fmt: skip
    return rows


def later_of(network: nn.Module, train: Examples, validation: Examples, seed: int) -> nn.Module:
    """The best network of three more epochs, or the one it was."""
    return refined(
        network, train, validation, was_cut=False, training=Training(), epochs=MORE_EPOCHS, seed=seed
    ).network  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=None)
    parser.add_argument("--selectors", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--fashion", type=Path)
    arguments = parser.parse_args()
    names = arguments.tasks or [name for name, task in TASKS.items() if task.data != "fashion" or arguments.fashion]
    print("task                     selector  FLOPs  params  dense  dense+3  cut    cut+3  cut-dense [min, max]    s")
    for name in names:
        started = time.perf_counter()
        seeds = [rows_of(TASKS[name], seed, arguments.selectors, arguments.fashion) for seed in arguments.seeds]
        for selector in arguments.selectors:
            rows = [row[selector] for row in seeds]
            differences = [row.difference for row in rows]
            columns = [
                mean(getattr(row, each) for row in rows)
                for each in ("flops_ratio", "parameters_ratio", "dense", "dense_later", "cut", "cut_later")
            ]
            print(
                f"{name:24s} {selector:8s}", *(f"{column:6.3f}" for column in columns),
                f" {mean(differences):+.4f} [{min(differences):+.4f}, {max(differences):+.4f}]",
                f"{time.perf_counter() - started:6.0f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
