"""Cosine of each update with the sum of the others', from sketches: who turns its update around, points against them.

Of the updates D_j of a round, with n_j examples (divided by a_j where a method normalises them), and over the trainable
entries alone that client i has sent,

    S_i = sum_{j != i} n_j D_j        cosine_i = <D_i, S_i> / (|D_i| |S_i|)

Updates are folded in one by one and not kept, so that inner products come from a sketch of each, m = 4096 numbers:
every entry is added to one of them, or taken from it, by a hash of its place (Charikar, Chen, Farach-Colton 2002). The
product of two sketches is that of the updates, with a standard deviation of at most sqrt(2 / m), 2.2 %, of the product
of their lengths; for up to m entries it is exact. |D_i| is exact, and |S_i| follows from the sum of all updates, whose
length on each channel is exact:

    |S_i|^2 = |S|^2 - 2 n_i <D_i, S_i> - n_i^2 |D_i|^2

So the error of a cosine is about 1 / 64 where all send everything, and as much larger as the others sent elsewhere.
The hash follows from the run's seed, which clients know: this measures, and defends nothing.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.fused import add_to_sketch_
from spatl.channels.kept import put_
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.channels.vectors import PART
from spatl.seeding import generator
from spatl.wire.update import Update

NUMBERS: Final = 4096
"""Numbers of a sketch (m); a part of a vector is a whole number of them long."""
_ROUNDING: Final = 1e-9  # what is left of a sum when all of it is taken away, relative
_KEPT_PARTS: Final = 4  # of half a million entries; 2 MiB
_DECIMALS: Final = 4  # a sketch knows fewer; so the last bits of a sum, and where they come from, do not show


class Sketches:
    """Sketches of one round's updates.

    Args:
        layout: The shared encoder.
        seed: The run's.
        server_round: The round; each has its own hash.
        normalizes: Whether updates are divided by their step weights.
    """

    def __init__(self, layout: EncoderLayout, *, seed: int, server_round: int, normalizes: bool = False) -> None:
        self._layout = layout
        self._seed, self._round = seed, server_round
        self._normalizes = normalizes
        self._sketches: dict[int, Tensor] = {}
        self._squares: dict[int, float] = {}
        self._weights: dict[int, int] = {}
        self._selections: dict[int, Selection] = {}
        self._drawn: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []  # of the vector's first parts

    def add(self, client: int, update: Update, num_examples: int) -> None:
        """Sketch one client's update, of which nothing else is kept.

        Args:
            client: Whose it is.
            update: As it is folded in.
            num_examples: n_i.
        """
        scale = update.step_weight if self._normalizes else 1.0
        sketch, square = self._sketch(update)
        self._sketches[client] = sketch / scale
        self._squares[client] = square / scale**2
        self._weights[client] = num_examples
        self._selections[client] = Selection(update.selection.mask)  # without what it remembers of its entries

    def cosines(self, energies: Tensor) -> dict[int, float | None]:
        """Return the cosine of each client's update with the sum of the others', in any order of them the same.

        Args:
            energies: float64 [C], the squared length on each channel of the sum of all updates times examples
                (`spatl.rounds.aggregation.channel_energies`).

        Returns:
            A number in [-1, 1], four decimals; None where the update is zero, or nobody else sent enough of what it
            has.
        """
        clients = sorted(self._sketches)
        if not clients:
            return {}
        sketches = torch.stack([self._sketches[client] for client in clients])
        weights = torch.tensor([self._weights[client] for client in clients], dtype=torch.float64)[:, None]
        others = (weights * sketches).sum(0) - weights * sketches
        products, lengths = (sketches * others).sum(1).tolist(), others.norm(dim=1).tolist()
        return {
            client: self._cosine(client, energies, product=product, length_of_others=length)
            for client, product, length in zip(clients, products, lengths, strict=True)
        }

    def _cosine(self, client: int, energies: Tensor, *, product: float, length_of_others: float) -> float | None:
        weight, square = self._weights[client], self._squares[client]
        everything = float(energies[self._selections[client].mask].sum())
        others = everything - 2 * weight * product - weight**2 * square
        is_exact = self._layout.num_parameter_entries <= NUMBERS
        doubt = 0.0 if is_exact else 2 * weight * math.sqrt(square / NUMBERS) * length_of_others
        if square == 0 or not others > doubt + _ROUNDING * everything:
            return None
        return round(max(-1.0, min(1.0, product / math.sqrt(square * others))), _DECIMALS)

    def _sketch(self, update: Update) -> tuple[Tensor, float]:
        """Return the sketch of an update's parameters, float64 [m], and the square of their length.

        Entries 4096 in a row never meet; those of another row meet one each, shifted by a number of the row's own.
        """
        sketch, squares, draws = np.zeros(NUMBERS), list[float](), self._draws()
        for part, kept, own in update.selection.value_parts(self._layout, self._layout.num_parameter_entries):
            values = update.values[own]
            exact = values.double()
            squares.append(float(exact @ exact))
            length = part.stop - part.start
            signs, shifts = next(draws)
            if add_to_sketch_(sketch, kept, values, length, signs, shifts):
                continue
            rows = torch.zeros(-(-length // NUMBERS), NUMBERS)
            put_(rows.view(-1)[:length], kept, values)
            for row, shift in zip(rows.numpy() * signs[: len(rows)], shifts.tolist(), strict=False):
                sketch[shift:] += row[: NUMBERS - shift]
                sketch[:shift] += row[NUMBERS - shift :]
        return torch.from_numpy(sketch), math.fsum(squares)

    def _draws(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The signs and shifts of one part after another; those of the first parts are kept for the next update."""
        yield from self._drawn
        draws = generator(self._seed, "sketch", server_round=self._round)
        for number in itertools.count():
            found = _drawn(draws)
            if number >= len(self._drawn):
                if number < _KEPT_PARTS:
                    self._drawn.append(found)
                yield found


def _drawn(draws: torch.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the signs of the next part's entries, -1 and 1 [R, m], and the shifts of its R rows."""
    octets = torch.randint(256, (PART // 8,), dtype=torch.uint8, generator=draws).numpy()
    signs = 1 - 2 * np.unpackbits(octets).astype(np.float32)
    return signs.reshape(-1, NUMBERS), torch.randint(NUMBERS, (PART // NUMBERS,), generator=draws).numpy()
