"""What goes over the wire in whole runs: how much, who holds what, and what becomes of a client that lost its way."""

import dataclasses
from statistics import fmean

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import app as client_app
from server.grids import InProcessGrid
from server.strategy import FederationStrategy
from spatl.channels.selection import select_all
from spatl.errors import ConfigError
from spatl.rounds.blueprint import Blueprint, make_blueprint
from spatl.rounds.evaluation import final_encoder
from spatl.rounds.offsets import check_of, encoder_of
from spatl.rounds.workplace import Workplace
from spatl.runs.records import read_lines
from spatl.sealed_files import as_tensor
from spatl.seeding import numpy_generator
from spatl.wire.blob import CLIENT_FORGOT, CLIENT_LOST
from spatl.wire.download import unpack_download
from tests.support.federations import (
    COMPRESSED,
    blob_of,
    blueprint_of,
    harm_state,
    losing,
    opened,
    run_tiny,
    state_of,
    tiny_config,
)
from tests.support.flower import record_bytes


@dataclasses.dataclass(frozen=True)
class Call:
    """One message to a client and what came of it.

    Attributes:
        error: The code of the client's error, 0 for none.
        agrees: Whether the client's x_hat has the bits of the server's.
        control: Whether c as the client holds it has the bits of what the server thinks it holds; None without one.
    """

    phase: str
    server_round: int
    client: int
    download_bytes: int
    reply_bytes: int
    download: object
    update: object
    error: int
    agrees: bool
    control: bool | None


class Watched:
    """A client app that looks at every train and evaluate message; `before(client, message)` may do harm first."""

    def __init__(self, config, directory, strategies, *, before=lambda client, message: None, call=client_app):
        self.calls: list[Call] = []
        self.app = ClientApp()
        layout, codec = blueprint_of(config).layout, blueprint_of(config).codecs.downlink
        initial = blueprint_of(config).initial_encoder()

        def watched(message: Message, context: Context) -> Message:
            client = context.node_config["partition-id"]
            before(client, message)
            reply = call(message, context)
            server: FederationStrategy = strategies[-1]
            download = unpack_download(blob_of(message.content), layout, codec)
            phase, ok = str(message.metadata.message_type), not reply.has_error()
            update, agrees, control = None, False, None
            if ok:
                held = state_of(directory, client).held
                assert len(held.offsets) <= (2 if phase == "train" else 3)  # the rounds may go on from what it held
                chosen = download.selection or select_all(layout)
                entries = chosen.entries(layout)
                start = initial if held.base is None else held.base
                start = torch.zeros_like(start).index_copy_(0, entries, start[entries])
                encoder = encoder_of(start, as_tensor(held.offsets[download.version]), chosen, layout)
                if phase == "train":
                    opens = server.federation.reference(server.state).encoder
                else:
                    opens = final_encoder(server.federation, server.state, server.last_round)
                agrees = torch.equal(encoder, opens)
                if held.control is not None:
                    control = torch.equal(held.control, server.state.held_control)
                if phase == "train":
                    update = opened(blob_of(reply.content), layout)
            self.calls.append(
                Call(
                    phase, int(message.metadata.group_id), client, record_bytes(message.content),
                    record_bytes(reply.content) if ok else 0, download, update,
                    0 if ok else reply.error.code, agrees, control,
                )
            )  # fmt: skip
            return reply

        self.app.train()(watched)
        self.app.evaluate()(watched)
        self.app.query()(lambda message, context: call(message, context))

    def of(self, phase, *, client=None):
        return [call for call in self.calls if call.phase == phase and client in (None, call.client)]


class Lossy(InProcessGrid):
    """A grid whose train messages may not arrive either: those that `misses(client, round)` says."""

    misses = staticmethod(lambda client, server_round: False)

    def push_messages(self, messages):
        ids = list(super().push_messages(messages))
        for message_id in ids:
            metadata = self.queue[message_id].metadata
            client = self.contexts[metadata.dst_node_id].node_config["partition-id"]
            if metadata.message_type == "train" and self.misses(client, int(metadata.group_id)):
                del self.queue[message_id]
        return ids


def missing(misses):
    return type("Missing", (Lossy,), {"misses": staticmethod(misses)})


