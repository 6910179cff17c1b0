"""BatchNorm statistics that travel with the updates (`training.batch_norm: shared`): what of a client's may be used.

Sizes of updates are of parameters alone, so that statistics have bounds of their own. They are compared with the
median, by entry, of what the other clients of the round sent and of what the server has; where fewer than two others
sent an entry, with what the server has. What is far off as a whole is refused, by the measure that statistics after the
last round are refused by (`spatl.rounds.statistics`); what is far off in one channel is cut to what is possible.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected
from spatl.rounds.robust import medians_of_others, spread_of
from spatl.rounds.statistics import outlying_by
from spatl.wire.update import Update

FARTHEST_MEAN: Final = 5.0
"""How far a channel's mean may be from the others', in their standard deviations; it is cut to that."""
LARGEST_VARIANCE: Final = 20.0
"""How many times theirs a channel's variance may be, likewise."""
_OTHERS: Final = 2
_BELOW_ZERO: Final = 1e-5  # of the largest variance of a layer: what the rounding of float32 leaves below 0
_LEAST_OF_LAYER: Final = 0.1  # of the mean variance of its layer: a channel that is quiet elsewhere may be in use here
_LEAST_ROUNDED: Final = 1e-3
_EPSILON: Final = 1e-5


@dataclass(frozen=True, eq=False)
class StatisticsBounds:
    """Bounds of a round's statistics.

    Attributes:
        before: float32 [S], the statistics that the clients started from.
        others: float64 [S] by client, what the others say.
        exact: Whether values arrive as they were sent: then no variance comes out below 0 by rounding.
    """

    before: Tensor
    others: Mapping[int, Tensor]
    exact: bool

    @classmethod
    def of(
        cls, updates: Iterable[tuple[int, Update]], before: Tensor, layout: EncoderLayout, *, exact: bool
    ) -> "StatisticsBounds":
        """Return the bounds of a round.

        Args:
            updates: Each client's, decoded, some at a time: only their statistics are kept.
            before: float32 [N], the encoder that the clients started from.
            layout: The encoder.
            exact: As of the class.
        """
        length = layout.num_parameter_entries
        own = before[length:]
        sent = {
            client: own.double() + spread_of(update, layout, layout.num_entries)[length:] for client, update in updates
        }
        stacked = torch.stack([*sent.values(), own.double()])
        number, medians = medians_of_others(stacked, torch.ones(len(stacked), dtype=torch.bool))
        found = torch.where(number - 1 >= _OTHERS, medians, own.double())
        return cls(own, dict(zip(sent, found, strict=False)), exact)

    def bounded(self, client: int, update: Update, layout: EncoderLayout) -> Update:
        """Return the update with statistics that are possible, the same one where all were.

        Raises:
            UpdateRejected: A variance is below 0, or they are too far from the others' as a whole.
        """
        length, others = layout.num_parameter_entries, self.others[client]
        given = self.before.double() + spread_of(update, layout, layout.num_entries)[length:]
        self._check_variances(given, layout)
        self._check_distance(given, others, layout)
        cut = given.clone()
        for means, variances in _layers(layout):
            wide = others[variances].clamp(min=0)
            wide = wide.clamp(min=_LEAST_OF_LAYER * float(wide.mean())) + _EPSILON
            reach = FARTHEST_MEAN * wide.sqrt()
            cut[means] = given[means].clamp(min=others[means] - reach, max=others[means] + reach)
            cut[variances] = torch.minimum(given[variances], LARGEST_VARIANCE * wide)
        kept = ~given.isnan()
        changed = (cut != given) & kept
        if not bool(changed.any()):
            return update
        values, change = update.values.clone(), (cut - self.before.double()).float()
        number = update.selection.num_entries(layout, length)
        values[number:] = torch.where(changed[kept], change[kept], values[number:])
        return replace(update, values=values)

    def _check_distance(self, given: Tensor, others: Tensor, layout: EncoderLayout) -> None:
        """Raise where what a client sent of all layers is too far from what the others say."""
        places = [torch.arange(len(given))[:0].repeat(2, 1)]
        places += [torch.stack([torch.arange(len(given))[each] for each in pair]) for pair in _layers(layout)]
        means, variances = torch.cat(places, dim=1)
        sent = ~given[means].isnan() & ~given[variances].isnan()
        means, variances = means[sent], variances[sent]
        least = 0.0 if self.exact else _LEAST_ROUNDED * others[variances].clamp(min=0)  # a lossy codec may make it 0
        own = torch.maximum(given[variances], torch.as_tensor(least, dtype=torch.float64))
        reason = outlying_by(given[means], own, others[means], others[variances].clamp(min=0))
        if reason is not None:
            raise UpdateRejected(reason)

    def _check_variances(self, given: Tensor, layout: EncoderLayout) -> None:
        for part in layout.variances if self.exact else ():
            own = slice(part.start - layout.num_parameter_entries, part.stop - layout.num_parameter_entries)
            least = float(given[own].nan_to_num(nan=0.0).min())
            if least < -_BELOW_ZERO * max(1.0, float(self.before[own].max())):
                raise UpdateRejected(f"a running variance would be {least:.3g}; no variance is below 0")


@lru_cache(maxsize=4)
def _layers(layout: EncoderLayout) -> tuple[tuple[slice, slice], ...]:
    """Where each layer's running means lie among the statistics, and its variances."""
    first = layout.num_parameter_entries
    places = {
        name: slice(start - first, stop - first)
        for name, start, stop in zip(layout.shapes, layout.starts, layout.starts[1:], strict=False)
        if start >= first
    }
    pairs = (
        (name, name.removesuffix("running_mean") + "running_var") for name in places if name.endswith("running_mean")
    )
    return tuple((places[mean], places[variance]) for mean, variance in pairs if variance in places)


def has_statistics(layout: EncoderLayout) -> bool:
    """Return whether statistics travel with the parameters."""
    return layout.num_entries > layout.num_parameter_entries
