"""Own data of one device: described, agreed upon by all devices, and made to fit the agreement.

No device sees what the others have, and the server sees nothing at all. So each tells what a model and a scale depend
on: the names of its classes, the shape of its images, and of its training examples, for each channel, the number, the
mean and the sum of squared deviations M2 of the values. The classes of all are the union of these, in one order; means
and M2 add up exactly (Chan et al., 1979): the scale is that of all training examples together.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from spatl.data.labels import class_order, listed
from spatl.data.normalisation import Normalisation
from spatl.errors import DataError, printable

if TYPE_CHECKING:
    from spatl.data.dataset import Dataset

OWN: Final = "own"
"""The partition of devices each of which has data of its own."""
LARGEST_NUM_CLASSES: Final = 10_000
LONGEST_NAME: Final = 200
LARGEST_SIDE: Final = 32_768
_LARGEST_IMAGE = 1 << 28
_LARGEST_MEAN = 1e30  # as of pixels (`spatl.data.images`)
_LARGEST_SQUARES = 1e75
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
        shape: Channels, height and width of its images.
        means: The mean of the training examples' values in each channel.
        squares: Likewise the sum of squared deviations from it (M2).
    """

    num_examples: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    means: tuple[float, ...]
    squares: tuple[float, ...]

    def to_bytes(self) -> bytes:
        """Serialise it, as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Description":
        """Check and read what `to_bytes` wrote, or what somebody would like to be taken for it.

        Raises:
            DataError: Something is missing, of another kind, or out of all bounds.
        """
        if len(data) > _LONGEST_DESCRIPTION:
            raise DataError(f"a description of data has {len(data)} bytes, at most {_LONGEST_DESCRIPTION} are read")
        try:
            content = json.loads(data)
            names = {"num_examples", "classes", "shape", "means", "squares"}
            if not isinstance(content, dict) or set(content) != names:
                raise DataError(f"a description of data must have {', '.join(sorted(names))}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"a description of data is no JSON: {error}") from error
        number = content.pop("num_examples")
        if type(number) is not int or not 1 <= number < 1 << 32:
            raise DataError(f"a description of data must have a number of examples, got {number!r:.50}")
        if not all(isinstance(values, list) for values in content.values()):
            raise DataError("a description of data must have lists of classes, sides, means and squares")
        described = cls(number, **{name: tuple(values) for name, values in content.items()})
        check_classes(described.classes)
        check_shape(described.shape)
        for values, low, high in (
            (described.means, -_LARGEST_MEAN, _LARGEST_MEAN),
            (described.squares, 0.0, _LARGEST_SQUARES),
        ):
            if len(values) != described.shape[0] or not all(type(value) in (int, float) for value in values):
                raise DataError(
                    f"expected a mean and a square for each of {described.shape[0]} channels, got {values!r:.50}"
                )
            if not all(low <= value <= high for value in values):  # NaN is not, either
                raise DataError(f"means and squares of values must lie in [{low:g}, {high:g}]")
        return described


@dataclass(frozen=True)
class Agreement:
    """Agreement of all devices: the classes, the shape and the scale of their data.

    Attributes:
        classes: The names of the model's outputs, in their order.
        shape: Channels, height and width of the images.
        means: What is taken from the values of each channel.
        deviations: What they are then divided by.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @property
    def normalisation(self) -> Normalisation:
        """The scale, as a model's users need it."""
        return Normalisation(self.means, self.deviations)


def check_classes(classes: Sequence[object]) -> None:
    """Raise a `DataError` unless these are names of classes, each once.

    Raises:
        DataError: They are none, too many or too long.
    """
    if not 1 <= len(classes) <= LARGEST_NUM_CLASSES:
        raise DataError(f"expected 1 to {LARGEST_NUM_CLASSES} classes, got {len(classes)}")
    for name in classes:
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
            raise DataError(f"the name of a class must be a text of 1 to {LONGEST_NAME} characters, got {name!r:.50}")
        if printable(name) != name:
            raise DataError(f"the name of a class must have no control characters, got {name!r:.50}")
    if len(set(classes)) < len(classes):
        raise DataError("a class is named twice")


def check_shape(shape: Sequence[object]) -> None:
    """Raise a `DataError` unless this is a shape that images have.

    Raises:
        DataError: It is none, or too large.
    """
    sides = [side for side in shape if type(side) is int and 1 <= side <= LARGEST_SIDE]
    if len(shape) != 3 or len(sides) != 3 or math.prod(sides) > _LARGEST_IMAGE:
        raise DataError(f"expected images of channels x height x width, got {' x '.join(map(str, shape)):.50}")


def describe(dataset: "Dataset", train: Tensor) -> Description:
    """Describe a device's data.

    Args:
        dataset: All of them, read `as_found`.
        train: `[n, C, H, W]`, float32: the images of its training split.
    """
    size, means, squares = train[0, 0].numel(), [], []
    for channel in range(train.shape[1]):
        parts = [part.double() for part in _parts(train[:, channel])]
        mean = math.fsum(float(part.sum()) for part in parts) / (len(train) * size)
        means.append(mean)
        squares.append(math.fsum(float((part - mean).square().sum()) for part in parts))
    shape = tuple(dataset.inputs.shape[1:])
    return Description(len(train), dataset.class_names, shape, tuple(means), tuple(squares))


