"""Results of a benchmark: one record per row and seed, and means over the seeds.

Records are plain objects of numbers, as they stand in `bench.json`; every table and picture is made from them alone.
Ratios are taken within a seed, where both rows had the same clients, splits and initial weights, and are averaged as
logarithms: their interval is Student's, for as many seeds as have both.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatl.bench.baselines import CRITERIA, add_ratios, compressed, mark_meaningful, published
from spatl.bench.costs import Point, cell_of, first_touch, held, trajectory
from spatl.bench.plan import REFERENCE, Plan, Row
from spatl.bench.score import score_of, score_of_record
from spatl.config.experiment import ExperimentConfig
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.report.figures import PART_COLORS
from spatl.runs.files import ERROR, HISTORY, LEDGER, SUMMARY
from spatl.runs.records import mean, read_lines
from spatl.runs.scores import score_in

_CONFIDENCE = 0.95
_OPPOSITE = {"uplink": "downlink", "downlink": "uplink"}
_WAYS = ("uplink", "downlink")

Record = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Points of one run, for the pictures.

    Attributes:
        label: The row.
        seed: The seed.
        points: In order; none for a run that wrote no round.
        clients: Final accuracy by client, or score; empty for a run that did not end.
    """

    label: str
    seed: int
    points: tuple[Point, ...]
    clients: Mapping[str, float]


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Return the directory of one run of a benchmark."""
    return directory / "runs" / label / f"seed-{seed}"


def collect(plan: Plan, directory: Path) -> tuple[list[Record], list[Curve]]:
    """Read all finished runs of a benchmark: the list that `bench.json` holds, and the curves.

    Rows come in the order of the plan, and within a row the seeds. Runs that are not there are left out.
    """
    records, curves = [], []
    for row in plan.rows:
        for seed in plan.bench.seeds:
            path = run_directory(directory, row.label, seed)
            if path.exists():
                phases = _phases(path)
                curve = _curve(row.label, seed, path, phases)
                curves.append(curve)
                records.append(_record(row, seed, path, curve, phases, plan.bench.targets))
    add_ratios(records)
    mark_meaningful(records)
    for record in records:
        record.update(_headline(record["targets"][0]))
    return records, curves


def _phases(path: Path) -> Counter[tuple[str, str]]:
    """Return the bytes of a run by phase (`query`, `train`, `evaluate`) and direction, from its ledger."""
    sums: Counter[tuple[str, str]] = Counter()
    for entry in read_lines(path / LEDGER):
        sums[entry["phase"], entry["direction"]] += entry["bytes"]
        sums[entry["phase"], _OPPOSITE[entry["direction"]]] += entry.get("opposite", 0)  # older ledgers have none
    return sums


def _curve(label: str, seed: int, path: Path, phases: Counter[tuple[str, str]]) -> Curve:
    history = read_lines(path / HISTORY)
    summary = _summary(path)
    points = trajectory(history, final_downlink_bytes=phases["evaluate", "downlink"])
    return Curve(label, seed, tuple(points), summary.get("clients", {}))


def _summary(path: Path) -> dict[str, Any]:
    return read_json(path / SUMMARY) if (path / SUMMARY).exists() else {}


def _record(
    row: Row, seed: int, path: Path, curve: Curve, phases: Counter[tuple[str, str]], targets: Iterable[float]
) -> Record:
    config = row.config(seed)
    score = score_of(config)
    history = read_lines(path / HISTORY)
    stopped = read_json(path / ERROR)["message"] if (path / ERROR).exists() else None
    scores = list(curve.clients.values())
    uplink, downlink = (sum(each[f"{way}_bytes"] for each in history) for way in _WAYS)
    replies = sum(each["participants"] for each in history)
    parts = {way: Counter(dict.fromkeys(PART_COLORS, 0)) for way in _WAYS}
    for each in history:
        for way, sums in parts.items():
            sums.update(each[way])
    return {
        "method": row.label,
        "seed": seed,
        "base_method": config.method,
        "title": _title(row.label, config),
        "source": config.row.source,
        "ours": not config.row.baseline,
        "compressed": compressed(config),
        "published": published(config),
        "learning_rate": config.training.learning_rate,
        "momentum": config.training.momentum,
        "stopped": stopped,
        "rounds": len(history),
        **score.named(
            final=mean(scores),
            worst=score.worst(scores),
            spread=statistics.stdev(scores) if len(scores) > 1 else None,
            best=score.best(point.accuracy for point in curve.points),
            **{"global": score_in(_summary(path), "global_")},
        ),
        "uplink_bytes": uplink,
        "downlink_bytes": downlink,
        "total_bytes": uplink + downlink,
        # Of rounds of training alone, so that they do not depend on how many rounds there were.
        "uplink_bytes_per_round": phases["train", "uplink"] / len(history) if history else None,
        "downlink_bytes_per_round": phases["train", "downlink"] / len(history) if history else None,
        "bytes_per_round_and_client": (phases["train", "uplink"] + phases["train", "downlink"]) / max(1, replies),
        "registration_bytes": phases["query", "uplink"] + phases["query", "downlink"],
        "evaluation_bytes": phases["evaluate", "uplink"] + phases["evaluate", "downlink"],
        "uplink": dict(parts["uplink"]),
        "downlink": dict(parts["downlink"]),
        "keep_ratio": mean(each["keep_ratio"] for each in history if each["keep_ratio"] is not None),
        "rejected": sum(each["rejected"] for each in history),
        "seconds": sum(each["seconds"] for each in history),
        "targets": [
            {
                "target": target,
                "held": cell_of(held(curve.points, target, score), score),
                "first_touch": cell_of(first_touch(curve.points, target, score), score),
            }
            for target in targets
        ],
    }


def _title(label: str, config: ExperimentConfig) -> str:
    """Return a row's name for readers: the method's title, and the label where that says more."""
    return config.row.title if label == config.method else f"{config.row.title} ({label})"


def _headline(cell: Mapping[str, Any]) -> Record:
    """Return the first target, held, as fields of the record itself."""
    reached = cell["held"]
    return {
        "target": cell["target"],
        "criterion": CRITERIA["held"],
        "meaningful": cell["meaningful"],
        "reached": reached is not None,
        "rounds_to_target": reached and reached["rounds"],
        "bytes_to_target": reached and reached["bytes"],
        "seconds_to_target": reached and reached["seconds"],
        "ratio_to_fedavg": reached and reached["ratio_to_fedavg"],
        "ratio_to_compressed": reached and reached["ratio_to_compressed"],
        "ratio_to_published": reached and reached["ratio_to_published"],
    }


@dataclass(frozen=True)
class Estimate:
    """Quantity over seeds.

    Attributes:
        value: Mean, or geometric mean of ratios.
        low: Lower end of the 95 % interval, or None for a single seed.
        high: Upper end.
        number: How many seeds it is of.
    """

    value: float
    low: float | None
    high: float | None
    number: int


def average(values: Iterable[float | None]) -> Estimate | None:
    """Average what is there, with Student's interval; None of nothing."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    value = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Estimate(value, None, None, 1)
    half = _student(len(numbers) - 1) * statistics.stdev(numbers) / math.sqrt(len(numbers))
    return Estimate(value, value - half, value + half, len(numbers))


