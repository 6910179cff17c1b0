"""Command `spatl export RUN`: the model of a run as files for other programs, cut to a budget if asked for."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spatl.artifacts.card import CARD_TEXT, Card, times_as_fast
from spatl.artifacts.export import ExportRequest, export_run
from spatl.artifacts.runtimes import EAGER
from spatl.artifacts.widths import BudgetKind, CutBudget
from spatl.runs.text import human_bytes, human_percent
from spatl.terminal.tables import print_line, print_table


def export(options: argparse.Namespace, console: Console) -> None:
    """Export the model of a run, and print what its card says and where the files are.

    Raises:
        SpatlError: It cannot be exported (`spatl.artifacts.export.export_run`).
    """
    request = ExportRequest(
        run=Path(options.run), client=options.client, budget=_budget(options), exact=options.exact,
        selector=options.selector, finetune_epochs=options.finetune, int8=options.int8,
        directory=None if options.out is None else Path(options.out),
    )  # fmt: skip
    with _told(console) as tell:
        card = export_run(request, progress=tell)
    print_table(console, _table(card))
    for note in card.notes:
        print_line(console, note)
    for name, facts in card.files.items():
        print_line(console, f"{request.target / name} ({human_bytes(facts['bytes'])})")
    print_line(console, f"{request.target / CARD_TEXT}: all of this, and checksums")


def _budget(options: argparse.Namespace) -> CutBudget | None:
    given: dict[BudgetKind, float | None] = {
        "flops": options.flops, "parameters": options.parameters, "latency_ms": options.latency_ms,
    }  # fmt: skip
    return next((CutBudget(kind, limit) for kind, limit in given.items() if limit is not None), None)


def _table(card: Card) -> Table:
    """Return a row for each network and runtime: what it costs, how fast and how accurate it is."""
    table = Table(title=f"{card.description.factory}, one thread on this machine")
    table.add_column("network, runtime")
    for name in ("MACs", "parameters", "ms, batch 1", "against dense", "ms, batch 16", "against dense", "accuracy"):
        table.add_column(name, justify="right")
    for network, sizes in card.sizes.items():
        for runtime in dict.fromkeys(each.runtime for each in card.latencies):
            cells = []
            for each in card.latencies:
                if (each.network, each.runtime) == (network, runtime):
                    cells += [f"{each.milliseconds:.3g}", times_as_fast(card.speedup(each, runtime=EAGER))]
            accuracy = card.accuracies.get(network, {}).get(runtime)
            table.add_row(
                f"{network}, {runtime}", f"{sizes.macs:,}", f"{sizes.num_parameters:,}", *cells,
                human_percent(accuracy),
            )  # fmt: skip
    table.caption = f"against dense: against the dense network in {EAGER}"
    return table


@contextmanager
def _told(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield what to call with what is being done: one line that changes on a terminal, a line each elsewhere."""
    if not console.is_terminal:
        yield lambda line: print_line(console, line)
        return
    with console.status("") as status:
        yield lambda line: status.update(line)
