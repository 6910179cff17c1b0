"""Entries of a part of a vector that travel, by the rows that they form.

A channel owns whole rows of most tensors: what an output reads lies side by side. So which entries of a part travel is
a few numbers, one for each row, worked out anew in less time than a number for each entry takes to be read, and rows
are copied as they lie. Where rows are short, each entry has its position after all.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

LONG: Final = 8
"""Entries of a row from which on it is copied as a whole; by measurement."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Stretch of a part that is a whole number of rows, each of which travels or not.

    Attributes:
        own: Where it lies in the part.
        inner: Entries of a row.
        rows: int64 [R], the rows that travel, ascending; None for all of them.
        values: Where its values lie among all of the part that travel.
    """

    own: slice
    inner: int
    rows: Tensor | None
    values: slice

    def rows_of(self, part: Tensor) -> Tensor:
        """[rows, inner], a view of the stretch."""
        return part[self.own].view(-1, self.inner)

    def values_of(self, values: Tensor) -> Tensor:
        """[R, inner], a view of the values that are the stretch's."""
        return values[self.values].view(-1, self.inner)


@dataclass(frozen=True, eq=False)
class Kept:
    """Entries of a part that travel, in the vector's order.

    Attributes:
        stretches: Where they lie; what no stretch covers does not travel.
        number: How many they are.
    """

    stretches: tuple[Stretch, ...]
    number: int

    @classmethod
    def of_bits(cls, bits: Tensor) -> "Kept":
        """The entries whose bit is set, bool [N]."""
        positions = bits.nonzero().squeeze(1)
        number = len(positions)
        return cls((Stretch(slice(0, len(bits)), 1, positions, slice(0, number)),), number)

    def take(self, part: Tensor) -> Tensor:
        """[number], a copy of the part's ([N]) values that travel."""
        if len(self.stretches) == 1 and (only := self.stretches[0]).inner == 1 and only.rows is not None:
            return part[only.own].index_select(0, only.rows)
        taken = part.new_empty(self.number)
        for each in self.stretches:
            own, values = each.rows_of(part), each.values_of(taken)
            if each.rows is None:
                values.copy_(own)
            else:
                torch.index_select(own, 0, each.rows, out=values)
        return taken

    def put_(self, part: Tensor, values: Tensor) -> None:
        """Put values ([number]) where they belong in a part, in place; the other entries stay."""
        for each in self.stretches:
            own, new = each.rows_of(part), each.values_of(values)
            if each.rows is None:
                own.copy_(new)
            elif each.inner == 1:
                part[each.own].index_copy_(0, each.rows, values[each.values])
            else:  # NumPy copies rows in a third of PyTorch's time
                own.numpy()[each.rows.numpy()] = new.numpy()

    def add_(self, part: Tensor, terms: Tensor) -> None:
        """Add terms ([number]) to the entries that travel, in place."""
        for each in self.stretches:
            own, new = each.rows_of(part), each.values_of(terms)
            if each.rows is None:
                own += new
            elif each.inner == 1:
                part[each.own].index_add_(0, each.rows, terms[each.values])
            else:
                rows = own.index_select(0, each.rows)
                rows += new
                own.numpy()[each.rows.numpy()] = rows.numpy()

    def positions(self) -> Tensor:
        """int64 [number], where they lie in the part, ascending."""
        found = [torch.zeros(0, dtype=torch.int64)]
        for each in self.stretches:
            own = torch.arange(each.own.start, each.own.stop).view(-1, each.inner)
            found.append((own if each.rows is None else own[each.rows]).reshape(-1))
        return torch.cat(found)

    def before(self, length: int) -> "Kept":
        """Those that lie before a position in the part."""
        positions = self.positions()
        positions = positions[positions < length]
        number = len(positions)
        return Kept((Stretch(slice(0, length), 1, positions, slice(0, number)),), number)


KeptParts = tuple[tuple[slice, Kept | None, slice], ...]
"""Parts of a vector, what travels of each, None for all of it, and where its values lie among all that do."""

KEPT_POSITIONS: Final = 2**20
"""Values of selections that a layout keeps the positions of, the last ones; 8 MiB."""


class LastKept:
    """Memory of where the values of selections lie, of the last ones that were asked for.

    Clients and server of one process have selections of their own with the same bits: of an update, whoever takes,
    decodes and adds its values asks for the same, and clients that agreed on their channels all do.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, KeptParts] = OrderedDict()
        self._number = 0

    def of(self, key: Hashable, make: Callable[[], KeptParts]) -> KeptParts:
        """Return what is known by a key, or else what is made, which is kept for a while."""
        found = self._known.pop(key, None)  # taken out and put in again: the last one that was asked for
        if found is None:
            found = make()
            self._number += _number_of(found)
        self._known[key] = found
        while self._number > KEPT_POSITIONS and len(self._known) > 1:
            self._number -= _number_of(self._known.popitem(last=False)[1])
        return found


def _number_of(parts: KeptParts) -> int:
    return sum(values.stop - values.start for _, _, values in parts)


def taken(part: Tensor, kept: Kept | None) -> Tensor:
    """[V], the values of a part that travel; the part itself where all do, which None stands for."""
    return part if kept is None else kept.take(part)


def put_(part: Tensor, kept: Kept | None, values: Tensor) -> None:
    """Put values, [V], where they belong in a part, in place; all of it where all travel."""
    if kept is None:
        part.copy_(values)
    else:
        kept.put_(part, values)


def kept_of(stretches: Iterator[tuple[slice, int, Tensor]]) -> Kept:
    """Join neighbouring stretches of a part.

    Args:
        stretches: One after another, with where each lies in the part, the entries of its rows, and which rows travel,
            bool. Where rows have one entry they are joined.
    """
    found, number = list[Stretch](), 0
    short = list[Tensor]()  # bits of short rows that follow each other
    begins = 0

    def join_() -> None:
        nonlocal number
        if short:
            only = Kept.of_bits(torch.cat(short))
            if only.number:
                own, values = only.stretches[0].own, slice(number, number + only.number)
                found.append(Stretch(slice(begins, begins + own.stop), 1, only.stretches[0].rows, values))
                number += only.number
            short.clear()

    for own, inner, travel in stretches:
        if inner < LONG:
            begins = begins if short else own.start
            short.append(travel.repeat_interleave(inner) if inner > 1 else travel)
            continue
        join_()
        rows = travel.nonzero().squeeze(1)
        if len(rows):
            values = slice(number, number + inner * len(rows))
            found.append(Stretch(own, inner, None if len(rows) == len(travel) else rows, values))
            number = values.stop
    join_()
    return Kept(tuple(found), number)
