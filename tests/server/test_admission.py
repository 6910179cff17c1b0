"""What is let in: sizes that fit what was folded in before, of clients that do not keep failing."""

import dataclasses
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from server.strategy import blob_content
from spatl.channels.selection import Selection, select_all
from spatl.errors import SpatlError, UpdateRejected
from spatl.rounds.admission import (
    Admission,
    Size,
    UpdateTooLarge,
    Usual,
    check_size,
    check_trust,
    clip_update,
    median_of,
    size_of,
)
from spatl.runs.records import read_lines
from spatl.wire.codec import CODECS
from spatl.wire.protocol import Update, section_bytes
from tests.support.federations import (
    COMPRESSED,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blob_of,
    run_tiny,
    tampering,
    tiny_config,
)
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(1, 2), (3, 1)], statistics=4)


def after(admission, server_round, *, folded=(), refused=()):
    sizes = {client: Size(size, size) for client, size in folded}
    return admission.after(server_round, folded=sizes, refused=refused, max_failures=2, rounds_away=3)


def update(values, selection=None, step_weight=1.0):
    return Update(1, 0, selection or select_all(LAYOUT), values, step_weight)


@given(scale=st.floats(1e-3, 1e3), mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
def test_the_size_of_an_update_does_not_depend_on_how_much_of_it_is_sent(scale, mask):
    """All parameters alike, so that any share of them has the same root mean square; statistics do not count."""
    selection = Selection(torch.tensor(mask))
    entries = selection.entries(LAYOUT)
    values = torch.where(entries < LAYOUT.num_parameter_entries, -scale, 1e9).float()
    size = size_of(update(values, selection, step_weight=0.5), LAYOUT)
    assert size.rms == pytest.approx(scale, rel=1e-6)
    assert size.rate == pytest.approx(2 * scale, rel=1e-6)


def test_nothing_is_of_size_zero():
    nothing = Selection(torch.zeros(LAYOUT.num_channels, dtype=torch.bool))
    assert size_of(update(torch.zeros(0), nothing), LAYOUT) == Size(0.0, 0.0)


def test_the_clip_is_by_the_largest_median_of_the_last_five_rounds_and_the_bound_by_that_of_all():
    """Medians 5, 1, 1, 1, 1; then the 5 is six rounds old. A round in which nothing was folded in changes nothing."""
    admission = Admission()
    assert admission.recent is admission.largest is None
    for server_round, sizes in enumerate([(4.0, 5.0, 90.0), (1.0,), (1.0,), (1.0, 1.0), (), (1.0,)], start=1):
        admission = after(admission, server_round, folded=enumerate(sizes))
    assert admission.recent == admission.largest == Size(5.0, 5.0)
    admission = after(admission, 7, folded=[(0, 2.0)])
    assert admission.recent == Size(2.0, 2.0)
    assert admission.largest == Size(5.0, 5.0)


def test_of_two_updates_the_smaller_says_what_is_usual():
    assert median_of([Size(1.0, 20.0), Size(1000.0, 2.0)]) == Size(1.0, 2.0)
    assert median_of([]) is None


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30),
    reach=st.floats(1e-2, 1e2),
    gradient=st.floats(1e-6, 1e3),
)
def test_no_client_that_only_trains_longer_or_shorter_than_others_is_larger_than_usual(weights, reach, gradient):
    """All go the same way, ever slower the longer they train; one may take a million times the steps of another."""
    sizes = [Size(d := gradient * reach * -math.expm1(-weight / reach), d / weight) for weight in weights]
    usual = median_of(sizes)
    assert max(size.times(usual) for size in sizes) <= 1 + 1e-9


@given(weights=st.lists(st.floats(1e-2, 1e2), min_size=2, max_size=30), data=st.data())
def test_a_thousandfold_update_is_refused_whoever_of_clients_whose_sizes_differ_a_hundredfold_sends_it(weights, data):
    """Where distances grow with the steps, and in the first round, of which it is itself a part."""
    assume(max(weights) <= 100 * min(weights))
    sizes = [Size(weight**0.5, weight**-0.5) for weight in weights]
    bad = data.draw(st.integers(0, len(weights) - 1))
    sizes[bad] = Size(1000 * sizes[bad].rms, 1000 * sizes[bad].rate)
    with pytest.raises(UpdateTooLarge, match=r"server\.norm_bound allows 10"):
        check_size(sizes[bad], median_of(sizes), 10.0)


