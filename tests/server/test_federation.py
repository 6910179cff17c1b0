"""Whole federations in this process: they repeat, count every byte, and leave what they should."""

import json
import random

import pytest
import torch
from flwr.app import Context, Message, RecordDict

import server.app
from clients.app import app as client_app
from server.grids import InProcessGrid, StreamingGrid
from server.traffic import message_traffic
from spatl.config.loading import load_config
from spatl.errors import DivergedError, SpatlError
from spatl.rounds.following import Held, follow
from spatl.runs.records import read_lines
from spatl.wire.download import unpack_download
from tests.support.federations import (
    DENSE,
    blob_of,
    blueprint_of,
    both_wires,
    fingerprints,
    history_without_seconds,
    opened,
    run_tiny,
    state_of,
    tampering,
    tiny_config,
)


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


@pytest.mark.slow
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
    assert sorted(path.name for path in (tmp_path / "clients").iterdir()) == ["lock", "states.sqlite"]
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.slow
@both_wires
def test_unselected_channels_never_leave_and_keep_their_bits(tmp_path, strategies, wire):
    """Looks at the blobs: entries outside every bitmap keep their bits in the server's x.

    Where x itself goes down, these are the bits that the clients get.
    """
    config = tiny_config(selection={"selector": "random", "keep_ratio": 0.3}, wire=wire)
    layout, codec = blueprint_of(config).layout, blueprint_of(config).codecs.downlink
    models, sent = [], []

    class Watching(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            if messages and messages[0].metadata.message_type != "query":
                models.append(strategies[-1].state.encoder)
                download = unpack_download(blob_of(messages[0].content), layout, codec)
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
    for base, some in (("a", False), ("b", True)):
        history = read_lines(tmp_path / base / "history.jsonl")
        assert (sum(row["duplicates"] for row in history) > 0) == some  # all had answered these questions
        assert sum(row["late"] for row in history) == 0
