"""Following of the server: how a client gets from the versions of x_hat that it holds to the present one."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout, Places
from spatl.channels.selection import Selection, select_all
from spatl.channels.vectors import all_finite
from spatl.errors import ReferenceLost, UpdateRejected
from spatl.rounds.control import followed_control
from spatl.rounds.offsets import (
    change_of,
    check_of,
    encoder_of,
    offset_parts,
    offsets_of,
    only_chosen,
    spread_values,
    sum_of_offsets,
)
from spatl.sealed_files import StoredTensor, as_tensor
from spatl.wire.download import DerivedControl, Download

UNKNOWN_VERSION: Final = -1
_KEPT: Final = 4  # clients of a round may come from several versions


@dataclass(frozen=True, eq=False)
class Held:
    """The client's side: versions of x_hat that it holds.

    Two of them while the server does not know yet that the newer one arrived.

    Attributes:
        offsets: int32 [V] by version: what x_hat has changed by since version 0, in units of 2^-24. They may lie in a
            file, from which they are read when they are needed.
        base: float32 [N], version 0 where it was sent; None where this client builds it.
        control: float32 [P], c as of `control_version`, where it follows from changes; None where it does not. It may
            lie in a file, likewise.
        control_version: The version that it was derived up to; -1 where that is not known.
    """

    offsets: Mapping[int, Tensor | StoredTensor]
    base: Tensor | None = None
    control: Tensor | StoredTensor | None = None
    control_version: int = UNKNOWN_VERSION


def follow(
    download: Download, held: Held, initial: Tensor, layout: EncoderLayout, *, fading: float = 1.0
) -> tuple[Tensor, Held]:
    """Return x_hat, float32 [N], as a download leads to it, and what the client holds afterwards.

    Args:
        download: What the server sent.
        held: What the client holds.
        initial: float32 [N], version 0 as this client builds it.
        layout: The encoder.
        fading: The factor by which control variates fade in a round.

    Raises:
        ReferenceLost: The client does not hold what the download starts from, or arrives elsewhere than it should.
        UpdateRejected: The download is damaged.
    """
    chosen = select_all(layout) if download.selection is None else download.selection
    places = layout.places(download.selection)
    codec = download.codec
    if not codec.relative:
        if len(download.values) != 1:
            raise UpdateRejected(f"expected one encoder in {codec.name}, got {len(download.values)}")
        decoded = codec.decode(memoryview(download.values[0]), places)
        if not all_finite(decoded):
            raise UpdateRejected("the values contain NaN or infinity")
        return _arrived(spread_values(decoded, chosen, layout), download, layout), Held({})
    base = download.base if download.base is not None else held.base
    start = base if base is not None else initial
    offsets = _offsets(download, held, places, layout)
    control = None
    if download.derived is not None:
        control = _control(download, held, offsets, layout, fading=fading)
    encoder = _encoder(download, start, offsets, layout)  # last: while c is worked out it would be one vector too many
    if control is not None and not all_finite(control):
        raise UpdateRejected("the control variates that follow contain NaN or infinity")
    kept = {version: each for version, each in held.offsets.items() if version == download.base_version}
    return encoder, Held({**kept, download.version: offsets}, base, control, download.version)


def _summed(download: Download, offsets: Tensor, places: Places, *, into: Tensor) -> Tensor:
    """The offsets, int32 [V], that the changes of a download lead to from others, which may be `into` themselves."""
    for data in download.values:
        if sum_of_offsets(offsets, offset_parts(data, places, download.codec), into=into) is None:
            raise UpdateRejected("the changes lead out of the range of 128")
        offsets = into
    return offsets


def _at(download: Download, start: Tensor, offsets: Tensor, layout: EncoderLayout) -> Tensor:
    """The encoder at some offsets from the initial one, float32 [N], where it is the one that was sent."""
    chosen = select_all(layout) if download.selection is None else download.selection
    if download.selection is not None:
        start = only_chosen(start, download.selection, layout)
    return _arrived(encoder_of(start, offsets, chosen, layout), download, layout)


Kept = TypeVar("Kept")


class _Last(Generic[Kept]):
    """What was worked out for the last clients of this process: in a simulation, all of a round get the same changes.

    Where the changes, and the tensors that they start from, are those of one of them, so is what they lead to; it is
    shared, and nobody writes into it. Of a large encoder nothing is kept.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], tuple[tuple[object, ...], Kept]] = OrderedDict()

    def of(self, key: tuple[object, ...], alive: tuple[object, ...], make: Callable[[], Kept]) -> Kept:
        """Return what was made for a key, or make it.

        Args:
            key: All that it follows from, objects by their id.
            alive: These objects: while they are there, no other has the id of one.
            make: Makes it.
        """
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key][1]
        found = make()
        self._known[key] = alive, found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found


def _offsets(download: Download, held: Held, places: Places, layout: EncoderLayout) -> Tensor:
    """The offsets after a download, int32 [V]; those of a small encoder worked out once for all who start alike."""
    if download.snapshot is not None:
        offsets = download.snapshot.to(torch.int32)
        return _summed(download, offsets, places, into=offsets)
    before = _start(download, held)
    if not layout.is_expanded and (before is None or isinstance(before, StoredTensor)):
        offsets = torch.zeros(len(places), dtype=torch.int32) if before is None else before.read()
        return _summed(download, offsets, places, into=offsets)
    start = None if before is None else as_tensor(before)

    def work_out() -> Tensor:
        offsets = torch.zeros(len(places), dtype=torch.int32) if start is None else start
        return _summed(download, offsets, places, into=torch.empty_like(offsets))

    if not layout.is_expanded:
        return work_out()
    alive = download.codec, start
    return _OFFSETS.of((*map(id, alive), *_changes_of(download, layout)), alive, work_out)


