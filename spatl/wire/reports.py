"""Reports of a client: numbers of its round, checked for their range before they are used."""

import math
import struct
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import numpy as np

from spatl.channels.costs import BUDGET_KINDS
from spatl.errors import UpdateRejected
from spatl.tasks.task import Measure
from spatl.wire.blob import DIGEST_BYTES, with_digest, without_digest
from spatl.wire.measures import Judging

LARGEST_METRIC: Final = 1e9
"""A loss above it belongs to no training that still works."""

ROUNDING: Final = 1e-9
"""By how much a share may leave [0, 1] in a report: sums of floats do, on one platform or another."""

_LARGEST: Final = {
    **dict.fromkeys(("accuracy", "flops_ratio", "validation_gain"), 1.0),
    "budget_kind": float(len(BUDGET_KINDS)),
    "budget_limit": math.inf,  # a client may say that it has no limit to speak of
}


_OF_TESTS: Final = ("accuracy", "loss")
"""What a client without test examples does not know; both are NaN then."""


_SHORT: Final = {"f": np.float32, "e": np.float16}
"""Forms of fewer than eight bytes: what is read of them is the shortest decimal that they stand for."""
_LARGEST_HALF: Final = 65504.0


class _Report:
    """A flat dataclass of numbers, each of which names its place in a `struct`."""

    @classmethod
    def _struct(cls) -> struct.Struct:
        return struct.Struct("<" + "".join(_numbers_of(cls).values()))

    def to_bytes(self) -> bytes:
        """The numbers, one after another; in half precision what is too large for that is the largest there is."""
        forms = _numbers_of(type(self))
        told = ((form, getattr(self, name)) for name, form in forms.items())
        return self._struct().pack(*(min(number, _LARGEST_HALF) if form == "e" else number for form, number in told))

    @classmethod
    def num_bytes(cls) -> int:
        """Return how many bytes `to_bytes` writes."""
        return cls._struct().size

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, judging: Judging | None = None) -> Self:
        """Read what `to_bytes` wrote.

        Args:
            data: The bytes.
            judging: By what the accuracy is judged, which is another task's score; None for a classification.

        Raises:
            UpdateRejected: The length is wrong, or a number is out of its range.
        """
        form = cls._struct()
        if len(data) != form.size:
            raise UpdateRejected(f"expected a report of {form.size} bytes, got {len(data)}")
        forms = _numbers_of(cls)
        values = {
            name: float(str(_SHORT[own](number))) if own in _SHORT else number
            for (name, own), number in zip(forms.items(), form.unpack(data), strict=True)
        }
        untested = all(math.isnan(values[name]) for name in _OF_TESTS)  # who has no test examples
        scored = judging is not None and not judging.task.counts_hits
        for name, value in values.items():
            if untested and name in _OF_TESTS:
                continue
            if scored and name == "accuracy":
                judging.check_score(value)  # type: ignore[union-attr]  # it is there
                continue
            highest = _LARGEST.get(name, LARGEST_METRIC)
            if not -ROUNDING <= value <= highest + ROUNDING:
                raise UpdateRejected(f"the report's {name} must lie in [0, {highest:g}], got {value}")
            values[name] = min(max(value, type(value)()), highest)
        return cls(**values)


def _numbers_of(report: type[_Report]) -> dict[str, str]:
    """Return how a report's numbers are written, by their names in their order."""
    everything: Any = fields(report)  # type: ignore[arg-type]  # each report is a dataclass
    return {each.name: each.metadata["format"] for each in everything if "format" in each.metadata}


def _number(form: str) -> Any:
    return field(metadata={"format": form})


@dataclass(frozen=True, kw_only=True)
class TrainReport(_Report):
    """Report with an update; accuracy and loss are of the encoder as it arrived, on the test split; NaN without one.

    Attributes:
        accuracy: Of a task that is no classification, or is judged by another metric, its score.
        keep_ratio: The share of entries that its update has; not sent, as the update says it (`unpack_update`).
        budget_kind: 1 + the position in `BUDGET_KINDS`, 0 for a client that selects nothing.
        budget_limit: The client's budget, in the unit of its kind.
        validation_gain: By how much the selection beats the selector's prior on the validation split.
        selection_seconds: How long selecting took, of which `decision_seconds` without measuring anything.
    """

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("f")
    train_loss: float = _number("f")
    keep_ratio: float = 1.0
    flops_ratio: float = _number("f")
    budget_kind: int = _number("B")
    budget_limit: float = _number("f")
    validation_gain: float = _number("e")
    training_seconds: float = _number("e")
    selection_seconds: float = _number("e")
    decision_seconds: float = _number("e")
    seconds: float = _number("e")


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(_Report):
    """Report on the encoder after the last round, on the client's test split; it travels alone, with its digest.

    Attributes:
        accuracy: As of `TrainReport`.
        measures: What it was measured by, where that is told (`Judging`).
    """

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("d")
    measures: tuple[Measure, ...] = ()

    def to_bytes(self, judging: Judging | None = None) -> bytes:
        """The numbers, one after another, what goes with them by `judging`, and a digest."""
        return with_digest(super().to_bytes() + (judging or Judging()).to_bytes(self.measures))

    @classmethod
    def num_bytes(cls) -> int:
        """Return how many bytes `to_bytes` writes."""
        return super().num_bytes() + DIGEST_BYTES

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, judging: Judging | None = None, *, most_examples: int | None = None
    ) -> Self:
        """Read what `to_bytes` wrote.

        Args:
            data: The bytes.
            judging: As there.
            most_examples: Of how many test examples it may tell at most; None where nobody knows.

        Raises:
            UpdateRejected: It was altered, its length is wrong, or a number is out of its range.
        """
        told, judging = memoryview(without_digest(data)), judging or Judging()
        size = len(told) - judging.num_bytes
        report = super().from_bytes(told[: max(size, 0)], judging)
        measures = judging.from_bytes(told[size:], score=report.accuracy, most_examples=most_examples)
        return replace(report, measures=measures)
