"""What leads clients from one version of the encoder to the next: to the same bits, whatever they missed."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.errors import DivergedError, ReferenceLost, UpdateRejected
from spatl.rounds.aggregation import Aggregator
from spatl.rounds.control import followed_control
from spatl.rounds.downlink import Reference
from spatl.rounds.following import Held, follow
from spatl.rounds.offsets import check_of
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, Download, pack_download, unpack_download
from spatl.wire.update import Update
from tests.support.bits import same_bits
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
N, P = LAYOUT.num_entries, LAYOUT.num_parameter_entries
SOME = Selection(torch.arange(LAYOUT.num_channels) % 3 != 0)
NONE = Selection(torch.zeros(LAYOUT.num_channels, dtype=torch.bool))
EMPTY = EncoderLayout({}, 0, (), ())
RELATIVE = ("int8", "int4", "ternary-entropy", "adaptive")
WHOLE = ("float32", "float16")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_of(layout: EncoderLayout = LAYOUT, seed: int = 0) -> Tensor:
    """Weights as they are made, with zeros of either sign among them."""
    initial = 0.3 * torch.randn(layout.num_entries, generator=generator(seed))
    initial[1::5] = 0.0
    initial[2::5] = -0.0
    return initial


INITIAL = initial_of()


def advance(
    reference: Reference, draw: torch.Generator, *, width: float = 0.05, max_bytes: int | None = None
) -> Reference:
    step = width * torch.randn(len(reference.encoder), generator=draw)
    return reference.advance(reference.encoder + step, generator=draw, max_bytes=max_bytes)[0]


def sent(reference: Reference, held_version: int, layout: EncoderLayout = LAYOUT, **options) -> Download:
    """What a client receives: a download that went over the wire."""
    options = {"server_round": 9, "acknowledged_round": 0, "cannot_build": False, **options}
    download = reference.download(held_version, **options)
    return unpack_download(pack_download(download, layout), layout, download.codec)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    received=st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=7),
    confirmed=st.lists(st.booleans(), min_size=21, max_size=21),
    seed=st.integers(0, 99),
    max_bytes=st.none() | st.integers(0, 80),
)
@pytest.mark.parametrize("selection", [None, SOME, NONE], ids=["all", "some", "none"])
@pytest.mark.parametrize("name", [*RELATIVE, *WHOLE])
def test_a_client_holds_the_servers_bits_whatever_it_missed(name, selection, received, confirmed, seed, max_bytes):
    """Three clients, each in some rounds only; the server learns of some of what arrived, and goes on from that.

    Else from what it led the client from, which may be version 0, where nothing newer is kept.
    """
    draw = generator(seed)
    reference = Reference(INITIAL, LAYOUT, CODECS[name], selection=selection)
    held, known = [Held({})] * 3, [0, 0, 0]
    answers = iter(confirmed)
    for clients in received:
        for client in clients:
            download = sent(reference, known[client])
            encoder, held[client] = follow(download, held[client], INITIAL, LAYOUT)
            assert same_bits(encoder, reference.encoder)
            assert len(held[client].offsets) <= 2
            known[client] = reference.version if next(answers) else download.base_version
        reference = advance(reference, draw, max_bytes=max_bytes)
    if selection is not None:
        unselected = torch.ones(N, dtype=torch.bool).index_fill_(0, selection.entries(LAYOUT), False)
        assert not reference.encoder[unselected].any()


@pytest.mark.parametrize("name", [*RELATIVE, *WHOLE])
def test_an_encoder_without_entries_is_followed(name):
    reference, held = Reference(torch.zeros(0), EMPTY, CODECS[name]), Held({})
    for version in range(3):
        for start in range(version + 1):
            held = Held({start: torch.zeros(0)})
            encoder, _ = follow(sent(reference, start, EMPTY), held, torch.zeros(0), EMPTY)
            assert len(encoder) == 0
        reference, _ = reference.advance(torch.zeros(0), generator=generator(), max_bytes=50)


def payload(download: Download) -> int:
    """The bytes of what leads there, four for the length of each."""
    snapshot = 0 if download.snapshot is None else 4 * len(download.snapshot)
    return snapshot + sum(4 + len(each) for each in download.values)


@pytest.mark.parametrize("name", RELATIVE)
def test_what_leads_there_is_never_longer_than_the_changes_one_by_one_or_a_snapshot(name):
    draw = generator(1)
    reference = Reference(INITIAL, LAYOUT, CODECS[name])
    changes: list[int] = []
    for _ in range(8):
        reference = advance(reference, draw)
        changes.append(len(sent(reference, reference.version - 1).values[0]))
        for held in range(reference.version):
            one_by_one = sum(4 + length for length in changes[held:])
            assert payload(reference.download(held, server_round=1, acknowledged_round=0, cannot_build=False)) <= min(
                one_by_one, 4 * N
            )


def test_merging_what_was_missed_saves_most_of_it_where_changes_overlap():
    """Twenty changes of the same few entries take little more than one."""
    layout = interleaved_layout([(10, 60)])
    initial = initial_of(layout)
    reference, draw = Reference(initial, layout, CODECS["adaptive"]), generator(2)
    one_by_one = 0
    for _ in range(20):
        step = torch.zeros(layout.num_entries)
        step[::50] = 0.05 * torch.randn(12, generator=draw)
        reference, _ = reference.advance(reference.encoder + step, generator=draw)
        one_by_one += payload(sent(reference, reference.version - 1, layout))
    assert payload(sent(reference, 0, layout)) < 0.3 * one_by_one


@pytest.mark.slow
def test_more_changes_than_a_download_can_list_are_led_to_otherwise():
    """The number of changes is one byte; 300 of them, each of one entry, are merged or a snapshot."""
    for name in ("adaptive", "int8"):
        layout = interleaved_layout([(1, 300)])
        reference = Reference(torch.zeros(300), layout, CODECS[name])
        for version in range(300):
            step = torch.zeros(300)
            step[version] = 0.25
            reference, _ = reference.advance(reference.encoder + step, generator=generator())
        for start in (0, 44, 45):
            held = {start: torch.round(follow_steps(start) * 2**24).to(torch.int32)}
            encoder, _ = follow(sent(reference, start, layout), Held(held), torch.zeros(300), layout)
            assert same_bits(encoder, reference.encoder)


def follow_steps(version: int) -> Tensor:
    """Where the entries of the test above are, float32 [300]: int8 and adaptive are exact there."""
    return 0.25 * (torch.arange(300) < version)


def test_a_client_with_a_newer_version_than_the_server_knows_of_follows_from_the_older():
    draw = generator(3)
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    reference = advance(reference, draw)
    _, held = follow(sent(reference, 0), Held({}), INITIAL, LAYOUT)
    reference = advance(reference, draw)
    _, held = follow(sent(reference, 1), held, INITIAL, LAYOUT)  # whose answer is lost
    assert sorted(held.offsets) == [1, 2]
    reference = advance(reference, draw)
    download = replace(sent(reference, 1))
    encoder, after = follow(download, held, INITIAL, LAYOUT)
    assert same_bits(encoder, reference.encoder)
    assert sorted(after.offsets) == [download.base_version, 3] if download.base_version else [3]
    encoder, _ = follow(sent(reference, 3), after, INITIAL, LAYOUT)
    assert same_bits(encoder, reference.encoder)


@pytest.mark.parametrize("held", [{}, {1: torch.zeros(N, dtype=torch.int32)}])
def test_a_client_that_does_not_hold_what_it_is_said_to_hold_is_lost(held):
    draw = generator(4)
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    for _ in range(3):
        reference = advance(reference, draw, max_bytes=200)
    download = sent(reference, 2)
    assert download.base_version == 2
    known = "1" if held else "none"
    with pytest.raises(ReferenceLost, match=f"start from version 2, this client holds {known}"):
        follow(download, Held(held), INITIAL, LAYOUT)


@pytest.mark.parametrize("name", RELATIVE)
def test_another_initial_encoder_is_noticed_and_can_be_sent(name):
    draw = generator(5)
    other = INITIAL.clone()
    other[3] = torch.nextafter(other[3], torch.tensor(1.0))
    reference = Reference(INITIAL, LAYOUT, CODECS[name])
    for version in range(3):
        with pytest.raises(ReferenceLost, match=f"version {version} of the encoder does not arrive"):
            follow(sent(reference, 0), Held({}), other, LAYOUT)
        encoder, held = follow(sent(reference, 0, cannot_build=True), Held({}), other, LAYOUT)
        assert same_bits(encoder, reference.encoder)
        reference = advance(reference, draw)
        encoder, _ = follow(sent(reference, reference.version - 1), held, other, LAYOUT)
        assert same_bits(encoder, reference.encoder)


def test_damaged_offsets_are_noticed():
    draw = generator(6)
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    for _ in range(2):
        reference = advance(reference, draw)
    _, held = follow(sent(reference, 0), Held({}), INITIAL, LAYOUT)
    held.offsets[2][4] += 1 << 10
    with pytest.raises(ReferenceLost, match="does not arrive"):
        follow(sent(reference, 2), held, INITIAL, LAYOUT)


def test_a_download_without_changes_that_says_it_leads_elsewhere_is_noticed():
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    reference = advance(reference, generator(7))
    with pytest.raises(ReferenceLost, match="does not arrive"):
        follow(replace(sent(reference, 0), values=(), snapshot=None), Held({}), INITIAL, LAYOUT)


@pytest.mark.parametrize("number", [2**31 - 1, -(2**31)])
def test_changes_beyond_the_range_are_refused(number):
    reference = Reference(INITIAL, LAYOUT, CODECS["int8"])
    reference = advance(reference, generator(8))
    snapshot = torch.full((N,), number, dtype=torch.int32)
    with pytest.raises(UpdateRejected, match="out of the range"):
        follow(replace(sent(reference, 0), snapshot=snapshot, values=sent(reference, 0).values * 2 or ()), Held({}),
               INITIAL, LAYOUT)  # fmt: skip


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("number", [200.0, 1e6, 3e38])
def test_a_change_beyond_the_range_ends_the_run_at_the_server(name, number):
    reference = Reference(torch.zeros(N), LAYOUT, CODECS[name])
    with pytest.raises((DivergedError, UpdateRejected), match=r"larger than 128|more than 128"):
        reference, _ = reference.advance(number * torch.linspace(-1, 1, N), generator=generator())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", RELATIVE)
def test_an_encoder_that_is_not_finite_ends_the_run_at_the_server(name, number):
    reference = Reference(INITIAL, LAYOUT, CODECS[name])
    with pytest.raises(DivergedError, match="not finite"):
        reference, _ = reference.advance(torch.full((N,), number), generator=generator())


@pytest.mark.parametrize("values", [(), (b"one", b"other")])
def test_a_codec_of_whole_values_has_one_encoder_in_a_download(values):
    download = replace(sent(Reference(INITIAL, LAYOUT, CODECS["float32"]), 0), values=values)
    with pytest.raises(UpdateRejected, match=f"expected one encoder in float32, got {len(values)}"):
        follow(download, Held({}), INITIAL, LAYOUT)


def kept_bytes(reference: Reference, downloads: list[Download]) -> int:
    """The changes that are remembered, and what was made of them for clients that missed some, each once."""
    snapshots = {id(each.snapshot): 4 * len(each.snapshot) for each in downloads if each.snapshot is not None}
    changes = itertools.chain(reference.versions.changes, *(each.values for each in downloads))
    values = {id(data): len(data) for data in changes}
    return sum(snapshots.values()) + sum(values.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptive", "int8"])
def test_what_the_server_keeps_does_not_grow_with_rounds_or_clients(name):
    """At most a snapshot's worth of changes; and, until the next round, what leads from each version asked for."""
    layout = interleaved_layout([(8, 20)])
    reference, draw = Reference(initial_of(layout), layout, CODECS[name]), generator(9)
    versions = [0] * 100
    for _ in range(50):
        reference = advance(reference, draw)
        for client in torch.randperm(100, generator=draw)[:10].tolist():
            reference.download(versions[client], server_round=1, acknowledged_round=0, cannot_build=False)
            versions[client] = reference.version
        assert sum(map(len, reference.versions.changes)) <= 4 * layout.num_entries
    kept = []
    for clients in (versions, versions * 10):
        downloads = [
            reference.download(version, server_round=1, acknowledged_round=0, cannot_build=False) for version in clients
        ]
        kept.append(kept_bytes(reference, downloads))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("name", "at_least"), [("adaptive", 100), ("int8", 10_000), ("int4", 10_000)])
