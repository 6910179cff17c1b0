"""Explanation of a run's model: its mistakes, how a client stands in its federation, what was diagnosed and chosen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from spatl.diagnosis.choices import Choices, read_choices
from spatl.diagnosis.mistakes import ExplainSettings, Maps, Mistakes, Tell, find_mistakes
from spatl.diagnosis.standing import Standing, standing_of
from spatl.diagnosis.subject import Subject
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.runs.files import DIAGNOSIS
from spatl.runs.records import is_number
from spatl.runs.text import counted

FORMAT: Final = 1
_FEW = 30


@dataclass(frozen=True)
class Explanation:
    """Explanation of a model.

    Attributes:
        about: Facts of the run and its model.
        settings: How much is shown.
        class_names: Of the classes.
        num_usual: Examples by which profiles are standardised.
        num_examples: Examples whose errors are shown.
        mistakes: Its errors.
        standing: How the client differs from the federation; None where there is no client, or nobody to compare with.
        choices: Channels kept by group and rounds; None where the run has recorded none.
        diagnosis: As `spatl diagnose` has written it; None where it has not.
        notes: What a reader has to know, a line each.
    """

    about: Mapping[str, Any]
    settings: ExplainSettings
    class_names: tuple[str, ...]
    num_usual: int
    num_examples: int
    mistakes: Mistakes
    standing: Standing | None
    choices: Choices | None
    diagnosis: Mapping[str, Any] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"format": FORMAT, **asdict(self)}


def explain(subject: Subject, settings: ExplainSettings, *, tell: Tell) -> tuple[Explanation, Maps]:
    """Return the explanation of a model, and input maps of the errors that have pictures.

    Everything drawn follows from the run's seed.

    Args:
        subject: The model and its examples.
        settings: How much is shown.
        tell: Told of progress.

    Raises:
        ModelError: The network has diverged.
        SpatlError: It has fewer filters than are to be blamed, or what was diagnosed cannot be read.
    """
    description = subject.description
    choices, diagnosis = read_choices(subject.run, client=description.client), _diagnosis(subject)
    mistakes, maps = find_mistakes(subject, settings, seed=description.seed, tell=tell)
    standing = standing_of(
        subject, seed=description.seed, progress=lambda done, total: tell("profiles of other clients", done, total)
    )
    explanation = Explanation(
        about={
            "run": subject.run.name,
            "method": description.method,
            "data": description.data,
            "model": description.factory,
            "client": description.client,
            "round": description.round,
            "split": subject.split,
            "seed": description.seed,
            "versions": dict(description.versions),
        },
        settings=settings,
        class_names=description.class_names,
        num_usual=len(subject.usual),
        num_examples=len(subject.shown),
        mistakes=mistakes,
        standing=standing,
        choices=choices,
        diagnosis=diagnosis,
        notes=(*subject.notes, *_too_few(subject), *_without_maps(mistakes, maps)),
    )
    return explanation, maps


def _diagnosis(subject: Subject) -> Mapping[str, Any] | None:
    path = subject.run / DIAGNOSIS
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise SpatlError(f"cannot read {path}: {error}; spatl diagnose writes it anew") from error
    if not _is_diagnosis(found):
        raise SpatlError(f"{path} is not as spatl diagnose writes it; that writes it anew")
    return dict(found)


def _is_diagnosis(found: Any) -> bool:
    """Return whether a file has what is shown of it, each of its type."""
    if not isinstance(found, dict) or not isinstance(found.get("clients"), list):
        return False
    return all(
        isinstance(each, dict)
        and isinstance(each.get("scores"), dict)
        and all(isinstance(score, dict) for score in each["scores"].values())
        and isinstance(each.get("verdict"), dict)
        and is_number(each.get("accuracy"))
        for each in found["clients"]
    )


def _too_few(subject: Subject) -> list[str]:
    """Return a line where there are too few examples to say what is usual."""
    if len(subject.usual) >= _FEW:
        return []
    return [
        f"The validation split has {counted(len(subject.usual), 'example')}: what is usual of a filter, and with "
        "it every z, is hardly known."
    ]


def _without_maps(mistakes: Mistakes, maps: Maps) -> list[str]:
    if maps or not mistakes.groups:
        return []
    return ["There are no input maps: they take a second derivative, which PyTorch does not have of this network."]
