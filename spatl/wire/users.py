"""Codecs of the user's own, `wire.uplink: package.module:Codec`, with numbers from 128, and what is checked of them.

Both sides derive the same codecs from the same config, so that a number means the same to both. What a codec makes of
bytes that came over the wire is a refused message, whatever it raises: nobody's bytes end the other side's run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import EncoderLayout, Places
from spatl.channels.selection import Selection, select_all
from spatl.errors import ConfigError, SpatlError, UpdateRejected, told
from spatl.extensions.references import is_reference, resolve, row_of
from spatl.seeding import generator, seeded_globals
from spatl.wire.codec import Codec
from spatl.wire.codecs import CODEC_DOOR, CODECS

FIRST_NUMBER: Final = 128
"""The number on the wire of the first codec of the user's; those below are SPATL's own."""

STEPS_BESIDE: Final = {"dither": "coarse", "at-random": "fine"}
"""Steps of the server's changes, by how updates are rounded, where nothing else is asked for."""
LEAST_DITHERED: Final = 10_000
"""Entries of the smallest encoder whose updates are dithered where nothing else is asked for: those of smaller ones are
mostly envelope."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class WireCodecs:
    """Codecs of a run.

    Attributes:
        uplink: The codec of updates.
        downlink: The codec of downloads.
    """

    uplink: Codec
    downlink: Codec


def wire_codecs(
    uplink: str, downlink: str, *, rounding: str = "at-random", downlink_steps: str | None = None
) -> WireCodecs:
    """Return the codecs that a config names.

    Those of the user's are numbered from 128 in the order uplink, downlink; one in both directions has one number.

    Args:
        uplink: A key of `CODECS`, or `"package.module:Codec"` for one of the user's.
        downlink: Likewise.
        rounding: `wire.rounding`, for codecs that can choose.
        downlink_steps: `wire.downlink_steps`, likewise.

    Raises:
        ConfigError: There is none of this name, or the user's is not there, or none.
    """
    known = dict(CODECS)
    for name in (uplink, downlink):
        if is_reference(name):
            known.setdefault(name, UsersCodec(name, FIRST_NUMBER + len(known) - len(CODECS)))
        else:
            row_of(name, CODECS, CODEC_DOOR)
    up, down = known[uplink], known[downlink]
    if rounding == "dither" and up is CODECS["adaptive"]:
        up = CODECS["dithered"]
    if (downlink_steps or STEPS_BESIDE[rounding]) == "coarse":
        down = down.coarser()
    return WireCodecs(up, down)


def usual_rounding(num_entries: int, *, classifies: bool) -> str:
    """Return how updates are rounded where nothing is asked for: coarsely where that was measured to cost nothing.

    Args:
        num_entries: Of the encoder.
        classifies: Whether the task is a classification. What a regression gives depends on how exact its values are.
    """
    return "dither" if classifies and num_entries >= LEAST_DITHERED else "at-random"


class UsersCodec(Codec):
    """A codec of the user's, whose answers are checked.

    Args:
        reference: `"package.module:Codec"`.
        number: Its number on the wire.

    Raises:
        ConfigError: It is not there, or no codec, or cannot be made, or does not say whether it is relative.
    """

    def __init__(self, reference: str, number: int) -> None:
        found = resolve(reference, CODEC_DOOR, accepts=_is_codec)
        self.name, self.number = reference, number
        self._what = f"codec {reference!r}"
        try:
            self._codec: Codec = found() if isinstance(found, type) else found
        except Exception as error:
            raise ConfigError(f"{self._what} cannot be made without arguments: {told(error)}") from error
        facts = {fact: getattr(self._codec, fact, None) for fact in ("relative", "sums", "feeds_back")}
        for fact, value in facts.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{self._what} must say {fact} = True or {fact} = False, got {value!r}")
        self.relative, self.sums, self.feeds_back = (bool(value) for value in facts.values())

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Return what the user's says.

        Raises:
            ConfigError: It is no whole number from 0.
        """
        length = self._made(lambda: self._codec.num_bytes(num_values=num_values, num_channels=num_channels))
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise ConfigError(f"{self._what}: num_bytes must return a whole number from 0, got {length!r}")
        return length

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Encode with the user's.

        Raises:
            ConfigError: It fails, returns no bytes, or more than it may: the most of `num_bytes` and `max_bytes`.
        """
        data = self._made(lambda: self._codec.encode(values, places, generator=generator, max_bytes=max_bytes))
        return self._checked(data, places, max_bytes)

    def encode_change(
        self, difference: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Encode a change with the user's; errors as of `encode`."""
        data = self._made(
            lambda: self._codec.encode_change(difference, places, generator=generator, max_bytes=max_bytes)
        )
        return self._checked(data, places, max_bytes)

    def encode_sum(self, offsets: NDArray[np.int64], places: Places) -> bytes | None:
        """Encode a sum with the user's.

        Raises:
            ConfigError: It fails, or returns neither bytes nor None.
        """
        data = self._made(lambda: self._codec.encode_sum(offsets, places))
        if data is not None and not isinstance(data, bytes):
            raise ConfigError(f"{self._what} must encode a sum to bytes or None, got {type(data).__name__}")
        return data

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Decode with the user's.

        Raises:
            UpdateRejected: It refuses the bytes or fails, or what it returns is not float32 [V] on the CPU.
        """
        try:
            values: Any = self._codec.decode(data, places)
        except SpatlError as error:
            raise UpdateRejected(str(error)) from error
        except Exception as error:
            raise UpdateRejected(f"{self._what} cannot decode {len(data)} bytes: {told(error)}") from error
        if (
            not isinstance(values, Tensor)
            or (values.shape, values.dtype, values.device.type) != ((len(places),), torch.float32, "cpu")
        ):  # fmt: skip
            raise UpdateRejected(
                f"{self._what} must decode to a float32 tensor [{len(places)}] on the CPU, got {_described(values)}"
            )
        return values

    def _made(self, make: Callable[[], _Result]) -> _Result:
        """Return what the user's code does, or say that it failed."""
        try:
            return make()
        except SpatlError:
            raise
        except Exception as error:
            raise ConfigError(f"{self._what} failed: {told(error)}") from error

    def _checked(self, data: Any, places: Places, max_bytes: int | None) -> bytes:
        if not isinstance(data, bytes):
            raise ConfigError(f"{self._what} must encode to bytes, got {type(data).__name__}")
        num_channels = int(places.local_channels.max()) + 1 if len(places) else 0
        most = self.num_bytes(num_values=len(places), num_channels=num_channels)
        most = most if max_bytes is None else max(most, max_bytes)
        if len(data) > most:
            raise ConfigError(
                f"{self._what} wrote {len(data)} bytes of {len(places)} values of {num_channels} channels, at most "
                f"{most} are allowed: its num_bytes must say the most that it writes"
            )
        return data


