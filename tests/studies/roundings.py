"""Whole federations by how values are rounded: bytes, rounds and accuracy beside those of rounding at random.

`python -m tests.studies.roundings CONFIG [--row spatl] [--seeds 31,32] [--target 0.8] [--roundings "NAME;..."]
[--out DIR] [--set section.key=value ...]` runs the config's row of its benchmark with each rounding and each seed, one
federation after the other; what DIR holds already is not run again. Printed are the bytes of values a client and round,
up and down, the bytes and rounds until a target was held for three rounds, and the final accuracy, each beside that of
rounding at random with the same seed; the mean accuracy of the last five rounds as well, as one round says little.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from spatl.bench.costs import held, trajectory
from spatl.bench.plan import merged
from spatl.bench.results import average, average_ratio
from spatl.bench.tables import interval, ratio_text
from spatl.config.loading import parse_config, read_config
from spatl.json_files import read_json
from spatl.runner import run
from spatl.runs.files import HISTORY, LEDGER, SUMMARY
from spatl.runs.records import read_lines

ROUNDINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "at-random": {"rounding": "at-random"},
    "dither": {"rounding": "dither"},
    "dither, down fine": {"rounding": "dither", "downlink_steps": "fine"},
    "at-random, down coarse": {"rounding": "at-random", "downlink_steps": "coarse"},
}
BESIDE: Final = "at-random"
LAST: Final = 5


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run.

    Attributes:
        up: Bytes of values of an update, in the mean.
        down: Bytes of values of a round's download, likewise.
        total: All bytes of the run.
        accuracy: The final one, in the mean of the clients.
        late: The mean accuracy of the last five rounds.
        rounds: Rounds until the target was held; None where it was not.
        cost: Bytes until then.
    """

    up: float
    down: float
    total: int
    accuracy: float
    late: float
    rounds: int | None
    cost: int | None


def outcome(config: Mapping[str, Any], directory: Path, target: float) -> Outcome:
    """Run a federation, unless it has been, and look at what it left."""
    if not (directory / SUMMARY).exists():
        run(parse_config(config), directory, pictures=False, progress=False, warn=False)
    ledger = [entry for entry in read_lines(directory / LEDGER) if entry["phase"] == "train"]
    up, down = (
        statistics.fmean(entry["values"] for entry in ledger if entry["direction"] == way)
        for way in ("uplink", "downlink")
    )
    summary = read_json(directory / SUMMARY)
    evaluated = (entry for entry in read_lines(directory / LEDGER) if entry["phase"] == "evaluate")
    last = sum(entry["bytes"] for entry in evaluated if entry["direction"] == "downlink")
    points = trajectory(read_lines(directory / HISTORY), final_downlink_bytes=last)
    found = held(points, target)
    return Outcome(
        up, down, summary["total_bytes"], summary["accuracy"],
        statistics.fmean(point.accuracy for point in points[-LAST:]),
        found and found.rounds, found and found.bytes,
    )  # fmt: skip


def row_of(path: str, row: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A config with what its benchmark says of a row, and then what is given."""
    values = read_config(path, [])
    own = values.pop("bench", {}).get("methods", {}).get(row, {})
    values = merged(values, {"method": row, **own})
    given = read_config(path, overrides)
    given.pop("bench", None)
    changed = {key: value for key, value in given.items() if value != read_config(path, []).get(key)}
    row = merged(values, changed)
    for section in ("data", "model"):  # options of another network are not those of the config's
        if "options" in changed.get(section, {}):
            row[section]["options"] = changed[section]["options"]
    return row


def lines(outcomes: Mapping[tuple[str, int], Outcome], seeds: Sequence[int]) -> Iterator[str]:
    """The table: a line for each run, and one for each rounding over the seeds."""
    yield "| rounding | seed | values up | down | both | bytes to target | rounds | all bytes | final | last five |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    names = dict.fromkeys(name for name, _ in outcomes)
    for name in names:
        both: list[tuple[Outcome, Outcome]] = []
        for seed in seeds:
            if (name, seed) in outcomes:
                both.append((outcomes[name, seed], outcomes[BESIDE, seed]))
                yield _line(name, str(seed), both[-1:])
        if name != BESIDE and len(both) > 1:
            yield _line(name, "all", both)


def _line(name: str, seed: str, both: Sequence[tuple[Outcome, Outcome]]) -> str:
    """A line of one run, or of the means over several, each with Student's 95 % interval: geometric ones of ratios."""

    def ratio(one_of: Callable[[Outcome], float | None]) -> str:
        pairs = [(one_of(one), one_of(other)) for one, other in both]
        return ratio_text(average_ratio(one / other if one and other else None for one, other in pairs), len(both))

    def points(of: str) -> str:
        accuracy = 100 * statistics.fmean(getattr(one, of) for one, _ in both)
        gains = average(100 * (getattr(one, of) - getattr(other, of)) for one, other in both)
        return f"{accuracy:.1f} ({interval(gains, '{:.1f}'.format)})"

    up, down = (statistics.fmean(getattr(one, of) for one, _ in both) for of in ("up", "down"))
    rounds = ", ".join(f"{one.rounds} for {other.rounds}" for one, other in both)
    return (
        f"| {name} | {seed} | {up:,.0f}, {ratio(attrgetter('up'))} | {down:,.0f}, {ratio(attrgetter('down'))} | "
        f"{ratio(lambda each: each.up + each.down)} | {ratio(attrgetter('cost'))} | {rounds} | "
        f"{ratio(attrgetter('total'))} | {points('accuracy')} | {points('late')} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--row", default="spatl")
    parser.add_argument("--seeds", default="31,32")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--roundings", default="dither", help="apart from at-random; separated by semicolons")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args(arguments)
    seeds, config = [int(seed) for seed in given.seeds.split(",")], row_of(given.config, given.row, given.overrides)
    outcomes: dict[tuple[str, int], Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for name in (BESIDE, *given.roundings.split(";")):
                own = merged(config, {"seed": seed, "wire": dict(ROUNDINGS[name])})
                place = (given.out or Path(scratch)) / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                outcomes[name, seed] = outcome(own, place, given.target)
                print(_line(name, str(seed), [(outcomes[name, seed], outcomes[BESIDE, seed])]), flush=True)
    print(*lines(outcomes, seeds), sep="\n")


if __name__ == "__main__":
    main()
