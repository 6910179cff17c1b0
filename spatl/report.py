"""The report of a run: one HTML page that needs nothing but itself.

It must still be readable when it is mailed, printed or opened years later on a machine without a network, so styles and
curves are inside, there are no scripts, and its content security policy forbids what it does not contain. Whatever
comes from users or clients (config, command, names, reasons) is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spatl.history import RunResult, mean
from spatl.plots import bytes_on_arrival, curves_svg, final_accuracies, human_bytes, is_number, run_title

_NOTHING = "–"
_PARTS = ("values", "indices", "control", "other")

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #5c6670; --line: #d5dade; --wash: #f3f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #15181b; --faint: #a0a9b1; --line: #3a4148; --wash: #1f2428 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem }
p { margin: .3rem 0 1rem }
.faint, figcaption, caption { color: var(--faint) }
figure { margin: 0 }
.wide { overflow-x: auto }
.wide:focus-visible { outline: 2px solid #0072b2 }
figure svg { display: block; width: 100%; min-width: 50rem; height: auto }
figcaption { margin-top: .5rem; font-size: .9rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { padding-bottom: .4rem; text-align: left; font-size: .9rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom }
tbody tr:nth-child(even) { background: var(--wash) }
.text td, .text th { text-align: left; overflow-wrap: anywhere }
.text tbody th { min-width: 6rem }
.numbers { font-size: .9rem }
.numbers tbody th { font-weight: inherit }
pre { padding: .75rem 1rem; background: var(--wash); border: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .875rem }
summary { cursor: pointer }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --wash: #fff }
  body { max-width: none; padding: 0; font-size: 9pt }
  .wide { overflow: visible }
  figure svg { min-width: 0 }
  th, td { padding: .1rem .35rem }
  tr, figure { break-inside: avoid }
  h2 { break-after: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="faint">{subtitle}</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


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
        _section("Summary", _summary(result)),
        _section("Curves", _curves(result)),
        _section("Bytes", _parts(result)),
        _section("Rounds", _rounds(result)),
        _section("Clients", _clients(result)),
        _section("Refused updates", _refusals(result)),
        _section("How to repeat it", _provenance(config_yaml, command)),
    ]
    page = _PAGE.format(
        title=escape(run_title(result.summary)),
        css=_CSS,
        subtitle=escape(_subtitle(result.summary)),
        sections="\n".join(section for section in sections if section),
    )
    path.write_text(page, encoding="utf-8")


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _subtitle(summary: Mapping[str, Any]) -> str:
    facts = {
        "clients": summary.get("num_clients"),
        "rounds": summary["rounds"],
        "model": summary.get("model"),
        "seed": summary["seed"],
        "engine": summary.get("engine"),
    }
    return " · ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _summary(result: RunResult) -> str:
    summary = result.summary
    rows: list[tuple[str, str]] = [
        ("Accuracy after the last round", f"{_ratio(summary['accuracy'])} (mean over the clients' own test splits)"),
        ("Worst client", _worst(result)),
    ]
    if result.alone is not None:
        rows.append(("Training alone", _ratio(result.alone.get("accuracy"))))
        rows.append(("Gained by the federation", _difference(summary["accuracy"], result.alone.get("accuracy"))))
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
        ("Missing replies", _text(summary.get("missing"))),
        ("Seconds", _seconds(summary["seconds"])),
        ("Method", str(summary["method"])),
        ("Seed", str(summary["seed"])),
    ]
    if summary.get("versions"):
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())))
    body = "\n".join(map(_row, rows))
    return f'<table class="text">\n<tbody>\n{body}\n</tbody>\n</table>'


def _worst(result: RunResult) -> str:
    lowest = result.summary["accuracy_min"]
    clients = [client for client, accuracy in final_accuracies(result).items() if accuracy == lowest]
    who = f" (client {clients[0]})" if len(clients) == 1 else f" ({len(clients)} clients)" if clients else ""
    return _ratio(lowest) + who


def _curves(result: RunResult) -> str:
    label = escape(f"Curves of {run_title(result.summary)}")
    return (
        f'<figure>\n<div class="wide" role="img" aria-label="{label}" aria-describedby="in-words" tabindex="0">\n'
        f"{curves_svg(result)}</div>\n"
        f'<figcaption id="in-words">{escape(_in_words(result))}</figcaption>\n</figure>'
    )


def _in_words(result: RunResult) -> str:
    """What the four panels show, for readers who cannot see them."""
    summary, history = result.summary, result.history
    sentences = [
        "Accuracy per round is the mean over the round's clients of the encoder as it arrived, before training."
    ]
    known = [row for row in history if is_number(row.get("accuracy"))]
    if known:
        first, last = known[0], known[-1]
        sentences.append(
            f"It was {_ratio(first['accuracy'])} in round {first['round']} and {_ratio(last['accuracy'])} in round "
            f"{last['round']}; all clients with the encoder after the last round reach {_ratio(summary['accuracy'])}."
        )
    sentences.append(
        f"Bytes add up to {human_bytes(summary['uplink_bytes'])} up and {human_bytes(summary['downlink_bytes'])} down; "
        "the first round includes registration, the last one the final encoder for every client."
    )
    final = final_accuracies(result)
    if final:
        sentences.append(
            f"Over {len(final)} clients the final accuracy lies between {_ratio(min(final.values()))} and "
            f"{_ratio(max(final.values()))}."
        )
    return " ".join([*sentences, "The same numbers are in the tables below."])


def _parts(result: RunResult) -> str:
    rows = []
    for direction in ("uplink", "downlink"):
        parts = {part: sum(row[direction].get(part, 0) for row in result.history) for part in _PARTS}
        parts["total"] = sum(row[f"{direction}_bytes"] for row in result.history)
        rows.append({"direction": direction, **{part: _count(num_bytes) for part, num_bytes in parts.items()}})
    return _table("Bytes by what they are", "Bytes of the whole run, by what they are.", rows)


def _rounds(result: RunResult) -> str:
    rows = [
        {
            "round": _text(row["round"]),
            "accuracy": _ratio(row.get("accuracy")),
            "worst": _ratio(row.get("accuracy_min")),
            "loss": _ratio(row.get("loss")),
            "training loss": _ratio(row.get("train_loss")),
            "clients": _text(row.get("participants")),
            "refused": _text(row.get("rejected")),
            "missing": _text(row.get("missing")),
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
        "Accuracy and loss are of the encoder as it arrived, before the round's training; “bytes until here” is what "
        "they cost: all earlier rounds and this round's downlink."
    )
    return _table("Rounds", caption, rows)


def _clients(result: RunResult) -> str:
    alone = (result.alone or {}).get("clients") or {}
    final = final_accuracies(result)
    rows_of: dict[int, list[Mapping[str, Any]]] = {}
    for row in result.clients:
        rows_of.setdefault(row["client"], []).append(row)
    rows = []
    for client, own in sorted(rows_of.items()):
        accuracy, by_itself = final.get(client), alone.get(str(client))
        compared = {"alone": _ratio(by_itself), "gained": _difference(accuracy, by_itself)} if alone else {}
        rows.append(
            {
                "client": _text(client),
                "training examples": _text(own[-1].get("num_examples")),
                "rounds": _count(sum(bool(row.get("participated")) for row in own)),
                "refused": _count(sum(row.get("rejected") is not None for row in own)),
                "final accuracy": _ratio(accuracy),
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
        "Bytes and seconds are sums over the run, ratios are means; the final accuracy is after the last round; “gain "
        "over prior” is the accuracy that the selector's choice added on the validation examples it was chosen by."
    )
    return _table("Clients", caption, rows)


def _budget(own: Sequence[Mapping[str, Any]]) -> str:
    """The budget of a client's last round that had one."""
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
    return _table("Refused updates", caption, rows, kind="text")


def _provenance(config_yaml: str, command: str) -> str:
    return (
        f"<pre><code>{escape(command)}</code></pre>\n"
        f"<details>\n<summary>Resolved config</summary>\n<pre><code>{escape(config_yaml)}</code></pre>\n</details>"
    )


def _table(name: str, caption: str, rows: Sequence[Mapping[str, str]], *, kind: str = "numbers") -> str:
    """A table of rows of plain text by column, escaped here, or nothing; where it is too wide it scrolls by itself."""
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in rows[0])
    body = "\n".join(_row(row.values()) for row in rows)
    return (
        f'<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0">\n<table class="{kind}">\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>"
    )


def _row(cells: Iterable[str]) -> str:
    first, *rest = map(escape, cells)
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"


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