def test_what_is_larger_than_the_bound_as_a_whole_and_for_its_steps_is_refused_and_so_is_what_is_no_number():
    usual = Size(1.5, 3.0)
    for fine in (Size(3.0, 90.0), Size(90.0, 6.0)):
        check_size(fine, usual, 2.0)
    check_size(Size(1e30, 1e30), None, 2.0)
    check_size(Size(1e30, 1e30), usual, None)
    check_size(Size(0.0, 0.0), Size(0.0, 0.0), 2.0)
    for large in (Size(3.1, 6.2), Size(math.nan, math.nan), Size(math.inf, math.inf)):
        with pytest.raises(UpdateTooLarge, match=r"times the usual for its steps; server\.norm_bound allows 2"):
            check_size(large, usual, 2.0)
    assert issubclass(UpdateTooLarge, SpatlError)


def test_where_all_updates_are_tiny_one_that_is_not_is_measured_by_the_encoder():
    """The median is next to nothing, and the encoder's weights are of 0.2."""
    tiny, large = Size(1e-6, 2e-6), Size(1.0, 2.0)
    usual = Usual.of(tiny, tiny, encoder_rms=0.2)
    check_size(Size(0.19, 0.38), usual.bounded, 10.0)  # less than the encoder itself
    with pytest.raises(UpdateTooLarge):
        check_size(Size(0.21, 0.42), usual.bounded, 10.0)
    assert Size(0.003, 0.006).times(usual.clipped) == pytest.approx(1.5)
    assert Usual.of(large, large, encoder_rms=0.2) == Usual(large, large)


def test_a_client_that_fails_twice_is_left_out_for_three_rounds_and_then_has_one_attempt_at_a_time():
    """Refused in rounds 1 and 2: out of 3 to 5. Refused in 6: out of 7 to 9. Folded in in 10: all is forgotten."""
    admission = after(Admission(), 1, folded=[(0, 1.0)], refused=[7])
    assert admission.admitted([0, 7], 2) == [0, 7]
    admission = after(admission, 2, folded=[(0, 1.0)], refused=[7])
    for server_round in (3, 4, 5):
        assert admission.admitted([0, 7], server_round) == [0]
        admission = after(admission, server_round, folded=[(0, 1.0)])
    assert admission.admitted([0, 7], 6) == [0, 7]
    admission = after(admission, 6, refused=[7])
    assert [admission.admitted([0, 7], server_round) for server_round in (7, 9, 10)] == [[0], [0], [0, 7]]
    admission = after(admission, 10, folded=[(7, 1.0)])
    assert admission.failures == {}
    admission = after(admission, 11, refused=[7])
    assert admission.admitted([0, 7], 12) == [0, 7]


def test_a_round_is_never_without_clients():
    admission = Admission(away={0: 9, 1: 9})
    assert admission.admitted([0, 1], 5) == [0, 1]


# Where things stand in an update: docs/wire-format.md.
FORMAT, KIND, CODEC, COUNT, ROUND, FINGERPRINT, PAYLOAD, VERSION, STEP, CORRECTED, TABLE = (
    4, 5, 6, 7, 8, 12, 20, 28, 32, 40, 41,
)  # fmt: skip
SECTION = 9


def written(place, form, *values):
    """A change of a blob: other numbers at a place."""

    def change(blob):
        return blob[:place] + struct.pack(form, *values) + blob[place + struct.calcsize(form) :]

    return change


def scaled(factor):
    """All values times a factor; they are the last section, in float32."""

    def change(blob):
        start = len(blob) - section_bytes(blob)["values"]
        return blob[:start] + (np.frombuffer(blob[start:], "<f4") * np.float32(factor)).tobytes()

    return change


