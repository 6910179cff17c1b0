"""Small federations for tests: a config that runs in a second or two, and ways to look into a run."""

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as client_app
from clients.shared_store import SharedStore
from clients.store import DirectoryStore
from server.app import serve
from server.grids import InProcessGrid
from spatl.channels.layout import EncoderLayout
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.rounds.blueprint import Blueprint, cached_blueprint
from spatl.rounds.client_state import ClientState
from spatl.rounds.control import half_life_of
from spatl.runs.checkpoint import ServerState
from spatl.runs.files import CLIENTS_STATES
from spatl.runs.records import read_lines
from spatl.runs.states import reading_states, states_of
from spatl.seeding import numpy_generator
from spatl.wire.blob import BLOB, DIGEST_BYTES, RECORD, open_sections, section_bytes
from spatl.wire.registration import RegistrationAnswer
from spatl.wire.reports import TrainReport
from spatl.wire.update import Update, unpack_update
from tests.support.messages import codec_of, forged

DENSE = {"uplink": "float32", "downlink": "float32"}
COMPRESSED = {"uplink": "adaptive", "downlink": "adaptive"}
"""The wire that sends everything as it is, and the one that sends changes of what the clients hold."""

DITHERED = {**COMPRESSED, "rounding": "dither"}
"""The second, whose updates are rounded under dither that both sides know."""

both_wires = pytest.mark.parametrize("wire", [DENSE, COMPRESSED], ids=["float32", "adaptive"])


def tiny_config(**sections: Any) -> ExperimentConfig:
    """Five clients on the digits with a very small CNN; sections are merged over it."""
    values: dict[str, Any] = {
        "seed": 3,
        "rounds": 3,
        "partition": {"name": "iid", "num_clients": 5},
        "model": {"name": "cnn", "options": {"channels": [4, 6], "hidden": 12}},
        "training": {"local_steps": 3, "batch_size": 16, "device": "cpu"},
    }
    for key, value in sections.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return parse_config(values)


def of_users(name: str, *, cut: Sequence[str] = ("head",), options: Any = None, **sections: Any) -> ExperimentConfig:
    """A config like `tiny_config` with a network of `tests.support.users_nets`."""
    model = {"name": f"tests.support.users_nets:{name}", "options": options or {}, "cut": list(cut)}
    return tiny_config(model=model, **sections)


def run_tiny(
    config: ExperimentConfig,
    directory: Path,
    *,
    app: ClientApp = client_app,
    grid_type: type[InProcessGrid] = InProcessGrid,
    loses: Callable[[int, Message], bool] = lambda client, message: False,
) -> dict[str, Any]:
    """Run a federation in this process, with a client app and faults of the test's own."""
    grid = grid_type(
        app,
        num_clients=config.partition.num_clients,
        run_config={"config": config.to_json(), "out": str(directory)},
        loses=loses,
    )
    return serve(grid, config, directory)


def without_seconds(content: Any) -> Any:
    """What was read from JSON, without the entries that tell of time: the rest repeats with the seed."""
    if isinstance(content, Mapping):
        return {key: without_seconds(value) for key, value in content.items() if "seconds" not in key}
    return [without_seconds(each) for each in content] if isinstance(content, list) else content


def history_without_seconds(directory: Path) -> Any:
    """The rounds of a run, without the time they took."""
    return without_seconds(read_lines(directory / "history.jsonl"))


def fingerprints(directory: Path) -> list[str]:
    """The encoder after each round of a run, in short."""
    return [row["encoder_fingerprint"] for row in read_lines(directory / "history.jsonl")]


def losing(share: float, *, rounds: Collection[int] = ()) -> tuple[Callable[[int, Message], bool], list[bool]]:
    """Loses so many of the train replies after the clients did their work, in these rounds or in all; and a list."""
    draw, losses = numpy_generator(7, "losses"), []

    def loses(client: int, message: Message) -> bool:
        if message.metadata.message_type != "train" or (rounds and int(message.metadata.group_id) not in rounds):
            return False
        losses.append(bool(draw.random() < share))
        return losses[-1]

    return loses, losses


