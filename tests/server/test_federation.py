"""Whole federations in this process: what they compute, count, refuse and leave behind."""

import dataclasses
import json
import math
import random
import re
import struct

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import server.app
from clients.app import app as client_app
from server.grids import InProcessGrid, StreamingGrid
from server.strategy import blob_content
from server.traffic import message_traffic
from spatl.config.loading import load_config, parse_config
from spatl.errors import ConfigError, DivergedError, SpatlError
from spatl.json_files import read_json
from spatl.methods import METHODS
from spatl.rounds.downlink import Held, follow
from spatl.rounds.privacy import epsilon_of
from spatl.runs.records import read_lines
from spatl.wire.codec import CODECS
from spatl.wire.protocol import pack_update, section_bytes, unpack_download
from tests.support.federations import (
    COMPRESSED,
    DENSE,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blob_of,
    blueprint_of,
    both_wires,
    fingerprints,
    history_without_seconds,
    losing,
    opened,
    parted,
    run_tiny,
    state_of,
    tampering,
    tiny_config,
)


def reporting(content, layout, **numbers):
    """An update's records with other numbers in its report."""
    blob = blob_of(content)
    _, report = parted(blob, layout)
    return blob_content(blob.replace(report.to_bytes(), dataclasses.replace(report, **numbers).to_bytes()))


def packed(update, layout):
    """The records of an update, in float32."""
    return blob_content(pack_update(update, layout, CODECS["float32"], generator=torch.Generator()))


@pytest.mark.slow
@both_wires
def test_two_runs_with_one_seed_give_the_same_history_and_another_seed_another(tmp_path, wire):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_tiny(tiny_config(seed=seed, server={"fraction_train": 0.6}, wire=wire), tmp_path / name)
    assert history_without_seconds(tmp_path / "a") == history_without_seconds(tmp_path / "b")
    assert fingerprints(tmp_path / "a") != fingerprints(tmp_path / "c")
    assert len(set(fingerprints(tmp_path / "a"))) == 3


@pytest.mark.slow
def test_the_global_random_state_neither_matters_nor_moves(tmp_path):
    run_tiny(tiny_config(), tmp_path / "a")
    random.seed(99)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run_tiny(tiny_config(), tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before)
    assert history_without_seconds(tmp_path / "a") == history_without_seconds(tmp_path / "b")


