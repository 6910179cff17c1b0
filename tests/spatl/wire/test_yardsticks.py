"""Published codecs, for comparisons: what each makes of numbers that were worked out by hand, and its laws."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.layout import Places
from spatl.channels.selection import select_all
from spatl.errors import UpdateRejected
from spatl.rounds.feedback import Feedback
from spatl.wire.codecs import CODECS
from spatl.wire.entropy import encode_integers
from spatl.wire.levels import levels_of
from spatl.wire.rotated import LARGEST_BLOCK, blocks_of, hadamard, random_signs
from spatl.wire.sparse import num_sent
from tests.support.layouts import interleaved_layout

NAMES = ("topk", "eden", "signsgd", "powersgd", "powersgd-rank1", "qsgd")
FED_BACK = tuple(name for name in NAMES if CODECS[name].feeds_back)
moderate = st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)


def places_of(*shapes: tuple[int, int]) -> Places:
    """Places of tensors of so many channels by so many values, one after the other."""
    channels = [torch.arange(rows).repeat_interleave(columns) for rows, columns in shapes]
    tensors = [torch.full((rows * columns,), index) for index, (rows, columns) in enumerate(shapes)]
    return Places(torch.cat(channels), torch.cat(tensors))


def encoded(name: str, values: torch.Tensor, places: Places, *, seed: int = 0) -> bytes:
    return CODECS[name].encode(values, places, generator=torch.Generator().manual_seed(seed))


def decoded(name: str, data: bytes, places: Places) -> torch.Tensor:
    return CODECS[name].decode(memoryview(data), places)


def seen(name: str, values: torch.Tensor, places: Places, *, seed: int = 0) -> torch.Tensor:
    return decoded(name, encoded(name, values, places, seed=seed), places)


def message(*shapes: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, Places]:
    places = places_of(*shapes)
    return torch.randn(len(places), generator=torch.Generator().manual_seed(seed)), places


def test_topk_sends_the_largest_hundredth_as_shares_of_the_largest():
    """101 values: k = 2. Of 0.3 / 1 the nearest half is 1229 / 4096, as 0.3 * 4096 is 1228.8."""
    values = torch.zeros(101)
    values[[7, 50, 90]] = torch.tensor([0.3, -1.0, 0.1])
    data = encoded("topk", values, places_of((101, 1)))
    assert data[:8] == struct.pack("<fee", 1.0, 0.3, -1.0)
    expected = torch.zeros(101)
    expected[[7, 50]] = torch.tensor([1229 / 4096, -1.0])
    assert torch.equal(decoded("topk", data, places_of((101, 1))), expected)


def test_topk_takes_the_first_of_equal_values_and_one_of_few():
    assert seen("topk", torch.tensor([0.5, -2.0, 2.0, 0.0]), places_of((4, 1))).tolist() == [0, -2, 0, 0]
    assert [num_sent(number) for number in (0, 1, 100, 101)] == [0, 1, 1, 2]


def test_signsgd_is_the_sign_times_the_mean_magnitude_of_the_tensor():
    """Means (1 + 3) / 2 = 2 and (0 + 0.5 + 1) / 3 = 0.5; signs + - | + + -, so that bits 1 and 4 are set: 2 + 16."""
    values, places = torch.tensor([1.0, -3.0, 0.0, 0.5, -1.0]), places_of((2, 1), (3, 1))
    data = encoded("signsgd", values, places)
    assert data == struct.pack("<ffB", 2.0, 0.5, 18)
    assert decoded("signsgd", data, places).tolist() == [2, -2, 0.5, 0.5, -0.5]


def test_eden_rotates_back_what_it_reads():
    """Signs + - + + through Hadamard's matrix of four: 1-1+1+1, 1+1+1-1, 1-1-1-1, 1+1-1+1 = 2, 2, -2, 2."""
    data = struct.pack("<IfB", 7, 0.25, 0b0010)
    rotated_back = np.array([2, 2, -2, 2]) * random_signs(7, 4) * 0.25
    assert decoded("eden", data, places_of((4, 1))).tolist() == rotated_back.tolist()


