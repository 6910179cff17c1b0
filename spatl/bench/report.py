"""Reports of a benchmark: `bench.md` and two PNGs for a repository or a mail, `report.html` to look at."""

import html
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

import spatl
from spatl.bench.ablations import ablation_table
from spatl.bench.baselines import CRITERIA, KINDS, best_of_kind
from spatl.bench.costs import HELD_ROUNDS
from spatl.bench.figures import (
    Curves,
    accuracy_svg,
    axis_words,
    clients_svg,
    curve_words,
    draw_bytes,
    draw_curves,
    factors_svg,
    loss_svg,
    part_words,
    parts_svg,
)
from spatl.bench.plan import ALONE, Plan, unequal_optimizers
from spatl.bench.results import (
    Curve,
    PartsRow,
    Record,
    by_row,
    meaningful,
    parts_table,
    shown_target,
    target_table,
)
from spatl.bench.score import Score, score_of
from spatl.bench.tables import (
    ablation_rows,
    accuracy_rows,
    cost_rows,
    markdown,
    part_rows,
    percent,
    run_rows,
    tuning_note,
    tuning_rows,
)
from spatl.bench.tuning import Tuned
from spatl.config.experiment import ExperimentConfig
from spatl.report.page import facts, figure, make_page, provenance, section, table
from spatl.runs.text import capitalised

_BYTES: Final = "Bytes by what they are"
_HOW: Final = (
    "{Metric} is the mean over {whose} of the {metric} on each client's own {split} split, of the encoder as it just "
    "arrived and the client's own predictor. A cost is everything before that: all bytes in both directions as they "
    "were serialised, registration and the first download included. A target is held when "
    f"{HELD_ROUNDS} in a row reach it, and its cost is counted up to the last of them. Ratios compare rows "
    "with the same seed (same clients, splits and initial weights) and are averaged as logarithms; ± and intervals are "
    "95 % (Student's t over the seeds). Seconds are of a simulation in which clients train one after another, beside "
    "other runs on the same cores."
)


_FACTORS: Final = (
    "The full method, and the same without one idea at a time. The factor is how many times the full method's bytes "
    "the target costs without the idea, with the same seed; > and < are bounds, of seeds in which only the full method "
    "or only the other reached it. Factors need not multiply to what the full method saves."
)


def _how(config: ExperimentConfig) -> str:
    some = config.server.fraction_train < 1
    whose = "the clients that train in the round (after the last round: all clients)" if some else "the clients"
    metric = score_of(config).metric
    return _HOW.format(whose=whose, split=config.report.split, metric=metric, Metric=capitalised(metric))


def write_reports(
    plan: Plan,
    records: Sequence[Record],
    curves: Sequence[Curve],
    directory: Path,
    *,
    command: str,
    tuned: Sequence[Tuned] = (),
) -> None:
    """Write `bench.md`, `curves.png`, `bytes.png` and `report.html`.

    Args:
        plan: What was compared.
        records: The content of `bench.json`, at least one.
        curves: The runs' points.
        directory: Where the files go.
        command: What made it.
        tuned: What tuning found, if there was any.

    Raises:
        SpatlError: matplotlib or scipy is not installed.
    """
    parts = _parts(plan, records, tuned)
    text = [f"# {_title(plan)}\n", f"`{command}`\n"]
    text += [f"{name}: {value}  " for name, value in _facts(plan)]
    how = _how(plan.first)
    if not tuned and (note := unequal_optimizers(plan)):
        how += f" Not tuned: {note}."
    if missing := len(plan.rows) * len(plan.bench.seeds) - len(records):
        how += f" {missing} of {missing + len(records)} runs are not there, for they failed or have not ended."
    text += [f"\n{how}\n"]
    text += [f"## {heading}\n\n{note}\n\n{markdown(rows)}" for heading, note, rows in parts if rows]
    (directory / "bench.md").write_text("\n".join(text), encoding="utf-8")

    titles = {record["method"]: record["title"] for record in records}
    by_title: dict[str, list[Curve]] = {}
    for curve in curves:
        by_title.setdefault(titles[curve.label], []).append(curve)
    alone = next((record["title"] for record in records if record["base_method"] == ALONE), None)
    targets = [(target, meaningful(records, place) is not False) for place, target in enumerate(plan.bench.targets)]
    score = score_of(plan.first)
    draw_curves(by_title, directory / "curves.png", title=_title(plan), targets=targets, alone=alone, score=score)
    shares = parts_table(records)
    draw_bytes(shares, directory / "bytes.png")
    sections = [
        section("What was compared", facts(_facts(plan)) + f"<p>{html.escape(how)}</p>"),
        *_pictures(by_title, targets, alone, score),
        section("What each idea is worth", _factors_figure(records, plan.bench.targets, score)),
        section(_BYTES, _bytes_figure(shares)),
        *(section(heading, table(heading, note, rows, kind="numbers named")) for heading, note, rows in parts),
        section("How to repeat it", provenance(plan.first.to_yaml(), command, "Resolved config of the first run")),
    ]
    page = make_page(title=_title(plan), subtitle=_subtitle(plan), sections=sections)
    (directory / "report.html").write_text(page, encoding="utf-8")