@pytest.mark.slow
@both_wires
def test_the_order_of_replies_changes_nothing(tmp_path, wire):
    class Shuffled(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            random.Random(len(messages)).shuffle(messages)
            return super().send_and_receive(messages, timeout=timeout)

    run_tiny(tiny_config(wire=wire), tmp_path / "a")
    run_tiny(tiny_config(wire=wire), tmp_path / "b", grid_type=Shuffled)
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b")


@both_wires
def test_every_byte_of_every_message_is_counted_once(tmp_path, wire):
    """Counted at the grid's edge; the other direction also carries what fetches or answers a message."""
    seen = []

    def measure(direction, message):
        metadata = message.metadata
        traffic = message_traffic(
            message.content, direction=direction, message_type=metadata.message_type, group_id=metadata.group_id
        )
        opposite = "uplink" if direction == "downlink" else "downlink"
        return [(direction, traffic.num_bytes), (opposite, traffic.opposite)]

    class Counting(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                seen.extend(measure("downlink", message))
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                seen.extend(measure("uplink", reply))
            return replies

    config = tiny_config(server={"fraction_train": 0.6}, wire=wire)
    summary = run_tiny(config, tmp_path, grid_type=Counting)
    for direction in ("uplink", "downlink"):
        counted = sum(size for way, size in seen if way == direction)
        assert summary[f"{direction}_bytes"] == counted
        for name in ("history.jsonl", "clients.jsonl"):
            assert sum(row[f"{direction}_bytes"] for row in read_lines(tmp_path / name)) == counted
        ledger = read_lines(tmp_path / "ledger.jsonl")
        assert sum(row["bytes" if row["direction"] == direction else "opposite"] for row in ledger) == counted
        assert 2 * len(ledger) == len(seen)
    assert summary["total_bytes"] == summary["uplink_bytes"] + summary["downlink_bytes"]
    for row in read_lines(tmp_path / "history.jsonl"):
        clients = [c for c in read_lines(tmp_path / "clients.jsonl") if c["round"] == row["round"]]
        assert sum(c["uplink_bytes"] for c in clients) == row["uplink_bytes"] == sum(row["uplink"].values())
        assert sum(c["downlink_bytes"] for c in clients) == row["downlink_bytes"] == sum(row["downlink"].values())
        assert len({c["client"] for c in clients}) == len(clients)


def test_a_run_leaves_what_the_design_lists(tmp_path):
    config = tiny_config()
    summary = run_tiny(config, tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    for key in ("method", "seed", "rounds", "accuracy", "accuracy_min", "uplink_bytes", "downlink_bytes", "seconds"):
        assert summary[key] is not None
    rows = read_lines(tmp_path / "history.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[-1]["final_accuracy"] == summary["accuracy"]
    assert all(row["participants"] == 5 and row["rejected"] == 0 for row in rows)
    clients = read_lines(tmp_path / "clients.jsonl")
    assert {(row["round"], row["client"]) for row in clients} == {(r, c) for r in (1, 2, 3) for c in range(5)}
    assert sorted(path.name for path in (tmp_path / "clients").iterdir()) == ["0", "1", "2", "3", "4"]
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.slow
@pytest.mark.parametrize("wire", [DENSE, COMPRESSED, {"uplink": "int4", "downlink": "int8"}], ids=str)
@pytest.mark.parametrize("selector", ["random", "update"])
@pytest.mark.parametrize("half_life", [2.0, None])
def test_c_equals_the_weighted_sum_of_c_i_through_the_real_apps(tmp_path, strategies, selector, half_life, wire):
    """20 rounds, 40 % of 10 clients, a third of the replies lost after the client did its work; c is sent."""
    config = tiny_config(
        rounds=20,
        partition={"name": "dirichlet", "num_clients": 10, "alpha": 0.5},
        server={"fraction_train": 0.4},
        selection={"selector": selector, "keep_ratio": 0.4},
        control={"half_life": half_life, "downlink": "sent"},
        training={"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 1e-3},
        wire=wire,
    )
    held_c = []

    def watch(client, content):
        state = strategies[-1].state
        held_c.append(torch.equal(state.control, state.held_control))
        return content

    loses, losses = losing(1 / 3)
    summary = run_tiny(config, tmp_path, loses=loses, app=tampering(watch))
    assert summary["missing"] == sum(losses)
    assert 15 <= sum(losses) <= 40
    assert summary["rejected"] == 0
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert all(held_c) if wire == DENSE else not all(held_c)


@pytest.mark.slow
@pytest.mark.parametrize("wire", [COMPRESSED, {"uplink": "int4", "downlink": "int8"}], ids=str)
@pytest.mark.parametrize("selector", ["random", "update"])
def test_c_equals_the_weighted_sum_of_c_i_where_clients_derive_it(tmp_path, strategies, selector, wire):
    """24 rounds, 90 % of 10 clients, a third of the replies of four rounds lost; c fades to a quarter in a round.

    So a client that missed a version is corrected again some 13 rounds later; in most rounds some are and some are not.
    """
    config = tiny_config(
        rounds=24,
        partition={"name": "dirichlet", "num_clients": 10, "alpha": 0.5},
        server={"fraction_train": 0.9},
        selection={"selector": selector, "keep_ratio": 0.4},
        control={"half_life": 0.5, "downlink": "derived"},
        training={"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 1e-3},
        wire=wire,
    )
    layout, corrected, held_c = blueprint_of(config).layout, [], []

    def watch(client, content):
        update = opened(blob_of(content), layout)
        corrected.append((update.server_round, update.corrected))
        state = strategies[-1].state
        held_c.append(torch.equal(state.control, state.held_control))
        return content

    loses, losses = losing(1 / 3, rounds=(2, 4, 5, 18))
    summary = run_tiny(config, tmp_path, loses=loses, app=tampering(watch))
    assert summary["missing"] == sum(losses) >= 8
    assert summary["rejected"] == 0
    assert {was for server_round, was in corrected if server_round > 6} == {True, False}
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert not all(held_c)


def test_a_lost_reply_leaves_the_old_c_i(tmp_path):
    """Client 2's replies are lost in every round: its c_i stays zero though it trained three times."""
    summary = run_tiny(
        tiny_config(), tmp_path, loses=lambda client, m: client == 2 and m.metadata.message_type == "train"
    )
    assert summary["missing"] == 3
    assert not state_of(tmp_path, 2).control.any()
    assert state_of(tmp_path, 1).control.any()


@both_wires
def test_unselected_channels_never_leave_and_keep_their_bits(tmp_path, strategies, wire):
    """Looks at the blobs: entries outside every bitmap keep their bits in the server's x.

    Where x itself goes down, these are the bits that the clients get.
    """
    config = tiny_config(selection={"selector": "random", "keep_ratio": 0.3}, wire=wire)
    layout = blueprint_of(config).layout
    models, sent = [], []

    class Watching(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            if messages and messages[0].metadata.message_type != "query":
                models.append(strategies[-1].state.encoder)
                download = unpack_download(blob_of(messages[0].content), layout)
                if wire == DENSE:
                    received, _ = follow(download, Held({}), torch.zeros(layout.num_entries), layout)
                    assert torch.equal(received.view(torch.int32), models[-1].view(torch.int32))
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                if reply.metadata.message_type == "train":
                    update = opened(blob_of(reply.content), layout)
                    assert len(update.values) <= 0.3 * layout.num_entries
                    sent.append((update.server_round, update.selection.mask))
            return replies

    run_tiny(config, tmp_path, grid_type=Watching)
    quiet_entries = 0
    for server_round in (1, 2, 3):
        masks = torch.stack([mask for r, mask in sent if r == server_round])
        quiet = ~masks.any(0)[layout.owner]
        before, after = models[server_round - 1], models[server_round]
        assert torch.equal(before[quiet].view(torch.int32), after[quiet].view(torch.int32))
        assert not torch.equal(before[~quiet], after[~quiet])
        quiet_entries += int(quiet.sum())
    assert quiet_entries > 0


def test_the_predictor_stays_on_the_client(tmp_path):
    """No uplink contains the bytes of any row of the client's classifier, and no layout names it."""
    config = tiny_config(method="spatl-paper")
    uplinks = []

    def keep(client, content):
        uplinks.append((client, blob_of(content)))
        return content

    run_tiny(config, tmp_path, app=tampering(keep))
    assert not any("classifier" in name for name in blueprint_of(config).layout.shapes)
    private = {client: state_of(tmp_path, client).private for client in range(5)}
    weights = [private[client]["classifier.weight"] for client in range(5)]
    assert not torch.equal(weights[0], weights[1])
    for client, blob in uplinks:
        for row in private[client]["classifier.weight"]:
            assert row.numpy().tobytes() not in blob


def with_first_values(blob, first):
    """A blob whose last section, the values, starts otherwise: with the step, where they are adaptive."""
    start = len(blob) - section_bytes(blob)["values"]
    return blob[:start] + first + blob[start + len(first) :]


@pytest.mark.parametrize(
    ("wire", "change", "reason"),
    [
        (DENSE, lambda blob: blob[:-4] + b"\x00\x00\xc0\x7f", "NaN or infinity"),
        (DENSE, lambda blob: blob[:-4] + b"\x00\x00\x80\x7f", "NaN or infinity"),
        (COMPRESSED, lambda blob: with_first_values(blob, b"\x00\x00\xc0\x7f"), "step of adaptive values"),
        (COMPRESSED, lambda blob: with_first_values(blob, b"\x00\x00\x80\x7f"), "step of adaptive values"),
        (COMPRESSED, lambda blob: blob[:-1], "promises"),
        (COMPRESSED, lambda blob: b"", "fewer than a header"),
        (COMPRESSED, lambda blob: blob[:12] + b"\0" * 8 + blob[20:], "fingerprint"),
        (COMPRESSED, lambda blob: blob[:8] + b"\x01" + blob[9:], "answers round"),
        (COMPRESSED, lambda blob: blob[:28] + b"\x00" + blob[29:], "from version 0, expected round"),
    ],
)
def test_a_bad_update_is_refused_and_counted_and_the_round_goes_on(tmp_path, caplog, wire, change, reason):
    def attack(client, content):
        return blob_content(change(blob_of(content))) if client == 1 else content

    summary = run_tiny(tiny_config(rounds=2, wire=wire), tmp_path, app=tampering(attack))
    rows = read_lines(tmp_path / "history.jsonl")
    # A replay of round 1, or of version 0, is one only from round 2 on.
    refused_in = [2] if "round" in reason else [1, 2]
    assert [row["round"] for row in rows if row["rejected"]] == refused_in
    assert summary["rejected"] == len(refused_in)
    for row in rows:
        assert row["participants"] + row["rejected"] == 5
        assert all(reason in item["reason"] and item["client"] == 1 for item in row["rejections"])
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"num_examples": 10**9}, "num-examples is 1000000000, the client registered"),
        ({"num_examples": 10**9 + 1}, "the report's num_examples must lie in"),
        ({"accuracy": float("nan")}, "the report's accuracy must lie in"),
        ({"loss": float("inf")}, "the report's loss must lie in"),
    ],
)
def test_a_bad_report_is_refused(tmp_path, numbers, reason):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, **numbers) if client == 4 else content

    run_tiny(config, tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)
    assert reason in row["rejections"][0]["reason"]


def test_an_update_without_a_report_is_refused(tmp_path):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        if client != 4:
            return content
        return packed(dataclasses.replace(opened(blob_of(content), layout), report=None), layout)

    run_tiny(config, tmp_path, app=tampering(attack))
    (rejection,) = read_lines(tmp_path / "history.jsonl")[0]["rejections"]
    assert rejection == {"client": 4, "reason": "the update has no report"}


def test_an_update_that_says_otherwise_whether_it_was_corrected_is_refused(tmp_path):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        if client != 4:
            return content
        update = opened(blob_of(content), layout)
        assert update.corrected
        return packed(dataclasses.replace(update, corrected=False), layout)

    run_tiny(config, tmp_path, app=tampering(attack))
    (rejection,) = read_lines(tmp_path / "history.jsonl")[0]["rejections"]
    assert "disagree on whether gradients were corrected" in rejection["reason"]


def test_a_reply_without_records_is_refused(tmp_path):
    def attack(client, content):
        return RecordDict() if client == 0 else content

    run_tiny(tiny_config(rounds=1), tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)


def test_a_client_that_raises_is_counted_and_the_round_goes_on(tmp_path):
    def attack(client, content):
        if client == 3:
            raise RuntimeError("disk full")
        return content

    summary = run_tiny(tiny_config(rounds=1), tmp_path, app=tampering(attack))
    assert summary["rejected"] == 1
    (row,) = read_lines(tmp_path / "history.jsonl")
    (refusal,) = row["rejections"]
    assert refusal["client"] == 3
    assert re.fullmatch(r"RuntimeError: disk full \(test_federation\.py:\d+, in attack\)", refusal["reason"])


def test_when_every_update_is_refused_the_run_ends_with_the_reason(tmp_path):
    def attack(client, content):
        return RecordDict()

    with pytest.raises(SpatlError, match=r"round 1: no update could be used.*has no spatl record with a blob of bytes"):
        run_tiny(tiny_config(), tmp_path, app=tampering(attack))


def test_a_round_with_too_few_replies_changes_nothing(tmp_path):
    config = tiny_config(rounds=2, server={"min_replies": 3})
    run_tiny(
        config, tmp_path,
        loses=lambda c, m: c > 1 and m.metadata.message_type == "train" and m.metadata.group_id == "2",
    )  # fmt: skip
    first, second = fingerprints(tmp_path)
    assert first == second
    assert [row["skipped"] for row in read_lines(tmp_path / "history.jsonl")] == [False, True]


@pytest.mark.slow
def test_a_run_that_nobody_answers_any_more_stops_and_can_be_resumed(tmp_path):
    """Rounds 2 to 4 are lost: in the third of them the run stops, and what it had stands."""
    config = tiny_config(rounds=6)
    with pytest.raises(SpatlError, match=r"round 4: no client has answered for 3 rounds; .* go on with --resume"):
        run_tiny(config, tmp_path, loses=lambda c, m: m.metadata.message_type == "train" and m.metadata.group_id > "1")
    grid = InProcessGrid(client_app, num_clients=5, run_config={"config": config.to_json(), "out": str(tmp_path)})
    server.app.serve(grid, config, tmp_path, resume=True)
    rows = read_lines(tmp_path / "history.jsonl")
    assert [row["participants"] for row in rows] == [5, 0, 0, 5, 5, 5]


@pytest.mark.slow
def test_a_round_waits_until_its_clients_are_connected(tmp_path):
    """Asked for the third time, the grid knows them all again; nothing is lost."""

    class Away(InProcessGrid):
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return [] if 1 < self.asked < 4 else super().get_node_ids()

    summary = run_tiny(tiny_config(rounds=2), tmp_path, grid_type=Away)
    assert (summary["missing"], summary["rejected"]) == (0, 0)


def test_a_run_that_diverges_stops_with_one_clear_line_and_keeps_what_it_has(tmp_path):
    config = tiny_config(rounds=30, training={"learning_rate": 30.0, "local_steps": 1})
    with pytest.raises((DivergedError, SpatlError), match="diverged in round"):
        run_tiny(config, tmp_path)
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"name": "resnet20", "options": {}}, id="resnet20"),
        pytest.param({"name": "vgg11", "options": {"width": 0.25}}, id="vgg11"),
        pytest.param({"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["head"]}, id="mixed"),
        pytest.param(
            {"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["hidden", "head"]}, id="earlier-cut"
        ),
        pytest.param({"name": "tests.support.networks:RecurrentNet", "options": {}, "cut": ["head"]}, id="recurrent"),
    ],
)
@pytest.mark.parametrize("batch_norm", ["local", "shared"])
@pytest.mark.parametrize("method", ["spatl", "spatl-paper"])
def test_the_same_federation_with_other_networks_by_config_alone(tmp_path, model, batch_norm, method):
    config = tiny_config(
        rounds=2,
        partition={"num_clients": 2},
        training={"batch_norm": batch_norm, "local_steps": 2},
        model=model,
        method=method,
    )
    summary = run_tiny(config, tmp_path)
    assert 0 < summary["keep_ratio"] <= config.row.keep_ratio
    values = sum(row["uplink"]["values"] for row in read_lines(tmp_path / "history.jsonl"))
    most = 4 * blueprint_of(config).layout.num_entries * 4  # two clients, two rounds, four bytes each
    assert values <= config.row.keep_ratio * most
    assert summary["rejected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    METHODS,
)
def test_every_method_is_a_row_that_runs_and_shares_what_it_says(tmp_path, strategies, method):
    config = tiny_config(method=method, rounds=2)
    summary = run_tiny(config, tmp_path)
    layout = blueprint_of(config).layout
    everything = sum(p.numel() for p in blueprint_of(config).model.parameters())
    head = 12 * 10 + 10
    shared = {"encoder": everything - head, "all": everything, "nothing": 0}[config.shares]
    assert layout.num_entries == shared
    assert (strategies[-1].state.control is not None) == config.row.controls
    if config.shares != "nothing":
        assert (summary["keep_ratio"] == 1.0) == (not config.row.budgeted)
    else:
        values = [row["uplink"]["values"] for row in read_lines(tmp_path / "history.jsonl")]
        assert values == [0, 0]
        assert summary["uplink_share"] is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "calibrated", "residual", "shared"])