def test_what_was_lost_of_changes_goes_into_the_next_until_little_is_left(name, at_least):
    """x stands still: x_hat comes nearer to it with every change, and no entry ever goes away from it by more than
    the last bit of float32."""
    layout = interleaved_layout([(8, 50)])
    target = initial_of(layout, seed=1)
    reference, draw = Reference(initial_of(layout), layout, CODECS[name]), generator(10)
    errors = [(target - reference.encoder).abs()]
    for _ in range(25):
        reference, _ = reference.advance(target, generator=draw)
        errors.append((target - reference.encoder).abs())
    norms = [float(error.square().sum().sqrt()) for error in errors]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(norms))
    assert norms[-1] < norms[0] / at_least
    if name == "adaptive":
        assert all(bool((later <= earlier + 1e-7).all()) for earlier, later in itertools.pairwise(errors))


@pytest.mark.slow
def test_control_that_follows_is_what_the_server_computes():
    """Full selection, equal step weights, and changes that the codec takes exactly: whole numbers of 2^-12.

    Four clients of as many examples; their differences are whole numbers of 2^-10, so that their mean is one of 2^-12.
    """
    damping, fade, step_weight = 0.5, 0.75, 0.375
    draw = generator(11)

    def whole(unit: float) -> Tensor:
        return torch.randint(-8, 9, (N,), generator=draw) * unit

    initial = whole(2.0**-12)
    reference = Reference(initial, LAYOUT, CODECS["adaptive"])
    encoder, control = initial, torch.zeros(P)
    held, share = Held({}), 0.0
    for server_round in range(1, 7):
        if server_round > 1:
            reference, _ = reference.advance(encoder, generator=draw, max_bytes=10_000)
            assert torch.equal(reference.encoder, encoder)
            control = control * fade
        derived = DerivedControl(damping * share, step_weight, True)
        download = replace(sent(reference, max(reference.version - 1, 0)), derived=derived)
        _, held = follow(download, held, initial, LAYOUT, fading=fade)
        torch.testing.assert_close(held.control, control, rtol=1e-5, atol=1e-7)
        aggregator = Aggregator(LAYOUT, encoder, control, total_examples=40, damping=damping)
        for _ in range(4):
            update = Update(server_round, 0, select_all(LAYOUT), whole(2.0**-10), step_weight, corrected=True)
            aggregator.add(update, 10)
        encoder, control, share = aggregator.encoder(), aggregator.control(), aggregator.control_share()
    assert share == 1.0
    assert float(control.abs().max()) > 1e-3


