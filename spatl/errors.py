"""The exceptions a user or a peer can cause; everything else is a bug and keeps its traceback.

SpatlError
├── ConfigError        a key, a value or a combination of settings
├── DataError          a data set that is missing or a partition that cannot be drawn
├── ModelError         a model that cannot be built, or a cut that does not fit it
├── BudgetError        a budget no selection can meet
├── UpdateRejected     a blob that is malformed, stale or not finite
│   └── ReferenceLost  changes of an encoder that the receiver does not hold
├── DamagedState       a stored file that is not as it was written
└── DivergedError      training that left the finite numbers
"""

import difflib
from collections.abc import Iterable


class SpatlError(Exception):
    """Something the reader of the message can put right."""


class ConfigError(SpatlError):
    """A key, a value or a combination of settings that is not allowed."""


class DataError(SpatlError):
    """A data set that is not there, or a partition that cannot be drawn from it."""


class ModelError(SpatlError):
    """A model that cannot be built, or a cut that does not fit it."""


class BudgetError(SpatlError):
    """A budget below what the smallest possible selection costs."""


class UpdateRejected(SpatlError):
    """A received blob that must not be used; the message is the reason that is shown and counted."""


class ReferenceLost(UpdateRejected):
    """Changes that start from a version of the encoder that the receiver does not hold, or lead elsewhere."""


class DamagedState(SpatlError):
    """Stored bytes that are not as they were written."""


class DivergedError(SpatlError):
    """A run whose loss or weights are no longer finite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the part of a message that suggests the known name closest to a wrong one; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