def agree(
    described: Mapping[int, Description], *, counts: Mapping[int, int] | None = None
) -> tuple[Agreement, dict[int, str]]:
    """Return the agreement of all clients, and the reason of each that does not fit in.

    Images must have one shape: that of most clients, and of the first ones where there are as many of another. Where
    all have more classes than a model may have, who has the most that nobody else has is left out.

    Args:
        described: What each client told, at least one.
        counts: As how many examples those count in the scale who are not to count in full.

    Raises:
        DataError: There are not two classes.
    """
    shapes = Counter(each.shape for _, each in sorted(described.items()))
    shape, number = shapes.most_common(1)[0]
    misfits = {
        client: f"its images are {_sides(each.shape)}, those of {number} of {len(described)} clients {_sides(shape)}"
        for client, each in sorted(described.items())
        if each.shape != shape
    }
    fitting = {client: each for client, each in sorted(described.items()) if client not in misfits}
    while len(owners := Counter(name for each in fitting.values() for name in each.classes)) > LARGEST_NUM_CLASSES:
        most = max(fitting, key=lambda client: (_num_own(fitting[client], owners), len(fitting[client].classes)))
        misfits[most] = (
            f"the clients have {len(owners)} classes, at most {LARGEST_NUM_CLASSES} can be, and "
            f"{_num_own(fitting[most], owners)} are its alone"
        )
        del fitting[most]
    classes = tuple(class_order(set(owners)))
    if len(classes) < 2:
        raise DataError(f"all clients together must have at least two classes, got {', '.join(classes)}")
    check_classes(classes)
    means, deviations = [], []
    fitting = {client: _counted(each, (counts or {}).get(client)) for client, each in fitting.items()}
    size = shape[1] * shape[2]
    count = size * sum(each.num_examples for each in fitting.values())
    for channel in range(shape[0]):
        mean = math.fsum(size * each.num_examples * each.means[channel] for each in fitting.values()) / count
        spread = (size * each.num_examples * (each.means[channel] - mean) ** 2 for each in fitting.values())
        squares = math.fsum((*spread, *(each.squares[channel] for each in fitting.values())))
        means.append(mean)
        deviations.append(math.sqrt(squares / count) or 1.0)
    return Agreement(classes, shape, tuple(means), tuple(deviations)), misfits


def alone(description: Description) -> Agreement:
    """Return what a device would agree on with nobody else, by which it judges a run before it tells of its data.

    Where all are of one class, there is another one without a name of the data's.
    """
    classes = description.classes
    other = next(name for name in ("other", "another") if name not in classes)
    described = description if len(classes) > 1 else replace(description, classes=(*classes, other))
    return agree({0: described})[0]


def _counted(description: Description, count: int | None) -> Description:
    """Return a description as if of so many examples, with the same mean and deviation; as it is for None."""
    if count is None:
        return description
    squares = tuple(square * (count / description.num_examples) for square in description.squares)
    return replace(description, num_examples=count, squares=squares)


def _num_own(description: Description, owners: Counter[str]) -> int:
    """Return how many of a client's classes are nobody else's."""
    return sum(owners[name] == 1 for name in description.classes)


def fit(dataset: "Dataset", agreement: Agreement) -> "Dataset":
    """Return a device's data, read `as_found`, with the labels and the scale of the agreement; they are changed.

    Raises:
        DataError: They have another shape, or a class that was not agreed upon.
    """
    shape, place = tuple(dataset.inputs.shape[1:]), {name: number for number, name in enumerate(agreement.classes)}
    if shape != agreement.shape:
        raise DataError(f"the images here are {_sides(shape)}, the clients have agreed on {_sides(agreement.shape)}")
    if unknown := [name for name in dataset.class_names if name not in place]:
        raise DataError(
            f"{len(unknown)} classes of the data here are none of those that the clients have agreed on: "
            f"{listed(unknown)}; expected {listed(agreement.classes)}"
        )
    for channel, (mean, deviation) in enumerate(zip(agreement.means, agreement.deviations, strict=True)):
        for part in _parts(dataset.inputs[:, channel]):
            part.copy_((part.double() - mean) / deviation)
    order = torch.tensor([place[name] for name in dataset.class_names])
    return replace(
        dataset, targets=order[dataset.targets], num_classes=len(agreement.classes), class_names=agreement.classes,
        normalisation=agreement.normalisation,
    )  # fmt: skip


def _parts(values: Tensor) -> Iterator[Tensor]:
    """Views of some images at a time."""
    return (values[start : start + _IMAGES_AT_ONCE] for start in range(0, len(values), _IMAGES_AT_ONCE))


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
