"""Parts of an explanation's page that tell of errors: all of them, and one group after the other."""

from collections import Counter
from collections.abc import Sequence

from spatl.diagnosis.explanation import Explanation
from spatl.diagnosis.mistakes import ErrorExample, ErrorGroup, Maps, first_of
from spatl.diagnosis.pictures import Scale, map_picture
from spatl.diagnosis.subject import Subject
from spatl.diagnosis.treatments import NOTHING, STEP, Repair, Switching
from spatl.report.page import paragraph, part, pictures, table
from spatl.runs.text import counted, human_percent

_ACROSS = "–"


def errors_table(explanation: Explanation) -> str:
    """Return the groups of errors as a table, the largest first."""
    names = explanation.class_names
    rows = [
        {
            "group": str(place),
            "true class": names[group.true],
            "taken for": names[group.predicted],
            "errors": str(group.num_errors),
            "of the class": human_percent(group.num_errors / group.num_of_class),
            "most salient": first_of(group.salient),
            "most harmful": first_of(group.harmful),
        }
        for place, group in enumerate(explanation.mistakes.groups, start=1)
    ]
    caption = "Errors by true and predicted class, the largest groups first, with the first filter that is blamed."
    return table("Errors", caption, rows)


def all_errors(explanation: Explanation) -> str:
    """Return what filters have to do with all errors: each example's own ones switched off, and where they lie."""
    mistakes, k = explanation.mistakes, explanation.settings.top_k
    if not mistakes.num_errors:
        return ""
    layers = [
        {"layer": each.layer, "filters": str(each.num_filters), "of all": human_percent(each.share),
         "of the most salient": human_percent(each.salient), "of the most harmful": human_percent(each.harmful)}
        for each in mistakes.layers
    ]  # fmt: skip
    return table(
        "All errors, filters switched off",
        f"{counted(mistakes.num_switched, 'error')}, each with {counted(k, 'filter')} of its own switched off, and "
        "what controls do. Blame means something where the first two rows are above the random ones in the same "
        "layers.",
        _switching_rows(mistakes.switching),
        kind="numbers named",
    ) + table(
        "Layers",
        f"Where the filters that are blamed for each error, {k} for one, lie, beside what chance would give.",
        layers,
        kind="numbers named",
    )


def group_part(
    place: int, group: ErrorGroup, explanation: Explanation, maps: Maps, subject: Subject, scale: Scale
) -> str:  # fmt: skip
    """Return what the page says of a group.

    Args:
        place: Of the group, from 1.
        group: Its errors.
        explanation: Whose group it is.
        maps: Of examples, as far as there are any.
        subject: Whose examples they are.
        scale: Of their pictures.
    """
    names, k = explanation.class_names, explanation.settings.top_k
    title = f"{place}. {_taken_for(names[group.true], names[group.predicted])}"
    shown = pictures(_shown(each, group, maps, subject, scale) for each in group.examples)
    content = [
        paragraph(
            f"{counted(group.num_errors, 'error')}, {human_percent(group.num_errors / group.num_of_class)} of the "
            f"{counted(group.num_of_class, 'example')} of the class. Those with the highest loss:"
        ),
        shown,
        _blamed(place, group),
        table(
            f"Group {place}, filters switched off",
            f"What becomes of {counted(group.num_measured, 'error')} of the group with the "
            f"{counted(k, 'filter')} above switched off for all of them, and of right predictions; "
            "random rows are means over draws.",
            _switching_rows(group.switching),
            kind="numbers named",
        ),
        table(
            f"Group {place}, filters repaired",
            f"What one step of training on one error does, by {counted(k, 'filter')} alone: those that are blamed for "
            "this very error, or others. Means over those that are shown; every step changes the weights by "
            f"{100 * STEP:g} % of their length. Neighbours are the errors nearest by profile, of any group.",
            _repair_rows(group.repair),
            kind="numbers named",
        ),
    ]
    return part(title, "\n".join(content))


def _shown(
    example: ErrorExample, group: ErrorGroup, maps: Maps, subject: Subject, scale: Scale
) -> tuple[list[tuple[bytes, str]], str]:
    class_names = subject.description.class_names
    true, predicted = class_names[group.true], class_names[group.predicted]
    row = [
        (scale.picture(subject.shown.images[example.place]), f"example {example.place}: {_taken_for(true, predicted)}"),
    ]
    if example.place in maps:
        salient, plain = maps[example.place]
        row += [
            (map_picture(salient), f"example {example.place}: input map of the most salient filters, dark where large"),
            (map_picture(plain), f"example {example.place}: plain gradient of the loss, dark where large"),
        ]
    caption = (
        f"Example {example.place}: says “{predicted}” ({human_percent(example.confidence_predicted)}), is “{true}” "
        f"({human_percent(example.confidence_true)}). Nearest errors by profile: {_neighbours(example, class_names)}."
    )
    return row, caption


def _neighbours(example: ErrorExample, class_names: Sequence[str]) -> str:
    """Return how many of the neighbours are errors of each kind, the most frequent first."""
    kinds = Counter((each.true, each.predicted) for each in example.neighbours)
    return (
        ", ".join(
            f"{_taken_for(class_names[true], class_names[predicted])}{f' ({number} times)' if number > 1 else ''}"
            for (true, predicted), number in kinds.most_common()
        )
        or "no other error"
    )


def _blamed(place: int, group: ErrorGroup) -> str:
    rows = [
        {"rank": str(rank), "most salient": salient.name, "mean z": f"{salient.score:+.2f}",
         "most harmful": harmful.name, "gradient x weight": f"{harmful.score:+.3g}"}
        for rank, (salient, harmful) in enumerate(zip(group.salient, group.harmful, strict=True), start=1)
    ]  # fmt: skip
    caption = (
        "Filters that are blamed, as layer[place], by two scores: mean z of the absolute gradient over the group, and "
        "mean gradient times weight."
    )
    return table(f"Group {place}, filters blamed", caption, rows)


def _switching_rows(found: Sequence[Switching]) -> list[dict[str, str]]:
    rows = []
    for each in found:
        broken = {} if found[0].broken is None else {"right ones broken": human_percent(each.broken)}
        rows.append(
            {
                "switched off": each.way,
                "errors righted": _ACROSS if each.way == NOTHING else human_percent(each.righted),
                "confidence in the true class": f"{each.confidence:.3f}",
                **broken,
            }
        )
    return rows


def _repair_rows(found: Sequence[Repair]) -> list[dict[str, str]]:
    return [
        {
            "trained": each.way,
            "the error righted": human_percent(each.righted),
            "confidence in its true class": f"{each.confidence:.3f}",
            "neighbours righted": human_percent(each.neighbours),
            "other errors righted": human_percent(each.others),
            "right ones broken": human_percent(each.broken),
        }
        for each in found
    ]


def _taken_for(true: str, predicted: str) -> str:
    return f"“{true}” taken for “{predicted}”"
