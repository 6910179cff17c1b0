"""Report of a run: one HTML page that needs no other file (`page`)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatl.disk.writing import replace_file
from spatl.report.figures import curves_svg, final_accuracies, run_title
from spatl.report.page import facts, figure, make_page, provenance, section, table
from spatl.report.result import RunResult
from spatl.runs.records import MISHAPS, bytes_on_arrival, excluded_line, global_accuracy, is_number, mean, owners_in
from spatl.runs.scores import SHARES, metric_of, pooled_rows, score_in, worst_in
from spatl.runs.text import human_bytes

_NOTHING = "–"
_PARTS = ("values", "indices", "control", "other")


def write_report(result: RunResult, path: Path, *, config_yaml: str, command: str) -> None:
    """Write the report of a finished run.

    Args:
        result: The run.
        path: The file to write, `report.html` by convention.
        config_yaml: The resolved config, as text.
        command: The command that made the run.

    Raises:
        SpatlError: matplotlib, which draws the curves, is not installed.
    """
    sections = [
        section("Summary", _summary(result)),
        section("Curves", _curves(result)),
        section("Bytes", _parts(result)),
        section("Rounds", _rounds(result)),
        section("Clients", _clients(result)),
        section("Refused updates", _refusals(result)),
        section("How to repeat it", provenance(config_yaml, command)),
    ]
    page = make_page(title=run_title(result.summary), subtitle=_subtitle(result.summary), sections=sections)
    replace_file(path, page.encode())


def _subtitle(summary: Mapping[str, Any]) -> str:
    parts = {
        "clients": summary.get("num_clients"),
        "rounds": summary["rounds"],
        "model": summary.get("model"),
        "seed": summary["seed"],
        "engine": summary.get("engine"),
    }
    return " · ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


def _summary(result: RunResult) -> str:
    summary = result.summary
    named = metric_of(summary)[0].upper() + metric_of(summary)[1:]
    rows: list[tuple[str, str]] = [
        (f"{named} after the last round", f"{_ratio(score_in(summary))} (mean over the clients' own test splits)"),
        ("Worst client", _worst(result)),
        *((title[0].upper() + title[1:], value) for title, value in pooled_rows(summary)),
    ]
    if is_number(measured := score_in(summary, "global_")):
        on = f"of the server's model on all {summary['global_examples']:,} examples of the official test set"
        rows.append((f"Global {metric_of(summary)}", f"{_ratio(measured)} ({on})"))
    elif (reason := summary.get("no_global_accuracy")) is not None:
        rows.append(("Global accuracy", f"none on the official test set: {reason}"))
    if result.alone is not None:
        rows.append(("Training alone", _ratio(score_in(result.alone))))
        rows.append(("Gained by the federation", _difference(score_in(summary), score_in(result.alone))))
    rows += [
        ("Sent by the clients (uplink)", _bytes(summary["uplink_bytes"])),
        ("Sent to the clients (downlink)", _bytes(summary["downlink_bytes"])),
        ("Sent in total", _bytes(summary["total_bytes"])),
    ]
    if summary.get("whole_encoder_uplink_bytes"):
        rows.append(("Uplink, had whole encoders been sent", _bytes(summary["whole_encoder_uplink_bytes"])))
        rows.append(("Share of that really sent", _ratio(summary.get("uplink_share"))))
    rows += [
        ("Keep ratio, mean over the rounds", _ratio(summary.get("keep_ratio"))),
        ("FLOPs ratio, mean over the rounds", _ratio(summary.get("flops_ratio"))),
        ("Rounds", str(summary["rounds"])),
        ("Refused updates", _text(summary.get("rejected"))),
        *([("Refused or left out", excluded)] if (excluded := excluded_line(summary)) is not None else []),
        ("Missing replies", _text(summary.get("missing"))),
        *[(f"Messages {words}", str(summary[name])) for name, words in MISHAPS.items() if summary.get(name)],
        ("Seconds", _seconds(summary["seconds"])),
        ("Method", str(summary["method"])),
        ("Seed", str(summary["seed"])),
    ]
    if "epsilon" in summary:
        rows.append(("Privacy of a client, at most", f"epsilon {summary['epsilon']:.3g}, delta {summary['delta']:g}"))
    if summary.get("versions"):
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())))
    return facts(rows)


def _worst(result: RunResult) -> str:
    lowest = worst_in(result.summary)
    clients = [client for client, accuracy in final_accuracies(result).items() if accuracy == lowest]
    who = f" (client {clients[0]})" if len(clients) == 1 else f" ({len(clients)} clients)" if clients else ""
    return _ratio(lowest) + who


def _curves(result: RunResult) -> str:
    label = f"Curves of {run_title(result.summary)}"
    return figure(curves_svg(result), label=label, words=_in_words(result), name="in-words")


def _in_words(result: RunResult) -> str:
    """Describe the panels in words, for readers who cannot see them."""
    summary, history, metric = result.summary, result.history, metric_of(result.summary)
    sentences = [
        f"{metric[0].upper() + metric[1:]} per round is the mean over the round's clients of the encoder as it "
        f"arrived, before training; its axis shows the range that occurs{', not all of 0 to 1' * (metric in SHARES)}."
    ]
    known = [row for row in history if is_number(score_in(row))]
    if known:
        first, last = known[0], known[-1]
        sentences.append(
            f"It was {_ratio(score_in(first))} in round {first['round']} and {_ratio(score_in(last))} in round "
            f"{last['round']}; all clients with the encoder after the last round reach {_ratio(score_in(summary))}."
        )
    losses = [row for row in history if is_number(row.get("loss"))]
    if losses:
        first, last = losses[0], losses[-1]
        ends = f" and {_ratio(last['final_loss'])} at the end" if is_number(last.get("final_loss")) else ""
        sentences.append(
            f"The loss on the clients' test splits was {_ratio(first['loss'])} in round {first['round']}, "
            f"{_ratio(last['loss'])} in round {last['round']}{ends}."
        )
    sentences.append(
        f"Bytes add up to {human_bytes(summary['uplink_bytes'])} up and {human_bytes(summary['downlink_bytes'])} down; "
        "the first round includes registration, the last one the final encoder for every client."
    )
    final = final_accuracies(result)
    if final:
        sentences.append(
            f"Over {len(final)} clients the final {metric} lies between {_ratio(min(final.values()))} and "
            f"{_ratio(max(final.values()))}."
        )
    return " ".join([*sentences, "The same numbers are in the tables below."])


def _parts(result: RunResult) -> str:
    rows = []
    for direction in ("uplink", "downlink"):
        parts = {part: sum(row[direction].get(part, 0) for row in result.history) for part in _PARTS}
        parts["total"] = sum(row[f"{direction}_bytes"] for row in result.history)
        rows.append({"direction": direction, **{part: _count(num_bytes) for part, num_bytes in parts.items()}})
    return table("Bytes by what they are", "Bytes of the whole run, by what they are.", rows)


def _rounds(result: RunResult) -> str:
    measured, metric = any(is_number(global_accuracy(row)) for row in result.history), metric_of(result.summary)
    rows = [
        {
            "round": _text(row["round"]),
            metric: _ratio(score_in(row)),
            "worst": _ratio(worst_in(row)),
            **({"global": _ratio(score_in(row, "global_"))} if measured else {}),
            "loss": _ratio(row.get("loss")),
            "training loss": _ratio(row.get("train_loss")),
            "clients": _participants(row),
            "refused": _text(row.get("rejected")),
            "missing": _text(row.get("missing")),
            "late": _text(row.get("late")),
            "left out": _text(len(row.get("left_out") or ())),
            "keep ratio": _ratio(row.get("keep_ratio")),
            "FLOPs ratio": _ratio(row.get("flops_ratio")),
            "uplink bytes": _count(row["uplink_bytes"]),
            "downlink bytes": _count(row["downlink_bytes"]),
            "bytes until here": _count(cost),
            "seconds": _seconds(row.get("seconds")),
        }
        for row, cost in zip(result.history, bytes_on_arrival(result.history), strict=True)
    ]
    caption = (
        f"{metric[0].upper() + metric[1:]} and loss are of the encoder as it arrived, before the round's training; "
        "“bytes until here” is what they cost: all earlier rounds and this round's downlink."
    )
    if measured:
        caption += " “Global” is the server's model, as it arrived, on the official test set, where it was measured."
    return table("Rounds", caption, rows)


def _participants(row: Mapping[str, Any]) -> str:
    """Return how many took part in a round, and who came to a deployment before it, or was taken out."""
    told = [str(row.get("participants")), *(["skipped"] if row.get("skipped") else [])]
    told += [f"{client} came" for client in row.get("joined") or ()]
    told += [f"{client} retired" for client in row.get("retired") or ()]
    return ", ".join(told)


def _clients(result: RunResult) -> str:
    alone = (result.alone or {}).get("clients") or {}
    final = final_accuracies(result)
    rows_of: dict[int, list[Mapping[str, Any]]] = {}
    for row in result.clients:
        rows_of.setdefault(row["client"], []).append(row)
    rows, metric = [], metric_of(result.summary)
    owners = owners_in(result.clients)
    for client, own in sorted(rows_of.items()):
        accuracy, by_itself = final.get(client), alone.get(str(client))
        compared = {"alone": _ratio(by_itself), "gained": _difference(accuracy, by_itself)} if alone else {}
        rows.append(
            {
                "client": _text(client),
                **({"owner": _text(owners.get(client))} if owners else {}),
                "training examples": _text(own[-1].get("num_examples")),
                "rounds": _count(sum(bool(row.get("participated")) for row in own)),
                "refused": _count(sum(row.get("rejected") is not None for row in own)),
                f"final {metric}": _ratio(accuracy),
                **compared,
                "budget": _budget(own),
                "keep ratio": _ratio(mean(_numbers(own, "keep_ratio"))),
                "FLOPs ratio": _ratio(mean(_numbers(own, "flops_ratio"))),
                "gain over prior": _ratio(mean(_numbers(own, "validation_gain"))),
                "uplink bytes": _count(sum(row["uplink_bytes"] for row in own)),
                "downlink bytes": _count(sum(row["downlink_bytes"] for row in own)),
                "seconds": _seconds(sum(_numbers(own, "seconds"))),
            }
        )
    caption = (
        f"Bytes and seconds are sums over the run, ratios are means; the final {metric} is after the last round; “gain "
        f"over prior” is the {metric} that the selector's choice added on the validation examples it was chosen by."
    )
    return table("Clients", caption, rows)


def _budget(own: Sequence[Mapping[str, Any]]) -> str:
    """Return the budget of a client's last round that had one."""
    given = [row for row in own if row.get("budget_kind")]
    if not given:
        return _text(None)
    kind, limit = given[-1]["budget_kind"], given[-1]["budget_limit"]
    return f"{limit:,.0f} bytes" if kind == "uplink_bytes" else f"{limit:g} {kind.replace('_', ' ')}"


def _refusals(result: RunResult) -> str:
    rows = [
        {
            "round": _text(row["round"]),
            "client": _text(refusal.get("client")),
            "reason": _text(refusal.get("reason")),
        }
        for row in result.history
        for refusal in row.get("rejections") or ()
    ]
    caption = "The server did not use these updates; the rounds went on without them."
    return table("Refused updates", caption, rows, kind="text")


def _bytes(num_bytes: int) -> str:
    return f"{human_bytes(num_bytes)} ({_count(num_bytes)} bytes)"


def _count(number: int) -> str:
    return f"{number:,}"


def _ratio(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else _NOTHING


def _difference(value: Any, reference: Any) -> str:
    return f"{value - reference:+.3f}" if is_number(value) and is_number(reference) else _NOTHING


def _seconds(value: Any) -> str:
    return f"{value:.1f}" if is_number(value) else _NOTHING


def _text(value: Any) -> str:
    return _NOTHING if value is None else str(value)


def _numbers(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if is_number(row.get(key))]