LARGER = {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}}


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [12, 25])
@pytest.mark.parametrize(
    "sections",
    [
        {"method": "fedavg"},
        {"method": "spatl-no-selection"},
        {"method": "spatl-no-selection", "control": {"downlink": "sent"}},
        {"selection": {"selector": "update", "keep_ratio": 0.4}},
        {"method": "ssfl"},
    ],
    ids=["fedavg", "derived", "sent", "selected", "static"],
)
def test_messages_take_the_bytes_that_the_ratio_leaves(tmp_path, strategies, ratio, sections):
    """Records and all, in both directions; and they use what they have, where everything is sent."""
    config = tiny_config(model=LARGER, wire={"target_ratio": ratio}, rounds=5, **sections)
    limit = 4 * blueprint_of(config).layout.num_entries / ratio
    watched = Watched(config, tmp_path, strategies)
    assert run_tiny(config, tmp_path, app=watched.app)["rejected"] == 0
    trained = watched.of("train")
    assert len(trained) == 5 * 5
    assert max(call.download_bytes for call in watched.calls) <= limit
    assert max(call.reply_bytes for call in trained) <= limit
    if config.method == "fedavg":
        assert min(call.reply_bytes for call in trained) > 0.8 * limit
        # The server's steps are an octave apart, which at a few values in a hundred is more than half of the bytes.
        assert fmean(call.download_bytes for call in trained if call.server_round > 1) > 0.5 * limit


def test_a_ratio_that_leaves_little_but_overhead_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"^wire\.target_ratio is 100, which leaves .* give at most \d+$") as caught:
        make_blueprint(tiny_config(wire={"target_ratio": 100}))
    most = int(str(caught.value).split()[-1])
    make_blueprint(tiny_config(wire={"target_ratio": most}))
    with pytest.raises(ConfigError):
        make_blueprint(tiny_config(wire={"target_ratio": 1.2 * most + 1}))


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["adaptive", "int8", "int4-entropy"])
@pytest.mark.parametrize("control", ["derived", "sent"])
def test_every_client_holds_the_servers_encoder_whatever_it_missed(tmp_path, strategies, control, downlink):
    """Half of 6 clients, 14 rounds, a sixth of the messages and a third of the replies lost."""
    config = tiny_config(
        rounds=14, partition={"num_clients": 6}, server={"fraction_train": 0.5}, control={"downlink": control},
        wire={**COMPRESSED, "downlink": downlink},
    )  # fmt: skip
    draw = numpy_generator(5, "messages")
    watched = Watched(config, tmp_path, strategies)
    loses, losses = losing(1 / 3)
    grid_type = missing(lambda client, server_round: draw.random() < 1 / 6)
    summary = run_tiny(config, tmp_path, app=watched.app, loses=loses, grid_type=grid_type)
    trained = watched.of("train")
    assert 0 < sum(losses) < len(losses) == len(trained) < 14 * 3
    assert summary["rejected"] == summary["not_evaluated"] == 0
    assert all(call.agrees for call in watched.calls)
    missed = {call.download.version - call.download.base_version for call in trained}
    assert {1, 2} < missed
    if control == "derived":
        assert {call.update.corrected for call in trained} == {True, False}
        assert all(call.control for call in trained if call.update.corrected)


@pytest.mark.slow
def test_clients_that_never_took_part_are_evaluated_with_the_final_encoder(tmp_path, strategies):
    """One of 6 clients a round, three rounds: the others follow all three changes from the initial encoder."""
    config = tiny_config(partition={"num_clients": 6}, server={"fraction_train": 0.1})
    watched = Watched(config, tmp_path, strategies)
    summary = run_tiny(config, tmp_path, app=watched.app)
    took_part = {call.client for call in watched.of("train")}
    evaluated = watched.of("evaluate")
    assert len(took_part) <= 3
    assert {call.client for call in evaluated} == set(range(6))
    assert all(call.agrees and call.download.version == 3 for call in evaluated)
    assert summary["not_evaluated"] == 0


@pytest.mark.slow
def test_a_client_that_loses_its_directory_starts_again_from_the_initial_encoder(tmp_path, strategies):
    """Client 2's is gone before rounds 3 and 6: each time it says so once, and trains again in the next."""

    def before(client, message):
        if client == 2 and message.metadata.message_type == "train" and message.metadata.group_id in ("3", "6"):
            harm_state(tmp_path, 2, lost=True, running=True)

    config = tiny_config(rounds=7)
    watched = Watched(config, tmp_path, strategies, before=before)
    run_tiny(config, tmp_path, app=watched.app)
    errors = {(call.server_round, call.client): call.error for call in watched.calls if call.error}
    assert errors == {(3, 2): CLIENT_FORGOT, (6, 2): CLIENT_FORGOT}
    rejections = [row["rejections"] for row in read_lines(tmp_path / "history.jsonl")]
    assert [len(refused) for refused in rejections] == [0, 0, 1, 0, 0, 1, 0]
    assert "the server has folded in its round 2" in rejections[2][0]["reason"]
    again = [call for call in watched.of("train", client=2) if call.server_round in (4, 7)]
    assert [(call.download.base_version, call.download.version) for call in again] == [(0, 3), (0, 6)]
    assert all(call.agrees for call in watched.calls if not call.error)
    assert not any(call.download.base is not None for call in watched.calls)
    # In round 4 all begin anew, in round 7 they do not, so soon after: c is derived from all changes since the first.
    assert [len(call.download.derived.missed) for call in again] == [0, 5]
    assert [call.update.corrected for call in again] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("registers", ["what it builds", "what others build"])