def tampering(
    change: Callable[[int, RecordDict], RecordDict] = lambda client, content: content,
    *,
    statistics: Callable[[int, RecordDict], RecordDict] = lambda client, content: content,
    findings: Callable[[int, RecordDict], RecordDict] = lambda client, content: content,
) -> ClientApp:
    """A client app whose train replies pass through `change(client, content)`; likewise its statistics and findings."""
    app = ClientApp()

    @app.query("findings")
    def find(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        return Message(findings(context.node_config["partition-id"], reply.content), reply_to=message)

    @app.query("statistics")
    def gather(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        return Message(statistics(context.node_config["partition-id"], reply.content), reply_to=message)

    @app.query()
    def register(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        return Message(change(context.node_config["partition-id"], reply.content), reply_to=message)

    return app


def blueprint_of(config: ExperimentConfig) -> Blueprint:
    """The blueprint all sides of a federation of this process share."""
    return cached_blueprint(config.to_json())


def blob_of(content: RecordDict) -> bytes:
    """The blob in a message; the reply to an evaluation is its report alone."""
    blob = content.config_records[RECORD][BLOB]
    assert isinstance(blob, bytes)
    return blob


def registered(content: RecordDict, **parts: Any) -> RecordDict:
    """The registration in a message with other parts, and a digest that is right."""
    fields = content.config_records[RECORD]
    told = replace(RegistrationAnswer.of_fields(int(fields["partition-id"]), fields), **parts)
    return RecordDict({RECORD: ConfigRecord(told.fields())})


def scaled(blob: bytes, factor: float) -> bytes:
    """An update with all its values times a factor; they are the last section, in float32."""
    length = section_bytes(blob)["values"]

    def change(body: bytes) -> bytes:
        return body[:-length] + (np.frombuffer(body[-length:], "<f4") * np.float32(factor)).tobytes()

    return forged(blob, change) if length else blob


def opened(blob: bytes, layout: EncoderLayout) -> Update:
    """A client's update, of whatever codec, round and version it says."""
    header, _ = open_sections(blob)
    said = header.server_round, header.numbers[0] // 2
    return unpack_update(blob, layout, codec_of(blob), server_round=said[0], base_version=said[1])


def parted(blob: bytes, layout: EncoderLayout) -> tuple[bytes, TrainReport]:
    """The bytes of an update but for its report, which tells of seconds, and its digest; and the report."""
    report = opened(blob, layout).report
    assert report is not None
    assert blob.count(report.to_bytes()) == 1
    return blob[:-DIGEST_BYTES].replace(report.to_bytes(), b""), report


def state_of(directory: Path, client: int) -> ClientState:
    """What a client keeps on its disk."""
    state = kept_state(directory, client)
    assert state is not None
    return state


def kept_state(directory: Path, client: int) -> ClientState | None:
    """The same of a client that may keep nothing."""
    with reading_states(directory) as states:
        if states is not None:
            return SharedStore(directory, states, client).load()
    return DirectoryStore(directory / "clients" / str(client)).load()


def harm_state(
    directory: Path, client: int, *, lost: bool = False, newest: bool = False, running: bool = False
) -> None:
    """Cut off the last byte of a simulated client's state, as a fault of the disk may, or take all of its away.

    Args:
        directory: The run's.
        client: The client.
        lost: Whether the states are lost, and not damaged.
        newest: Whether only the newest is.
        running: Whether this process runs it, so that what it has saved by now is to be in the file first.
    """
    if running and (states := states_of(directory)) is not None:
        states.settle()
    slots = (0,) if newest or not lost else (0, 1)
    with closing(sqlite3.connect(directory / CLIENTS_STATES)) as file:
        for slot in slots:
            if lost:
                file.execute("DELETE FROM states WHERE client = ? AND slot = ?", (client, slot))
            else:
                change = "UPDATE states SET head = substr(head, 1, length(head) - 1) WHERE client = ? AND slot = ?"
                file.execute(change, (client, slot))
        file.commit()


def weighted_control(
    config: ExperimentConfig, directory: Path, state: ServerState, *, server_round: int | None = None
) -> torch.Tensor:
    """sum_i p_i c_i from the clients' disks, as of a round or the last; a client that keeps nothing has c_i = 0.

    What a client has pending counts if the server folded it in, as it would say in the next round.
    """
    total = sum(state.shares.values())
    result = torch.zeros(blueprint_of(config).layout.num_parameter_entries, dtype=torch.float64)
    for client, number in state.shares.items():
        own = kept_state(directory, client)
        if own is None:
            continue
        settled = own.settle(
            acknowledged_round=state.folded.get(client, 0), server_round=server_round or config.rounds,
            half_life=half_life_of(config),
        )  # fmt: skip
        result += number / total * settled.control.double()
    return result


def assert_c_is_the_weighted_sum_of_the_c_i(config: ExperimentConfig, directory: Path, state: ServerState) -> None:
    """Compare the server's c with what lies on the clients' disks, and see that it is not nothing."""
    assert state.control is not None
    expected = weighted_control(config, directory, state)
    torch.testing.assert_close(state.control.double(), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.abs().max()) > 1e-3