def average_ratio(values: Iterable[float | None]) -> Estimate | None:
    """Average ratios as logarithms: 2 and 1/2 make 1."""
    logarithms = average(math.log(value) for value in values if value is not None)
    if logarithms is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (logarithms.low, logarithms.high))
    return Estimate(math.exp(logarithms.value), low, high, logarithms.number)


def _student(degrees: int) -> float:
    try:
        from scipy.stats import t  # an optional extra, as all that only reports need
    except ImportError as error:
        raise SpatlError("a benchmark needs scipy: pip install 'spatl[simulation]'") from error
    return float(t.ppf(0.5 + _CONFIDENCE / 2, degrees))


@dataclass(frozen=True)
class TargetRow:
    """Row of the table of one target: means over the seeds that reached it.

    `bounds` seeds reached it where the reference did not; `ratio_at_least` is the smallest of their lower bounds.
    """

    label: str
    title: str
    ours: bool
    reached: int
    seeds: int
    rounds: Estimate | None
    bytes: Estimate | None
    seconds: Estimate | None
    bytes_over_reference: Estimate | None
    ratio: Estimate | None
    bounds: int
    ratio_at_least: float | None
    compressed_ratio: Estimate | None
    published_ratio: Estimate | None


def by_row(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by row, in their order."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record["method"], []).append(record)
    return rows


def target_table(records: Sequence[Record], place: int, criterion: str = "held") -> list[TargetRow]:
    """Summarise the target at a place of the plan's list by row."""
    table = []
    for label, own in by_row(records).items():
        cells = [record["targets"][place][criterion] for record in own]
        reached = [cell for cell in cells if cell is not None]
        bounds = [cell["ratio_to_fedavg_at_least"] for cell in reached if cell["ratio_to_fedavg_at_least"] is not None]
        table.append(
            TargetRow(
                label=label,
                title=own[0]["title"],
                ours=own[0]["ours"],
                reached=len(reached),
                seeds=len(own),
                rounds=average(cell["rounds"] for cell in reached),
                bytes=average(cell["bytes"] for cell in reached),
                seconds=average(cell["seconds"] for cell in reached),
                bytes_over_reference=average(cell["bytes_over_fedavg"] for cell in reached),
                ratio=average_ratio(cell["ratio_to_fedavg"] for cell in reached),
                bounds=len(bounds),
                ratio_at_least=min(bounds, default=None),
                compressed_ratio=average_ratio(cell["ratio_to_compressed"] for cell in reached),
                published_ratio=average_ratio(cell["ratio_to_published"] for cell in reached),
            )
        )
    return table


@dataclass(frozen=True)
class PartsRow:
    """Parts of a row's bytes: means over the seeds that ended, which all had the same rounds.

    Attributes:
        label: The row.
        title: Its name for readers.
        uplink: Bytes of a whole run by part, or nothing where no seed ended.
        downlink: The same of the other direction.
    """

    label: str
    title: str
    uplink: Mapping[str, float]
    downlink: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of a whole run."""
        return math.fsum([*self.uplink.values(), *self.downlink.values()])


def parts_table(records: Sequence[Record]) -> list[PartsRow]:
    """Break the bytes of every row down by direction and by part of the message."""
    table = []
    for label, own in by_row(records).items():
        ended = [record for record in own if record["stopped"] is None]
        uplink, downlink = (
            {part: math.fsum(record[way][part] for record in ended) / len(ended) for part in PART_COLORS if ended}
            for way in _WAYS
        )
        table.append(PartsRow(label, own[0]["title"], uplink, downlink))
    return table


def reference_bytes(table: Sequence[PartsRow]) -> float | None:
    """Return the bytes of a whole run of the reference, if one ended."""
    return next((row.total for row in table if row.label == REFERENCE and row.total), None)


def meaningful(records: Sequence[Record], place: int) -> bool | None:
    """Return whether the target at a place needs a federation; None without the row that trains alone."""
    found: bool | None = records[0]["targets"][place]["meaningful"] if records else None
    return found


def shown_target(records: Sequence[Record]) -> int:
    """Return the place of the most demanding meaningful target that some run held, else 0."""
    targets = [cell["target"] for cell in records[0]["targets"]] if records else []
    wanted = [
        place
        for place in range(len(targets))
        if meaningful(records, place) is not False and any(record["targets"][place]["held"] for record in records)
    ]
    score = score_of_record(records[0]) if records else None
    return max(wanted, key=lambda place: targets[place] * (1 if score and score.higher_is_better else -1), default=0)
