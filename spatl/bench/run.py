"""Running of a benchmark, from its plan to its files: tuning if asked, the missing runs, the reports."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from spatl.bench.ablations import add_ablations_
from spatl.bench.jobs import Job, OnEvent, missing_jobs, run_jobs
from spatl.bench.plan import Plan
from spatl.bench.report import write_reports
from spatl.bench.results import Record, collect, run_directory
from spatl.bench.tuning import Tuned, tuned_rows, tuning_jobs, warn_of_replaced_momenta, with_tuned
from spatl.config.engines import ENGINES
from spatl.config.given import given_in, setting_names
from spatl.config.loading import config_from_json
from spatl.config.unread import settings_without_effect
from spatl.disk.locks import alone_in
from spatl.errors import ConfigError, SpatlError
from spatl.json_files import write_json
from spatl.rounds.blueprint import cached_blueprint
from spatl.rounds.client_data import check_simulated

logger = logging.getLogger(__name__)

_PLAN_FILE = "bench.yaml"
_LOCK_FILE = ".lock"

OnStage = Callable[[str, int, int], OnEvent]
"""Called before a stage with its title, how many of its runs there are, and how many of them are finished already."""


def bench(
    plan: Plan,
    directory: Path,
    *,
    tune: bool = False,
    workers: int = 0,
    command: str = "spatl bench",
    on_stage: OnStage = lambda title, number, finished: lambda event: None,
    on_tuned: Callable[[list[Tuned]], None] = lambda tuned: None,
) -> list[Record]:
    """Run a benchmark, or the missing runs of one.

    Args:
        plan: What to compare.
        directory: A new directory, or that of a benchmark that was started before, whose finished runs are kept.
        tune: Whether to choose every row's learning rate and momentum first.
        workers: Processes; 0 for as many as the cores allow.
        command: What the report says made it.
        on_stage: Says how to show the progress of a stage.
        on_tuned: Called with what tuning found.

    Returns:
        The records of `bench.json`; runs that failed are missing.

    Raises:
        ConfigError: The directory holds something else, or runs of another config.
        SpatlError: Runs failed (other than by diverging); the reports of those that did not are written.
    """
    _check_extras()
    with _locked(directory):
        _check_plan(plan, directory, tune)
        jobs = tuning_jobs(plan, directory) if tune else _jobs(plan, directory)
        missing = missing_jobs(jobs)  # refuses before anything is written
        for line in unread_by_rows(plan):
            logger.warning("%s", line)
        _write_plan(plan, directory, command, tune)
        tuned: list[Tuned] = []
        if tune:
            warn_of_replaced_momenta(plan)
            _do("tuning", len(jobs), missing, plan, workers, on_stage)
            tuned = tuned_rows(plan, directory)
            write_json(directory / "tuning.json", [_as_json(each) for each in tuned])
            on_tuned(tuned)
            plan = with_tuned(plan, tuned)
        failed: SpatlError | None = None
        try:
            if tune:
                jobs = _jobs(plan, directory)
                missing = missing_jobs(jobs)
            _do("runs", len(jobs), missing, plan, workers, on_stage)
        except SpatlError as error:
            failed = error
        records = _write_reports(plan, directory, command, tuned)
        if failed is not None:
            raise failed
        return records


def report(plan: Plan, directory: Path, *, tune: bool = False, command: str = "spatl bench") -> list[Record]:
    """Write the reports of what a benchmark's directory holds, and run nothing; another process may be at work in it.

    Args:
        plan: What to compare.
        directory: Of a benchmark that was started before.
        tune: Whether it chooses every row's learning rate and momentum first.
        command: What the report says made it.

    Returns:
        The records of `bench.json`; runs that have not ended are missing.

    Raises:
        ConfigError: The directory holds no benchmark, or one of another config, or none of its runs has ended.
    """
    _check_extras()
    if not (directory / _PLAN_FILE).is_file():
        raise ConfigError(f"{directory} holds no benchmark to report of")
    _check_plan(plan, directory, tune)
    tuned: list[Tuned] = []
    if tune:
        jobs = tuning_jobs(plan, directory)
        if missing := missing_jobs(jobs):
            raise ConfigError(
                f"{directory}: {len(missing)} of {len(jobs)} runs of its tuning have not ended; until then there is "
                "nothing to compare"
            )
        tuned = tuned_rows(plan, directory)
        plan = with_tuned(plan, tuned)
    missing_jobs(_jobs(plan, directory))  # refuses runs of another config
    records = _write_reports(plan, directory, command, tuned)
    if not records:
        raise ConfigError(f"{directory}: no run has ended yet")
    return records


def _write_reports(plan: Plan, directory: Path, command: str, tuned: Sequence[Tuned]) -> list[Record]:
    """Write `bench.json` and the reports, unless no run has ended."""
    records, curves = collect(plan, directory)
    add_ablations_(records, plan.bench.ablations)
    if records:
        write_json(directory / "bench.json", records)
        write_reports(plan, records, curves, directory, command=command, tuned=tuned)
    return records


def unread_by_rows(plan: Plan) -> list[str]:
    """Return a line for each setting that has no effect in any of the rows that have it.

    What all rows have in common is often there for some of them.
    """
    unread: dict[str, list[tuple[str, str | None]]] = {}
    for row in plan.rows:
        given = given_in(row.values)
        lines = settings_without_effect(row.config(plan.bench.seeds[0]), given=given)
        for setting in given:
            unread.setdefault(setting, []).append((row.label, lines.get(setting)))
    found = []
    for setting in setting_names():
        told = [(label, line) for label, line in unread.get(setting, []) if line is not None]
        if told and len(told) == len(unread[setting]):
            label, line = told[0]
            alone = len(told) < len(plan.rows)
            found.append(f"{label}: {line}" if alone else line)
    return found


def _jobs(plan: Plan, directory: Path) -> list[Job]:
    return [
        Job(
            f"{row.label}, seed {seed}",
            run_directory(directory, row.label, seed),
            row.config(seed, report={"compare_alone": False}).to_json(),
        )
        for seed in plan.bench.seeds  # so that a benchmark that is stopped has all rows, of fewer seeds
        for row in plan.rows
    ]


def _do(title: str, number: int, missing: Sequence[Job], plan: Plan, workers: int, on_stage: OnStage) -> None:
    """Run what is missing of a stage of `number` jobs."""
    on_event = on_stage(title, number, number - len(missing))
    if not missing:
        return
    checked: set[str] = set()
    remarks: dict[str, None] = {}
    for job in missing:  # a mistake shows here, in one line, before any work
        config = config_from_json(job.config_json)
        check_simulated(config)
        key = config.model_copy(update={"seed": 0}).to_json()
        if key not in checked:
            checked.add(key)
            blueprint = cached_blueprint(job.config_json)
            blueprint.check_clients()
            remarks |= dict.fromkeys(blueprint.dataset.remarks())
    for remark in remarks:
        logger.warning("%s", remark)
    failed = run_jobs(missing, workers=workers or _workers(plan), on_event=on_event)
    if failed:
        name, reason = next(iter(failed.items()))
        raise SpatlError(
            f"{len(failed)} of {len(missing)} runs failed, the others are kept; the first, {name}: {reason}"
        )


def _workers(plan: Plan) -> int:
    """Return the number of runs at a time: one where they would share a GPU or Ray spreads a run, else one per core."""
    config = plan.first
    device = config.training.device
    if not ENGINES[config.engine].in_process or not (
        device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    ):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // config.training.threads)


def _as_json(tuned: Tuned) -> dict[str, Any]:
    best = tuned.best
    return {
        "method": tuned.label,
        "best": best.rate,
        "momentum": best.momentum,
        "server_factor": best.server_factor,
        "learning_rate": best.learning_rate,
        "at_edge": tuned.at_edge,
        "scores": {pair.text: score for pair, score in tuned.scores.items()},
    }


def _check_extras() -> None:
    """Raise a `SpatlError` if a package that the reports need is missing: before the runs, not after them."""
    for package in ("matplotlib", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise SpatlError(f"a benchmark needs {package}, which is not installed: pip install 'spatl[simulation]'")


def _check_plan(plan: Plan, directory: Path, tune: bool) -> None:
    """Raise if the directory's benchmark was tuned and this one is not, or has rows or seeds that this one drops."""
    path = directory / _PLAN_FILE
    old = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if old is None:
        return
    if old["tune"] != tune:
        how = "with" if old["tune"] else "without"
        raise ConfigError(
            f"{directory} holds a benchmark that was started {how} --tune; go on like that, or choose another (--out)"
        )
    for what, before, now in (
        ("rows", old["rows"], {row.label for row in plan.rows}),
        ("seeds", old["bench"]["seeds"], set(plan.bench.seeds)),
    ):
        if dropped := [str(each) for each in before if each not in now]:
            raise ConfigError(
                f"{directory} holds a benchmark that also has the {what} {', '.join(dropped)}; name them too, or "
                "choose another directory (--out)"
            )


def _write_plan(plan: Plan, directory: Path, command: str, tune: bool) -> None:
    content = {
        "command": command,
        "tune": tune,
        "bench": plan.bench.model_dump(mode="json"),
        "rows": {row.label: dict(row.values) for row in plan.rows},
    }
    temporary = directory / f"{_PLAN_FILE}.tmp"
    temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    temporary.replace(directory / _PLAN_FILE)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a benchmark's directory for this process alone.

    Raises:
        ConfigError: It holds something that is no benchmark, or another process is at work in it.
        SpatlError: It cannot be made.
    """
    try:
        taken = directory.exists() and (
            not directory.is_dir() or any(each.name != _LOCK_FILE for each in directory.iterdir())
        )
        if taken and not (directory / _PLAN_FILE).is_file():
            raise ConfigError(f"{directory} is already there and holds no benchmark; choose another (--out)")
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot use {directory} for a benchmark: {error.strerror}") from error
    taken_error = ConfigError(f"another process is at work in {directory}; wait for it, or choose another")
    with alone_in(directory / _LOCK_FILE, otherwise=taken_error):
        yield
