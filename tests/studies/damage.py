"""What befalls when any file of a run is damaged: `python -m tests.studies.damage [PLACES] [SEED]`, a table.

Each file of a run that was stopped after round 3 of 4, and of one that is over, is cut, filled with zeros, doubled and
loses bytes, at so many places each (20 if nothing else is said), is emptied and is deleted. Then `spatl status`,
`report`, `run --resume` and `run --resume --set rounds=5`, one after another, each tell what they tell of the run that
nobody touched (equal), or end in one line with status 2 (refused). Anything else is WRONG.
"""

import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import server.strategy
from spatl import runner
from spatl.config.experiment import ExperimentConfig
from spatl.console.main import main as spatl
from spatl.runs.files import CLIENTS, CURVES, HISTORY, LEDGER, REPORT, SELECTIONS, SUMMARY
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config, without_seconds

ROUNDS, STOPPED = 4, 3
RECORD = (HISTORY, CLIENTS, LEDGER, SELECTIONS)
LOCKS = (".lock",)
EQUAL, REFUSED, WRONG = "equal", "refused", "WRONG"
Damage = Callable[[bytes, int, int], bytes | None]
DAMAGE: Mapping[str, Damage] = {
    "cut": lambda data, start, end: data[:start],
    "zeros": lambda data, start, end: data[:start] + bytes(end - start) + data[end:],
    "doubled": lambda data, start, end: data[:end] + data[start:],
    "lost": lambda data, start, end: data[:start] + data[end:],
    "emptied": lambda data, start, end: b"",
    "deleted": lambda data, start, end: None,
}
"""What becomes of a file's bytes: at a place from start to end, or all of them; None for a file that is gone."""
WHOLE = ("emptied", "deleted")


class Killed(BaseException):
    """What nothing in the product catches, as nothing catches SIGKILL."""


def config_of_study() -> ExperimentConfig:
    """A config of which a run leaves every kind of file that there is."""
    return tiny_config(
        rounds=ROUNDS, method="spatl", partition={"num_clients": 3}, training={"local_steps": 1},
        selection={"selector": "update"},
        report={"tensorboard": True, "findings": 2, "best": True, "split": "validation"},
    )  # fmt: skip


def run_until(directory: Path, config: ExperimentConfig, nth: int) -> None:
    """Run a config, and end as if killed when its nth checkpoint is written; to the end if there is no such one."""
    truly, calls = server.strategy.save_checkpoint, list[object]()

    def saving(*arguments: Any) -> None:
        truly(*arguments)
        calls.append(arguments)
        if len(calls) == nth:
            raise Killed

    with patch.object(server.strategy, "save_checkpoint", saving), contextlib.suppress(Killed):
        runner.run(config, directory, progress=False, warn=False)


def files_of(run: Path) -> list[Path]:
    """The files of a run, as paths within it."""
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return [path for path in found if path.name not in LOCKS]


