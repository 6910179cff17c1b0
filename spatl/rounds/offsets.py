"""Offsets of the encoder: its changes since the initial one as whole numbers of 2^-24, whose sums are exact."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spatl.channels.kept import Kept, put_, taken
from spatl.channels.layout import EncoderLayout, Places
from spatl.channels.selection import Selection
from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected
from spatl.sealed_files import StoredTensor, some_of
from spatl.wire.adaptive import UNIT_BITS
from spatl.wire.blob import CHECK_BYTES
from spatl.wire.codec import Codec

UNIT = 2.0**-UNIT_BITS

LARGEST_OFFSET = 2**31 - 1


def offsets_of(data: bytes | memoryview, places: Places, codec: Codec) -> Tensor:
    """Decode a change into whole numbers of 2^-24, int32 [V], rounding what is finer.

    Raises:
        UpdateRejected: The bytes are damaged, or a change is absurdly large.
    """
    offsets = torch.empty(len(places), dtype=torch.int32)
    for part, own in offset_parts(data, places, codec):
        offsets[part] = own
    return offsets


def offset_parts(data: bytes | memoryview, places: Places, codec: Codec) -> Iterator[tuple[slice, Tensor]]:
    """As `offsets_of`, some of them at a time: of a codec that can, the values take no memory as a whole.

    Raises:
        UpdateRejected: As there.
    """
    compact = codec.compact(memoryview(data), places)
    values_of = codec.decode(memoryview(data), places).__getitem__ if compact is None else compact.of_part
    for part in parts_of(len(places)):
        values = values_of(part)
        if not all(abs(each) < LARGEST_OFFSET * UNIT for each in torch.stack(torch.aminmax(values)).tolist()):
            raise UpdateRejected("a change of the encoder is not finite, or larger than 128")  # NaN is both of them
        yield part, values.to(torch.float64).mul_(1 / UNIT).round_().to(torch.int32)


def encoder_of(initial: Tensor, offsets: Tensor, chosen: Selection, layout: EncoderLayout) -> Tensor:
    """float32 [N]: the initial encoder moved by offsets (int32 [V]) of the chosen entries."""
    encoder = initial.clone()
    for part, kept, _, moved in encoder_parts(initial, (offsets,), chosen, layout):
        put_(encoder[part], kept, moved)
    return encoder


def encoder_parts(
    initial: Tensor, offsets: Sequence[Tensor], chosen: Selection, layout: EncoderLayout
) -> Iterator[tuple[slice, Kept | None, slice, Tensor]]:
    """The chosen values of the initial encoder moved by the sum of offsets (int32 [V] each), some at a time, float32.

    With them come where they lie, as `Selection.value_parts` has it.
    """
    for part, kept, values in chosen.value_parts(layout):
        start = taken(initial[part], kept)
        moved = sum((each[values].to(torch.float64) for each in offsets), start=torch.zeros((), dtype=torch.float64))
        yield part, kept, values, (start.to(torch.float64) + moved * UNIT).to(torch.float32)


def change_of(
    offsets: Tensor, before: Tensor | StoredTensor | None, chosen: Selection, layout: EncoderLayout
) -> Tensor:
    """float32 [P]: offsets (int32 [V]) less those before, of the chosen entries, as control follows from it."""
    change = torch.zeros(layout.num_parameter_entries)
    for part, kept, values in chosen.value_parts(layout, layout.num_parameter_entries):
        moved = offsets[values].to(torch.float64)
        if before is not None:
            moved -= some_of(before, values)
        put_(change[part], kept, (moved * UNIT).to(torch.float32))
    return change


def sum_of_offsets(one: Tensor, other: Tensor | Iterable[tuple[slice, Tensor]], *, into: Tensor) -> Tensor | None:
    """The sum of two offsets, int32 [V]; None where it leaves the range of 128 to either side.

    Args:
        one: int32 [V].
        other: Likewise, or some of it at a time, as `offset_parts`.
        into: Where the sum is written, which may be `one` itself.
    """
    parts = ((part, other[part]) for part in parts_of(len(one))) if isinstance(other, Tensor) else other
    for part, added in parts:
        exact = one[part].to(torch.int64).add_(added)
        if max(map(abs, torch.stack(torch.aminmax(exact)).tolist())) > LARGEST_OFFSET:
            return None
        into[part] = exact
    return into


def only_chosen(vector: Tensor, chosen: Selection, layout: EncoderLayout) -> Tensor:
    """A vector [N] with 0 in place of what is not chosen."""
    return spread_values(chosen.take(vector, layout), chosen, layout)


def spread_values(values: Tensor, chosen: Selection, layout: EncoderLayout) -> Tensor:
    """float32 [N]: values [V] at the chosen entries, and 0 elsewhere; the values themselves where all are chosen."""
    if len(values) == layout.num_entries:
        return values
    vector = torch.zeros(layout.num_entries)
    for part, kept, own in chosen.value_parts(layout):
        put_(vector[part], kept, values[own])
    return vector


def check_of(encoder: Tensor) -> bytes:
    """Eight bytes that differ when encoders do."""
    return hashlib.blake2b(np.ascontiguousarray(encoder.numpy()).data, digest_size=CHECK_BYTES).digest()
