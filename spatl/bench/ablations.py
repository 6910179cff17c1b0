"""Ablations: the worth of each idea of a method, by the same row without it, seed by seed.

The factor of an idea is how many times the full row's bytes a target costs without it: above 1, the idea saves.
Factors are taken within a seed and averaged as logarithms, as all ratios are. They need not multiply to what the full
row saves: ideas help each other, or stand in for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spatl.bench.baselines import CRITERIA
from spatl.bench.results import Estimate, Record, TargetRow, average, average_ratio, by_row, target_table
from spatl.bench.score import told
from spatl.config.bench import AblationsConfig


def add_ablations_(records: Sequence[Record], ablations: AblationsConfig) -> None:
    """Add `ablation` to each record: the loss and cost of the idea that its row lacks; null for all other rows.

    Where the full row reached a target and the other did not, what the other had sent is a lower bound of what it would
    have cost, and so of the factor; the other way round it is an upper bound.
    """
    full = {record["seed"]: record for record in records if record["method"] == ablations.full}
    for record in records:
        record["ablation"] = None
        if record["method"] in ablations.without and full:
            whole = full.get(record["seed"])
            record["ablation"] = {
                "full": ablations.full,
                "without": ablations.without[record["method"]],
                "score_change" if "metric" in record else "accuracy_change": _accuracy_change(record, whole),
                "targets": [
                    {
                        "target": cell["target"],
                        **{criterion: whole and _factors(record, whole, place, criterion) for criterion in CRITERIA},
                    }
                    for place, cell in enumerate(record["targets"])
                ],
            }


def _accuracy_change(without: Record, full: Record | None) -> float | None:
    mine, theirs = told(without, "final"), None if full is None else told(full, "final")
    return None if mine is None or theirs is None else mine - theirs


def _factors(without: Record, full: Record, place: int, criterion: str) -> dict[str, float | None]:
    mine, theirs = (record["targets"][place][criterion] for record in (without, full))
    bounded = mine and not theirs and _sent(full) > 0  # a run that stopped at once sent nothing
    return {
        "factor": mine["bytes"] / theirs["bytes"] if mine and theirs else None,
        "factor_at_least": _sent(without) / theirs["bytes"] if theirs and not mine else None,
        "factor_at_most": mine["bytes"] / _sent(full) if bounded else None,
    }


def _sent(record: Record) -> float:
    """Return the bytes of all rounds, without those of the final encoder, which going on would not have cost."""
    return float(record["total_bytes"] - record["evaluation_bytes"])


@dataclass(frozen=True)
class AblationRow:
    """Row without one idea, and its loss by that, over the seeds in which it and the full row reached the target.

    Attributes:
        cost: What the row cost.
        without: What it lacks; None for the full row, which has no factor and no change.
        factor: Bytes of this row over bytes of the full row.
        at_least: Lower bounds of the factor, of the seeds in which only the full row reached the target.
        at_most: Upper bounds, of the seeds in which only this row did.
        accuracy_change: Final accuracy, or score, of this row minus that of the full row.
    """

    cost: TargetRow
    without: str | None
    factor: Estimate | None = None
    at_least: tuple[float, ...] = ()
    at_most: tuple[float, ...] = ()
    accuracy_change: Estimate | None = None


def ablation_table(records: Sequence[Record], place: int, criterion: str = "held") -> list[AblationRow]:
    """Summarise what each idea is worth at the target at a place: the full row first; nothing without ablations."""
    costs = {row.label: row for row in target_table(records, place, criterion)}
    found: dict[str, list[Mapping[str, Any]]] = {
        label: [record["ablation"] for record in own]
        for label, own in by_row(records).items()
        if own[0].get("ablation")
    }
    table = []
    for label, own in found.items():
        cells = [each["targets"][place][criterion] for each in own]
        values = {
            key: [cell[key] for cell in cells if cell and cell[key] is not None]
            for key in ("factor", "factor_at_least", "factor_at_most")
        }
        table.append(
            AblationRow(
                cost=costs[label],
                without=own[0]["without"],
                factor=average_ratio(values["factor"]),
                at_least=tuple(values["factor_at_least"]),
                at_most=tuple(values["factor_at_most"]),
                accuracy_change=average(each.get("accuracy_change", each.get("score_change")) for each in own),
            )
        )
    return [AblationRow(costs[found[table[0].cost.label][0]["full"]], None), *table] if table else []
