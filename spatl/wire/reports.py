"""Reports of a client: numbers of its round, checked for their range before they are used."""

import math
import struct
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from spatl.channels.costs import BUDGET_KINDS
from spatl.errors import UpdateRejected
from spatl.wire.blob import DIGEST_BYTES, with_digest, without_digest

LARGEST_METRIC: Final = 1e9
"""A loss above it belongs to no training that still works."""

ROUNDING: Final = 1e-9
"""By how much a share may leave [0, 1] in a report: sums of floats do, on one platform or another."""

_LARGEST: Final = {
    **dict.fromkeys(("accuracy", "keep_ratio", "flops_ratio", "validation_gain"), 1.0),
    "budget_kind": float(len(BUDGET_KINDS)),
    "budget_limit": math.inf,  # a client may say that it has no limit to speak of
}


_OF_TESTS: Final = ("accuracy", "loss")
"""What a client without test examples does not know; both are NaN then."""


class _Report:
    """A flat dataclass of numbers, each of which names its place in a `struct`."""

    @classmethod
    def _struct(cls) -> struct.Struct:
        return struct.Struct("<" + "".join(each.metadata["format"] for each in fields(cls)))  # type: ignore[arg-type]

    def to_bytes(self) -> bytes:
        """The numbers, one after another."""
        return self._struct().pack(*vars(self).values())

    @classmethod
    def num_bytes(cls) -> int:
        """Return how many bytes `to_bytes` writes."""
        return cls._struct().size

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            UpdateRejected: The length is wrong, or a number is out of its range.
        """
        form = cls._struct()
        if len(data) != form.size:
            raise UpdateRejected(f"expected a report of {form.size} bytes, got {len(data)}")
        values = dict(zip((each.name for each in fields(cls)), form.unpack(data), strict=True))  # type: ignore[arg-type]
        untested = all(math.isnan(values[name]) for name in _OF_TESTS)  # who has no test examples
        for name, value in values.items():
            if untested and name in _OF_TESTS:
                continue
            highest = _LARGEST.get(name, LARGEST_METRIC)
            if not -ROUNDING <= value <= highest + ROUNDING:
                raise UpdateRejected(f"the report's {name} must lie in [0, {highest:g}], got {value}")
            values[name] = min(max(value, type(value)()), highest)
        return cls(**values)


def _number(form: str) -> Any:
    return field(metadata={"format": form})


@dataclass(frozen=True, kw_only=True)
class TrainReport(_Report):
    """Report with an update; accuracy and loss are of the encoder as it arrived, on the test split; NaN without one.

    Attributes:
        budget_kind: 1 + the position in `BUDGET_KINDS`, 0 for a client that selects nothing.
        budget_limit: The client's budget, in the unit of its kind.
        validation_gain: By how much the selection beats the selector's prior on the validation split.
        selection_seconds: How long selecting took, of which `decision_seconds` without measuring anything.
    """

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("d")
    train_loss: float = _number("d")
    keep_ratio: float = _number("d")
    flops_ratio: float = _number("d")
    budget_kind: int = _number("B")
    budget_limit: float = _number("d")
    validation_gain: float = _number("f")
    training_seconds: float = _number("f")
    selection_seconds: float = _number("f")
    decision_seconds: float = _number("f")
    seconds: float = _number("f")


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(_Report):
    """Report on the encoder after the last round, on the client's test split; it travels alone, with its digest."""

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("d")

    def to_bytes(self) -> bytes:
        """The numbers, one after another, and a digest."""
        return with_digest(super().to_bytes())

    @classmethod
    def num_bytes(cls) -> int:
        """Return how many bytes `to_bytes` writes."""
        return super().num_bytes() + DIGEST_BYTES

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            UpdateRejected: It was altered, its length is wrong, or a number is out of its range.
        """
        return super().from_bytes(without_digest(data))
