"""Pictures of the agent: how its reward grew in pre-training, and where it stands among the yardsticks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from spatl.report.figures import PALETTE, new_figure

_BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = PALETTE

_FAMILIES: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "-": {
        "agent, fine-tuned (search)": (_BLUE, "D"),
        "agent, fine-tuned (ppo)": (_VERMILION, "s"),
        "agent, zero-shot": (_GREEN, "o"),
    },
    "--": {
        "signal + local search": (_BLUE, "D"),
        "signal + sensitivity": (_ORANGE, "^"),
        "signal (the prior)": (_GREEN, "o"),
        "uniform ratios, signal": (_GREY, "v"),
    },
    ":": {
        "L2 + local search": (_BLUE, "D"),
        "L2 + residual rule": (_ORANGE, "^"),
        "global L2": (_GREEN, "o"),
        "uniform ratios": (_GREY, "v"),
        "random ratios": (_GREY, "x"),
    },
}
"""Colour and marker by row, and the line that a family shares: the agent solid, its measure dashed, weights dotted."""

_LOOKS: Final[Mapping[str, tuple[str, str, str]]] = {
    **{name: (color, line, marker) for line, rows in _FAMILIES.items() for name, (color, marker) in rows.items()},
    "whole encoder": ("#1b1f24", "-", ""),
}
_UNITS: Final = {"flops_ratio": "budget: share of the encoder's multiply-accumulates",
                 "keep_ratio": "budget: share of the encoder's entries",
                 "uplink_bytes": "budget: bytes per update"}  # fmt: skip

Curve = Sequence[tuple[float, float]]


def draw_rewards(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the mean reward of each batch of episodes, and their running mean, as a PNG.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    steps = [row["steps"] for row in history]
    rewards = [row["reward"] for row in history]
    window = max(1, len(rewards) // 12)
    smooth = [sum(rewards[max(0, i - window + 1) : i + 1]) / len(rewards[max(0, i - window + 1) : i + 1])
              for i in range(len(rewards))]  # fmt: skip
    with new_figure(9, 5) as figure:
        axes = figure.subplots()
        axes.plot(steps, rewards, color=_GREY, linewidth=1, label="mean of one batch of episodes")
        axes.plot(steps, smooth, color=_BLUE, linewidth=2.5, label=f"running mean of {window} batches")
        axes.axhline(0, color="#1b1f24", linewidth=1, linestyle="--", label="the prior")
        axes.set(
            title="Reward while exploring, compared with the prior",
            xlabel="selections measured",
            ylabel="accuracy and cross-entropy gained",
        )
        axes.legend(loc="lower right")
        figure.savefig(path, format="png")


def draw_yardsticks(networks: Mapping[str, Mapping[str, Curve]], kind: str, path: Path) -> None:
    """Draw accuracy against budget, one panel per config, one line per row of the table, as a PNG.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    with new_figure(7 * columns + 3.5, 5.2 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel in panels[len(networks) :]:
            panel.set_visible(False)
        for panel, (title, curves) in zip(panels, networks.items(), strict=False):
            for name, curve in curves.items():
                color, line, marker = _LOOKS[name]
                budgets, accuracies = zip(*curve, strict=True)
                panel.plot(budgets, accuracies, color=color, linestyle=line, marker=marker, label=name)
            panel.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
            panel.set(title=title, xlabel=_UNITS[kind], ylabel="accuracy of the pruned network (test splits)")
        handles, labels = panels[0].get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True))
        ordered = [name for name in _LOOKS if name in known]
        figure.legend([known[name] for name in ordered], ordered, loc="outside right upper")
        figure.savefig(path, format="png")
