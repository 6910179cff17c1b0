"""The study of attacks: which rule holds against what, and what it costs where nobody is bad.

`python -m tests.studies.attacks` runs ten clients, two of whom cheat, on the digits: every attack, situation, rule and
seed that is asked for, and prints two tables for each situation. One has the accuracy of the honest clients (their
validation splits), the success of the backdoor, and what was refused; the other what each rule costs and buys, beside
the first rule where nobody cheats. `--keep FILE` appends each run to a file as a line of JSON, takes what it holds
already from there, and so goes on where it was cut; `--table` prints that alone.
"""

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatl.json_files import to_json
from tests.studies.attacks.arena import Result, result_of
from tests.studies.attacks.situations import SITUATIONS
from tests.studies.attacks.ways import ATTACKS

RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "agreement, clip 1.5": {"aggregation": "agreement", "clip": 1.5},
    "median": {"aggregation": "median"},
    "trimmed-mean": {"aggregation": "trimmed-mean"},
    "multi-krum": {"aggregation": "multi-krum"},
    "nnm": {"aggregation": "nnm"},
    "centered-clipping": {"aggregation": "centered-clipping"},
    "geometric-median": {"aggregation": "geometric-median"},
}
_WORTH_TELLING = 0.1  # of a backdoor's success: below it, as many images are mistaken without one
Key = tuple[str, str, str, int, int]
"""Situation, attack, rule, seed and rounds."""


def read(path: Path | None) -> dict[Key, Result]:
    """Return the runs that a file holds."""
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        kept = json.loads(line)
        situation, attack, rule, seed, rounds = kept.pop("run")
        found[situation, attack, rule, seed, rounds] = Result(
            **{key: math.nan if v is None else v for key, v in kept.items()}
        )
    return found


def keep(path: Path, run: Key, result: Result) -> None:
    """Append a run to a file."""
    numbers = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(result).items()}
    with path.open("a") as file:
        file.write(to_json({"run": list(run), **numbers}) + "\n")


def table(found: dict[Key, Result], situation: str, rules: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a situation's table, without rules that did not run in it; nothing where none did."""
    there = [rule for rule in rules if any((s, r) == (situation, rule) for s, _, r, *_ in found)]
    if not there:
        return
    yield f"| {situation} | " + " | ".join(there) + " |"
    yield "|---|" + "---:|" * len(there)
    for attack in ATTACKS:
        cells = [
            cell([each for (s, a, r, *_), each in sorted(found.items()) if (s, a, r) == (situation, attack, rule)])
            for rule in there
        ]
        if any(cells):
            yield f"| {attack} | " + " | ".join(cells) + " |"


def cell(results: Sequence[Result]) -> str:
    """Return the mean accuracy of some seeds, how far they spread, the backdoor's success and what was refused."""
    if not results:
        return ""
    accuracies = [100 * each.accuracy for each in results if not math.isnan(each.accuracy)]
    lost = len(results) - len(accuracies)
    told = []
    if accuracies:
        mean = sum(accuracies) / len(accuracies)
        told.append(f"{mean:.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})")
    if lost:
        told.append(f"{lost} diverged")
    worst = max((each.backdoor for each in results if not math.isnan(each.backdoor)), default=0.0)
    if worst >= _WORTH_TELLING:
        told.append(f"backdoor {100 * worst:.0f}")
    for kind, name in (("bad", "refused"), ("honest", "HONEST refused")):
        share = sum(each.refused[kind] for each in results) / max(1, sum(each.asked[kind] for each in results))
        if share > 0:
            told.append(f"{name} {100 * share:.0f} %" if share >= 0.005 else f"{name} {100 * share:.1f} %")
    return ", ".join(told)


def sums(found: dict[Key, Result], situation: str, rules: Sequence[str]) -> Iterator[str]:
    """Yield a line a rule: what it costs and buys, in points beside the first rule where nobody cheats, seed by seed.

    Nothing where the first rule did not run without an attack.
    """
    none = next(iter(ATTACKS))
    before = {
        seed: each.accuracy for (s, a, r, seed, _), each in found.items() if (s, a, r) == (situation, none, rules[0])
    }
    if not before:
        return
    yield f"| {situation} | nobody cheats | honest refused then | worst attacks in the mean | worst seed | backdoor |"
    yield "|---|---:|---:|---|---:|---:|"
    for rule in rules:
        there = {(a, seed): each for (s, a, r, seed, _), each in found.items() if (s, r) == (situation, rule)}
        lost: dict[str, list[float]] = {}
        for (attack, seed), each in there.items():
            if seed in before:
                lost.setdefault(attack, []).append(100 * (each.accuracy - before[seed]))
        cost = lost.pop(none, [])
        if not cost:
            continue
        refused = sum(each.refused["honest"] for (attack, _), each in there.items() if attack == none)
        ranked = sorted((_mean(each), attack) for attack, each in lost.items())
        worst = ", ".join(f"{attack} {_points(mean)}" for mean, attack in ranked[:3])
        single = min((_mean([each]) for attack in lost for each in lost[attack]), default=0.0)
        backdoor = max((each.backdoor for (attack, _), each in there.items() if attack == "backdoor"), default=0.0)
        yield f"| {rule} | {_points(_mean(cost))} | {refused} | {worst} | {_points(single)} | {100 * backdoor:.0f} % |"


def _mean(differences: Sequence[float]) -> float:
    """Return their mean; that of a run that diverged is below all others."""
    mean = sum(differences) / len(differences)
    return -math.inf if math.isnan(mean) else mean


def _points(difference: float) -> str:
    return f"{difference:+.1f}" if math.isfinite(difference) else "diverged"


def main() -> None:
    """Run what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.attacks")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3])
    for name, every in (("situations", SITUATIONS), ("rules", RULES), ("attacks", ATTACKS)):
        parser.add_argument(f"--{name}", default=";".join(every), help="separated by semicolons; all if not given")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="a file of JSON lines")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = read(options.keep)
    situations, rules, attacks = (getattr(options, name).split(";") for name in ("situations", "rules", "attacks"))
    runs = [
        (situation, attack, rule, seed, options.rounds)
        for seed in options.seeds for situation in situations for attack in attacks for rule in rules
    ]  # fmt: skip
    for number, run in enumerate(runs, start=1):
        if run in found or options.table:
            continue
        situation, attack, rule, seed, rounds = run
        found[run] = result_of(situation, RULES[rule], attack, seed=seed, rounds=rounds)
        if options.keep is not None:
            keep(options.keep, run, found[run])
        print(f"{number}/{len(runs)} {situation}, {attack}, {rule}, seed {seed}: {cell([found[run]])}", flush=True)
    for situation in situations:
        print("\n".join(["", *table(found, situation, rules), "", *sums(found, situation, rules)]), flush=True)


if __name__ == "__main__":
    main()
