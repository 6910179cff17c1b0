"""Flower's ServerApp: registers the clients, lets Flower's own loop run the strategy, and writes the summary."""

import json
import logging
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

import spatl
from server.checkpoint import load_checkpoint
from server.grids import InProcessGrid, StreamingGrid
from server.reporting import Recorder
from server.strategy import Federation, error_line
from server.traffic import message_traffic
from spatl.config import ExperimentConfig, config_from_run
from spatl.durable import replace_file
from spatl.errors import ConfigError, SpatlError, UpdateRejected
from spatl.federation import Blueprint, cached_blueprint, reproducible
from spatl.history import alone_in_run, write_json
from spatl.ledger import Direction, entry
from spatl.logs import EVENTS, logged_to
from spatl.privacy import epsilon_of
from spatl.protocol import BLOB, RECORD, unpack_saliency
from spatl.reference import check_of
from spatl.runner import config_of, remarks_on
from spatl.scalars import Scalars
from spatl.selection.static import common_selection

logger = logging.getLogger(__name__)

app = ServerApp()

_CONNECT_POLL_SECONDS = 0.5
_FIRST_ROUND = "1"  # registration belongs to it
_PASSING_ERRORS = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run config; its results go to the directory `out`, or to `runs/` beside the server.

    With `resume` in the run config, the run that the directory holds goes on.

    Raises:
        SpatlError: The run cannot start or cannot go on; the directory holds another run, which stays as it is, or
            another process runs it.
    """
    config = config_from_run(context.run_config)
    directory = Path(str(context.run_config.get("out", "")) or f"runs/flwr-{context.run_id}").absolute()
    resume = bool(context.run_config.get("resume", False))
    used = [name for name in ("history.jsonl", "summary.json", "error.json") if (directory / name).exists()]
    if used and not resume:
        raise ConfigError(
            f"{directory} holds the {used[0]} of another run; choose another directory for this one (out)"
        )
    with alone_in_run(directory), logged_to(directory / "log.jsonl"):
        try:
            if not str(context.run_config["config"]).lstrip().startswith("{"):  # of a whole config `spatl.run` says it
                for line in remarks_on(config, cached_blueprint(config.to_json()), engine="deployment"):
                    logger.warning("%s", line)
            streaming = (
                grid if isinstance(grid, InProcessGrid) else StreamingGrid(grid, patience=config.server.patience)
            )
            keys = _keys_of(context.run_config)
            serve(streaming, config, directory, resume=resume, keys=keys)
        except SpatlError as error:
            EVENTS.error("%s", error)
            # For whoever started this process and cannot see its exceptions.
            write_json(directory / "error.json", {"error": type(error).__name__, "message": str(error)})
            raise


def serve(
    grid: Grid, config: ExperimentConfig, directory: Path, *, resume: bool = False,
    keys: Mapping[int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a federation over a grid.

    A run that goes on repeats the round that it was killed in; that all clients register again, and what the killed
    round had sent, is not in the ledger, which holds each round once.

    Args:
        grid: A grid whose `send_and_receive` yields replies as they come.
        config: The run.
        directory: Where its files go.
        resume: Whether to go on after the last round of the run in `directory`.
        keys: The client whose key each node holds, by node id, where nodes are authenticated.

    Returns:
        The object of `summary.json`.

    Raises:
        SpatlError: The run cannot start or cannot go on; what was computed stands in `directory`.
    """
    blueprint = cached_blueprint(config.to_json())
    blueprint.check_clients()
    if resume and config_of(directory) != config:
        raise ConfigError(f"{directory} was run with another config; resume it with its own config.yaml")
    checkpoint = load_checkpoint(directory) if resume else None
    done = checkpoint.server_round if checkpoint else 0
    scalars = Scalars(directory / "tensorboard", done=done) if config.report.tensorboard else None
    recorder = Recorder(directory, done=done, scalars=scalars)
    if resume:
        (directory / "error.json").unlink(missing_ok=True)
    replace_file(directory / "config.yaml", config.to_yaml().encode())
    clients = _register(grid, blueprint, recorder if checkpoint is None else None, keys or {})
    num_examples = {client: registration.num_examples for client, registration in clients.items()}
    nodes = {client: registration.node_id for client, registration in clients.items()}
    recorder.num_examples.update(num_examples)
    recorder.start_clock()
    EVENTS.info("%d clients registered; round %d of %d is next", len(clients), done + 1, config.rounds)
    selection = None
    if config.row.static_mask:
        saliency = {client: registration.saliency for client, registration in clients.items()}
        selection = common_selection(saliency, num_examples, blueprint.costs, config.budget())
    own = check_of(blueprint.initial_encoder())
    strategy = Federation(
        blueprint,
        nodes=nodes,
        num_examples=num_examples,
        recorder=recorder,
        selection=selection,
        cannot_build=[client for client, registration in clients.items() if registration.initial != own],
        checkpoint=checkpoint,
    )
    if strategy.num_rounds_left:
        with reproducible(config.training.threads):
            strategy.start(
                grid,
                initial_arrays=ArrayRecord(),  # the strategy packs one blob per round itself
                num_rounds=strategy.num_rounds_left,
                timeout=config.server.round_timeout_seconds,
            )
    facts: dict[str, Any] = {
        "method": config.method,
        "title": config.row.title,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "num_clients": len(nodes),
        "engine": _engine_name(grid, config),
        "versions": {
            "spatl": spatl.__version__,
            "flwr": version("flwr"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if (noise_multiplier := config.privacy.noise_multiplier) is not None:
        epsilon = epsilon_of(noise_multiplier, recorder.most_participations, config.privacy.delta)
        facts |= {"epsilon": epsilon, "delta": config.privacy.delta}
    whole = strategy.whole_update_bytes() if blueprint.layout.num_entries else 0
    return recorder.write_summary(facts, whole_update_bytes=whole)


def _engine_name(grid: Grid, config: ExperimentConfig) -> str:
    """What really ran: `flwr run` may run a config that says `inline`."""
    if isinstance(grid, InProcessGrid):
        return "inline"
    return config.engine if config.engine != "inline" else "flower"


@dataclass(frozen=True, eq=False)
class _Registration:
    """What a client says of itself: where it is, how much it trains on, and, if asked, its channel saliency [C].

    `initial` is a digest of the initial encoder that it builds.
    """

    node_id: int
    num_examples: int
    initial: bytes
    saliency: Tensor


def _keys_of(run_config: Mapping[str, Any]) -> dict[int, int]:
    """The client whose key each node holds, by node id; nothing where nodes are not authenticated."""
    nodes: dict[str, int] = json.loads(str(run_config.get("nodes", "{}")))
    return {node_id: int(client) for client, node_id in nodes.items()}


def _register(
    grid: Grid, blueprint: Blueprint, recorder: Recorder | None, keys: Mapping[int, int]
) -> dict[int, _Registration]:
    """Ask every node which partition it holds: return the registrations by client, and record their bytes."""
    config = blueprint.config
    clients: dict[int, _Registration] = {}
    question = RecordDict({RECORD: ConfigRecord({"fingerprint": blueprint.layout.fingerprint})})
    asked: Counter[int] = Counter()
    for reply in _answers(grid, config, question, clients, asked):
        client, registration = _registration(reply, blueprint)
        owner = keys.get(registration.node_id, client)
        if owner != client:
            raise ConfigError(f"the node with the key of client {owner} says that it holds partition {client}")
        if client in clients:
            raise ConfigError(f"two nodes say that they hold partition {client}; give each its own partition-id")
        clients[client] = registration
        if recorder is None:
            continue
        sent: list[tuple[Direction, RecordDict]] = [("downlink", question)] * asked[registration.node_id]
        # What the clients say of their channels is there to agree on indices.
        indices = {"uplink": 4 * registration.saliency.numel()}
        for way, content in [*sent, ("uplink", reply.content)]:
            traffic = message_traffic(content, direction=way, message_type=MessageType.QUERY, group_id=_FIRST_ROUND)
            recorder.round.entries.append(
                entry(
                    server_round=1, client=client, direction=way, phase="query",
                    num_bytes=traffic.num_bytes, opposite=traffic.opposite,
                    sections={"indices": indices.get(way, 0)},
                )
            )  # fmt: skip
    missing = sorted(set(range(config.partition.num_clients)) - set(clients))
    if missing:
        raise SpatlError(f"clients {missing} did not register; the run needs all {config.partition.num_clients}")
    return dict(sorted(clients.items()))


def _answers(
    grid: Grid, config: ExperimentConfig, question: RecordDict, clients: Mapping[int, _Registration],
    asked: Counter[int],
) -> Iterator[Message]:  # fmt: skip
    """Ask the nodes that are not among the clients yet; those that go before they answer are asked when they are back.

    `asked` counts the questions by node.

    Raises:
        SpatlError: Not enough nodes are connected.
    """
    deadline = time.monotonic() + config.server.connect_timeout_seconds
    lost = True
    while lost:
        known = {client.node_id for client in clients.values()}
        nodes = [node_id for node_id in _connected_nodes(grid, config) if node_id not in known]
        questions = [
            Message(question, dst_node_id=node_id, message_type=MessageType.QUERY, group_id=_FIRST_ROUND)
            for node_id in nodes
        ]
        asked.update(nodes)
        lost = False
        for reply in grid.send_and_receive(questions, timeout=config.server.round_timeout_seconds):
            if reply.has_error() and reply.error.code in _PASSING_ERRORS and time.monotonic() < deadline:
                lost = True
                logger.warning("node %d could not register, it will be asked again: %s", reply.metadata.src_node_id,
                               error_line(reply.error))  # fmt: skip
            else:
                yield reply


def _registration(reply: Message, blueprint: Blueprint) -> tuple[int, _Registration]:
    if reply.has_error():
        raise SpatlError(f"a client could not register: {error_line(reply.error)}")
    try:
        metrics = reply.content.metric_records["metrics"]
        client, examples = metrics["partition-id"], metrics["num-examples"]
        own = reply.content.config_records[RECORD]
        fingerprint, initial = own["fingerprint"], own["initial"]
        static = blueprint.config.row.static_mask
        blob = own[BLOB] if static else b""
    except KeyError as error:
        raise SpatlError(f"a client's registration lacks {error}") from error
    num_clients = blueprint.config.partition.num_clients
    if not isinstance(client, int) or not 0 <= client < num_clients:
        raise ConfigError(f"a node says it holds partition {client}; the config has {num_clients}, counted from 0")
    if not isinstance(examples, int) or examples < 1:
        raise SpatlError(f"client {client} registered with {examples} training examples, expected at least 1")
    if fingerprint != blueprint.layout.fingerprint:
        raise SpatlError(f"client {client} built another model from this config; do its versions differ?")
    if not isinstance(initial, bytes) or not isinstance(blob, bytes):
        raise SpatlError(f"client {client} registered with other than bytes where bytes are expected")
    try:
        saliency = unpack_saliency(blob, blueprint.layout) if static else torch.zeros(0)
    except UpdateRejected as error:
        raise SpatlError(f"client {client} could not register: {error}") from error
    return client, _Registration(reply.metadata.src_node_id, examples, initial, saliency)


def _connected_nodes(grid: Grid, config: ExperimentConfig) -> Sequence[int]:
    """Wait until as many nodes are connected as the partition has clients."""
    wanted = config.partition.num_clients
    deadline = time.monotonic() + config.server.connect_timeout_seconds
    while len(node_ids := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(_CONNECT_POLL_SECONDS)
    if len(node_ids) != wanted:
        raise ConfigError(
            f"partition.num_clients is {wanted}, but {len(node_ids)} nodes are connected; for a simulation add "
            f'--federation-config "num-supernodes={wanted}"'
        )
    return node_ids
