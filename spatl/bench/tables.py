"""Tables of a benchmark as text: the same words on the terminal, in Markdown and in HTML."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from spatl.bench.ablations import AblationRow
from spatl.bench.results import Estimate, PartsRow, Record, TargetRow, average, reference_bytes
from spatl.bench.score import ACCURACY, NOTHING, Score, score_of_record, told
from spatl.bench.tuning import Tuned
from spatl.report.figures import PART_COLORS
from spatl.runs.text import human_bytes


def percent(value: float | None) -> str:
    """Write a share as a percentage."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def interval(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    """Write a mean with the half width of its 95 % interval, where there is one."""
    if estimate is None:
        return NOTHING
    if estimate.high is None:
        return text(estimate.value)
    return f"{text(estimate.value)} ± {text(estimate.high - estimate.value).removesuffix(' %')}"


def final_accuracy(own: Sequence[Record]) -> str:
    """Write the accuracy after the last round, or the score, over the seeds that ended."""
    text = _over_seeds(own, "final")
    stopped = sum(record["stopped"] is not None for record in own)
    return f"{text} ({stopped} stopped)" if stopped else text


def _over_seeds(own: Sequence[Record], what: str) -> str:
    """Write what a row's records tell of its runs, as `told` names it, over the seeds."""
    return interval(average(told(record, what) for record in own), score_of_record(own[0]).text)


def reached_text(row: TargetRow) -> str:
    """Write the number of seeds that reached a target."""
    return "not reached" if row.reached == 0 else f"{row.reached} of {row.seeds}"


def ratio_text(ratio: Estimate | None, seeds: int) -> str:
    """Write a ratio with its 95 % interval, and its number of seeds if not all."""
    if ratio is None:
        return NOTHING
    text = f"{ratio.value:.2f}x"
    if ratio.low is not None and ratio.high is not None and ratio.low < ratio.high:
        text += f" ({ratio.low:.2f}–{ratio.high:.2f})"
    return text if ratio.number == seeds else f"{text}, {ratio.number} of {seeds}"


def ratio_to_reference(row: TargetRow) -> str:
    """Write the ratio to FedAvg, and the lower bound of the seeds in which FedAvg never reached the target."""
    text = ratio_text(row.ratio, row.seeds)
    if row.ratio_at_least is None:
        return text
    bound = f"> {row.ratio_at_least:.2f}x, {row.bounds} of {row.seeds}"
    return bound if row.ratio is None else f"{text}; {bound}"


def cost_rows(table: Sequence[TargetRow], rows: Mapping[str, Sequence[Record]]) -> list[dict[str, str]]:
    """Return the table of one target, after the paper's Table I: text by column."""
    return [
        {
            "method": row.title,
            "reached": reached_text(row),
            "rounds": _number(row.rounds),
            "bytes per round and client": _bytes(average(r["bytes_per_round_and_client"] for r in rows[row.label])),
            "bytes in total": _bytes(row.bytes),
            "Δ to FedAvg": _difference(row.bytes_over_reference),
            "ratio to FedAvg": ratio_to_reference(row),
            "ratio to best compressed": ratio_text(row.compressed_ratio, row.seeds),
            "ratio to best published": ratio_text(row.published_ratio, row.seeds),
            "seconds": _seconds(row.seconds),
        }
        for row in table
    ]


def factor_text(row: AblationRow) -> str:
    """Write the factor of an idea, its number of seeds if not all, and bounds where one of two got there."""
    seeds = row.cost.seeds
    parts = [ratio_text(row.factor, seeds)] if row.factor else []
    if row.at_least:
        parts.append(f"> {min(row.at_least):.2f}x, {len(row.at_least)} of {seeds}")
    if row.at_most:
        parts.append(f"< {max(row.at_most):.2f}x, {len(row.at_most)} of {seeds}")
    return "; ".join(parts) or NOTHING


def ablation_rows(table: Sequence[AblationRow], score: Score = ACCURACY) -> list[dict[str, str]]:
    """Return the worth of each idea at one target, the full row first: text by column."""
    return [
        {
            "method": row.cost.title if row.without is None else f"without {row.without}",
            "reached": reached_text(row.cost),
            "bytes in total": _bytes(row.cost.bytes),
            "ratio to FedAvg": ratio_to_reference(row.cost),
            "factor lost": factor_text(row),
            f"change of final {score.metric}": _points(row.accuracy_change, row.cost.seeds, score),
        }
        for row in table
    ]