def test_every_predictor_runs_under_the_agent(tmp_path, mode):
    config = tiny_config(
        rounds=2, partition={"num_clients": 2}, predictor={"mode": mode}, agent={"reward": "pruned"},
        model={"name": "resnet8", "options": {"width": 0.25}},
    )  # fmt: skip
    summary = run_tiny(config, tmp_path)
    assert 0 < summary["keep_ratio"] <= config.row.keep_ratio
    assert (summary["rejected"], summary["missing"]) == (0, 0)
    private = {name for name in state_of(tmp_path, 0).private if "fc" in name}
    assert private == {
        "local": {"fc.weight", "fc.bias"}, "residual": {"fc.private.weight", "fc.private.bias"},
    }.get(mode, set())  # fmt: skip


@pytest.mark.slow
def test_training_alone_trains(tmp_path):
    run_tiny(tiny_config(method="local", rounds=4, training={"local_steps": 40}), tmp_path)
    rows = read_lines(tmp_path / "history.jsonl")
    assert rows[-1]["final_accuracy"] > 0.5 > rows[0]["accuracy"]


def test_too_few_nodes_is_one_clear_line(tmp_path):
    config = tiny_config(server={"connect_timeout_seconds": 0.1})
    grid = InProcessGrid(client_app, num_clients=2, run_config={"config": config.to_json(), "out": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"num_clients is 5, but 2 nodes.*num-supernodes=5"):
        server.app.serve(grid, config, tmp_path)


def test_a_node_that_builds_another_model_is_refused_at_registration(tmp_path):
    config, other = tiny_config(), tiny_config(model={"options": {"channels": [4, 7], "hidden": 12}})
    grid = InProcessGrid(client_app, num_clients=5, run_config={"config": other.to_json(), "out": str(tmp_path)})
    with pytest.raises(SpatlError, match="client 0 built another model"):
        server.app.serve(grid, config, tmp_path)


def test_replies_stream_one_at_a_time(tmp_path):
    """The second client is not called before the first reply was taken."""
    calls = []
    app = tampering(lambda client, content: content)

    @app.train("probe")
    def probe(message: Message, context: Context) -> Message:
        calls.append(context.node_config["partition-id"])
        return Message(RecordDict(), reply_to=message)

    grid = StreamingGrid(InProcessGrid(app, num_clients=3, run_config={}))
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train.probe") for node in grid.get_node_ids()]
    for taken, _ in enumerate(grid.send_and_receive(messages), start=1):
        assert len(calls) == taken
    assert calls == [0, 1, 2]


def test_sending_everything_is_a_share_of_one(tmp_path):
    summary = run_tiny(tiny_config(method="fedavg"), tmp_path)
    assert summary["uplink_share"] == 1.0
    assert summary["update_bytes"] < summary["uplink_bytes"]  # which also counts registration and evaluation


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [({"accuracy": 5.0}, "lie in"), ({"keep_ratio": -1.0}, "lie in"), ({"train_loss": 1.7e308}, "lie in")],
)
def test_numbers_out_of_range_are_refused(tmp_path, numbers, reason):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, **numbers) if client >= 3 else content

    summary = run_tiny(config, tmp_path, app=tampering(attack))
    assert summary["rejected"] == 2
    assert reason in read_lines(tmp_path / "history.jsonl")[0]["rejections"][0]["reason"]


