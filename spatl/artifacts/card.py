"""Card of an exported model: what it costs, how fast it is in each runtime, and how accurate, before and after."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch
from torch import nn

from spatl.artifacts.description import ModelDescription
from spatl.artifacts.runtimes import EAGER, Latency
from spatl.channels.flops import measure_macs
from spatl.runs.text import human_bytes

CARD: Final = "card.json"
CARD_TEXT: Final = "card.md"

_PACKAGES = ("spatl", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Sizes:
    """Size of a network.

    Attributes:
        macs: Multiply-accumulates of its convolutions and linear layers for one image.
        num_parameters: Numbers that were trained.
    """

    macs: int
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """Card of an exported model; networks are called `dense` and, where it is cut, `cut`.

    Attributes:
        description: What it is.
        sizes: By network.
        files: By name, `bytes` and `sha256`.
        latencies: By network, runtime and batch, measured on this machine in one thread.
        accuracies: By network, and in it by runtime, on the test split; empty where there was none.
        num_tested: How many examples that split has.
        whole: By name of a channel group that was kept whole, why.
        notes: Further lines.
    """

    description: ModelDescription
    sizes: Mapping[str, Sizes]
    files: Mapping[str, Mapping[str, Any]]
    latencies: tuple[Latency, ...]
    accuracies: Mapping[str, Mapping[str, float]]
    num_tested: int
    whole: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def exported(self) -> str:
        """Name of the network in the files."""
        return "cut" if "cut" in self.sizes else "dense"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        description = self.description
        return {
            "factory": description.factory, "method": description.method, "data": description.data,
            "round": description.round, "client": description.client,
            "networks": {name: asdict(sizes) for name, sizes in self.sizes.items()},
            "latencies": [
                {**asdict(each), "threads": 1, "speedup_over_dense": self.speedup(each),
                 "speedup_over_dense_pytorch": self.speedup(each, runtime=EAGER)}
                for each in self.latencies
            ],
            "accuracies": {name: dict(values) for name, values in self.accuracies.items()},
            "tested_on": {"split": "test", "examples": self.num_tested},
            "kept_whole": dict(self.whole),
            "files": {name: dict(facts) for name, facts in self.files.items()},
            "machine": machine(),
            "versions": _versions(),
            "notes": list(self.notes),
        }  # fmt: skip

    def speedup(self, latency: Latency, *, runtime: str | None = None) -> float:
        """Return how many times as fast as the dense network something is: in its runtime, or in another."""
        dense = next(
            each.milliseconds
            for each in self.latencies
            if (each.network, each.runtime, each.batch) == ("dense", runtime or latency.runtime, latency.batch)
        )
        return dense / latency.milliseconds


def sizes_of(network: nn.Module, input_shape: tuple[int, int, int]) -> Sizes:
    """Return the size of a network.

    Args:
        network: In eval mode.
        input_shape: C, H and W of an image.
    """
    macs = sum(measure_macs(network, torch.zeros(1, *input_shape)).values())
    return Sizes(macs, sum(parameter.numel() for parameter in network.parameters()))


def card_text(card: Card) -> str:
    """Return a card in Markdown."""
    about = card.description
    whose = "the federation" if about.client is None else f"client {about.client}"
    lines = [
        f"# {about.factory} of {whose}, {about.method} on {about.data}, round {about.round}",
        "",
        f"Images of {' x '.join(map(str, about.input_shape))} (channels, height, width), {len(about.class_names)} "
        f"classes, BatchNorm statistics: {about.statistics}.",
        "",
        *_sizes_table(card),
        "",
        *_accuracy_table(card),
        f"## Latency on {machine()}, one thread, medians in turns",
        "",
        "| network | runtime | batch | ms | against dense, same runtime | against dense in PyTorch |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for each in card.latencies:
        ratios = (times_as_fast(card.speedup(each)), times_as_fast(card.speedup(each, runtime=EAGER)))
        lines.append(
            f"| {each.network} | {each.runtime} | {each.batch} | {each.milliseconds:.3g} | {' | '.join(ratios)} |"
        )
    lines += ["", "## Files", "", "| file | size | SHA-256 |", "|---|---:|---|"]
    for name, facts in card.files.items():
        lines.append(f"| {name} | {human_bytes(facts['bytes'])} | {facts['sha256']} |")
    if card.whole:
        lines += ["", "## Channel groups that were kept whole", ""]
        lines += [f"- {name}: {reason}" for name, reason in card.whole.items()]
    if card.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in card.notes)]
    lines += ["", f"Made with {', '.join(f'{name} {number}' for name, number in _versions().items())}."]
    return "\n".join(lines) + "\n"


def times_as_fast(ratio: float) -> str:
    """Return a ratio of latencies in words; a slow-down is called one.

    Example:
        >>> times_as_fast(1.62), times_as_fast(0.8)
        ('1.62 x', '1.25 x slower')
    """
    return f"{ratio:.2f} x" if ratio >= 1 else f"{1 / ratio:.2f} x slower"


def machine() -> str:
    """Return what the machine calls itself: its architecture, and how many cores it has."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _sizes_table(card: Card) -> list[str]:
    dense = card.sizes["dense"]
    lines = ["| network | multiply-accumulates | of dense | parameters | of dense |", "|---|---:|---:|---:|---:|"]
    for name, sizes in card.sizes.items():
        macs, parameters = (100 * sizes.macs / max(1, dense.macs), 100 * sizes.num_parameters / dense.num_parameters)
        lines.append(f"| {name} | {sizes.macs:,} | {macs:.1f} % | {sizes.num_parameters:,} | {parameters:.1f} % |")
    return lines


def _accuracy_table(card: Card) -> list[str]:
    if not card.accuracies:
        return []
    lines = [
        f"## Accuracy on {card.num_tested:,} test examples",
        "",
        "| network | runtime | accuracy |",
        "|---|---|---:|",
    ]
    for name, values in card.accuracies.items():
        lines += [f"| {name} | {runtime} | {100 * accuracy:.2f} % |" for runtime, accuracy in values.items()]
    return [*lines, ""]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