def with_section(name, data):
    """Another section in the place of one: `indices`, `values` or the report, with lengths that are right."""

    def change(blob):
        rows = [list(struct.unpack_from("<BQ", blob, TABLE + SECTION * row)) for row in range(blob[COUNT])]
        start, parts = TABLE + SECTION * len(rows), []
        for row in rows:
            parts.append(blob[start : start + row[1]])
            start += row[1]
        place = {"values": -1, "indices": [row[0] in (2, 4) for row in rows].index(True)}[name]
        parts[place] = data(parts[place])
        rows[place][1] = len(parts[place])
        head = written(PAYLOAD, "<Q", sum(map(len, parts)))(blob[:TABLE])
        return b"".join((head, *(struct.pack("<BQ", *row) for row in rows), *parts))

    return change


BAD = {
    "nothing": lambda blob: b"",
    "half of a header": lambda blob: blob[:14],
    "half of it": lambda blob: blob[: len(blob) // 2],
    "one byte less": lambda blob: blob[:-1],
    "one byte more": lambda blob: blob + b"\0",
    "random bytes": lambda blob: np.random.default_rng(1).bytes(len(blob)),
    "another magic": written(0, "<4s", b"NPTL"),
    "another format": written(FORMAT, "<B", 9),
    "a download": written(KIND, "<B", 1),
    "another codec": written(CODEC, "<B", CODECS["int8"].number),
    "an unknown codec": written(CODEC, "<B", 250),
    "255 sections": written(COUNT, "<B", 255),
    "a section of an exabyte": written(TABLE + 1, "<Q", 2**60),
    "a payload of an exabyte": written(PAYLOAD, "<Q", 2**60),
    "an unknown section": written(TABLE, "<B", 77),
    "a section twice": lambda blob: written(TABLE, "<B", blob[TABLE + SECTION])(blob),
    "a round to come": written(ROUND, "<I", 10_000),
    "another model's fingerprint": written(FINGERPRINT, "<Q", 1),
    "another base version": written(VERSION, "<I", 10_000),
    "a step weight of 0": written(STEP, "<d", 0.0),
    "a step weight of NaN": written(STEP, "<d", math.nan),
    "an absurd step weight": written(STEP, "<d", 1e-9),
    "a flag that is no flag": written(CORRECTED, "<B", 7),
    "too few indices": with_section("indices", lambda data: data[:-1]),
    "too many indices": with_section("indices", lambda data: data + b"\xff"),
    "a channel beyond the last": with_section("indices", lambda data: data[:-1] + bytes([data[-1] | 0x80])),
    "a value less than the indices say": with_section("values", lambda data: data[:-4]),
    "a value more than the indices say": with_section("values", lambda data: data + data[:4]),
    "NaN": with_section("values", lambda data: data[:-4] + struct.pack("<f", math.nan)),
    "infinity": with_section("values", lambda data: data[:-4] + struct.pack("<f", -math.inf)),
    "a thousand times the update": scaled(1000.0),
    "an update of 1e30": scaled(1e30),
}


@pytest.mark.slow
def test_of_thirty_kinds_of_bad_updates_nothing_is_folded_in(tmp_path):
    """One kind a round, from one client after another, and in the end a replay of each one's own earlier update.

    Every round ends as if the reply had been lost on its way, to the bit, and says who was refused and why. An index
    cannot be repeated: indices are a bitmap. Nor can a client speak for another: Flower knows its node by its key.
    """
    kinds = list(BAD.items())
    config = tiny_config(
        rounds=len(kinds) + 5, method="spatl", selection={"selector": "update", "keep_ratio": 0.5},
        wire={"uplink": "float32", "downlink": "adaptive"}, training={"local_steps": 1},
        model={"options": {"channels": [4, 6], "hidden": 11}},  # 31 channels: the bitmap's last bit is none
    )  # fmt: skip
    first = {}

    def bad_in(server_round):
        return server_round % 5

    def attack(client, content):
        blob = blob_of(content)
        (server_round,) = struct.unpack_from("<I", blob, ROUND)
        replay = first.setdefault(client, blob)
        if client != bad_in(server_round):
            return content
        change = kinds[server_round - 1][1] if server_round <= len(kinds) else lambda blob: replay
        return blob_content(change(blob))

    def loses(client, message):
        return message.metadata.message_type == "train" and client == bad_in(int(message.metadata.group_id))

    run_tiny(config, tmp_path / "attacked", app=tampering(attack))
    run_tiny(config, tmp_path / "lost", loses=loses)
    attacked, lost = (read_lines(tmp_path / name / "history.jsonl") for name in ("attacked", "lost"))
    assert [row["encoder_fingerprint"] for row in attacked] == [row["encoder_fingerprint"] for row in lost]
    for row in attacked:
        (refusal,) = row["rejections"]
        assert refusal["client"] == bad_in(row["round"]), kinds[row["round"] - 1][0]
        assert refusal["reason"]
        assert (row["participants"], row["rejected"], row["missing"]) == (4, 1, 0)
    assert all("answers round" in row["rejections"][0]["reason"] for row in attacked[len(kinds) :])
    assert len(attacked) == config.rounds > 30


def test_a_thousandfold_update_is_refused_in_the_first_round_too_whoever_comes_first(tmp_path):
    config = tiny_config(rounds=2, method="fedavg", wire={"uplink": "float32"})
    for bad in (0, 4):

        def attack(client, content, bad=bad):
            return blob_content(scaled(1000.0)(blob_of(content))) if client == bad else content

        run_tiny(config, tmp_path / str(bad), app=tampering(attack))
        for row in read_lines(tmp_path / str(bad) / "history.jsonl"):
            (refusal,) = row["rejections"]
            assert refusal["client"] == bad
            assert "server.norm_bound" in refusal["reason"]


@given(past=st.lists(st.floats(-1, 1), max_size=20), rounds=st.integers(1, 5))
def test_whatever_went_before_a_round_of_working_against_the_others_costs_a_client_its_trust(past, rounds):
    admission = Admission()
    for agreement in past:
        admission = admission.judged({7: agreement})
        assert admission.trust[7] <= 0.5
    for _ in range(rounds):
        admission = admission.judged({7: -0.6})
    assert not admission.trusts(7)
    assert admission.trusts(8)
    lost = admission.trust[7]
    assert admission.judged({8: 1.0}).trust[7] == lost  # a round without it changes nothing
    assert admission.judged({7: 0.4}).trust[7] == pytest.approx(lost + 0.1)


def test_the_update_of_a_client_without_trust_is_refused_with_what_it_lacks():
    check_trust(0.0)
    with pytest.raises(UpdateRejected, match=r"its trust is -0\.25, and server\.aggregation: agreement lets in"):
        check_trust(-0.25)


def test_a_client_that_flips_the_sign_of_its_updates_is_refused_and_left_out_and_c_stays_the_weighted_sum(
    tmp_path, strategies
):
    """Client 3 from the first round on: refused three times, then left out; the others are folded in every time."""

    def attack(client, content):
        return blob_content(scaled(-1.0)(blob_of(content))) if client == 3 else content

    config = tiny_config(
        rounds=5, method="spatl", selection={"selector": "update", "keep_ratio": 0.6},
        wire={"uplink": "float32", "downlink": "adaptive"}, server={"aggregation": "agreement"},
        training={"local_steps": 20},
    )  # fmt: skip
    run_tiny(config, tmp_path, app=tampering(attack))
    rounds = read_lines(tmp_path / "history.jsonl")
    assert [[each["client"] for each in row["rejections"]] for row in rounds] == [[3], [3], [3], [], []]
    assert [row["left_out"] for row in rounds] == [[], [], [], [3], [3]]
    assert [row["participants"] for row in rounds] == [config.partition.num_clients - 1] * 5
    assert all("point against" in row["rejections"][0]["reason"] for row in rounds[:3])
    (strategy,) = strategies
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategy.state)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [{"aggregation": "median"}, {"aggregation": "trimmed-mean"}, {"clip": 0.8}])
def test_c_stays_the_weighted_sum_of_the_c_i_under_a_robust_rule(tmp_path, strategies, rule):
    """Some clients send a part, some are clipped and not acknowledged, and the reply of one is lost now and then."""
    config = tiny_config(
        rounds=6, method="spatl", selection={"selector": "update", "keep_ratio": 0.6}, wire=COMPRESSED, server=rule
    )

    def loses(client, message):
        return message.metadata.message_type == "train" and client == 1 and message.metadata.group_id in ("2", "5")

    run_tiny(config, tmp_path, loses=loses)
    (strategy,) = strategies
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategy.state)
    if "clip" in rule:
        acknowledged = set(strategy.state.folded.values())
        assert acknowledged != {6}