def test_eden_on_two_values_by_hand():
    """v = (3, 1) under D = (1, 1): H D v = (4, 2), so S / sqrt(2) = 10 / 6 and H s = (2, 0): 10 / 3, and 0.

    D = (1, -1) gives H D v = (2, 4), and the same; the other two, both with the other sign, likewise.
    """
    for seed in range(8):
        value, zero = seen("eden", torch.tensor([3.0, 1.0]), places_of((2, 1)), seed=seed).tolist()
        assert (value, zero) == (pytest.approx(10 / 3, rel=1e-6), 0)


def test_edens_random_signs_are_the_same_everywhere():
    """Bits of PCG64 as NumPy seeds it, pinned: a message must decode on another machine to the same numbers."""
    assert random_signs(7, 12).tolist() == [-1, -1, 1, -1, 1, 1, 1, -1, 1, -1, 1, -1]


def test_hadamards_matrix_is_that_of_sylvester():
    matrix = np.array([[1.0]])
    for _ in range(3):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert np.array_equal(hadamard(np.eye(8)), matrix)


@pytest.mark.parametrize(
    ("number", "blocks"),
    [(0, ()), (1, (1,)), (5, (8,)), (40, (64,)), (1000, (1024,)), (600, (512, 128)), (2**16 + 3, (2**16, 4))],
)
def test_blocks_are_filled_up_or_cut_whichever_is_shorter(number, blocks):
    """1000: 24 bits of zeros against at least one more scale; 600: 512 + 88, whose 40 zeros and scale are 72 bits."""
    assert blocks_of(number) == blocks


@given(number=st.integers(0, 4 * LARGEST_BLOCK))
def test_blocks_hold_every_value_at_little_more(number):
    blocks = blocks_of(number)
    assert number <= sum(blocks)
    assert 8 * CODECS["eden"].num_bytes(num_values=number, num_channels=1) <= max(1.2 * number, number + 32 * 8)


@pytest.mark.slow
def test_qsgd_on_a_tensor_by_hand():
    """Norm 5 of (3, -4, 0, 0), s = sqrt(4) = 2: the levels are 2.5 apart, 1.2 and 1.6 of them."""
    places, values = places_of((4, 1)), torch.tensor([3.0, -4.0, 0.0, 0.0])
    integers, contexts = np.array([1, -2, 0, 0], dtype=np.int32), np.full(4, 3, dtype=np.uint8)
    by_hand = struct.pack("<f", 5.0) + encode_integers(integers, contexts)
    assert decoded("qsgd", by_hand, places).tolist() == [2.5, -5, 0, 0]
    found = torch.stack([seen("qsgd", values, places, seed=seed) for seed in range(2000)])
    assert {tuple(row) for row in found.tolist()} == {(a, b, 0, 0) for a in (2.5, 5.0) for b in (-2.5, -5.0)}
    ups = [float((found[:, place].abs() == 5).double().mean()) for place in (0, 1)]
    assert ups == [pytest.approx(0.2, abs=0.045), pytest.approx(0.6, abs=0.055)]  # five standard errors of 2000


def test_powersgd_takes_one_step_of_power_iteration_from_where_it_was():
    """M = diag(2, 1, 0, 0) and Q = (1, 1, 1, 1): P = (2, 1, 0, 0) / sqrt(5), Q = M P = (4, 1, 0, 0) / sqrt(5).

    P Q^T is [[8, 2], [4, 1]] / 5. From there P = (8, 1) / sqrt(65), Q = (16, 1) / sqrt(65): [[128, 8], [16, 1]] / 65.
    """
    matrix, codec, places = torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0])), CODECS["powersgd-rank1"], places_of((4, 4))
    memory = torch.ones(4)
    for corner in ([[8 / 5, 2 / 5], [4 / 5, 1 / 5]], [[128 / 65, 8 / 65], [16 / 65, 1 / 65]]):
        data, memory = codec.encode_with_memory(
            matrix.ravel(), places, generator=torch.Generator(), memory=memory
        )  # fmt: skip
        assert len(data) == 2 * (4 + 2 * 4) + 4
        expected = torch.zeros(4, 4)
        expected[:2, :2] = torch.tensor(corner)
        found = codec.decode(memoryview(data), places).reshape(4, 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "rank"), [("powersgd", 2), ("powersgd-rank1", 1)])