def _encoder(download: Download, start: Tensor, offsets: Tensor, layout: EncoderLayout) -> Tensor:
    """The encoder at some offsets, likewise."""
    if not layout.is_expanded:
        return _at(download, start, offsets, layout)
    alive = start, offsets
    key = (*map(id, alive), download.version, download.check, *_changes_of(download, layout))
    return _ENCODERS.of(key, alive, lambda: _at(download, start, offsets, layout))


def _changes_of(download: Download, layout: EncoderLayout) -> tuple[object, ...]:
    """What tells the changes of two downloads apart: their bytes, and of what they are changes."""
    chosen = download.selection
    mask = None if chosen is None else (chosen.mask.numpy().tobytes(), chosen.closed)
    return tuple(map(bytes, download.values)), layout.fingerprint, mask


_OFFSETS = _Last[Tensor]()
_ENCODERS = _Last[Tensor]()
_CONTROLS = _Last[Tensor]()


def encoder_again(
    download: Download, held: Held, initial: Tensor, layout: EncoderLayout
) -> Callable[[], Tensor] | None:
    """Return what makes the encoder that a client arrived at once more, from the offsets that it holds in any case.

    None where it does not follow from these, or is small.
    """
    offsets = held.offsets.get(download.version)
    if not isinstance(offsets, Tensor) or download.selection is not None or layout.is_expanded:
        return None
    start = initial if held.base is None else held.base
    return partial(encoder_of, start, offsets, select_all(layout), layout)


def _control(download: Download, held: Held, offsets: Tensor, layout: EncoderLayout, *, fading: float) -> Tensor:
    """Return what a client holds for c once it has arrived at some offsets; 0 where it cannot follow."""
    derived = download.derived
    assert derived is not None
    if derived.missed:
        return _caught_up(download, held, derived, layout, fading=fading)
    chosen = select_all(layout) if download.selection is None else download.selection
    before, previous = held.offsets.get(download.version - 1), held.control
    if download.version == 1:  # everybody knows version 0, where c is 0
        before, previous = torch.zeros_like(offsets), torch.zeros(layout.num_parameter_entries)
    if before is None or previous is None:
        return torch.zeros(layout.num_parameter_entries)
    if not (layout.is_expanded and isinstance(before, Tensor) and isinstance(previous, Tensor)):
        return _followed(offsets, before, previous, derived, chosen, layout, fading=fading)
    alive = offsets, before, previous
    key = (*map(id, alive), derived, chosen.mask.numpy().tobytes(), chosen.closed, fading)
    return _CONTROLS.of(key, alive, lambda: _followed(*alive, derived, chosen, layout, fading=fading))


def _caught_up(
    download: Download, held: Held, derived: DerivedControl, layout: EncoderLayout, *, fading: float
) -> Tensor:
    """Return c as it follows from changes that a client missed, one by one, as the server derived it.

    Raises:
        ReferenceLost: The client does not hold c as of the version that they start from, or of a later one.
    """
    version, previous = held.control_version, held.control
    if download.base_version == 0 and not 0 < version < download.version:
        version, previous = 0, torch.zeros(layout.num_parameter_entries)  # everybody knows version 0, where c is 0
    if previous is None or not download.base_version <= version < download.version:
        known = "none" if previous is None or version == UNKNOWN_VERSION else f"that of version {version}"
        raise ReferenceLost(
            f"the control variate follows from changes since version {download.base_version}, this client holds {known}"
        )
    chosen = select_all(layout) if download.selection is None else download.selection
    places = layout.places(download.selection)
    for place in range(version - download.base_version, len(download.values)):
        damping, step_weight = derived.steps[place]
        change = change_of(offsets_of(download.values[place], places, download.codec), None, chosen, layout)
        step = DerivedControl(damping, step_weight, valid=True)
        previous = followed_control(previous, change, step, fading=fading, into=change)
    return as_tensor(previous)


def _followed(
    offsets: Tensor, before: Tensor | StoredTensor, previous: Tensor | StoredTensor, derived: DerivedControl,
    chosen: Selection, layout: EncoderLayout, *, fading: float,
) -> Tensor:  # fmt: skip
    control = change_of(offsets, before, chosen, layout)
    return followed_control(previous, control, derived, fading=fading, into=control)


def _start(download: Download, held: Held) -> Tensor | StoredTensor | None:
    """The offsets that a download starts from, int32 [V]; None for 0 everywhere."""
    version = download.base_version
    if version == 0:
        return None
    if version not in held.offsets:
        known = ", ".join(map(str, sorted(held.offsets))) or "none"
        raise ReferenceLost(f"the server's changes start from version {version}, this client holds {known}")
    return held.offsets[version]


def _arrived(encoder: Tensor, download: Download, layout: EncoderLayout) -> Tensor:
    if check_of(encoder) != download.check:
        raise ReferenceLost(f"version {download.version} of the encoder does not arrive as the server has it")
    if any(bool((encoder[part] < 0).any()) for part in layout.variances):
        raise UpdateRejected("a running variance is below 0")
    return encoder
