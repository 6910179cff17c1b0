"""Rules by which a round's updates become one: a table of ours, and the user's own (`server.aggregation`).

The user's rule is a function of all updates of the round, or a class derived from `Aggregator`. It is the server's
affair alone: clients neither import it nor need to have it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.config.sections import AGGREGATION_DOOR
from spatl.errors import ConfigError, SpatlError, told
from spatl.extensions.references import arguments_for, is_reference, resolve, row_of
from spatl.rounds.aggregation import Aggregator, AverageSettings
from spatl.rounds.dynamic import DynamicAggregator
from spatl.rounds.neighbours import (
    ClippingAggregator,
    GeometricMedianAggregator,
    MultiKrumAggregator,
    NearestNeighboursAggregator,
)
from spatl.rounds.robust import DenseAggregator, MedianAggregator, TrimmedMeanAggregator
from spatl.seeding import generator, seeded_globals
from spatl.wire.update import Update


class MakeAggregator(Protocol):
    """Maker of a round's aggregator; arguments as of `Aggregator` and `DenseAggregator`."""

    def __call__(self, *, trim_fraction: float, **settings: Unpack[AverageSettings]) -> Aggregator:
        """Return what the round's updates are folded into."""
        ...


@dataclass(frozen=True)
class AggregationRule:
    """One row of `AGGREGATION_RULES`.

    Attributes:
        make: Makes a round's aggregator.
        description: What it does, in a line.
        compares: Whether a round's updates are compared with each other before any is folded in (`agreements`).
    """

    make: MakeAggregator
    description: str
    compares: bool = False


def _mean(*, trim_fraction: float, **settings: Unpack[AverageSettings]) -> Aggregator:
    return Aggregator(**settings)


AGGREGATION_RULES: dict[str, AggregationRule] = {
    "mean": AggregationRule(_mean, "the mean of those that sent an entry, weighted by their numbers of examples"),
    "agreement": AggregationRule(
        _mean, "the same without clients whose updates have pointed against the others'", compares=True
    ),
    "median": AggregationRule(MedianAggregator, "the median of those that sent an entry"),
    "trimmed-mean": AggregationRule(
        TrimmedMeanAggregator,
        "their mean without the lowest and the highest (server.trim_fraction)",
    ),
    "multi-krum": AggregationRule(
        MultiKrumAggregator, "the mean of the updates that are nearest to each other (server.trim_fraction are not)"
    ),
    "nnm": AggregationRule(
        NearestNeighboursAggregator, "the trimmed mean of each update's mean with those that are nearest to it"
    ),
    "centered-clipping": AggregationRule(
        ClippingAggregator, "a centre, moved by what the updates differ from it, clipped to the median distance"
    ),
    "geometric-median": AggregationRule(
        GeometricMedianAggregator, "the point whose distances to all updates have the least sum"
    ),
}
"""What `server.aggregation` can name."""


def aggregation_rule(name: str) -> AggregationRule:
    """Return the rule of a name.

    Args:
        name: A key of `AGGREGATION_RULES`, or `"package.module:rule"` for one of the user's.

    Raises:
        ConfigError: There is none of this name, or the user's is not there, or none.
    """
    if is_reference(name):
        found = resolve(name, AGGREGATION_DOOR, accepts=_is_rule)
        return AggregationRule(partial(_made, name, found), "the user's own")
    return row_of(name, AGGREGATION_RULES, AGGREGATION_DOOR)


def sums_as_given(aggregator: Aggregator) -> bool:
    """Return whether an aggregator adds up the updates as they are: one of the user's, or a private one, may not."""
    given = (Aggregator.add, DynamicAggregator.add, DenseAggregator.add, FunctionAggregator.add)
    return type(aggregator).add in given