def test_a_clipped_update_is_as_large_as_the_bound_and_no_longer_counts_as_corrected():
    given = dataclasses.replace(update(torch.full((LAYOUT.num_entries,), 8.0)), corrected=True)
    size, usual = size_of(given, LAYOUT), Size(2.0, 2.0)
    assert clip_update(given, size, usual, 4.0) is given
    assert clip_update(given, size, Size(2.0, 8.0), 1.0) is given  # as large as its steps make it
    clipped = clip_update(given, size, usual, 1.0)
    assert clipped.values.tolist() == [2.0] * LAYOUT.num_entries
    assert not clipped.corrected


def test_without_a_bound_any_size_is_folded_in(tmp_path):
    config = tiny_config(rounds=1, method="fedavg", wire={"uplink": "float32"}, server={"norm_bound": None})

    def attack(client, content):
        return blob_content(scaled(1000.0)(blob_of(content))) if client == 2 else content

    run_tiny(config, tmp_path, app=tampering(attack))
    assert read_lines(tmp_path / "history.jsonl")[0]["rejected"] == 0


@pytest.mark.slow
def test_a_client_that_keeps_failing_is_left_out_for_a_while_and_the_history_says_so(tmp_path):
    """Refused in rounds 1 and 2, left out in 3 and 4, refused in 5, left out in 6 and 7, well from then on."""
    config = tiny_config(rounds=9, method="fedavg", server={"max_failures": 2, "rounds_away": 2})
    asked = []

    def attack(client, content):
        blob = blob_of(content)
        (server_round,) = struct.unpack_from("<I", blob, ROUND)
        asked.append((server_round, client))
        return blob_content(b"") if client == 3 and server_round < 8 else content

    summary = run_tiny(config, tmp_path, app=tampering(attack))
    assert summary["rejected_by_client"] == {"3": 3}
    assert summary["excluded_by_client"] == {"3": 7}
    rows = read_lines(tmp_path / "history.jsonl")
    assert [row["round"] for row in rows if row["left_out"] == [3]] == [3, 4, 6, 7]
    assert [row["round"] for row in rows if row["rejected"]] == [1, 2, 5]
    assert [server_round for server_round, client in asked if client == 3] == [1, 2, 5, 8, 9]
    assert [row["missing"] for row in rows] == [0] * 9


