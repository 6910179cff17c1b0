"""Jobs: runs side by side in processes, each finished exactly once; a killed one leaves nothing half-done.

A run is computed beside its place and moved there when it is over, so that whatever stands in its place is whole and a
second start of the same benchmark does only what is missing. Workers end when the process that started them does.
"""

import logging
import multiprocessing
import os
import queue
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from spatl.config.loading import config_from_json, parse_config
from spatl.deployment.processes import end_with_parent
from spatl.errors import ConfigError, DivergedError, SpatlError, from_outside, told
from spatl.json_files import write_json
from spatl.runner import run
from spatl.runs.files import CONFIG, ERROR
from spatl.runs.log import TextFormatter

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """Run of a row and a seed that is to be done.

    Attributes:
        name: What progress calls it.
        directory: Where it will stand when it is finished.
        config_json: The run's config.
    """

    name: str
    directory: Path
    config_json: str


@dataclass(frozen=True)
class Event:
    """Event of a job: it started, wrote a round (`row`), or ended (with its `error` if it failed)."""

    job: str
    kind: Literal["started", "round", "ended"]
    row: dict[str, Any] | None = None
    error: str | None = None


OnEvent = Callable[[Event], None]


def missing_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that no earlier start has finished.

    Raises:
        ConfigError: A finished one was run with another config.
    """
    missing = []
    for job in jobs:
        if not job.directory.exists():
            missing.append(job)
            continue
        path = job.directory / CONFIG
        done = _resolved(yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {})
        wanted = yaml.safe_load(config_from_json(job.config_json).to_yaml())
        if done != wanted:
            key, before, now = _first_difference(done, wanted)
            raise ConfigError(
                f"{job.directory} was run with {key} {before}, this benchmark wants {now}: start it as it was started "
                "before (with or without --tune, with the same grid), or choose another directory (--out)"
            )
    return missing


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with the defaults of settings that it does not name, for there were none yet."""
    try:
        resolved: dict[str, Any] = yaml.safe_load(parse_config(values).to_yaml())
    except ConfigError:  # a setting that there is no more
        return values
    return resolved if values else {}


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> tuple[str, Any, Any]:
    """Return the first difference of two nested mappings: the dotted key and both values."""
    for key in [*one, *(key for key in other if key not in one)]:
        before, now = one.get(key, "(nothing)"), other.get(key, "(nothing)")
        if before != now:
            if isinstance(before, Mapping) and isinstance(now, Mapping):
                return _first_difference(before, now, f"{path}{key}.")
            return f"{path}{key}", before, now
    raise AssertionError("they are equal")


def run_jobs(jobs: Sequence[Job], *, workers: int, on_event: OnEvent = lambda event: None) -> dict[str, str]:
    """Run all jobs.

    A run that diverges is finished: its directory holds what it wrote and an `error.json`. Any other error leaves the
    job undone, for the next start.

    Args:
        jobs: What is to be done; in this order, as workers get free.
        workers: How many processes; 1 runs everything in this one.
        on_event: Called in this process.

    Returns:
        One line by name for every job that failed without being finished.

    Raises:
        SpatlError: A worker died; what is finished stays.
    """
    if workers == 1 or len(jobs) == 1:
        failed = {}
        for job in jobs:
            on_event(Event(job.name, "started"))
            error = _run(job, on_event)
            on_event(Event(job.name, "ended", error=error))
            if error is not None:
                failed[job.name] = error
        return failed
    return _run_in_processes(jobs, min(workers, len(jobs)), on_event) if jobs else {}


def _run_in_processes(jobs: Sequence[Job], workers: int, on_event: OnEvent) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    tasks: multiprocessing.Queue[Job | None] = context.Queue()  # fed by a thread: a full pipe would block this one
    events: multiprocessing.Queue[Event] = context.Queue()
    processes = [
        context.Process(target=_work, args=(tasks, events, os.getpid()), daemon=True, name=f"spatl-bench-{number}")
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        for job in jobs:
            tasks.put(job)
        for _ in processes:
            tasks.put(None)
        failed, open_jobs = {}, {job.name for job in jobs}
        while open_jobs:
            try:
                event = events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if dead := [process for process in processes if process.exitcode not in (None, 0)]:
                    raise SpatlError(
                        f"a worker ended with exit status {dead[0].exitcode} (out of memory?); the runs that are "
                        "finished are kept: start the same command again, perhaps with fewer --workers"
                    ) from None
                continue
            on_event(event)
            if event.kind == "ended":
                open_jobs.discard(event.job)
                if event.error is not None:
                    failed[event.job] = event.error
        return failed
    finally:
        tasks.cancel_join_thread()  # after an interrupt nobody takes the jobs that are left, and this process must end
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(tasks: "multiprocessing.Queue[Job | None]", events: "multiprocessing.Queue[Event]", parent: int) -> None:
    """Do jobs until there are none, or nobody waits for them any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    end_with_parent(parent)
    while (job := tasks.get()) is not None:
        events.put(Event(job.name, "started"))
        error = _run(job, events.put)
        events.put(Event(job.name, "ended", error=error))


def _run(job: Job, on_event: OnEvent) -> str | None:
    """Do one job; return one line if it failed and is not finished."""
    unfinished = job.directory.with_name(f"{job.directory.name}.{os.getpid()}.unfinished")
    for old in (unfinished, *job.directory.parent.glob(f"{job.directory.name}.*.unfinished")):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    log = job.directory.with_name(f"{job.directory.name}.log")
    with _logged_to(log):
        try:
            config = config_from_json(job.config_json)
            run(
                config,
                unfinished,
                on_round=lambda row: on_event(Event(job.name, "round", row=row)),
                pictures=False,
                warn=False,
            )
        except DivergedError as error:
            write_json(unfinished / ERROR, {"error": type(error).__name__, "message": str(error)})
        except (Exception, SystemExit) as error:  # a user's mistake, a full disk, or a bug: the other runs go on
            shutil.rmtree(unfinished, ignore_errors=True)
            if not from_outside(error):
                return str(error)
            logger.exception("%s failed", job.name)
            return f"{told(error)} (see {log})"
    if log.exists():
        log.replace(unfinished / "log.txt")
    unfinished.rename(job.directory)
    return None


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Send what the run logs to a file instead of the terminal, on which progress is shown; no file if it is silent."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8", delay=True)
    handler.setFormatter(TextFormatter(tracebacks=True))
    root = logging.getLogger()
    others = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = others
        handler.close()
