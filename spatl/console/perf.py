"""Command `spatl perf`: what simulations take on this machine, beside a bare loop, by part, by number of clients."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from spatl import __version__
from spatl.errors import ConfigError, SpatlError, SystemFault, did_you_mean, without_going_on
from spatl.json_files import write_json
from spatl.perf.beside import BESIDE, FLOWER, measure_beside
from spatl.perf.cases import FULL_CLIENTS, METHODS, MODELS, QUICK, QUICK_CLIENTS, Case
from spatl.perf.figure import draw_perf
from spatl.perf.measure import Say, machine, measure
from spatl.perf.parts import PARTS
from spatl.perf.scale import measure_clients
from spatl.perf.side_by_side import measure_workers
from spatl.perf.sizes import FULL_SIZES, SIZE_METHODS, measure_size
from spatl.runs.directory import fresh_directory
from spatl.runs.text import human_bytes
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line, print_table

RESULT, PICTURE = "perf.json", "perf.png"
_MOST_GROUPED = 20  # clients of a case
_FEWEST_CLIENTS = 10
_AROUND = ("selection", "encode", "decode", "state", "model", "sums")


def perf(options: argparse.Namespace, console: Console) -> None:
    """Measure the cases that were asked for, print what they take, and write numbers and a picture.

    Raises:
        SpatlError: There is no such network or method, a number is too small, or the machine refuses something.
    """
    cases, numbers, sizes = _cases(options), _numbers_of_clients(options), _numbers_of_parameters(options)
    for name in ("turns", "rounds"):
        if (value := getattr(options, name)) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if options.workers and min(options.workers) < 1:
        raise ConfigError(f"--workers must be at least 1, got {min(options.workers)}")
    _check_beside(options.beside or (), cases)
    directory = fresh_directory(options.out, name="perf")
    watching = Screen(stderr=True)

    def say(text: str) -> None:
        watching.print(text, highlight=False)

    try:
        found = _measured(options, cases, numbers, sizes, say)
    except SpatlError as error:
        if (fault := without_going_on(str(error))) == str(error):
            raise
        raise SystemFault(f"{fault}; then measure again: nothing is kept of a run that is measured") from error
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RESULT, found)
    draw_perf(found, directory / PICTURE)
    updates = found["updates"]
    tables = _updates(updates), _parts(updates), _workers(found["workers"]), _beside(found["beside"])
    for table in (*tables, _clients(found["clients"]), _sizes(found["sizes"])):
        if table.row_count:
            print_table(console, table)
    for name in (RESULT, PICTURE):
        print_line(console, str(directory / name))


def _measured(
    options: argparse.Namespace, cases: Sequence[Case], numbers: Sequence[int], sizes: Sequence[int], say: Say
) -> dict[str, Any]:
    """Return all that was asked for, measured."""
    found: dict[str, Any] = {
        "spatl": __version__, "command": _command(options), **machine(), "updates": [], "workers": [], "beside": [],
        "clients": [], "sizes": [],
    }  # fmt: skip
    for case in cases:
        found["updates"].append(measure(case, turns=options.turns, rounds=options.rounds, say=say))
    if options.workers:
        for case in cases:
            found["workers"] += measure_workers(
                case, options.workers, turns=options.turns, rounds=options.rounds, say=say
            )
    for case in cases if options.beside else ():
        found["beside"] += measure_beside(case, options.beside, turns=options.turns, rounds=options.rounds, say=say)
    for number in numbers:
        say(f"{number:,} clients")
        found["clients"].append(measure_clients(number))
    for millions in sizes:
        for method in options.methods or SIZE_METHODS:
            say(f"{millions:,} million parameters, {method}")
            found["sizes"].append(measure_size(millions, method))
    return found


def _cases(options: argparse.Namespace) -> list[Case]:
    for given, known, flag in ((options.models, MODELS, "--models"), (options.methods, METHODS, "--methods")):
        for name in given or ():
            if name not in known:
                raise ConfigError(
                    f"{flag}: there is no {name!r}{did_you_mean(name, known)}; known are {', '.join(known)}"
                )
    if options.full or options.models or options.methods:
        models, methods = options.models or list(MODELS), options.methods or list(METHODS)
        pairs = [(model, method) for model in models for method in methods]
    else:
        pairs = list(QUICK)
    if not 1 <= options.group_size <= _MOST_GROUPED:
        raise ConfigError(f"--group-size must be 1 to {_MOST_GROUPED}, got {options.group_size}")
    if options.group_size > 1 and options.workers:
        raise ConfigError("--group-size is of clients in the process of the server, --workers of others: give one")
    form = {"memory_format": options.memory_format, "group_size": options.group_size}
    return [Case(model, method, **form) for model, method in pairs]


def _check_beside(names: Sequence[str], cases: Sequence[Case]) -> None:
    for name in names:
        if name not in BESIDE:
            raise ConfigError(
                f"--beside: there is no {name!r}{did_you_mean(name, BESIDE)}; known are {', '.join(BESIDE)}"
            )
    if FLOWER in names and (other := next((case.method for case in cases if case.method != "fedavg"), None)):
        raise ConfigError(f"--beside flower: plain Flower does FedAvg, not {other}; give --methods fedavg")


def _numbers_of_clients(options: argparse.Namespace) -> Sequence[int]:
    if options.clients is None:
        return FULL_CLIENTS if options.full else () if options.models or options.methods else QUICK_CLIENTS
    numbers: list[int] = [number for number in options.clients if number]
    if numbers and min(numbers) < _FEWEST_CLIENTS:
        raise ConfigError(f"--clients must be at least {_FEWEST_CLIENTS}, or 0 for none, got {min(numbers)}")
    return numbers


def _numbers_of_parameters(options: argparse.Namespace) -> Sequence[int]:
    if options.sizes is None:
        return FULL_SIZES if options.full else ()
    numbers: list[int] = [number for number in options.sizes if number]
    if numbers and not 1 <= min(numbers) <= max(numbers) <= FULL_SIZES[-1]:
        raise ConfigError(
            f"--sizes are millions of parameters from 1 to {FULL_SIZES[-1]}, or 0 for none, got {numbers}"
        )
    return numbers


def _updates(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="an update of a client, CPU milliseconds of one thread: median (least to greatest)")
    for name in ("", "bare loop", "engine", "bare / engine", "updates a CPU second"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['method']}", _spread(row["bare_ms"], 1), _spread(row["engine_ms"], 1),
            _spread(row["ratio"], 2), f"{row['updates_per_second']:.1f}",
        )  # fmt: skip
    return table


def _parts(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="the same by part, of a run of its own, milliseconds")
    table.add_column("")
    for part in (*PARTS, "other"):
        table.add_column(part, justify="right")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['method']}", *(f"{row['parts_ms'][part]:.2f}" for part in (*PARTS, "other"))
        )
    return table


def _workers(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="a round with several workers, seconds by the clock: median (least to greatest)")
    for name in ("", "workers", "a round", "times faster than with none", "the same to the bit"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['method']}", str(row["workers"]), _spread(row["round_seconds"], 2),
            _spread(row["ratio"], 2), "yes" if row["same"] else "no",
        )  # fmt: skip
    return table


def _beside(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="an update beside engines of several processes, CPU milliseconds of all of them together")
    for name in ("", "beside", "an update", "inline", "times as much", "updates a CPU second"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['method']}", row["beside"], _spread(row["update_ms"], 1),
            _spread(row["inline_ms"], 1), _spread(row["ratio"], 2), f"{row['updates_per_second']:.1f}",
        )  # fmt: skip
    return table


def _clients(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="a federation by its number of clients, CPU seconds")
    for name in ("clients", "in a round", "start", "a round", "end", "peak memory", "files"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['num_clients']:,}", f"{row['participants']:,}",
            *(f"{row[name]:.2f}" for name in ("start_seconds", "round_seconds", "end_seconds")),
            human_bytes(row["peak_bytes"]), f"{row['files']:,}",
        )  # fmt: skip
    return table


def _sizes(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="an update around its training by the size of the network, CPU nanoseconds a parameter")
    for name in ("parameters", "method", "around", *_AROUND, "peak memory", "networks beyond the start"):
        table.add_column(name, justify="right" if name != "method" else "left")
    for row in rows:
        table.add_row(
            f"{row['num_parameters'] / 1e6:.1f} M", row["method"], f"{row['around_ns']:.0f}",
            *(f"{row['parts_ns'][part]:.0f}" for part in _AROUND),
            human_bytes(row["peak_bytes"]), f"{row['peak_models']:.1f}",
        )  # fmt: skip
    return table


def _spread(values: Mapping[str, float], places: int) -> str:
    median, least, greatest = (f"{values[name]:.{places}f}" for name in ("median", "least", "greatest"))
    return f"{median} ({least} to {greatest})"


def _command(options: argparse.Namespace) -> str:
    parts = ["spatl", "perf"]
    for flag in ("models", "methods", "workers", "beside", "clients", "sizes"):
        if (given := getattr(options, flag)) is not None:
            parts += [f"--{flag}", ",".join(map(str, given))]
    parts += ["--turns", str(options.turns), "--rounds", str(options.rounds)]
    parts += ["--memory-format", options.memory_format] if options.memory_format != "contiguous" else []
    parts += ["--group-size", str(options.group_size)] if options.group_size != 1 else []
    return shlex.join([*parts, *(["--full"] if options.full else [])])