def test_a_run_without_more_than_a_tenth_of_the_examples_says_so_once_and_in_its_summary(tmp_path, caplog, strategies):
    """Client 3 fails in the first round and is left out of the other two; the five have the same number of digits."""

    def attack(client, content):
        return blob_content(b"") if client == 3 else content

    config = tiny_config(method="fedavg", server={"max_failures": 1})
    summary = run_tiny(config, tmp_path, app=tampering(attack))
    (strategy,) = strategies
    numbers = strategy.state.num_examples
    assert summary["excluded_by_client"] == {"3": 3}
    assert summary["excluded_examples_share"] == pytest.approx(numbers[3] / sum(numbers.values()))
    (said,) = [record.getMessage() for record in caplog.records if "hold" in record.getMessage()]
    assert said == "round 1: clients that were refused or left out (3) hold 20 % of all training examples"


def test_a_run_that_leaves_nobody_out_says_nothing_of_it(tmp_path, caplog):
    summary = run_tiny(tiny_config(method="fedavg", rounds=1), tmp_path)
    assert (summary["excluded_by_client"], summary["excluded_examples_share"]) == ({}, 0.0)
    assert not [record for record in caplog.records if "left out" in record.getMessage()]


@pytest.mark.parametrize(("partition", "said"), [({"name": "iid"}, 0), ({"name": "labels", "labels_per_client": 2}, 1)])
def test_that_clients_who_are_to_agree_have_few_classes_in_common_is_said_before_the_first_round(
    tmp_path, caplog, partition, said
):
    config = tiny_config(rounds=1, method="fedavg", partition=partition, server={"aggregation": "agreement"})
    run_tiny(config, tmp_path)
    lines = [record.getMessage() for record in caplog.records if "in common" in record.getMessage()]
    assert len(lines) == said
    assert all("here the median client has 2 of 10" in line for line in lines)
