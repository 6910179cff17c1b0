"""The encoder as the clients hold it, and what leads them from one version of it to the next (docs/wire-format.md).

The server does not send its encoder x again and again. All clients hold the same x_hat, which starts as the initial
encoder that everybody builds from the seed; each round the server sends the change that brings x_hat nearer to x, as
coarsely as the codec is. What a change lost stays in x - x_hat and goes into the next one.

x_hat is the initial encoder plus whole numbers of 2^-24, so that sums of changes are exact in any order: a client that
missed rounds gets the sum of what it missed, and holds the same bits as everybody else afterwards. The server
remembers the last changes as they were encoded, as many as are together no longer than a snapshot, and nothing per
client but the version it holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from spatl.channels.kept import Kept, taken
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.channels.vectors import all_finite
from spatl.errors import DivergedError, UpdateRejected
from spatl.rounds.offsets import (
    change_of,
    check_of,
    encoder_of,
    encoder_parts,
    offsets_of,
    only_chosen,
    spread_values,
    sum_of_offsets,
)
from spatl.wire.codec import Codec
from spatl.wire.download import Download

_TOO_FAR = (
    "the run diverged: an entry of the encoder moved by more than 128 since it was made; lower training.learning_rate, "
    "or server.learning_rate if it is above 1"
)


@dataclass(frozen=True, eq=False)
class Versions:
    """Versions of x_hat that the server can lead clients along.

    Attributes:
        version: How many changes led to the present one.
        offsets: int32 [V], what x_hat has changed by since version 0, in units of 2^-24; empty for a codec that is not
            relative.
        changes: The last changes as they were encoded; for a codec that is not relative, the whole encoder.
    """

    version: int
    offsets: Tensor
    changes: tuple[bytes, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that `of_tensors` needs to lead clients on after the next change."""
        version = torch.tensor([self.version], dtype=torch.int32)
        if not len(self.offsets):  # the next one sends the whole encoder, and nothing else is needed for it
            return {"version": version}
        changes = {f"change/{place}": _as_tensor(data) for place, data in enumerate(self.changes)}
        return {"version": version, "offsets": self.offsets, **changes}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the versions that `tensors` was made of, from which the next change leads on."""
        number = sum(name.startswith("change/") for name in tensors)
        return cls(
            int(tensors["version"]),
            tensors.get("offsets", torch.zeros(0, dtype=torch.int32)),
            tuple(tensors[f"change/{place}"].numpy().tobytes() for place in range(number)),
        )


class Reference:
    """The encoder as the clients hold it, x_hat, at one version, and what leads them there.

    Args:
        initial: float32 [N], what every client builds from the seed.
        layout: The encoder.
        codec: How changes are encoded; one that is not relative sends the whole encoder each time.
        selection: The channels that are trained at all, where all clients have the same; the others stay zero.
        versions: The versions so far; the initial encoder alone if not given.

    Attributes:
        versions: The same.
    """

    def __init__(
        self,
        initial: Tensor,
        layout: EncoderLayout,
        codec: Codec,
        *,
        selection: Selection | None = None,
        versions: Versions | None = None,
    ) -> None:
        self._chosen = select_all(layout) if selection is None else selection
        self._initial = initial if selection is None else only_chosen(initial, selection, layout)
        self._layout = layout
        self._codec = codec
        self._selection = selection
        self._places = layout.places(selection)
        if versions is None:
            offsets = torch.zeros(len(self._places) if codec.relative else 0, dtype=torch.int32)
            versions = Versions(0, offsets, () if codec.relative else (self._whole_encoded(self._initial, None),))
        self.versions = versions
        # What leads to the present version, made when it is asked for.
        self._leading: dict[tuple[int, bool], Download] = {}
        self._sums: dict[int, tuple[Tensor, bytes | None]] = {}
        self._check: bytes | None = None

    @property
    def version(self) -> int:
        """Number of changes that led here."""
        return self.versions.version

    @property
    def encoder(self) -> Tensor:
        """float32 [N], x_hat: worked out anew each time, because it is as long as the offsets it follows from."""
        if not self._codec.relative:
            last = self.versions.changes[-1] if self.versions.changes else self._whole_encoded(self._initial, None)
            return spread_values(self._codec.decode(memoryview(last), self._places), self._chosen, self._layout)
        # as a client does: -0.0 becomes 0.0
        return encoder_of(self._initial, self.versions.offsets, self._chosen, self._layout)

    def advance(
        self, encoder: Tensor, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> "tuple[Reference, Tensor]":
        """Return x_hat one version on: moved towards the server's encoder by one encoded change.

        Args:
            encoder: float32 [N], x.
            generator: The source of stochastic rounding.
            max_bytes: How long the change may be, for a codec that can choose.

        Returns:
            The next version, and what the change was of the parameters, float32 [P]; 0 for a codec that is not
            relative.

        Raises:
            DivergedError: The encoder is too far from where it started, or not finite.
        """
        version, before = self.version + 1, self.versions
        if not self._codec.relative:
            whole = Versions(version, before.offsets, (self._whole_encoded(encoder, generator),))
            return self._at(whole), torch.zeros(self._layout.num_parameter_entries)
        difference = torch.empty(len(before.offsets))
        for part, kept, values, held in self._moved():
            difference[values] = taken(encoder[part], kept) - held
        if not all_finite(difference):
            raise DivergedError("the run diverged: the encoder is not finite any more; lower training.learning_rate")
        while True:
            data = self._codec.encode_change(difference, self._places, generator=generator, max_bytes=max_bytes)
            try:
                moved = offsets_of(data, self._places, self._codec)
            except UpdateRejected:
                raise DivergedError(_TOO_FAR) from None
            negative = self._negative(moved)
            if not bool((difference[negative] != 0).any()):
                break
            difference[negative] = 0.0  # a variance that rounding takes below 0 stays for now; each pass has fewer
        del difference
        offsets = sum_of_offsets(before.offsets, moved, into=torch.empty_like(moved))
        if offsets is None:
            raise DivergedError(_TOO_FAR)
        changes = _remembered((*before.changes, data), 4 * len(offsets))
        change = change_of(moved, None, self._chosen, self._layout)
        return self._at(Versions(version, offsets, changes)), change

    def _at(self, versions: Versions) -> "Reference":
        return Reference(self._initial, self._layout, self._codec, selection=self._selection, versions=versions)

    def _moved(self, *more: Tensor) -> Iterator[tuple[slice, Kept | None, slice, Tensor]]:
        """Some values of x_hat at a time, or of what further offsets make of it, as `encoder_parts`."""
        return encoder_parts(self._initial, (self.versions.offsets, *more), self._chosen, self._layout)

    def download(
        self,
        held_version: int,
        *,
        server_round: int,
        acknowledged_round: int,
        cannot_build: bool,
        one_by_one: bool = False,
    ) -> Download:
        """Return what leads a client to the present version.

        Args:
            held_version: The version it is known to hold; 0 is the initial encoder.
            server_round: The round it opens.
            acknowledged_round: The last round of this client that was folded in.
            cannot_build: Whether the client's initial encoder is another one, so that it must be sent.
            one_by_one: Whether every change since the held version is to come as it was made, though their sum is
                shorter; all of them must be remembered.
        """
        start = 0 if cannot_build else held_version
        if (start, one_by_one) not in self._leading:
            leads = self._leads(start, self.versions.changes[start - self.version :]) if one_by_one else None
            self._leading[start, one_by_one] = leads or self._shortest(start)
        shared = self._leading[start, one_by_one]
        return Download(
            server_round=server_round,
            version=self.version,
            base_version=shared.base_version,
            acknowledged_round=acknowledged_round,
            codec=self._codec,
            check=shared.check,
            values=shared.values,
            snapshot=shared.snapshot,
            base=self._initial if cannot_build and self._codec.relative else None,
            selection=self._selection,
        )

    def _negative(self, moved: Tensor) -> Tensor:
        """int64: which of the values that a change (int32 [V]) is of would be variances below 0."""
        found = [torch.zeros(0, dtype=torch.int64)]
        if self._layout.variances:
            for part, kept, values, encoder in self._moved(moved):
                is_variance = torch.zeros(part.stop - part.start, dtype=torch.bool)
                for own in self._layout.variances:
                    is_variance[max(0, own.start - part.start) : max(0, own.stop - part.start)] = True
                below = (encoder < 0) & taken(is_variance, kept)
                found.append(below.nonzero().squeeze(1) + values.start)
        return torch.cat(found)

    def _whole_encoded(self, encoder: Tensor, generator: torch.Generator | None) -> bytes:
        """The whole encoder, for a codec that is not relative."""
        values = self._chosen.take(encoder, self._layout)
        return self._codec.encode(values, self._places, generator=generator or torch.Generator())

    def _shortest(self, held_version: int) -> Download:
        """The shortest of what leads from a version, or from the first one, to the present."""
        if not self._codec.relative:
            return self._leads(0, (self.versions.changes[-1],))
        if held_version == self.version:
            return self._leads(held_version, ())
        num_missed = self.version - held_version
        missed = self.versions.changes[-num_missed:] if num_missed <= len(self.versions.changes) else ()
        candidates = [self._leads(held_version, missed)] if 0 < len(missed) < 256 else []
        if self._codec.sums and num_missed > 1:
            for start in {held_version, 0} if missed else {0}:
                merged = self._merged(start)
                if merged is not None:
                    candidates.append(self._leads(start, (merged,)))
        candidates.append(self._leads(0, (), snapshot=self.versions.offsets))
        return min(candidates, key=_num_bytes)

    def _merged(self, start: int) -> bytes | None:
        """The sum of all changes since a version as one change; None where that cannot be encoded."""
        if start not in self._sums:
            offsets = self.versions.offsets.to(torch.int64)
            if start:
                # From the longest sum there is of those that are part of it: every change is decoded once a round.
                present = self.version
                nearest = min((each for each in self._sums if start < each), default=present)
                offsets = self._sums[nearest][0].clone() if nearest < present else torch.zeros_like(offsets)
                for place in range(start - present, nearest - present):
                    offsets += offsets_of(self.versions.changes[place], self._places, self._codec)
            self._sums[start] = offsets, self._codec.encode_sum(offsets.numpy(), self._places)
        return self._sums[start][1]

    def _leads(self, start: int, values: tuple[bytes, ...], snapshot: Tensor | None = None) -> Download:
        if self._check is None:
            self._check = check_of(self.encoder)
        return Download(
            server_round=0, version=self.version, base_version=start, acknowledged_round=0, codec=self._codec,
            check=self._check, values=values, snapshot=snapshot, selection=self._selection,
        )  # fmt: skip


def _remembered(changes: tuple[bytes, ...], snapshot_bytes: int) -> tuple[bytes, ...]:
    """The last changes, without the oldest while all together are longer than a snapshot, which is sent instead."""
    length = sum(map(len, changes))
    while len(changes) > 1 and length > snapshot_bytes:
        length -= len(changes[0])
        changes = changes[1:]
    return changes


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def _num_bytes(download: Download) -> int:
    return sum(len(each) + 4 for each in download.values) + (
        4 * len(download.snapshot) if download.snapshot is not None else 0
    )