def rehearse_codecs(codecs: WireCodecs, layout: EncoderLayout, *, seed: int) -> dict[str, Tensor]:
    """Raise unless the user's codecs do as they must with values of an encoder, before a run uses them in earnest.

    Args:
        codecs: The run's.
        layout: The encoder.
        seed: The run's.

    Returns:
        What each of the user's decoded of the same random values, by name, for the two sides to compare.

    Raises:
        ConfigError: One fails, does not decode what it encoded, or decodes it once so and once otherwise.
    """
    found: dict[str, Tensor] = {}
    for codec, leads in ((codecs.uplink, False), (codecs.downlink, codecs.downlink.relative)):
        if isinstance(codec, UsersCodec) and layout.num_entries:
            with seeded_globals(seed, "codec-rehearsal"):
                decoded = [_rehearsed(codec, layout, each, seed, leads=leads) for each in _selections(layout)]
            found[codec.name] = torch.cat([found.get(codec.name, torch.zeros(0)), *decoded])
    return found


def _rehearsed(codec: UsersCodec, layout: EncoderLayout, selection: Selection, seed: int, *, leads: bool) -> Tensor:
    """Decoded values of a selection; multiples of 2^-10, of which every machine makes the same."""
    places, draws = layout.places(selection), generator(seed, "codec-rehearsal")
    values = torch.randint(-64, 65, (len(places),), generator=draws) / 1024
    encode = codec.encode_change if leads else codec.encode
    data = encode(values, places, generator=draws)
    nothing = encode(torch.zeros_like(values), places, generator=draws)
    try:
        decoded, again, zeros = (codec.decode(memoryview(each), places) for each in (data, data, nothing))
    except UpdateRejected as error:
        raise ConfigError(f"codec {codec.name!r} does not decode what it encoded: {error}") from error
    if not bool(decoded.isfinite().all()) or not torch.equal(decoded, again):
        raise ConfigError(
            f"codec {codec.name!r} must decode the same bytes to the same finite numbers each time; draw in encode only"
        )
    if leads and bool(zeros.any()):
        raise ConfigError(f"codec {codec.name!r} is relative and must decode a change of zero to zero")
    return decoded


def _selections(layout: EncoderLayout) -> list[Selection]:
    """All channels, and every second of each group."""
    everything = select_all(layout)
    mask = everything.mask.clone()
    for group in layout.groups:
        mask[group.first + 1 : group.first + group.size : 2] = False
    return [everything, Selection(mask)]


def _is_codec(found: object) -> bool:
    return isinstance(found, Codec) or (isinstance(found, type) and issubclass(found, Codec))


def _described(values: object) -> str:
    if isinstance(values, Tensor):
        return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)} on {values.device.type}"
    return type(values).__name__