def _title(plan: Plan) -> str:
    config, metric = plan.first, score_of(plan.first).metric
    return f"Cost of {metric}: {config.model.name} on {config.data.name}, {config.partition.num_clients} clients"


def _subtitle(plan: Plan) -> str:
    seeds = ", ".join(map(str, plan.bench.seeds))
    return f"{len(plan.rows)} methods · seeds {seeds} · {plan.first.rounds} rounds · partition {_partition(plan.first)}"


def _facts(plan: Plan) -> list[tuple[str, str]]:
    config = plan.first
    training, server = config.training, config.server
    epochs, steps = f"{training.local_epochs} local epochs", f"{training.local_steps} local steps"
    versions = {"spatl": spatl.__version__, "flwr": version("flwr"), "torch": torch.__version__}
    versions["python"] = platform.python_version()
    return [
        ("Data", " ".join([config.data.name, *(f"{key}={value}" for key, value in config.data.options.items())])),
        ("Partition", f"{_partition(config)}, {config.partition.num_clients} clients, at least "
                      f"{config.partition.min_examples} examples each"),
        ("Splits of each client", f"{percent(config.data.test_fraction)} test, "
                                  f"{percent(config.data.validation_fraction)} validation, the rest training"),
        ("Model", " ".join([config.model.name, *(f"{key}={value}" for key, value in config.model.options.items())])),
        ("Training", f"{config.rounds} rounds, {percent(server.fraction_train)} of the clients in each, "
                     f"{epochs if training.local_steps is None else steps}, "
                     f"batch size {training.batch_size}, {_optimizers(plan)}, momentum {_momenta(plan)}, "
                     f"weight decay {training.weight_decay:g}"),
        ("Seeds", ", ".join(map(str, plan.bench.seeds))),
        ("Device", training.device),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]  # fmt: skip


def _optimizers(plan: Plan) -> str:
    """Return the optimizers of all rows in words; they may differ."""
    return " or ".join(sorted({row.config(plan.bench.seeds[0]).training.optimizer for row in plan.rows}))


def _momenta(plan: Plan) -> str:
    """Return the momentum of all rows in words; they may differ."""
    momenta = {row.config(plan.bench.seeds[0]).training.momentum for row in plan.rows}
    return " or ".join(f"{momentum:g}" for momentum in sorted(momenta))


def _partition(config: ExperimentConfig) -> str:
    name, alpha = config.partition.name, config.partition.alpha
    return f"{name} {alpha:g}" if "dirichlet" in name or name == "quantity" else name


