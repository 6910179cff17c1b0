"""Own data of one device: described, agreed upon by all devices, and made to fit the agreement.

No device sees what the others have, and the server sees nothing at all. So each tells what a model and a scale depend
on: the names of its classes, the shape of its images, and of its training examples, for each channel, the number, the
mean and the sum of squared deviations M2 of the values. The classes of all are the union of these, in one order; means
and M2 add up exactly (Chan et al., 1979): the scale is that of all training examples together. What may be told
at all stands in `spatl.data.bounds`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, get_args

import torch
from torch import Tensor

from spatl.data.bounds import (
    LARGEST_NUM_CLASSES,
    MOST_UNSTATED,
    as_told,
    check_classes,
    check_moments,
    check_scale,
    check_shape,
    names_of,
)
from spatl.data.labels import MAX_CLASSES, listed, united
from spatl.data.normalisation import Normalisation, Scale, num_scaled
from spatl.data.scaling import Moments, deviations_of, merged, moments_of, scaled
from spatl.errors import DataError
from spatl.tasks.targets import TASKS, TaskName
from spatl.tensors.inputs import Inputs, NamedInputs, one_tensor, shapes_of

if TYPE_CHECKING:
    from spatl.data.dataset import Dataset

_LONGEST_DESCRIPTION = 4 << 20
_IMAGES_AT_ONCE = 1000  # bounds the memory of values in float64

_as_found: ContextVar[bool] = ContextVar("as_found", default=False)


@contextmanager
def as_found() -> Iterator[None]:
    """Read data sets as they lie on disk inside this block: values unscaled, a single class allowed."""
    before = _as_found.set(True)
    try:
        yield
    finally:
        _as_found.reset(before)


def is_as_found() -> bool:
    """Return whether values are to be left unscaled."""
    return _as_found.get()


@dataclass(frozen=True)
class Description:
    """Description that a device gives of its data, without any example.

    Attributes:
        num_examples: How many it trains on.
        classes: The names of its classes.
        shape: The sides of an example: of an image channels, height and width.
        means: The mean of the training examples' values in each channel or feature, as `scale` says.
        squares: Likewise the sum of squared deviations from it (M2).
        scale: What it would have scaled.
        num_tokens: Of tokens, how many there are, where that was said, or the largest and one; 0 for other numbers.
        task: What its targets are for.
        target_means: Of a regression, the mean of the training examples' targets by output; none of other tasks.
        target_squares: Likewise their M2.
    """

    num_examples: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    means: tuple[float, ...]
    squares: tuple[float, ...]
    scale: Scale
    num_tokens: int
    task: TaskName = "classification"
    target_means: tuple[float, ...] = ()
    target_squares: tuple[float, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Return how many tokens there are, of inputs or outputs, whichever are more; 0 where there are none."""
        return max(self.num_tokens, len(self.classes) if TASKS[self.task].by_place else 0)

    def to_bytes(self) -> bytes:
        """Serialise it, as JSON; of a classification without what other tasks say."""
        content = vars(self) | {"classes": as_told(self.classes)}
        if self.task == "classification":
            content = {name: value for name, value in content.items() if name not in _OF_TASKS}
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Description":
        """Check and read what `to_bytes` wrote, or what somebody would like to be taken for it.

        Raises:
            DataError: Something is missing, of another kind, or out of all bounds.
        """
        if len(data) > _LONGEST_DESCRIPTION:
            raise DataError(
                f"a description of data has {len(data)} bytes, at most {_LONGEST_DESCRIPTION} are read: give outputs "
                "shorter names, or tokens no names but their numbers"
            )
        try:
            content = json.loads(data)
            names = {"num_examples", "classes", "shape", "means", "squares", "scale", "num_tokens"}
            if not isinstance(content, dict) or set(content) not in (names, names | _OF_TASKS):
                raise DataError(f"a description of data must have {', '.join(sorted(names))}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"a description of data is no JSON: {error}") from error
        number = content.pop("num_examples")
        if type(number) is not int or not 1 <= number < 1 << 32:
            raise DataError(f"a description of data must have a number of examples, got {number!r:.50}")
        scale, num_tokens = content.pop("scale"), content.pop("num_tokens")
        task = content.pop("task", "classification")
        if task not in get_args(TaskName):
            raise DataError(f"a description of data must be of a task, got {task!r:.50}")
        content["classes"] = names_of(content["classes"])
        if isinstance(content["classes"], tuple) and not TASKS[task].by_place:
            raise DataError(f"expected 1 to {LARGEST_NUM_CLASSES} classes, got {len(content['classes'])}")
        if not all(isinstance(values, list | tuple) for values in content.values()):
            raise DataError("a description of data must have lists of classes, sides, means and squares")
        described = cls(
            number, **{name: tuple(values) for name, values in content.items()}, scale=scale, num_tokens=num_tokens,
            task=task,
        )  # fmt: skip
        check_classes(described.classes, most=MAX_CLASSES if TASKS[task].by_place else LARGEST_NUM_CLASSES)
        check_shape(described.shape)
        check_scale(described.scale, described.num_tokens)
        check_moments(described.means, described.squares, num_scaled(described.shape, described.scale), "channels")
        outputs = len(described.classes) if TASKS[described.task].is_scaled else 0
        check_moments(described.target_means, described.target_squares, outputs, "outputs")
        return described


_OF_TASKS: Final = frozenset({"task", "target_means", "target_squares"})


@dataclass(frozen=True)
class Agreement:
    """Agreement of all devices: the classes, the shape and the scale of their data.

    Attributes:
        classes: The names of the model's outputs, in their order.
        shape: The sides of an example: of an image channels, height and width.
        means: What is taken from the values of each channel or feature, as `scale` says.
        deviations: What they are then divided by.
        scale: What is scaled.
        num_tokens: Of tokens, how many there are; 0 for other numbers.
        target_means: Of a regression, what is taken from the targets of each output; none of other tasks.
        target_deviations: What they are then divided by.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    scale: Scale = "channel"
    num_tokens: int = 0
    target_means: tuple[float, ...] = ()
    target_deviations: tuple[float, ...] = ()

    @property
    def normalisation(self) -> Normalisation | None:
        """The scale, as a model's users need it; None without one."""
        return None if self.scale == "none" else Normalisation(self.means, self.deviations, self.scale)

    @property
    def target_scale(self) -> Normalisation | None:
        """The scale of a regression's targets; None of other tasks."""
        return Normalisation(self.target_means, self.target_deviations, "feature") if self.target_means else None

    def told(self) -> dict[str, Any]:
        """Return it as devices are told of it; of a classification without what other tasks say."""
        content = vars(self) | {"classes": as_told(self.classes)}
        return content if self.target_means else {k: v for k, v in content.items() if not k.startswith("target_")}


def describe(
    dataset: "Dataset", inputs: Inputs, scale: Scale | None = None, *, targets: Tensor | None = None
) -> Description:
    """Describe a device's data.

    Args:
        dataset: All of them, read `as_found`.
        inputs: `[n, ...]`: those of its training split.
        scale: What is to be scaled; None for what suits the data.
        targets: Those of its training split, of a regression.

    Raises:
        DataError: There are several inputs, on which devices cannot agree.
    """
    if isinstance(inputs, NamedInputs):
        raise DataError(f"devices with data of their own have one input each, got {shapes_of(inputs)}")
    train = inputs
    scale = (dataset.scale if scale is None else scale) if train.is_floating_point() else "none"
    moments = moments_of(train, scale)
    shape = tuple(one_tensor(dataset.inputs).shape[1:])
    tokens = 0 if train.is_floating_point() else int(dataset.sizes()["num_tokens"])
    aims = Moments(0, (), ())
    if TASKS[dataset.task].is_scaled and targets is not None:
        aims = moments_of(targets, "feature")
    return Description(
        len(train), dataset.class_names, shape, moments.means, moments.squares, scale, tokens, dataset.task,
        aims.means, aims.squares,
    )  # fmt: skip


def agree(
    described: Mapping[int, Description],
    *,
    counts: Mapping[int, int] | None = None,
    num_tokens: int | None = None,
) -> tuple[Agreement, dict[int, str]]:
    """Return the agreement of all clients, and the reason of each that does not fit in.

    Examples must have one shape: that of most clients, and of the first ones where there are as many of another. Where
    all have more classes than a model may have, who has the most that nobody else has is left out.

    Args:
        described: What each client told, at least one.
        counts: As how many examples those count in the scale who are not to count in full.
        num_tokens: How many tokens there are, as of `data.num_tokens`; the most that a client has if not given.

    Raises:
        DataError: There are not two classes, or nobody has as few tokens as there may be.
    """
    fitting, misfits = _fitting(described, num_tokens)
    first = next(iter(fitting.values()))
    shape, scale, row = first.shape, first.scale, TASKS[first.task]
    classes = max((each.classes for each in fitting.values()), key=len)  # of other tasks all have the same, or a part
    if row.labels:
        classes = tuple(united(each.classes for each in fitting.values()))
    if len(classes) < 2 and row.labels:
        raise DataError(f"all clients together must have at least two classes, got {', '.join(classes)}")
    fitting = {client: _counted(each, (counts or {}).get(client)) for client, each in fitting.items()}
    size = math.prod(shape) // max(1, num_scaled(shape, scale))
    together = merged([Moments(size * each.num_examples, each.means, each.squares) for each in fitting.values()])
    tokens = max(each.num_tokens for each in fitting.values())
    aims = merged([Moments(each.num_examples, each.target_means, each.target_squares) for each in fitting.values()])
    agreement = Agreement(
        classes, shape, together.means, deviations_of(together), scale, (num_tokens or tokens) if tokens else 0,
        aims.means, deviations_of(aims),
    )  # fmt: skip
    return agreement, misfits


def _fitting(
    described: Mapping[int, Description], num_tokens: int | None
) -> tuple[dict[int, Description], dict[int, str]]:
    """Return the descriptions that go together, in the clients' order, and the reason of each client whose does not.

    Raises:
        DataError: None of those that go together has as few tokens as there may be.
    """
    kinds = Counter(_kind(each) for _, each in sorted(described.items()))
    kind, number = kinds.most_common(1)[0]
    misfits = {
        client: f"its examples are {_kind(each)}, those of {number} of {len(described)} clients {kind}"
        for client, each in sorted(described.items())
        if _kind(each) != kind
    }
    fitting = {client: each for client, each in sorted(described.items()) if client not in misfits}
    misfits |= (many := _too_many_tokens(fitting, num_tokens))
    fitting = {client: each for client, each in fitting.items() if client not in misfits}
    if not fitting:
        client, reason = next(iter(many.items()))
        raise DataError(reason if len(described) == 1 else f"no client fits in; client {client}: {reason}")
    if TASKS[next(iter(fitting.values())).task].by_place:
        misfits |= _other_tokens(fitting)
        return {client: each for client, each in fitting.items() if client not in misfits}, misfits
    while len(owners := Counter(name for each in fitting.values() for name in each.classes)) > LARGEST_NUM_CLASSES:
        most = max(fitting, key=lambda client: (_num_own(fitting[client], owners), len(fitting[client].classes)))
        misfits[most] = (
            f"the clients have {len(owners)} classes, at most {LARGEST_NUM_CLASSES} can be, and "
            f"{_num_own(fitting[most], owners)} are its alone"
        )
        del fitting[most]
    return fitting, misfits


def _too_many_tokens(described: Mapping[int, Description], num_tokens: int | None) -> dict[int, str]:
    """Return the reason of each client that has more tokens than there are, or than clients may have unasked."""
    most = MOST_UNSTATED if num_tokens is None else num_tokens
    found = {client: each.vocabulary for client, each in described.items() if each.vocabulary > most}
    expected = (
        f"clients may have {most} where data.num_tokens does not say how many there are: set it"
        if num_tokens is None else f"there are {num_tokens} (data.num_tokens)"
    )  # fmt: skip
    return {client: f"it has {number} tokens, {expected}" for client, number in found.items()}


def _other_tokens(described: Mapping[int, Description]) -> dict[int, str]:
    """Return the reason of each client in which a token's number has another name than where there are the most."""
    most = max((each.classes for _, each in sorted(described.items())), key=len)
    odd = {client: each.classes for client, each in described.items() if each.classes != most[: len(each.classes)]}
    return {client: f"its tokens are {listed(own)}, others have {listed(most)}" for client, own in odd.items()}


def _kind(description: Description) -> str:
    """Return what all devices must have alike, in words."""
    scaled_by = "" if description.scale == "none" else f" scaled by {description.scale}"
    row = TASKS[description.task]
    aims = "" if row.labels or row.by_place else f" with the targets {listed(description.classes)}"
    task = "" if row.labels else f" for {description.task}"
    return f"{'tokens' if description.num_tokens else 'numbers'}{scaled_by} {_sides(description.shape)}{task}{aims}"


def alone(description: Description, *, num_tokens: int | None = None) -> Agreement:
    """Return what a device would agree on with nobody else, by which it judges a run before it tells of its data.

    The tokens are as of `agree`. Where all are of one class, there is another one without a name of the data's.
    """
    classes = description.classes
    if len(classes) == 1 and TASKS[description.task].labels:
        description = replace(description, classes=(*classes, "another" if classes == ("other",) else "other"))
    return agree({0: description}, num_tokens=num_tokens)[0]


def _counted(description: Description, count: int | None) -> Description:
    """Return a description as if of so many examples, with the same mean and deviation; as it is for None."""
    if count is None:
        return description
    factor = count / description.num_examples
    squares, aims = (
        tuple(square * factor for square in each) for each in (description.squares, description.target_squares)
    )
    return replace(description, num_examples=count, squares=squares, target_squares=aims)


def _num_own(description: Description, owners: Counter[str]) -> int:
    """Return how many of a client's classes are nobody else's."""
    return sum(owners[name] == 1 for name in description.classes)


def fit(dataset: "Dataset", agreement: Agreement) -> "Dataset":
    """Return a device's data, read `as_found`, with the labels and the scale of the agreement.

    Raises:
        DataError: They have another shape, or a class that was not agreed upon.
    """
    inputs, place = one_tensor(dataset.inputs), {name: number for number, name in enumerate(agreement.classes)}
    shape = tuple(inputs.shape[1:])
    if shape != agreement.shape:
        raise DataError(f"the examples here are {_sides(shape)}, the clients have agreed on {_sides(agreement.shape)}")
    if inputs.is_floating_point() == bool(agreement.num_tokens):
        raise DataError(
            f"the examples here are {shapes_of(inputs)}, the clients have agreed on "
            f"{'tokens' if agreement.num_tokens else 'other numbers'}"
        )
    if agreement.num_tokens and (found := int(inputs.max())) >= agreement.num_tokens:
        raise DataError(
            f"a token of the examples here is {found}, the clients have agreed on {agreement.num_tokens} tokens, "
            "counted from 0"
        )
    if unknown := [name for name in dataset.class_names if name not in place]:
        raise DataError(
            f"{len(unknown)} classes of the data here are none of those that the clients have agreed on: "
            f"{listed(unknown)}; expected {listed(agreement.classes)}"
        )
    row = TASKS[dataset.task]
    expected = agreement.classes[: len(dataset.class_names)] if row.by_place else agreement.classes
    if not row.labels and dataset.class_names != expected:
        raise DataError(
            f"the targets here are {listed(dataset.class_names)}, the clients have agreed on "
            f"{listed(agreement.classes)}"
        )
    normalisation = agreement.normalisation
    order, targets = torch.tensor([place[name] for name in dataset.class_names]), dataset.targets
    aims = agreement.target_scale
    if row.labels:
        targets = order[targets]
    elif aims is not None:
        targets = scaled(targets, aims)
    return replace(
        dataset, inputs=inputs if normalisation is None else scaled(inputs, normalisation),
        targets=targets, num_classes=len(agreement.classes), class_names=agreement.classes,
        normalisation=normalisation, num_tokens=agreement.num_tokens or None, target_scale=aims,
    )  # fmt: skip


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
