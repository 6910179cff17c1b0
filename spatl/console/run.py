"""Command `spatl run`: one run, one per seed, or one that goes on."""

import argparse
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from spatl.config.loading import load_config, settings_to_go_on
from spatl.errors import ConfigError
from spatl.extensions.late import LateModule
from spatl.json_files import write_json
from spatl.report.result import RunResult
from spatl.runs.directory import config_of, fresh_directory
from spatl.runs.scores import human_score, metric_of, score_in, worst_in
from spatl.runs.text import human_percent
from spatl.terminal.progress import progress_of
from spatl.terminal.result import print_result
from spatl.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from spatl import runner
else:
    runner = LateModule("spatl.runner")  # with which PyTorch comes, once the config is read


def run(options: argparse.Namespace, console: Console) -> None:
    """Run a config, once or once per seed, or the rest of a run that was killed, as the options say."""
    overrides = [*options.overrides, *([f"engine={options.engine}"] if options.engine else [])]
    if options.resume is not None:
        print_result(console, _resume(console, options))
        return
    if options.config is None:
        raise ConfigError("spatl run needs a CONFIG, e.g. quickstart (spatl show configs), or --resume DIR")
    if options.seeds is None:
        print_result(console, _run_one(console, options.config, overrides, options.out))
        return
    config = load_config(options.config, [*overrides, f"seed={options.seeds[0]}"])
    runner.check(config)  # before a directory is made
    directory = fresh_directory(options.out, name=config.run_name)
    results = []
    for seed in options.seeds:
        console.rule(f"seed {seed}")
        results.append(_run_one(console, options.config, [*overrides, f"seed={seed}"], directory / f"seed-{seed}"))
    print_seeds(console, results, directory)


def _run_one(console: Console, path: str, overrides: Sequence[str], directory: str | Path | None) -> RunResult:
    config = load_config(path, overrides)
    command = shlex.join(["spatl", "run", path, *(part for text in overrides for part in ("--set", text))])
    with progress_of(console, config) as progress:
        return runner.run(
            config, directory, on_round=progress.on_round, on_round_alone=progress.on_round_alone, command=command
        )


def _resume(console: Console, options: argparse.Namespace) -> RunResult:
    given = {"CONFIG": options.config, "--engine": options.engine, "--out": options.out, "--seeds": options.seeds}
    superfluous = [name for name, value in given.items() if value]
    if superfluous:
        raise ConfigError(
            f"--resume goes on with the run's own config and directory, to more rounds at most (--set rounds=N): leave "
            f"out {superfluous[0]}"
        )
    rounds, workers = settings_to_go_on(options.overrides, workers=True)
    config, command = config_of(Path(options.resume)), ["spatl", "run", "--resume", options.resume]
    for text in options.overrides:
        command += ["--set", text]
    shown = config.model_copy(update={"rounds": rounds}) if type(rounds) is int else config
    with progress_of(console, shown) as progress:
        return runner.resume(
            options.resume, rounds=rounds, workers=workers, on_round=progress.on_round,
            on_round_alone=progress.on_round_alone, command=shlex.join(command),
        )  # fmt: skip


_SHARE: Final = "up, of the whole encoder"


def _known(score: float | None) -> float:
    """Return a score, NaN where there is none."""
    return math.nan if score is None else score


def print_seeds(console: Console, results: Sequence[RunResult], directory: Path) -> None:
    """Print one row per seed, then mean and sample standard deviation; also written as `seeds.json`."""
    title, with_alone = results[0].summary["title"], all(result.alone for result in results)
    metric = metric_of(results[0].summary)

    def shown(name: str, value: float) -> str:
        return human_percent(value) if name == _SHARE else human_score(value, metric)

    columns: dict[str, list[float]] = {
        f"{title}, mean": [_known(score_in(result.summary)) for result in results],
        f"{title}, worst client": [_known(worst_in(result.summary)) for result in results],
    }
    if with_alone:
        alone = [_known(score_in(result.alone)) for result in results if result.alone]
        columns["training alone, mean"] = alone
        columns["difference"] = [a - b for a, b in zip(columns[f"{title}, mean"], alone, strict=True)]
    if all(result.summary["uplink_share"] is not None for result in results):
        columns[_SHARE] = [result.summary["uplink_share"] for result in results]
    table = Table(title=f"{title} on {results[0].summary['data']}, {len(results)} seeds")
    for name in ("seed", *columns):
        table.add_column(name, justify="right")
    for position, result in enumerate(results):
        table.add_row(str(result.summary["seed"]), *(shown(name, each[position]) for name, each in columns.items()))
    table.add_section()
    table.add_row("mean", *(shown(name, statistics.mean(values)) for name, values in columns.items()))
    if len(results) > 1:
        table.add_row("std. dev.", *(shown(name, statistics.stdev(values)) for name, values in columns.items()))
    print_table(console, table)
    write_json(directory / "seeds.json", {"seeds": [result.summary["seed"] for result in results], **columns})
    print_line(console, str(directory / "seeds.json"))