@pytest.mark.parametrize("step_weight", [0.0, 0.5])
def test_control_only_fades_where_nobody_moved_it(step_weight):
    control, change = torch.randn(P, generator=generator()), torch.ones(P)
    after = followed_control(control, change, DerivedControl(0.0, step_weight, True), fading=0.75)
    assert torch.equal(after, control * 0.75)


def test_a_client_that_begins_with_the_first_change_follows_c_from_its_beginning():
    """It holds no version yet, but version 0 is the initial encoder, where c is 0."""
    derived = DerivedControl(0.5, 0.25, True)
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    _, one = follow(replace(sent(reference, 0), derived=derived), Held({}), INITIAL, LAYOUT)
    reference = advance(reference, generator(12))
    download = replace(sent(reference, 0), derived=derived)
    _, old = follow(download, one, INITIAL, LAYOUT, fading=0.5)
    _, new = follow(download, Held({}), INITIAL, LAYOUT, fading=0.5)
    assert float(old.control.abs().max()) > 0
    assert torch.equal(new.control, old.control)


def test_a_client_that_missed_a_change_begins_c_anew():
    derived = DerivedControl(0.5, 0.25, True)
    reference, draw = Reference(INITIAL, LAYOUT, CODECS["adaptive"]), generator(13)
    reference = advance(reference, draw)
    _, held = follow(replace(sent(reference, 0), derived=derived), Held({}), INITIAL, LAYOUT)
    for _ in range(2):
        reference = advance(reference, draw)
    _, held = follow(replace(sent(reference, 1), derived=derived), held, INITIAL, LAYOUT)
    assert torch.equal(held.control, torch.zeros(P))


def test_control_that_follows_and_is_not_finite_is_refused():
    """A step weight so small that the quotient leaves float32."""
    reference = Reference(INITIAL, LAYOUT, CODECS["adaptive"])
    _, held = follow(replace(sent(reference, 0), derived=DerivedControl(0.5, 1.0, True)), Held({}), INITIAL, LAYOUT)
    reference = advance(reference, generator(14))
    download = replace(sent(reference, 0), derived=DerivedControl(1.0, 1e-44, True))
    with pytest.raises(UpdateRejected, match="control variates"):
        follow(download, held, INITIAL, LAYOUT)


def test_encoders_that_differ_in_one_bit_have_other_checks():
    other = INITIAL.clone()
    other[2] = 0.0  # which was -0.0
    assert check_of(other) != check_of(INITIAL)
    assert check_of(INITIAL.clone()) == check_of(INITIAL)
