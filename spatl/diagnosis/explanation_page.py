"""Page of an explanation: one HTML file that needs no other, and asks for none (`spatl.report.page`)."""

from collections.abc import Mapping
from typing import Any

from spatl.diagnosis.explanation import Explanation
from spatl.diagnosis.group_parts import all_errors, errors_table, group_part
from spatl.diagnosis.mistakes import Maps
from spatl.diagnosis.pictures import Scale
from spatl.diagnosis.scores import SCORES
from spatl.diagnosis.standing import Standing
from spatl.diagnosis.subject import Subject
from spatl.report.page import facts, listing, make_page, paragraph, provenance, section, table
from spatl.runs.records import is_number
from spatl.runs.text import counted, human_percent

_NOTHING = "–"
_ON_MAPS = (
    "Beside each picture: where it changes how much its most salient filters, {k} of them, stand out, and the "
    "plain gradient of the loss; dark where large, each map by itself. The first has not been shown to say "
    "more than the second."
)
_LIMITS = (
    "z says how far a filter's mean absolute gradient is from its mean over the validation split, in standard "
    "deviations. Gradient times weight is what the loss falls by, to first order, without the filter.",
    "Which layer a filter lies in tells much of how salient it is, whatever the error. Compare with the control in the "
    "same layers before a layer is blamed.",
    "A group's filters are chosen on the errors that they are then tried on. What they do there is likely more than "
    "what they would do on new errors.",
    "Where a blamed row is no better than its control, the blame tells nothing. With few errors in a group, one error "
    "more or less is all of the difference.",
    "A step of a given length lowers the loss more by filters with large gradients. That a repair by the blamed ones "
    "does more than one by others, also for neighbours, is therefore no proof that they are to blame.",
    "Neighbours by profile are alike in what their labels say, too: the profile is of the true class's loss.",
    "It has not been shown that the input map says more than the plain gradient.",
    "That a filter is to blame says nothing of why. Look at the pictures: labels may be wrong, too.",
)


def explanation_page(explanation: Explanation, maps: Maps, subject: Subject, *, command: str) -> str:
    """Return the page.

    Args:
        explanation: What it says.
        maps: Of the examples that are shown, as of `spatl.diagnosis.mistakes.find_mistakes`.
        subject: Whose examples they are.
        command: What made it.
    """
    mistakes = explanation.mistakes
    scale = Scale.of(subject.shown.images, subject.description.normalisation) if mistakes.groups else None
    groups = [
        group_part(place, group, explanation, maps, subject, scale)
        for place, group in enumerate(mistakes.groups, start=1)
        if scale is not None
    ]
    about = explanation.about
    settings = explanation.settings
    sections = [
        section("Summary", facts(_summary(explanation)) + listing(explanation.notes)),
        section("Errors", _errors(explanation)),
        section("Do the filters matter?", all_errors(explanation)),
        section("Group by group", "\n".join([paragraph(_ON_MAPS.format(k=settings.top_k))] * bool(maps) + groups)),
        section(f"How client {about['client']} differs", _standing(explanation)),
        section("The clients, as diagnosed", _diagnosis(explanation, str(subject.run))),
        section("What was sent of each layer", _choices(explanation)),
        section("How to read this page", listing(_LIMITS)),
        section(
            "How to repeat it",
            provenance(
                f"seed: {about['seed']}\nexamples: {settings.num_examples}\ngroups: {settings.num_groups}\n"
                f"top_k: {settings.top_k}\n", command, title="Settings",
            ),
        ),
    ]  # fmt: skip
    return make_page(title=_title(about), subtitle=_subtitle(about), sections=sections, pictures=True)


def _title(about: Mapping[str, Any]) -> str:
    whose = "the federation" if about["client"] is None else f"client {about['client']}"
    return f"What the model of {whose} gets wrong"


def _subtitle(about: Mapping[str, Any]) -> str:
    names = ("run", "method", "data", "model", "round", "seed")
    return " · ".join(f"{name} {about[name]}" for name in names)


def _summary(explanation: Explanation) -> list[tuple[str, str]]:
    mistakes, number = explanation.mistakes, explanation.num_examples
    split = explanation.about["split"]
    return [
        ("Model", "the federation's" if explanation.about["client"] is None
         else f"that of client {explanation.about['client']}, with its own part"),
        (f"Examples ({split} split)", f"{number:,}"),
        ("Wrong", f"{mistakes.num_errors:,} ({human_percent(mistakes.num_errors / number)})"),
        ("What is usual is said by", f"{counted(explanation.num_usual, 'example')} of the validation split"),
        ("Filters blamed", f"{explanation.settings.top_k} at a time"),
        *((f"{name} version", version) for name, version in explanation.about["versions"].items()),
    ]  # fmt: skip