def accuracy_rows(rows: Mapping[str, Sequence[Record]]) -> list[dict[str, str]]:
    """Return final accuracies, or scores, and the cost of a round, one row per method: text by column."""
    with_global = any(told(record, "global") is not None for own in rows.values() for record in own)
    with_momentum = any(record["momentum"] for own in rows.values() for record in own)
    return [
        {
            "method": own[0]["title"],
            score_of_record(own[0]).metric: final_accuracy(own),
            "worst client": _over_seeds(own, "worst"),
            **({"server's model": _over_seeds(own, "global")} if with_global else {}),
            "spread over clients": _over_seeds(own, "spread"),
            "best round": _over_seeds(own, "best"),
            "up per round": _bytes(average(record["uplink_bytes_per_round"] for record in own)),
            "down per round": _bytes(average(record["downlink_bytes_per_round"] for record in own)),
            "keep ratio": _plain(average(record["keep_ratio"] for record in own)),
            "learning rate": ", ".join(sorted({f"{record['learning_rate']:g}" for record in own})),
            **({"momentum": ", ".join(sorted({f"{record['momentum']:g}" for record in own}))} if with_momentum else {}),
            "seconds": _seconds(average(record["seconds"] for record in own)),
        }
        for own in rows.values()
    ]


def part_rows(table: Sequence[PartsRow]) -> list[dict[str, str]]:
    """Return the bytes of a run by direction and part, and all together: text by column."""
    whole = reference_bytes(table)
    return [
        {
            "method": row.title,
            **{
                f"{way} {part}": human_bytes(round(parts[part])) if parts else NOTHING
                for way, parts in (("uplink", row.uplink), ("downlink", row.downlink))
                for part in PART_COLORS
            },
            "of FedAvg's total": percent(row.total / whole if whole and row.total else None),
        }
        for row in table
    ]


def run_rows(records: Iterable[Record]) -> list[dict[str, str]]:
    """Return a row for every run, for the headline target: text by column."""
    return [
        {
            "method": record["title"],
            "seed": str(record["seed"]),
            f"final {score.metric}": score.text(told(record, "final")),
            "worst client": score.text(told(record, "worst")),
            f"rounds to {score.text(record['target'])}": _count(record["rounds_to_target"]),
            f"bytes to {score.text(record['target'])}": _count(record["bytes_to_target"]),
            "ratio to FedAvg": _ratio(record["ratio_to_fedavg"]),
            "ratio to best compressed": _ratio(record["ratio_to_compressed"]),
            "ratio to best published": _ratio(record["ratio_to_published"]),
            "bytes in total": _count(record["total_bytes"]),
            "refused": str(record["rejected"]),
            "ended": "stopped" if record["stopped"] else "yes",
        }
        for record in records
        for score in (score_of_record(record),)
    ]


def tuning_rows(tuned: Iterable[Tuned], score: Score = ACCURACY) -> list[dict[str, str]]:
    """Return the accuracies that tuning found, a line per row, server factor and momentum, the rates across."""
    lines = []
    for each in tuned:
        kinds = list(dict.fromkeys((pair.server_factor, pair.momentum) for pair in each.scores))
        several, momenta = any(factor != 1 for factor, _ in kinds), any(momentum for _, momentum in kinds)
        for factor, momentum in kinds:
            cells = {"server": f"x {factor:g}"} if several else {}
            if momenta:
                cells["momentum"] = f"{momentum:g}"
            for pair, found in each.scores.items():
                if (pair.server_factor, pair.momentum) == (factor, momentum):
                    mark = " *" if pair == each.best else ""
                    cells[f"{pair.rate:g}"] = "stopped" if found is None else score.text(found) + mark
            lines.append({"method": each.label, **cells})
    return lines


def tuning_note(tuned: Iterable[Tuned], score: Score = ACCURACY) -> str:
    """Describe the numbers of `tuning_rows`, as the rest of a sentence."""
    pairs = [pair for each in tuned for pair in each.scores]
    server = "factor of the server's learning rate, " if any(pair.server_factor != 1 for pair in pairs) else ""
    if any(pair.momentum for pair in pairs):
        return (
            f"mean validation {score.metric} over the rounds, by {server}momentum and learning rate (of a run without "
            "momentum; with momentum m it was the rate times 1 - m)"
        )
    return f"mean validation {score.metric} over the rounds, by {server}learning rate"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Write rows of plain text as a Markdown table; nothing for no rows."""
    if not rows:
        return ""
    first, *others = rows[0]
    lines = [
        _line([first, *others]),
        _line(["---", *["---:" for _ in others]]),
        *(_line(row.values()) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _bytes(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else human_bytes(round(estimate.value))


def _difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    difference = round(estimate.value)
    return f"{'−' if difference < 0 else '+'}{human_bytes(abs(difference))}"


def _points(change: Estimate | None, seeds: int, score: Score) -> str:
    """Write a difference of scores, of shares in percentage points, with its 95 % interval.

    And its number of seeds, if not all.
    """
    if change is None:
        return NOTHING
    text = interval(change, score.change).replace("± +", "± ").replace("-", "−") + (" points" if score.is_share else "")
    return text if change.number == seeds else f"{text}, {change.number} of {seeds}"


def _number(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{estimate.value:.0f}"


def _plain(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{estimate.value:.2f}"


def _seconds(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{estimate.value:.1f}"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}x"


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"
