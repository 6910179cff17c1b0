"""Bad updates through the real apps: refused, clipped or folded in as the rule says, and their clients left out."""

import math
import struct
from functools import partial

import numpy as np
import pytest

from server.replies import blob_content
from spatl.rounds.federation import Federation
from spatl.runs.records import read_lines
from spatl.wire.codecs import CODECS
from spatl.wire.varints import varint
from tests.support.federations import (
    COMPRESSED,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blob_of,
    run_tiny,
    scaled,
    tampering,
    tiny_config,
)
from tests.support.messages import forged, table_of, written

# Where things stand in an update: docs/wire-format.md.
FORMAT, KIND, CODEC, COUNT, FINGERPRINT, ROUND, VERSION, STEP, TABLE = 4, 5, 6, 7, 8, 12, 13, 14, 22


def with_section(name, data):
    """Another section in the place of one: `indices`, `values` or the report, with lengths that are right."""

    def change(blob):
        table, rows, start = table_of(blob)
        parts = []
        for _, length in rows:
            parts.append(blob[start : start + length])
            start += length
        place = {"values": -1, "indices": [kind in (2, 4) for kind, _ in rows].index(True)}[name]
        parts[place] = data(parts[place])
        lines = (bytes([kind]) + varint(len(part)) for (kind, _), part in zip(rows, parts, strict=True))
        return b"".join((blob[:table], *lines, *parts))

    return change


BAD = {
    "nothing": lambda blob: b"",
    "half of a header": lambda blob: blob[:14],
    "half of it": lambda blob: blob[: len(blob) // 2],
    "one byte less": lambda blob: blob[:-1],
    "one byte more": lambda blob: blob + b"\0",
    "random bytes": lambda blob: np.random.default_rng(1).bytes(len(blob)),
    "another magic": written(0, "4s", b"NPTL"),
    "another format": written(FORMAT, "B", 9),
    "a download": written(KIND, "B", 1),
    "another codec": written(CODEC, "B", CODECS["int8"].number),
    "an unknown codec": written(CODEC, "B", 250),
    "255 sections": written(COUNT, "B", 255),
    "a section of an exabyte": lambda blob: blob[: TABLE + 1] + varint(2**60) + blob[TABLE + 2 :],
    "a length that does not end": lambda blob: blob[: TABLE + 1] + b"\xff" * 20 + blob[TABLE + 2 :],
    "an unknown section": written(TABLE, "B", 77),
    "a section twice": lambda blob: written(TABLE, "B", blob[TABLE + 2])(blob),
    "a round to come": lambda blob: blob[:ROUND] + varint(10_000) + blob[ROUND + 1 :],
    "another model's fingerprint": written(FINGERPRINT, "I", 1),
    "another base version": lambda blob: blob[:VERSION] + varint(10_001) + blob[VERSION + 1 :],
    "a step weight of 0": written(STEP, "d", 0.0),
    "a step weight of NaN": written(STEP, "d", math.nan),
    "an absurd step weight": written(STEP, "d", 1e-9),
    "a version of more than 32 bits": lambda blob: blob[:VERSION] + varint(2**32) + blob[VERSION + 1 :],
    "too few indices": with_section("indices", lambda data: data[:-1]),
    "too many indices": with_section("indices", lambda data: data + b"\xff"),
    "a channel beyond the last": with_section("indices", lambda data: data[:-1] + bytes([data[-1] | 0x80])),
    "a value less than the indices say": with_section("values", lambda data: data[:-4]),
    "a value more than the indices say": with_section("values", lambda data: data + data[:4]),
    "NaN": with_section("values", lambda data: data[:-4] + struct.pack("<f", math.nan)),
    "infinity": with_section("values", lambda data: data[:-4] + struct.pack("<f", -math.inf)),
}
"""Changes of all of an update but its digest, which the sender makes anew."""
ALTERED = {
    "a thousand times the update": lambda blob: scaled(blob, 1000.0),
    "an update of 1e30": lambda blob: scaled(blob, 1e30),
    "a bit of a value": written(-12, "B", 0x55),
    "a digest of others": lambda blob: blob[:-8] + b"otherone",
    "no digest": lambda blob: blob[:-8],
}


@pytest.mark.slow
def test_of_thirty_kinds_of_bad_updates_nothing_is_folded_in(tmp_path):
    """One kind a round, from one client after another, and in the end a replay of each one's own earlier update.

    Every round ends as if the reply had been lost on its way, to the bit, and says who was refused and why. An index
    cannot be repeated: indices are a bitmap. Nor can a client speak for another: Flower knows its node by its key.
    """
    kinds = [*((name, partial(forged, change=change)) for name, change in BAD.items()), *ALTERED.items()]
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
        server_round = blob[ROUND]
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


@pytest.mark.slow
def test_a_thousandfold_update_is_refused_in_the_first_round_too_whoever_comes_first(tmp_path):
    config = tiny_config(rounds=2, method="fedavg", wire={"uplink": "float32"})
    for bad in (0, 4):

        def attack(client, content, bad=bad):
            return blob_content(scaled(blob_of(content), 1000.0)) if client == bad else content

        run_tiny(config, tmp_path / str(bad), app=tampering(attack))
        for row in read_lines(tmp_path / str(bad) / "history.jsonl"):
            (refusal,) = row["rejections"]
            assert refusal["client"] == bad
            assert "server.norm_bound" in refusal["reason"]


@pytest.mark.slow
def test_a_client_that_flips_the_sign_of_its_updates_is_refused_and_left_out_and_c_stays_the_weighted_sum(
    tmp_path, strategies
):
    """Client 3 from the first round on: refused three times, then left out; the others are folded in every time."""

    def attack(client, content):
        return blob_content(scaled(blob_of(content), -1.0)) if client == 3 else content

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
def test_c_stays_the_weighted_sum_of_the_c_i_where_updates_are_clipped(tmp_path, strategies):
    """Some clients send a part, some are clipped and not acknowledged, and the reply of one is lost now and then."""
    config = tiny_config(
        rounds=6, method="spatl", selection={"selector": "update", "keep_ratio": 0.6}, wire=COMPRESSED,
        server={"clip": 0.8},
    )  # fmt: skip

    def loses(client, message):
        return message.metadata.message_type == "train" and client == 1 and message.metadata.group_id in ("2", "5")

    run_tiny(config, tmp_path, loses=loses)
    (strategy,) = strategies
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategy.state)
    acknowledged = set(strategy.state.folded.values())
    assert acknowledged != {6}


