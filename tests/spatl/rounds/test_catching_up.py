"""c of a client that missed changes of the encoder and is sent them one by one: the bits of one that missed none."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.selection import Selection
from spatl.errors import ReferenceLost, UpdateRejected
from spatl.rounds.downlink import Reference
from spatl.rounds.following import Held, follow
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, pack_download, unpack_download
from tests.support.bits import same_bits
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
SOME = Selection(torch.arange(LAYOUT.num_channels) % 3 != 0)
INITIAL = 0.3 * torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(0))
FADING = 0.75


class Server:
    """Server of a few rounds: x_hat, and the numbers that c follows from."""

    def __init__(self, codec: str, selection: Selection | None = None) -> None:
        self.draw = torch.Generator().manual_seed(5)
        self.reference = Reference(INITIAL, LAYOUT, CODECS[codec], selection=selection)
        self.steps = [(0.0, 0.0)]

    def moves(self) -> None:
        number = len(self.steps)
        step = 0.05 * torch.randn(LAYOUT.num_entries, generator=self.draw)
        self.reference, _ = self.reference.advance(self.reference.encoder + step, generator=self.draw)
        self.steps.append((0.5 / number, 0.25 * number))  # exact in binary32, where number is a power of two, or not
        self.steps[-1] = tuple(torch.tensor(self.steps[-1]).tolist())

    def sends(self, held_version: int):
        """What leads a client on from a version, all changes one by one."""
        version = self.reference.version
        steps = self.steps[held_version + 1 :] or self.steps[-1:]
        download = self.reference.download(
            held_version, server_round=version + 1, acknowledged_round=0, cannot_build=False, one_by_one=len(steps) > 1
        )
        derived = DerivedControl(*steps[-1], True, tuple(steps[:-1]))
        blob = pack_download(replace(download, derived=derived), LAYOUT)
        return unpack_download(blob, LAYOUT, download.codec)


def followed(download, held):
    return follow(download, held, INITIAL, LAYOUT, fading=FADING)


@pytest.mark.slow
@pytest.mark.parametrize("selection", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("codec", ["int8", "ternary-entropy", "adaptive"])
@settings(max_examples=15)
@given(
    arrives=st.lists(st.booleans(), min_size=1, max_size=8),
    confirmed=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_c_is_what_a_client_has_that_missed_nothing(codec, selection, arrives, confirmed):
    """Some downloads do not arrive, and of some that do the server never learns: it goes on from an older version.

    Unless it has forgotten the changes since then.
    """
    server, known = Server(codec, selection), 0
    always = late = Held({})
    for comes, learned in zip(arrives, confirmed, strict=False):
        _, always = followed(server.sends(max(server.reference.version - 1, 0)), always)
        if comes and server.reference.version - known <= len(server.reference.versions.changes):
            encoder, late = followed(server.sends(known), late)
            assert same_bits(encoder, server.reference.encoder)
            assert same_bits(late.control, always.control)
            known = server.reference.version if learned else known
        server.moves()


def test_a_client_without_the_c_that_changes_start_from_says_so():
    """It was never told of c, has that of an older version, or that of a newer one than the server knows of."""
    server = Server("adaptive")
    for _ in range(4):
        server.moves()
    download = server.sends(2)
    offsets = {2: torch.zeros(LAYOUT.num_entries, dtype=torch.int32)}
    for control, version, known in (
        (None, -1, "none"),
        (torch.ones(3), 1, "version 1"),
        (torch.ones(3), 4, "version 4"),
    ):
        with pytest.raises(ReferenceLost, match=f"changes since version 2, this client holds .*{known}"):
            followed(download, Held(offsets, control=control, control_version=version))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"values": (b"one", b"two", b"three")}, "follows from 2 changes, the download leads from version 2 to 4 by 3"),
        ({"base_version": 1}, "follows from 2 changes, the download leads from version 1 to 4 by 2"),
        ({"derived": DerivedControl(0.5, 0.25, False, ((0.5, 0.25),))}, "missed, and is not to be used"),
        ({"derived": DerivedControl(0.5, 0.25, True, ((1.5, 0.25),))}, "damping 1.5"),
        ({"derived": DerivedControl(0.5, 0.25, True, ((0.5, -1.0),))}, "step weight -1"),
        ({"derived": DerivedControl(0.5, 0.25, True, ((0.5, 0.25),) * 255)}, "one more, got 2049"),
    ],
)
def test_numbers_that_do_not_belong_to_the_changes_are_refused(changed, reason):
    server = Server("adaptive")
    for _ in range(4):
        server.moves()
    download = server.sends(2)
    assert len(download.values) == 2
    assert download.derived.missed == (server.steps[3],)
    with pytest.raises(UpdateRejected, match=reason):
        unpack_download(pack_download(replace(download, **changed), LAYOUT), LAYOUT, download.codec)