def _parts(
    plan: Plan, records: Sequence[Record], tuned: Sequence[Tuned]
) -> list[tuple[str, str, Sequence[Mapping[str, str]]]]:
    """Return the tables of both reports: heading, note, rows of text."""
    rows, score = by_row(records), score_of(plan.first)
    parts: list[tuple[str, str, Sequence[Mapping[str, str]]]] = [
        (capitalised(score.metric), f"After the last round, over all clients.{_stopped(records)}", accuracy_rows(rows)),
    ]
    for place, target in enumerate(plan.bench.targets):
        for criterion, words in CRITERIA.items():
            note = f"{_worth(records, place)} Means over the seeds that reached it.{_best(records, place, criterion)}"
            costs = cost_rows(target_table(records, place, criterion), rows)
            parts.append((f"Cost of {_of(target, score)}, {words}", note, costs))
    for place, target in enumerate(plan.bench.targets):
        for criterion, words in CRITERIA.items():
            lost = ablation_rows(ablation_table(records, place, criterion), score)
            parts.append((f"What each idea is worth at {_of(target, score)}, {words}", _FACTORS, lost))
    note = "Of a whole run, means over the seeds that ended; the last column is of both directions together."
    parts.append((_BYTES, note, part_rows(parts_table(records))))
    parts.append(("Runs", "One row per run.", run_rows(records)))
    if tuned:
        note = f"{capitalised(tuning_note(tuned, score))}; * marks the one that was used. " + " ".join(
            f"The best of {each.label} is at the edge of the grid." for each in tuned if each.at_edge
        )
        parts.append(("Learning rates", note, tuning_rows(tuned, score)))
    return parts


def _of(target: float, score: Score) -> str:
    """Return a target in words: a percentage of accuracy, or a value of the metric that it is of."""
    return score.text(target) if score.is_accuracy else f"{score.metric} {score.text(target)}"


def _worth(records: Sequence[Record], place: int) -> str:
    found = meaningful(records, place)
    if found is None:
        return (
            "Whether this target needs a federation is unknown: training alone did not run to its end with every seed."
        )
    if found:
        return "Meaningful: training alone never reached it with any seed."
    return "Not a meaningful target: training alone reached it in some round, without a federation."


def _best(records: Sequence[Record], place: int, criterion: str) -> str:
    """Say which baselines the two last ratios of a table are to."""
    told = ""
    for kind in KINDS:
        best = best_of_kind(records, place, criterion, kind)
        names = ", ".join(f"{label} ({number} of {best.total()} seeds)" for label, number in best.most_common())
        told += f" Best {kind}: {names}." if names else ""
    return told


def _stopped(records: Sequence[Record]) -> str:
    stopped = [
        f" {record['title']}, seed {record['seed']}: {record['stopped']}." for record in records if record["stopped"]
    ]
    return " Stopped before the end:" + "".join(stopped) if stopped else ""


def _pictures(curves: Curves, targets: Sequence[tuple[float, bool]], alone: str | None, score: Score) -> list[str]:
    words = f" {curve_words(curves)}"
    axis, metric = axis_words(curves, score), capitalised(score.metric)
    found = [
        section(
            f"{metric} against {against}",
            figure(
                accuracy_svg(curves, against=against, targets=targets, alone=alone, score=score),
                label=f"{metric} against {against}, one line per method",
                words=f"Means over the seeds; dotted lines are targets. {axis}{words if against == 'bytes' else ''}",
                name=f"against-{against}",
            ),
        )
        for against in ("bytes", "rounds", "seconds")
    ]
    clients = figure(
        clients_svg(curves, score),
        label=f"{metric} of the clients after the last round, one line per method",
        words="Every client of every seed counts once.",
        name="by-client",
    )
    svg = loss_svg(curves)
    losses = figure(
        svg,
        label="Test loss against rounds, one line per method",
        words="Mean loss on the clients' test splits, of the encoder as it arrived and over the seeds.",
        name="loss",
    )
    return [*found, section("Loss against rounds", losses if svg else ""), section(f"{metric} by client", clients)]


def _factors_figure(records: Sequence[Record], targets: Sequence[float], score: Score) -> str:
    """Return the figure of the factors at the target that the terminal shows, or nothing without ablations."""
    place = shown_target(records)
    lost = ablation_table(records, place)
    if not lost:
        return ""
    return figure(
        factors_svg(lost),
        label="Factor by which the bytes grow without each idea, one bar per idea",
        words=f"At {_of(targets[place], score)}, {CRITERIA['held']}, against {lost[0].cost.title}. Blue is what an "
        "idea saves, red what it costs; lines are 95 % intervals, which may run beyond the axis; pale bars are bounds.",
        name="factors",
    )


def _bytes_figure(table: Sequence[PartsRow]) -> str:
    return figure(
        parts_svg(table),
        label="Bytes of a run by direction and by what they are, one bar per method",
        words=f"Means over the seeds that ended, downlink to the left, uplink to the right. {part_words(table)}",
        name="bytes-by-part",
    )