class FunctionAggregator(DenseAggregator):
    """An average that a function of the user's makes of all updates of a round at once.

    Every update is kept until the end, dense: as many encoders in float32 as there are replies, and once more while the
    function runs. Only x is the function's: c stays the weighted sum of the c_i.

    Args:
        reference: Where the function comes from, for messages.
        function: Called with those of `updates` (float32 [K, N], NaN where a client did not send an entry),
            `num_examples` (int64 [K]) and `trim_fraction` that it names; returns [N], by how much each entry moves.
        settings: Of `DenseAggregator`.
    """

    def __init__(
        self,
        *,
        reference: str,
        function: Callable[..., Any],
        trim_fraction: float,
        **settings: Unpack[AverageSettings],
    ) -> None:
        super().__init__(trim_fraction=trim_fraction, **settings)
        self._what = f"aggregation rule {reference!r}"
        self._function = function
        self._numbers: list[int] = []

    def add(self, update: Update, num_examples: int) -> None:
        """As of `Aggregator`."""
        super().add(update, num_examples)
        self._numbers.append(num_examples)

    def encoder(self) -> Tensor:
        """As of `Aggregator`.

        Raises:
            ConfigError: The function fails, or does not return one finite number for each entry that was sent.
        """
        if not self._kept:
            return self.encoder_before.clone()
        sent = (self._examples > 0)[self._layout.owner]
        moved = torch.where(sent, self._answer(sent), 0.0)
        moved[: self._layout.num_parameter_entries] *= self._learning_rate * self._mean_step_weight()
        encoder = torch.where(sent, (self.encoder_before.double() + moved).float(), self.encoder_before)
        return self._without_negative(encoder)

    def _answer(self, sent: Tensor) -> Tensor:
        """Return what the function says, float64 [N]; checked where anybody sent something."""
        offered = {
            "updates": torch.stack(self._kept),
            "num_examples": torch.tensor(self._numbers),
            "trim_fraction": self._trim_fraction,
        }
        arguments = arguments_for(self._function, what=self._what, offered=offered, error=ConfigError)
        try:
            answer: Any = self._function(**arguments)
        except SpatlError:
            raise
        except Exception as error:
            raise ConfigError(f"{self._what} failed: {told(error)}") from error
        expected = f"{self._what} must return a tensor of one real number for each entry [{len(sent)}]"
        if not isinstance(answer, Tensor):
            raise ConfigError(f"{expected}, got {type(answer).__name__}")
        if answer.shape != sent.shape or answer.is_complex():
            raise ConfigError(f"{expected}, got {str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}")
        moved = answer.detach().to("cpu", torch.float64)
        wrong = int((~moved[sent].isfinite()).sum())
        if wrong:
            raise ConfigError(f"{expected}, got {wrong} of what clients sent as NaN or infinity; look at torch.nanmean")
        return moved


def rehearse_rule(
    name: str,
    layout: EncoderLayout,
    encoder: Tensor,
    *,
    controls: bool,
    normalizes: bool,
    trim_fraction: float,
    seed: int,
) -> None:
    """Raise unless a rule of the user's does as it must with three small updates; one of ours is left alone.

    Args:
        name: What `server.aggregation` says.
        layout: The shared encoder.
        encoder: float32 [N], x before the first round.
        controls: Whether there is a control variate.
        normalizes: As of `Aggregator`.
        trim_fraction: The config's.
        seed: The run's.

    Raises:
        ConfigError: It is not there or none, fails, or does not return an encoder of this layout.
    """
    if not is_reference(name) or not layout.num_entries:
        return
    control = torch.zeros(layout.num_parameter_entries) if controls else None
    before, draws = encoder.clone(), generator(seed, "aggregation-rehearsal")
    try:
        with seeded_globals(seed, "aggregation-rehearsal"):
            aggregator = aggregation_rule(name).make(
                layout=layout, encoder=encoder, control=control, total_examples=60, normalizes=normalizes,
                trim_fraction=trim_fraction,
            )  # fmt: skip
            for number, selection in zip((10, 20, 30), _selections(layout), strict=True):
                values = 1e-3 * torch.rand(selection.num_entries(layout), generator=draws)
                aggregator.add(Update(1, 0, selection, values, 1.0, corrected=controls), number)
            after: Any = aggregator.encoder()
            control_after: Any = aggregator.control()
    except SpatlError:
        raise
    except Exception as error:
        raise ConfigError(f"aggregation rule {name!r} failed: {told(error)}") from error
    for what, expected, found in (("encoder", encoder, after), ("control", control, control_after)):
        if expected is not None and not _alike(expected, found):
            raise ConfigError(
                f"aggregation rule {name!r}: {what}() must return finite float32 [{len(expected)}], got {_told(found)}"
            )
    if not torch.equal(before, encoder):
        raise ConfigError(f"aggregation rule {name!r} must leave the encoder before the round as it is")


def _selections(layout: EncoderLayout) -> list[Selection]:
    """Everything, the first channel of each group, and everything."""
    mask = torch.zeros(layout.num_channels, dtype=torch.bool)
    mask[[group.first for group in layout.groups]] = True
    return [select_all(layout), Selection(mask), select_all(layout)]


def _alike(expected: Tensor, found: Any) -> bool:
    fits = isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return fits and bool(found.isfinite().all())


def _told(found: Any) -> str:
    if not isinstance(found, Tensor):
        return type(found).__name__
    finite = "" if bool(found.isfinite().all()) else " with NaN or infinity"
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}{finite}"


def _is_rule(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, Aggregator)
    return callable(found) and not isinstance(found, nn.Module)


def _made(
    reference: str,
    found: Callable[..., Any],
    *,
    trim_fraction: float,
    **settings: Unpack[AverageSettings],
) -> Aggregator:
    """Return an aggregator of the user's class, given what its signature names, or one around a function."""
    if not isinstance(found, type):
        return FunctionAggregator(reference=reference, function=found, trim_fraction=trim_fraction, **settings)
    what = f"aggregation rule {reference!r}"
    offered: dict[str, Any] = {**settings}
    if "trim_fraction" in inspect.signature(found).parameters:  # what takes any hands them on to `Aggregator`
        offered["trim_fraction"] = trim_fraction
    arguments = arguments_for(found, what=what, offered=offered, error=ConfigError)
    try:
        made: Aggregator = found(**arguments)
    except SpatlError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be made: {told(error)}") from error
    return made
