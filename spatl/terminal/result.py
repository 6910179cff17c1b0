"""Table that a run closes with, and the paths of what it wrote."""

from rich.console import Console
from rich.table import Table

from spatl.artifacts.names import MODEL, WEIGHTS
from spatl.report.result import RunResult
from spatl.runs.files import CLIENTS, CURVES, HISTORY, LEDGER, REPORT, SUMMARY
from spatl.runs.records import excluded_line
from spatl.runs.scores import human_score, metric_of, pooled_rows, score_in, worst_in
from spatl.runs.text import human_bytes, human_percent
from spatl.terminal.tables import print_line, print_table


def print_result(console: Console, result: RunResult) -> None:
    """Print the table a run closes with, and the paths of what it wrote."""
    summary, alone = result.summary, result.alone
    table = Table(title=f"{summary['title']} on {summary['data']}, {summary['num_clients']} clients, after "
                        f"{summary['rounds']} rounds")  # fmt: skip
    table.add_column()
    table.add_column(summary["title"], justify="right")
    if alone:
        table.add_column("training alone", justify="right")

    def add(name: str, value: str, beside: str = "") -> None:
        table.add_row(name, value, *([beside] if alone else []))

    metric = metric_of(summary)
    for title, score in ((f"{metric}, mean over clients", score_in), (f"{metric}, worst client", worst_in)):
        add(title, human_score(score(summary), metric), human_score(score(alone), metric) if alone else "")
    beside = dict(pooled_rows(alone)) if alone else {}
    for title, value in pooled_rows(summary):
        add(title, value, beside.get(title, ""))
    if (measured := score_in(summary, "global_")) is not None:
        add(f"{metric}, server's model on {summary['global_examples']:,} official test examples",
            human_score(measured, metric))  # fmt: skip
    add("bytes up", human_bytes(summary["uplink_bytes"]), "needs none" if alone else "")
    add("bytes down", human_bytes(summary["downlink_bytes"]), "needs none" if alone else "")
    add("keep ratio (share of the encoder sent)", human_percent(summary["keep_ratio"]))
    add("bytes up, of sending the whole encoder", human_percent(summary["uplink_share"]))
    if "epsilon" in summary:
        add("privacy of a client, at most", f"epsilon {summary['epsilon']:.3g}, delta {summary['delta']:g}")
    if "ended_early" in summary:
        add("ended early; best on the validation splits", f"round {summary['ended_early']['best_round']}")
    if summary["rejected"] or summary["missing"]:
        add("updates refused / lost", f"{summary['rejected']} / {summary['missing']}")
    print_table(console, table)
    if (reason := summary.get("no_global_accuracy")) is not None:
        print_line(console, f"no accuracy on the official test set: {reason}")
    for client, reason in summary.get("absent", {}).items():
        print_line(console, f"client {client} took no part: {reason}")
    if (excluded := excluded_line(summary)) is not None:
        print_line(console, excluded)
    for name in (REPORT, CURVES, f"{MODEL}/{WEIGHTS}", SUMMARY, HISTORY, CLIENTS, LEDGER):
        if (result.directory / name).exists():
            print_line(console, str(result.directory / name))
