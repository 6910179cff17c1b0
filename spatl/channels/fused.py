"""Passes over the entries that travel, each in one go where this installation has the compiled extension.

What a step at a time reads and writes a vector of a message ten times, the extension does in one pass: the same
operations in the same order, each rounded as IEEE 754 says, so that the numbers are the same to the bit. The functions
say whether they did it; without the extension nothing is done, and the caller goes on step by step.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.kept import Kept
from spatl.extensions.compiled import extension

_PASSES: ModuleType | None = extension("spatl.channels.passes")

IS_COMPILED: Final = _PASSES is not None
"""Whether this process has the compiled passes."""


def add_to_sums_(
    high: Tensor, low: Tensor, kept: Kept | None, values: Tensor, *, before: float, divisor: float, after: float
) -> bool:
    """Add values times `before` over `divisor` times `after` to exact sums (`spatl.rounds.exact_sum`), in place.

    Args:
        high: int64 [N], units of 2^-8 of some entries.
        low: int64 [N], units of 2^-58 beside them.
        kept: Which of the entries the values are of; None for all.
        values: float32 or float64 [V], such that no term exceeds 2^42.
        before: Like the others in float64.
        divisor: Likewise.
        after: Likewise.
    """
    if _PASSES is None or not IS_COMPILED:
        return False
    highs, lows, exact = high.numpy(), low.numpy(), values.numpy()
    for own, at, inner, some in _stretches(kept, len(highs)):
        _PASSES.add(
            highs[own], lows[own], exact[some], at, inner, values.dtype == torch.float64, before, divisor, after
        )
    return True


def totals(high: Tensor, low: Tensor) -> Tensor | None:
    """Return what exact sums come to, float64 [N]; None where nothing was done."""
    if _PASSES is None or not IS_COMPILED:
        return None
    found = torch.empty(len(high), dtype=torch.float64)
    _PASSES.total(high.numpy(), low.numpy(), found.numpy())
    return found


def refresh_(
    own: Tensor, common: Tensor, kept: Kept | None, values: Tensor, *, step_weight: float, damping: float
) -> bool:
    """Move the entries of a client's control variate that were sent, in place (`spatl.rounds.control`).

    Args:
        own: float32 [N], c_i of some entries.
        common: float32 [N], c of them.
        kept: Which of them were sent; None for all.
        values: float32 [V], what was sent (D_i).
        step_weight: a_i.
        damping: rho.
    """
    if _PASSES is None or not IS_COMPILED or values.dtype != torch.float32:
        return False
    refreshed, held, sent = own.numpy(), common.contiguous().numpy(), values.numpy()
    for where, at, inner, some in _stretches(kept, len(refreshed)):
        _PASSES.refresh(refreshed[where], held[where], sent[some], at, inner, step_weight, damping)
    return True


def add_to_sketch_(
    sketch: NDArray[np.float64],
    kept: Kept | None,
    values: Tensor,
    length: int,
    signs: NDArray[np.float32],
    shifts: NDArray[np.int64],
) -> bool:
    """Add values to a sketch (`spatl.rounds.cosines`), in place.

    Args:
        sketch: float64 [m].
        kept: Which entries of a part of the vector they are of; None for all.
        values: float32 [V].
        length: How many entries the part has.
        signs: float32 [R, m], of the part's entries.
        shifts: int64 [R], of its rows.
    """
    if _PASSES is None or not IS_COMPILED or values.dtype != torch.float32:
        return False
    sent, flat = values.numpy(), signs.reshape(-1)
    for own, at, inner, some in _stretches(kept, length):
        _PASSES.sketch(sketch, sent[some], at, inner, own.stop - own.start, own.start, flat, shifts)
    return True


def _stretches(kept: Kept | None, length: int) -> Iterator[tuple[slice, NDArray[np.int64] | None, int, slice]]:
    """Where each stretch lies, its rows that travel, the entries of a row, and where its values lie."""
    if kept is None:
        yield slice(0, length), None, max(1, length), slice(0, length)
        return
    for each in kept.stretches:
        inner = max(1, each.own.stop - each.own.start) if each.rows is None else each.inner
        yield each.own, None if each.rows is None else each.rows.numpy(), inner, each.values