def damaged(data: bytes, name: str, draw: random.Random) -> bytes | None:
    """What a damage makes of a file, at a place that is drawn."""
    start = draw.randrange(max(1, len(data)))
    return DAMAGE[name](data, start, min(len(data), start + 1 + draw.randrange(max(1, len(data) // 4))))


def answers(run: Path) -> Iterator[tuple[str, int, list[str], Any]]:
    """Give the commands one after another: each with its status, what it said of errors, and what it told."""
    again = ["run", "--resume", str(run)]
    for name, command in (
        ("status", ["status", str(run), "--json", "--findings"]), ("report", ["report", str(run)]), ("resume", again),
        ("more rounds", [*again, "--set", f"rounds={ROUNDS + 1}"]),
    ):  # fmt: skip
        told, errors, drawn = io.StringIO(), io.StringIO(), list[Any]()

        def draw(result: Any, config: ExperimentConfig, *, command: str, drawn: list[Any] = drawn) -> None:
            drawn.append([result.summary, result.history, result.clients, config.model_dump(mode="json")])
            for each in (REPORT, CURVES):
                (result.directory / each).write_text("drawn")

        with (
            patch.object(runner, "draw", draw), contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors),
        ):  # fmt: skip
            status = spatl(command)
        lines = [line for line in errors.getvalue().splitlines() if line.startswith("spatl: ")]
        lines += ["Traceback"] if "Traceback" in errors.getvalue() else []
        yield name, status, lines, content_of(name, run, told.getvalue(), drawn) if status == 0 else None


def content_of(name: str, run: Path, told: str, drawn: list[Any]) -> Any:
    """What a command told, and left, that is to be the same of every run: no times, no paths."""
    if name == "status":
        status = json.loads(told)
        return without_seconds({key: value for key, value in status.items() if key not in ("state", "message")})
    if name != "report":
        drawn = [*drawn, *(read_lines(run / each) for each in RECORD)]
    return without_seconds(json.loads(json.dumps(drawn)))


def judged(answer: tuple[int, list[str], Any], undisturbed: tuple[int, list[str], Any]) -> str:
    """Say what a command's answer is, beside the one about the run that nobody touched."""
    status, lines, content = answer
    if status == 0:
        return EQUAL if content == undisturbed[2] else WRONG
    if status != 2 or len(lines) != 1 or lines[0] == "Traceback":
        return WRONG
    return EQUAL if undisturbed[0] == 2 else REFUSED


def answers_of(run: Path) -> dict[str, tuple[int, list[str], Any]]:
    """What the commands say of a run, by command; what raises is an answer of no status that there is."""
    found = dict[str, tuple[int, list[str], Any]]()
    try:
        for name, status, lines, content in answers(run):
            found[name] = status, lines, content
    except Exception as error:
        found["an exception"] = -1, [f"{type(error).__name__}: {error}"], None
    return found


def outcomes(
    run: Path, scratch: Path, path: Path, damage: str, draw: random.Random, undisturbed: Mapping[str, Any]
) -> Iterator[tuple[str, str, list[str]]]:
    """Damage a file of a copy of a run; what each command's answer then is, and what it said."""
    copy = scratch / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    changed = damaged((copy / path).read_bytes(), damage, draw)
    if changed is None:
        (copy / path).unlink()
    else:
        (copy / path).write_bytes(changed)
    for name, answer in answers_of(copy).items():
        yield name, judged(answer, undisturbed[name]) if name in undisturbed else WRONG, answer[1]


def make_runs(scratch: Path) -> dict[str, Path]:
    """The run that is over, and the one that was stopped."""
    config = config_of_study()
    runs = {"stopped": scratch / "stopped", "over": scratch / "over"}
    run_until(runs["stopped"], config, STOPPED)
    run_until(runs["over"], config, 0)
    return runs


def undisturbed_answers(run: Path, scratch: Path) -> dict[str, tuple[int, list[str], Any]]:
    """What the commands say of a run that nobody touched."""
    copy = scratch / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    found = answers_of(copy)
    if found["resume"][0] != 0:  # of a run that is over; without its summary it makes that again
        shutil.rmtree(copy)
        shutil.copytree(run, copy)
        (copy / SUMMARY).unlink()
        found["resume"] = (*found["resume"][:2], answers_of(copy)["resume"][2])
    return found


def main() -> None:
    """Print the table, and end with status 1 where something is WRONG."""
    places, seed = (int(text) for text in (*sys.argv[1:], *("20", "1")[len(sys.argv) - 1 :]))
    logging.disable(logging.WARNING)
    wrong = list[str]()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        for kind, run in make_runs(scratch).items():
            undisturbed = undisturbed_answers(run, scratch)
            print(f"\n{kind}: {', '.join(f'{name} {answer[0]}' for name, answer in undisturbed.items())}")
            print(f"{'file':44}" + "".join(f"{name:>24}" for name in DAMAGE), flush=True)
            for path in files_of(run):
                cells = []
                for name in DAMAGE:
                    counted = Counter[str]()
                    for place in range(1 if name in WHOLE else places):
                        draw = random.Random(f"{seed} {kind} {path} {name} {place}")
                        for command, outcome, lines in outcomes(run, scratch, path, name, draw, undisturbed):
                            counted[outcome] += 1
                            if outcome == WRONG:
                                wrong.append(f"{kind} {path} {name} {place}: {command}: {lines}")
                    cells.append(
                        " ".join(f"{counted[each]} {each}" for each in (EQUAL, REFUSED, WRONG) if counted[each])
                    )
                print(f"{path!s:44}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