def _errors(explanation: Explanation) -> str:
    mistakes = explanation.mistakes
    if not mistakes.num_errors:
        return paragraph(
            f"There are none: the model is right on all {counted(explanation.num_examples, 'example')} of the "
            f"{explanation.about['split']} split. There is nothing to blame a filter for here; try the other split, or "
            "another client."
        )
    found = errors_table(explanation)
    if mistakes.num_other_groups:
        found += paragraph(
            f"Not shown: {counted(mistakes.num_other_errors, 'error')} in "
            f"{counted(mistakes.num_other_groups, 'smaller group')} (--groups)."
        )
    return found


def _standing(explanation: Explanation) -> str:
    standing, about = explanation.standing, explanation.about
    if about["client"] is None:
        return ""
    if standing is None:
        return paragraph("Nobody to compare with: the data and the accuracies of other clients are not on this device.")
    total_own = sum(each.own for each in standing.classes) or 1
    total = sum(each.all for each in standing.classes) or 1
    classes = [
        {
            "class": name, "examples": f"{each.own:,}", "share": human_percent(each.own / total_own),
            "share in the federation": human_percent(each.all / total),
            "difference": f"{100 * (each.own / total_own - each.all / total):+.1f} points",
        }
        for name, each in zip(explanation.class_names, standing.classes, strict=True)
    ]  # fmt: skip
    by = "the client's own model" if standing.by_own_model else "the federation's model"
    layers = [
        {"layer": each.layer, "this client": f"{each.own:+.2f}", "lowest other": f"{each.lowest:+.2f}",
         "middle other": f"{each.median:+.2f}", "highest other": f"{each.highest:+.2f}"}
        for each in standing.layers
    ]  # fmt: skip
    return "\n".join(
        filter(
            None,
            [
                facts(_accuracies(standing)),
                table("Classes", "Training examples of each class, the client's and all clients'.", classes,
                      kind="numbers named"),
                table("Profiles by layer",
                      f"Mean z of the profiles of validation examples by {by}, standardised over those of this client "
                      f"and {counted(standing.num_compared, 'other')}: above 0, the loss of the client's examples "
                      "depends more on the layer than usual.", layers, kind="numbers named"),
            ],
        )
    )  # fmt: skip


def _accuracies(standing: Standing) -> list[tuple[str, str]]:
    place = _NOTHING if standing.rank is None else f"{standing.rank} of {standing.num_clients}"
    return [
        ("Accuracy on its test split, as the run reported it", human_percent(standing.accuracy)),
        ("Mean over all clients", human_percent(standing.accuracy_mean)),
        ("Lowest and highest",
         f"{human_percent(standing.accuracy_lowest)}, {human_percent(standing.accuracy_highest)}"),
        ("Place by accuracy, from the best", place),
    ]  # fmt: skip


def _diagnosis(explanation: Explanation, run: str) -> str:
    found, this = explanation.diagnosis, explanation.about["client"]
    if found is None:
        return paragraph(
            f"Not there. `spatl diagnose {run}` compares every client with the others and says whose data look faulty; "
            "run it, and then this command again."
        )
    rows = [
        {
            "client": f"{each.get('client')}{' (this one)' if each.get('client') == this else ''}",
            "examples": str(each.get("num_examples")),
            "accuracy": human_percent(each["accuracy"]),
            **{name: _score(score) for name, score in each["scores"].items()},
            "verdict": str(each["verdict"].get("text", _NOTHING)),
        }
        for each in found["clients"]
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, _NOTHING) for name in columns} for row in rows]
    caption = "In brackets: robust standard deviations from the middle client, above 0 for what is worse."
    meanings = [f"{name}: {SCORES[name].meaning}." for name in columns if name in SCORES]
    blind = [f"Not seen: {line}." for line in found.get("blind", ())]
    return table("Clients", caption, rows, kind="numbers") + listing([*meanings, *blind])


def _score(score: Mapping[str, Any]) -> str:
    value, place = score.get("value"), score.get("place")
    if not is_number(value):
        return _NOTHING
    return f"{value:.2f}" + (f" ({place:+.1f})" if is_number(place) else "")


def _choices(explanation: Explanation) -> str:
    choices, client = explanation.choices, explanation.about["client"]
    if choices is None:
        return paragraph(
            "The run has recorded nothing of it: clients did not choose channels, or under differential privacy, or it "
            "was made by an earlier version."
        )
    names = [f"round {first}" if first == last else f"rounds {first}-{last}" for first, last in choices.columns]
    rows = [
        {"channels of": group.name, "number": str(group.num_channels),
         **{name: human_percent(kept) for name, kept in zip(names, group.kept, strict=True)}}
        for group in choices.groups
    ]  # fmt: skip
    whose = f"client {client}" if client is not None else f"{choices.num_clients} clients"
    caption = (
        f"Share of each layer's channels that {whose} sent to the server, mean over rounds. Channels that live and die "
        "together stand under the first layer that owns them. What was not sent was kept back for that round, not "
        "removed from anybody's model."
    )
    return table("Sent channels", caption, rows, kind="numbers named")