@pytest.mark.slow
def test_c_is_the_weighted_sum_by_the_weights_of_clients_whose_word_is_bounded(tmp_path, monkeypatch, strategies):
    """As a server does that does not know who has how much."""
    monkeypatch.setattr(Federation, "max_weight", 0.2)
    config = tiny_config(
        method="spatl", rounds=3, partition={"name": "dirichlet", "num_clients": 10, "alpha": 0.1, "min_examples": 10},
        selection={"selector": "update", "keep_ratio": 0.6},
    )  # fmt: skip
    run_tiny(config, tmp_path)
    (strategy,) = strategies
    assert strategy.state.weights
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategy.state)


@pytest.mark.slow
def test_without_a_bound_any_size_is_folded_in(tmp_path):
    config = tiny_config(rounds=1, method="fedavg", wire={"uplink": "float32"}, server={"norm_bound": None})

    def attack(client, content):
        return blob_content(scaled(blob_of(content), 1000.0)) if client == 2 else content

    run_tiny(config, tmp_path, app=tampering(attack))
    assert read_lines(tmp_path / "history.jsonl")[0]["rejected"] == 0


@pytest.mark.slow
def test_a_client_that_keeps_failing_is_left_out_for_a_while_and_the_history_says_so(tmp_path):
    """Refused in rounds 1 and 2, left out in 3 and 4, refused in 5, left out in 6 and 7, well from then on."""
    config = tiny_config(rounds=9, method="fedavg", server={"max_failures": 2, "rounds_away": 2})
    asked = []

    def attack(client, content):
        blob = blob_of(content)
        server_round = blob[ROUND]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_leaves_nobody_out_says_nothing_of_it(tmp_path, caplog):
    summary = run_tiny(tiny_config(method="fedavg", rounds=1), tmp_path)
    assert (summary["excluded_by_client"], summary["excluded_examples_share"]) == ({}, 0.0)
    assert not [record for record in caplog.records if "left out" in record.getMessage()]


@pytest.mark.slow
@pytest.mark.parametrize(("partition", "said"), [({"name": "iid"}, 0), ({"name": "labels", "labels_per_client": 2}, 1)])
def test_that_clients_who_are_to_agree_have_few_classes_in_common_is_said_before_the_first_round(
    tmp_path, caplog, partition, said
):
    config = tiny_config(rounds=1, method="fedavg", partition=partition, server={"aggregation": "agreement"})
    run_tiny(config, tmp_path)
    lines = [record.getMessage() for record in caplog.records if "in common" in record.getMessage()]
    assert len(lines) == said
    assert all("here the median client has 2 of 10" in line for line in lines)