def test_powersgd_sends_a_matrix_of_its_rank_from_any_start_and_vectors_whole(name, rank):
    draw = torch.Generator().manual_seed(4)
    matrix = torch.randn(12, rank, generator=draw) @ torch.randn(rank, 20, generator=draw)
    vector, places = torch.tensor([1.0, -0.5, 0.25]), places_of((12, 20), (3, 1))
    values = torch.cat([matrix.ravel(), vector])
    data = encoded(name, values, places)
    assert len(data) == 4 + 2 * 12 * rank + 4 + 2 * 20 * rank + 4 + 2 * 3
    found = decoded(name, data, places)
    assert found[-3:].tolist() == vector.tolist()
    assert float((found - values).norm()) < 2e-3 * float(values.norm())


def test_powersgd_sends_whole_what_factors_would_not_make_shorter():
    """2 (4 + 6) + 4 = 24 numbers of 16 bits, with two scales, are no fewer than 4 * 6; of 4 x 7 they are 26, not 28."""
    lengths = [len(encoded("powersgd", *message((4, columns)))) for columns in (6, 7)]
    assert lengths == [4 + 2 * 24, 4 + 2 * 2 * 4 + 4 + 2 * 2 * 7 + 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eden", "qsgd"])
def test_their_mean_over_seeds_is_the_value(name):
    """The mean of N messages is off by the error of one over the root of N, and by no more than twice that here."""
    values, places = message((8, 32), (1, 44))
    found = torch.stack([seen(name, values, places, seed=seed) for seed in range(1500)])
    error = float((found - values).square().sum(1).mean())
    assert float((found.mean(0) - values).square().sum()) < 2 * error / 1500 + 1e-4 * error
    assert error > 0.05 * float(values.square().sum())


@given(numbers=st.lists(moderate, min_size=1, max_size=80), seed=st.integers(0, 5))
def test_edens_message_lies_along_the_values_as_far_as_they_reach(numbers, seed):
    """<R^T s S, v> = S <s, R v> = S ||R v||_1 = ||v||^2, whatever the rotation."""
    values = torch.tensor(numbers)
    inner = float(seen("eden", values, places_of((len(values), 1)), seed=seed).double() @ values.double())
    assert inner == pytest.approx(float(values.double().square().sum()), rel=1e-5)


@given(numbers=st.lists(moderate, min_size=1, max_size=80))
def test_what_signsgd_loses_is_what_its_paper_says(numbers):
    """||C(p) - p||^2 = ||p||^2 - ||p||_1^2 / d: it contracts (lemma 8)."""
    values = torch.tensor(numbers)
    lost = (seen("signsgd", values, places_of((len(values), 1))) - values).double().square().sum()
    exact = values.double()
    expected = float(exact.square().sum() - exact.abs().sum() ** 2 / len(exact))
    assert float(lost) == pytest.approx(expected, rel=1e-4, abs=1e-4 * float(exact.square().sum()))


@pytest.mark.parametrize("name", FED_BACK)
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), rounds=st.integers(1, 6))
def test_what_was_sent_and_what_is_left_add_up_to_the_updates(name, seed, rounds):
    layout = interleaved_layout([(4, 6), (3, 1)])
    everything, codec, draw = select_all(layout), CODECS[name], torch.Generator().manual_seed(seed)
    updates, sent, feedback = torch.zeros(27), torch.zeros(27), Feedback.none()
    for _ in range(rounds):
        update = torch.randn(27, generator=draw)
        wanted = feedback.wanted(update, everything, layout)
        data, memory = codec.encode_with_memory(
            wanted, layout.places(), generator=draw, memory=feedback.memory
        )  # fmt: skip
        arrived = codec.decode(memoryview(data), layout.places())
        feedback = feedback.after(wanted, arrived, everything, layout, memory)
        updates, sent = updates + update, sent + arrived
    torch.testing.assert_close(sent + feedback.residual, updates, rtol=1e-4, atol=1e-4)
    assert not torch.equal(sent, updates)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shapes", [((1, 1),), ((3, 1), (5, 9)), ((8, 40), (8, 1), (2, 16))], ids=str)
