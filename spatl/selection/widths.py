"""Widths of a network that is cut: how many channels of each group stay under a budget, and which.

Hardware computes eight channels at once or more, so that the counts that a selector proposes are brought to multiples
of eight, all by one common factor that meets the budget, and what is left of the budget is filled up by worth per cost.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from spatl.channels.flops import FlopsModel
from spatl.channels.prunable import Prunable, groups_of
from spatl.channels.selection import Selection
from spatl.selection.projection import keep_top

MULTIPLE: Final = 8
"""Channels come in multiples of so many, and a group is never cut below it."""

_BISECTIONS = 40


class Widths:
    """Counts of channels by group, what they cost, and which channels they are.

    Args:
        prunable: What may be cut.
        model: What the counts cost.
        worth: float64 [C], what each channel is worth.
        exact: Whether any number of channels may stay, instead of multiples of eight.

    Attributes:
        levels: By group, the counts that it may have, ascending.
    """

    def __init__(self, prunable: Prunable, model: FlopsModel, worth: Tensor, exact: bool) -> None:
        self._prunable = prunable
        self._model = model
        self._worth = worth
        self._exact = exact
        self._order = self._spread(worth)
        self.levels = [
            [group.size] if whole else _levels(group.size, 1 if exact else math.lcm(MULTIPLE, divisor), exact)
            for group, whole, divisor in zip(
                prunable.layout.groups, prunable.is_whole.tolist(), prunable.divisors.tolist(), strict=True
            )
        ]

    def selection(self, counts: Sequence[int]) -> Selection:
        """Return the best channels of each group, completed; more of them where that leaves a count that is allowed."""
        layout = self._prunable.layout
        while True:
            found = self._prunable.completed(keep_top(self._order, torch.tensor(counts), layout), self._order)
            actual = found.counts(layout).tolist()
            rounded = [
                next(level for level in levels if level >= number)
                for levels, number in zip(self.levels, actual, strict=True)
            ]
            if rounded == actual:
                return found
            counts = rounded

    def cost(self, selection: Selection) -> float:
        """Return what a selection costs, a share in [0, 1]."""
        return self._model.ratio(selection.counts(self._prunable.layout))

    def floor(self) -> float:
        """Return what the fewest channels cost that may stay."""
        return self._cost_of([levels[0] for levels in self.levels])

    def _cost_of(self, counts: Sequence[int]) -> float:
        """Return what `selection` of some counts costs: where no layer has groups, that has as many channels."""
        if all(len(side) == 1 for side in self._prunable.sides):
            return self._model.ratio(torch.tensor(counts))
        return self.cost(self.selection(counts))

    def fitted(self, proposed: Selection, limit: float) -> Selection:
        """Return a selection within the budget, with allowed counts, as near to a proposed one as can be."""
        layout = self._prunable.layout
        # What is proposed comes first in each group, and then what is worth most.
        worth = self._worth / self._worth.max().clamp(min=1e-30)
        self._order = self._spread(worth + 2.0 * proposed.mask)
        completed = self._prunable.completed(proposed, self._order)
        if self._exact and self.cost(completed) <= limit:
            return completed
        wanted = completed.counts(layout).tolist()
        if self.floor() > limit:
            self._order = self._spread(worth)  # the order of the floor, where the other costs more to complete
        counts = self._scaled(wanted, limit)
        return self.selection(self._filled(counts, worth, limit))

    def _scaled(self, wanted: Sequence[int], limit: float) -> list[int]:
        """Return the largest counts near to one multiple of those wanted that the budget pays for."""

        def counts(factor: float) -> list[int]:
            return [
                min(levels, key=lambda level: (abs(level - factor * number), level))
                for levels, number in zip(self.levels, wanted, strict=True)
            ]

        low, high = 0.0, max(levels[-1] / number for levels, number in zip(self.levels, wanted, strict=True))
        if self._cost_of(counts(high)) <= limit:
            return counts(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._cost_of(counts(middle)) <= limit:
                low = middle
            else:
                high = middle
        return counts(low)

    def _filled(self, counts: list[int], worth: Tensor, limit: float) -> list[int]:
        """Return larger counts as long as the budget pays for them, by worth per cost."""
        layout, counts = self._prunable.layout, list(counts)
        now = self._cost_of(counts)
        while True:
            steps = []
            for number, levels in enumerate(self.levels):
                later = [level for level in levels if level > counts[number]]
                if not later:
                    continue
                more = [*counts[:number], later[0], *counts[number + 1 :]]
                cost = self._cost_of(more)
                if cost > limit:
                    continue
                group = layout.groups[number]
                own = slice(group.first, group.first + group.size)
                added = self._order[own].argsort(descending=True, stable=True)[counts[number] : later[0]]
                steps.append((float(worth[own][added].sum()) / max(cost - now, 1e-12), -number, more, cost))
            if not steps:
                return counts
            *_, counts, now = max(steps, key=lambda step: step[:2])

    def _spread(self, order: Tensor) -> Tensor:
        """Return worths by which the best channels of a group lie evenly in the groups of a grouped convolution."""
        layout, spread = self._prunable.layout, order
        for side in self._prunable.sides:
            if len(side) == 1:
                continue
            place = torch.full((layout.num_channels,), -1.0, dtype=torch.float64)
            for row in side:
                own = torch.tensor(sorted(set(row[row >= 0].tolist())), dtype=torch.int64)
                for group in groups_of(own, layout):
                    inside = own[layout.group_of[own] == group]
                    ranks = spread[inside].argsort(descending=True, stable=True).argsort()
                    place[inside] = ranks.to(torch.float64)
            touched = place >= 0
            scale = (spread.max() - spread.min() + 1).item()
            spread = torch.where(touched, (spread - spread.min()) / scale - place, spread)
        return spread


def _levels(size: int, multiple: int, exact: bool) -> list[int]:
    """Return the counts that a group may have, ascending."""
    if exact:
        return list(range(1, size + 1))
    return [*range(multiple, size, multiple), size]
