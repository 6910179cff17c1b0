"""Channels that few clients sent: how far they may move, so that no sender owns what only it sends.

An average over those that sent an entry gives one sender all of it. What at most two in five of a round's clients sent,
so few that most of them may be bad, is therefore measured by channels that more sent: its parameters' root mean square
change may be so many times that of their median, in its own channel group if there is one, else in all.
"""

from typing import Final

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of

MOST_OF_A_MEAN: Final = 5.0
"""Times that of the median channel, where every client is trusted. Honest clients' own channels stayed below 4.4 times
the median of all, on the digits under Dirichlet 0.3, of one class each and of sizes 1:100, at keep ratios 0.3 and
0.8."""
MOST_OF_ROBUST: Final = 1.0
"""The same for the rules that do not trust every client."""
_FEW: Final = 0.4
_ROUNDING: Final = 1e-9


def restrain_few_(
    after: Tensor, before: Tensor, senders: Tensor, num_updates: int, layout: EncoderLayout, *, most: float
) -> Tensor:
    """Take back, in place, what channels that few clients sent moved too far.

    Args:
        after: float32 [N], the encoder after a round; what of it is restrained is written here.
        before: float32 [N], the encoder before it.
        senders: int64 [C], how many clients sent each channel.
        num_updates: How many clients sent anything.
        layout: The encoder.
        most: How many times further than usual such a channel may move.

    Returns:
        `after`; to the bit as it was where nothing moved too far.
    """
    few = (senders > 0) & (senders <= _FEW * num_updates + _ROUNDING)
    if not bool(few.any()):
        return after
    moved = _root_mean_squares(after, before, layout)
    factor = torch.where(few, (most * _usual(moved, senders, few, layout) / moved).clamp(max=1.0), 1.0).nan_to_num(1.0)
    if not bool((factor < 1).any()):
        return after
    for part in parts_of(layout.num_parameter_entries):
        scale = factor[layout.owner_in(part)]
        changed = before[part].double() + scale * (after[part].double() - before[part].double())
        after[part] = torch.where(scale < 1, changed.float(), after[part])
    return after


def _root_mean_squares(after: Tensor, before: Tensor, layout: EncoderLayout) -> Tensor:
    """float64 [C]: of the change of each channel's parameters."""
    squares = torch.zeros(layout.num_channels, dtype=torch.float64)
    for part in parts_of(layout.num_parameter_entries):
        own = (after[part].double() - before[part].double()).square()
        squares += torch.bincount(layout.owner_in(part), weights=own, minlength=len(squares))
    return (squares / layout.parameter_sizes.clamp(min=1)).sqrt()


def _usual(moved: Tensor, senders: Tensor, few: Tensor, layout: EncoderLayout) -> Tensor:
    """float64 [C]: how far the lower median channel that enough clients sent moved, by group where it has any."""
    enough = (senders > 0) & ~few
    found = moved[enough] if bool(enough.any()) else moved[few]
    usual = torch.full_like(moved, float(found.median()))
    for group in layout.groups:
        own = slice(group.first, group.first + group.size)
        if bool(enough[own].any()):
            usual[own] = moved[own][enough[own]].median()
    return usual