def test_what_is_decoded_is_the_same_each_time_and_as_long(name, shapes):
    values, places = message(*shapes)
    data = encoded(name, values, places, seed=3)
    assert data == encoded(name, values, places, seed=3)
    found = decoded(name, data, places)
    assert (found.shape, found.dtype) == (values.shape, torch.float32)
    assert bool(found.isfinite().all())
    assert torch.equal(decoded(name, data, places), found)
    nothing = torch.zeros(len(places))
    assert torch.equal(seen(name, nothing, places), nothing)


@pytest.mark.parametrize("name", NAMES)
def test_no_values_are_hardly_any_bytes(name):
    places = Places(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert encoded(name, torch.zeros(0), places) == b""
    assert len(decoded(name, b"", places)) == 0
    with pytest.raises(UpdateRejected):
        decoded(name, b"\1", places)


def test_lengths_are_as_stated():
    """4096 values in three tensors, one with 2048 in 16 rows: see each layout of the bytes."""
    values, places = message((16, 128), (16, 64), (1024, 1))
    lengths = {name: len(encoded(name, values, places)) for name in NAMES}
    assert lengths["eden"] == CODECS["eden"].num_bytes(num_values=4096, num_channels=7) == 4 + 4 + 512
    assert lengths["signsgd"] == 3 * 4 + 512
    matrices = sum(2 * (rows + columns) * 2 + 8 for rows, columns in ((16, 128), (16, 64)))
    assert lengths["powersgd"] == matrices + 4 + 2 * 1024
    assert lengths["topk"] < CODECS["topk"].num_bytes(num_values=4096, num_channels=16)
    assert lengths["qsgd"] < CODECS["qsgd"].num_bytes(num_values=4096, num_channels=16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**110])
def test_what_is_no_number_to_be_sent_makes_bytes_that_are_refused(name, bad):
    values, places = message((6, 20), (4, 1))
    values[37] = bad
    with pytest.raises(UpdateRejected):
        seen(name, values, places)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_bytes_are_refused_or_decoded_to_numbers(name):
    values, places = message((6, 20), (4, 1))
    data, rng = encoded(name, values, places), np.random.default_rng(0)
    for cut in range(len(data)):
        with pytest.raises(UpdateRejected):
            decoded(name, data[:cut], places)
    refused = 0
    for _ in range(300):
        body = bytearray(data)
        for place in rng.integers(0, len(body), size=3):
            body[place] = rng.integers(0, 256)
        try:
            found = decoded(name, bytes(body), places)
        except UpdateRejected:
            refused += 1
        else:
            assert bool(found.isfinite().all())
    with pytest.raises(UpdateRejected):
        decoded(name, data + b"\0", places)
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("signsgd", lambda data: data[:-1] + b"\xff", "a bit of signsgd values after the last"),
        ("signsgd", lambda data: struct.pack("<f", -1.0) + data[4:], r"from 0 to 2\^100, got -1"),
        ("eden", lambda data: data[:4] + struct.pack("<f", math.nan) + data[8:], r"from 0 to 2\^100, got nan"),
        ("topk", lambda data: data[:4] + struct.pack("<e", 1.5) + data[6:], "must be at most 1 in magnitude"),
        ("powersgd", lambda data: data[:4] + struct.pack("<e", math.nan) + data[6:], "must be at most 1 in magnitude"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(name, change, line):
    values, places = message((5, 25))
    with pytest.raises(UpdateRejected, match=line):
        decoded(name, change(encoded(name, values, places)), places)


def test_topk_refuses_another_number_of_values_and_qsgd_a_level_that_is_none():
    values, places = message((5, 25))
    mask = np.zeros(125, dtype=np.int32)
    mask[:3] = 1  # two are expected
    data = encoded("topk", values, places)[:8] + encode_integers(mask, np.zeros(125, dtype=np.uint8))
    with pytest.raises(UpdateRejected, match="expected 2 of 125 topk values to be sent"):
        decoded("topk", data, places)
    most = int(levels_of(np.array([125]))[0])
    assert most == 11
    levels = np.full(125, most + 1, dtype=np.int32)
    data = struct.pack("<f", 1.0) + encode_integers(levels, np.full(125, 7, dtype=np.uint8))
    with pytest.raises(UpdateRejected, match="exceeds the levels of its tensor"):
        decoded("qsgd", data, places)