@pytest.mark.parametrize("factor", [1e-6, 2.0, 1e30])
def test_a_step_weight_that_does_not_belong_to_the_training_is_refused(tmp_path, factor):
    config = tiny_config(method="fednova", rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        if client != 2:
            return content
        update = opened(blob_of(content), layout)
        return packed(dataclasses.replace(update, step_weight=update.step_weight * factor), layout)

    run_tiny(config, tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)
    assert "step weight" in row["rejections"][0]["reason"]


@pytest.mark.slow
def test_one_bad_update_does_not_end_a_run_with_one_client_per_round(tmp_path):
    def attack(client, content):
        return RecordDict() if client == 1 else content

    config = tiny_config(rounds=12, server={"fraction_train": 0.2})
    summary = run_tiny(config, tmp_path, app=tampering(attack))
    assert 1 <= summary["rejected"] < 12


def test_the_round_in_which_a_run_stops_is_written(tmp_path):
    def attack(client, content):
        return RecordDict({"spatl": ConfigRecord({"blob": "no bytes"})})

    with pytest.raises(SpatlError, match="has no spatl record with a blob of bytes"):
        run_tiny(tiny_config(), tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert row["rejected"] == 5
    assert row["uplink_bytes"] > 0


@pytest.mark.slow
def test_one_client_cannot_stop_a_run_by_reporting_a_large_loss(tmp_path):
    config = tiny_config()
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, train_loss=1e8) if client == 0 else content

    assert run_tiny(config, tmp_path, app=tampering(attack))["rejected"] == 0


def test_a_run_that_began_with_clients_that_had_nothing_to_learn_has_not_diverged_where_others_only_guess(tmp_path):
    """As where those of the first round have one class each: a guess among ten classes has a loss of 2.3."""
    config = tiny_config(rounds=2)
    layout = blueprint_of(config).layout

    def reported(loss):
        def change(client, content):
            (server_round,) = struct.unpack_from("<I", blob_of(content), 8)
            return reporting(content, layout, train_loss=0.01 if server_round == 1 else loss)

        return tampering(change)

    run_tiny(config, tmp_path / "guess", app=reported(9.9 * math.log(10)))
    with pytest.raises(DivergedError, match=r"the loss started at 2\.3"):
        run_tiny(config, tmp_path / "diverged", app=reported(10.1 * math.log(10)))


def test_a_malformed_registration_is_one_clear_line(tmp_path):
    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(SpatlError, match="registration lacks 'metrics'"):
        run_tiny(tiny_config(), tmp_path, app=app)


class Late(InProcessGrid):
    """Before the replies to a question come the first client's to every question before it, once more."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._old = []

    def send_and_receive(self, messages, *, timeout=None):
        yield from list(self._old)
        first = True
        for reply in super().send_and_receive(messages, timeout=timeout):
            if first and reply.metadata.message_type != "query":
                self._old.append(reply)
            first = False
            yield reply
        yield from self._old[-1:]


@pytest.mark.slow
@both_wires
def test_late_and_repeated_replies_change_nothing_and_take_nobodys_place(tmp_path, wire):
    config = tiny_config(wire=wire)
    on_time = run_tiny(config, tmp_path / "a")
    late = run_tiny(config, tmp_path / "b", grid_type=Late)
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b")
    assert late["accuracy"] == on_time["accuracy"]
    assert late["rejected"] == late["missing"] == late["not_evaluated"] == 0
    assert late["uplink_bytes"] > on_time["uplink_bytes"]  # they travelled
    assert sum(row["late"] for row in read_lines(tmp_path / "b" / "history.jsonl")) > 0
    assert sum(row["late"] for row in read_lines(tmp_path / "a" / "history.jsonl")) == 0


PRIVATE = {"noise_multiplier": 2.0, "clip": 0.5, "delta": 1e-3}


def test_a_private_run_tells_its_epsilon_and_its_noise_is_not_the_seeds(tmp_path):
    config = tiny_config(method="spatl-no-control", privacy=PRIVATE)
    for name in ("one", "other"):
        run_tiny(config, tmp_path / name)
    one, other = (read_lines(tmp_path / name / "history.jsonl") for name in ("one", "other"))
    assert one[0]["accuracy"] == other[0]["accuracy"]  # before the first noise
    assert {row["encoder_fingerprint"] for row in one}.isdisjoint(row["encoder_fingerprint"] for row in other)
    summary = read_json(tmp_path / "one" / "summary.json")
    assert (summary["epsilon"], summary["delta"]) == (epsilon_of(2.0, config.rounds, 1e-3), 1e-3)


def test_a_run_without_noise_claims_no_epsilon(tmp_path):
    run_tiny(tiny_config(rounds=1), tmp_path)
    assert "epsilon" not in read_json(tmp_path / "summary.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "spatl"}, "take a method such as spatl-no-control"),
        ({"method": "fednova"}, "take a method such as spatl-no-control"),
        ({"method": "ssfl"}, "take a method such as spatl-no-control"),
        ({"server": {"aggregation": "median"}}, "leave server.aggregation and server.clip out"),
        ({"server": {"clip": 2.0}}, "leave server.aggregation and server.clip out"),
        ({"training": {"batch_norm": "shared"}}, "set training.batch_norm: local"),
    ],
)
def test_what_noise_would_not_cover_is_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config({"method": "fedavg", "privacy": PRIVATE, **changes})


@pytest.mark.parametrize("liar", [0, 3])
def test_a_client_with_the_key_of_another_is_named_and_the_run_does_not_start(tmp_path, liar):
    config = tiny_config()
    values = {"config": config.to_json(), "out": str(tmp_path)}
    grid = InProcessGrid(client_app, num_clients=5, run_config=values)
    nodes = dict(enumerate(sorted(grid.get_node_ids())))
    keys = server.app._keys_of({"nodes": json.dumps(nodes)})
    assert keys == {node: client for client, node in nodes.items()}
    keys[nodes[liar]] = 2
    with pytest.raises(ConfigError, match=f"the key of client 2 says that it holds partition {liar}"):
        server.app.serve(grid, config, tmp_path, keys=keys)
    assert not (tmp_path / "history.jsonl").exists()