def test_a_client_whose_initial_encoder_differs_gets_the_servers(tmp_path, strategies, monkeypatch, registers):
    """Known from registration, or once it arrived elsewhere than it should: then it trains one round later."""
    config = tiny_config(rounds=5)
    truly = Blueprint.initial_encoder

    def call(message: Message, context: Context) -> Message:
        told = message.metadata.message_type == "query" and registers == "what others build"
        if context.node_config["partition-id"] != 2 or told:
            return client_app(message, context)
        with monkeypatch.context() as patch:
            patch.setattr(Blueprint, "initial_encoder", lambda blueprint: truly(blueprint) * 1.001)
            patch.setattr(Workplace, "initial_check", property(lambda own: check_of(own.blueprint.initial_encoder())))
            return client_app(message, context)

    watched = Watched(config, tmp_path, strategies, call=call)
    run_tiny(config, tmp_path, app=watched.app)
    errors = {(call.server_round, call.client): call.error for call in watched.calls if call.error}
    assert errors == ({} if registers == "what it builds" else {(1, 2): CLIENT_LOST})
    assert all(call.agrees for call in watched.calls if not call.error)
    given = {(call.server_round, call.client) for call in watched.calls if call.download.base is not None}
    # It keeps what it was given. Version 0 is what it is known to hold until a reply tells of a later one.
    assert given == {(1, 2), (2, 2)} if registers == "what it builds" else {(2, 2)}


@pytest.mark.slow
def test_deriving_c_costs_ten_bytes_and_sending_it_more(tmp_path):
    control = {}
    for way in ("derived", "sent"):
        run_tiny(tiny_config(control={"downlink": way}), tmp_path / way)
        rows = [row for row in read_lines(tmp_path / way / "ledger.jsonl") if row["direction"] == "downlink"]
        control[way] = {row["control"] for row in rows if row["phase"] == "train"}
        assert {row["control"] for row in rows if row["phase"] != "train"} == {0}
    assert max(control["derived"]) <= 10 < min(control["sent"])


@pytest.mark.slow
def test_c_is_what_the_server_takes_it_for_on_every_client_that_corrects_by_it(tmp_path, strategies):
    """Also on one that takes part in round 2 for the first time, when one change led to c already."""
    config = tiny_config(
        rounds=3, partition={"num_clients": 6}, server={"fraction_train": 0.5}, control={"half_life": None}
    )
    watched = Watched(config, tmp_path, strategies)
    run_tiny(config, tmp_path, app=watched.app)
    trained = watched.of("train")
    first = {call.client for call in trained if call.server_round == 1}
    late = [call for call in trained if call.server_round == 2 and call.client not in first]
    assert late
    assert all(call.update.corrected for call in late)
    assert all(call.control for call in trained if call.update.corrected)


@pytest.mark.slow
def test_a_client_that_missed_a_version_is_not_corrected_until_that_counts_no_more(tmp_path, strategies):
    """Client 2 misses the message of round 3, so it holds a wrong c from round 4 on.

    Of c, a quarter is left a round by the half-life, of which 1 - 0.5 * 0.8 was not estimated anew by the four others:
    0.15. Its tenth power, in round 14, is the first below 1e-8. In round 4 the others miss nothing.
    """
    config = tiny_config(method="spatl-no-selection", rounds=15, control={"half_life": 0.5, "catch_up": 0})
    watched = Watched(config, tmp_path, strategies)
    grid_type = missing(lambda client, server_round: (client, server_round) == (2, 3))
    summary = run_tiny(config, tmp_path, app=watched.app, grid_type=grid_type)
    assert (summary["missing"], summary["rejected"]) == (1, 0)
    corrected = {call.server_round: call.update.corrected for call in watched.of("train", client=2)}
    assert corrected == {r: r < 3 or r >= 14 for r in range(1, 16) if r != 3}
    assert all(call.update.corrected and call.control for call in watched.of("train") if call.client != 2)
    held = state_of(tmp_path, 2)
    assert bool(held.control.any())


@pytest.mark.slow
def test_nothing_is_sent_for_evaluation_but_the_last_encoder(tmp_path, strategies):
    config = tiny_config(server={"fraction_train": 0.6})
    watched = Watched(config, tmp_path, strategies)
    run_tiny(config, tmp_path, app=watched.app)
    ledger = read_lines(tmp_path / "ledger.jsonl")
    phases = {phase: sum(row["phase"] == phase for row in ledger) for phase in ("query", "train", "evaluate")}
    assert phases == {"query": 2 * 5, "train": 2 * 3 * 3, "evaluate": 2 * 5}
    assert {row["round"] for row in ledger if row["phase"] == "evaluate"} == {3}
    last = watched.of("evaluate")
    assert [call.client for call in last] == list(range(5))
    assert all(call.agrees and call.download.version == 3 for call in last)
    assert all(call.download.control is None and call.download.derived is None for call in last)
