"""ServerApp of Flower: registers the clients, lets Flower's own loop run the strategy, and writes the summary."""

import json
import logging
import platform
import statistics
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

import spatl
from server.best import RoundsOver
from server.grids import FederationGrid, InProcessGrid, StreamingGrid
from server.membership import Membership
from server.pulling import careful
from server.pulse import pulsing, telling_where_it_hangs
from server.recorder import Recorder
from server.registration import Registered, register
from server.strategy import FederationStrategy
from server.traffic import whole_update_bytes
from spatl.artifacts.model_files import write_federation_model
from spatl.channels.selection import Selection
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_run
from spatl.errors import (
    ConfigError,
    DamagedState,
    SpatlError,
    SystemFault,
    from_outside,
    going_on,
    system_fault,
    told,
    traceback_of,
)
from spatl.json_files import write_json
from spatl.rounds.blueprint import Blueprint, servers_blueprint
from spatl.rounds.evaluation import final_encoder
from spatl.rounds.federation import Federation
from spatl.rounds.members import retired
from spatl.rounds.offsets import check_of
from spatl.rounds.privacy import epsilon_of
from spatl.rounds.rules import aggregation_rule
from spatl.rounds.server_model import check_test_data, summarised
from spatl.rounds.weights import bounded_weights, largest_share
from spatl.runner import remarks_on
from spatl.runs.checkpoint import Checkpoint
from spatl.runs.directory import alone_in_run, config_of, write_config
from spatl.runs.files import CONFIG, ERROR, FLOWER_LOG, HISTORY, LOG, SUMMARY, TENSORBOARD
from spatl.runs.going_on import where_to_go_on
from spatl.runs.log import EVENTS, logged_to, make_logs_printable
from spatl.runs.members import read_members
from spatl.runs.states import kept_by, make_states
from spatl.runs.tensorboard import Scalars
from spatl.selection.common_mask import common_selection
from spatl.training.device import reproducible

logger = logging.getLogger(__name__)

app = ServerApp()


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
    if not resume:
        _check_unused(directory)
    devices, opened = bool(context.run_config.get("run")), time.time()
    if devices:  # whose texts are not this machine's
        make_logs_printable()
    with alone_in_run(directory), logged_to(directory / LOG), telling_where_it_hangs(directory / FLOWER_LOG):
        if not resume:
            _check_unused(directory)  # again: what ran in it meanwhile may have ended
        try:
            if not config.has_own_data:
                for record in servers_blueprint(config.to_json()).warnings:
                    if record.created < opened:  # when this run had no log yet
                        EVENTS.handle(record)
            if not str(context.run_config["config"]).lstrip().startswith("{"):  # of a whole config `spatl.run` says it
                known = None if config.has_own_data else servers_blueprint(config.to_json())
                for line in remarks_on(config, known, engine="deployment"):
                    logger.warning("%s", line)
            streaming = grid if isinstance(grid, InProcessGrid) else _streaming(grid, config, devices=devices)
            serve(streaming, config, directory, resume=resume, keys=keys_of(context.run_config), devices=devices)
        except (Exception, SystemExit) as error:
            detailed = from_outside(error)
            EVENTS.error("%s", told(error), exc_info=error if detailed else None)
            refused = system_fault(error) is not None or isinstance(error, SystemFault)
            line = going_on(told(error), directory) if refused else told(error)
            # For whoever started this process and cannot see its exceptions.
            content = {"error": type(error).__name__, "message": line}
            with suppress(OSError):  # of a disk that is full
                write_json(directory / ERROR, content | ({"traceback": traceback_of(error)} if detailed else {}))
            if refused:
                raise SystemFault(line) from error
            raise


def _check_unused(directory: Path) -> None:
    """Raise if a directory holds another run.

    Raises:
        ConfigError: It does.
    """
    used = [name for name in (HISTORY, SUMMARY, ERROR) if (directory / name).exists()]
    if used:
        raise ConfigError(
            f"{directory} holds the {used[0]} of another run; choose another directory for this one (out)"
        )


def _streaming(grid: Grid, config: ExperimentConfig, *, devices: bool) -> StreamingGrid:
    """Return what streams replies over Flower's grid.

    Clients of a simulation wait for each other, so that no time of theirs is usual, and lose no message.
    """
    server = config.server
    again = server.ask_again_after if devices else 0.0
    return StreamingGrid(pulsing(careful(grid)), patience=server.patience, ask_again_after=again)


def serve(
    grid: FederationGrid, config: ExperimentConfig, directory: Path, *, resume: bool = False,
    keys: Mapping[int, int] | None = None, devices: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a federation over a grid.

    A run that goes on repeats the round that it was killed in; that clients register again, and what the killed round
    had sent, is not in the ledger, which holds each round once. That new ones register is in that round.

    Args:
        grid: A grid whose `send_and_receive` yields replies as they come.
        config: The run.
        directory: Where its files go.
        resume: Whether to go on after the last round of the run in `directory`.
        keys: The client whose key each node holds, by node id, where nodes are authenticated.
        devices: Whether clients are machines of their own; one that cannot take part is then left out.

    Returns:
        The object of `summary.json`.

    Raises:
        SpatlError: The run cannot start or cannot go on; what was computed stands in `directory`.
    """
    if not config.has_own_data:
        servers_blueprint(config.to_json()).check_clients()
    aggregation_rule(config.server.aggregation)  # one that is not there shows before any client is waited for
    check_test_data(config)
    if resume and config_of(directory) != config:
        raise ConfigError(f"{directory} was run with another config; resume it with its own config.yaml")
    checkpoint, marks = where_to_go_on(directory, devices=devices) if resume else (None, None)
    done = checkpoint.server_round if checkpoint else 0
    scalars = Scalars(directory / TENSORBOARD, goes_on=done > 0) if config.report.tensorboard else None
    recorder = Recorder(directory, done=done, marks=marks, scalars=scalars)
    if resume:
        (directory / ERROR).unlink(missing_ok=True)
    write_config(directory, config)
    gone = read_members(directory).retired if devices else ()
    checkpoint = _without(gone, checkpoint, recorder)
    known = checkpoint.state.num_examples if checkpoint else {}
    registered = register(grid, config, recorder, keys=keys or {}, known=known, devices=devices, retired=gone)
    config, blueprint, clients = registered.config, registered.blueprint, registered.clients
    if checkpoint:
        _check_encoder(directory, checkpoint, blueprint.layout.num_entries)
    write_config(directory, config)  # with what the clients have agreed on
    check_test_data(config)  # now, and not after the last round
    _check_registered(registered)
    recorder.num_examples.update(registered.num_examples)
    members = Membership(registered, recorder, grid)
    if devices:
        members.write(blueprint)
    recorder.start_clock()
    EVENTS.info("%d clients registered; round %d of %d is next", len(clients), done + 1, config.rounds)
    selection = agreed_selection(registered, known) if config.row.static_mask else None
    strategy = _strategy(registered, members, recorder, selection, checkpoint, grid=grid, simulated=not devices)
    _run_rounds(strategy, grid, config, directory, simulated=not devices)
    _write_model(strategy, recorder, directory)
    facts = _facts(strategy, members, recorder, engine=_engine_name(grid, config))
    most_examples = max(strategy.state.num_examples.values())
    whole = whole_update_bytes(blueprint, most_examples) if blueprint.layout.num_entries else 0
    return recorder.write_summary(facts, whole_update_bytes=whole)


def _without(gone: Collection[int], checkpoint: Checkpoint | None, recorder: Recorder) -> Checkpoint | None:
    """Return where a run goes on, without the clients that were retired while it did not run."""
    leaving = set() if checkpoint is None else checkpoint.state.num_examples.keys() & set(gone)
    if checkpoint is None or not leaving:
        return checkpoint
    recorder.round.retired = tuple(sorted(leaving))
    return replace(checkpoint, state=retired(checkpoint.state, leaving, checkpoint.server_round + 1))


def _check_registered(registered: Registered) -> None:
    """Check what depends on who takes part, before the first round."""
    config, blueprint = registered.config, registered.blueprint
    if config.server.aggregation == "agreement":
        _warn_of_label_skew(blueprint)
    if config.has_own_data:
        blueprint.check_training(registered.num_examples)
        blueprint.check_rule()


def _check_encoder(directory: Path, checkpoint: Checkpoint, num_entries: int) -> None:
    if len(checkpoint.state.encoder) != num_entries:
        raise DamagedState(
            f"{directory / CONFIG} describes an encoder of {num_entries} values, and the run's has "
            f"{len(checkpoint.state.encoder)}: it is not the config of this run; put it back from a copy"
        )


def _strategy(
    registered: Registered, members: Membership, recorder: Recorder, selection: Selection | None,
    checkpoint: Checkpoint | None, *, grid: FederationGrid, simulated: bool,
) -> FederationStrategy:  # fmt: skip
    recorder.groups, recorder.owners = registered.blueprint.layout.groups, registered.blueprint.owners
    recorder.task = registered.blueprint.task
    initial = check_of(registered.blueprint.initial_encoder())
    clients = registered.clients
    return FederationStrategy(
        Federation(registered.blueprint, frozenset(clients), agreed=selection, of_devices=not simulated),
        members=members,
        num_examples=registered.num_examples,
        recorder=recorder,
        grid=grid,
        cannot_build=[client for client, registration in clients.items() if registration.initial != initial],
        checkpoint=checkpoint,
        simulated=simulated,
    )


def _run_rounds(
    strategy: FederationStrategy, grid: Grid, config: ExperimentConfig, directory: Path, *, simulated: bool
) -> None:
    """Run the rounds that are left by Flower's own loop, where clients are simulated with a place for their states."""
    if not strategy.num_rounds_left:
        return
    if simulated:
        num_parameters = sum(each.numel() for each in strategy.federation.blueprint.model.parameters())
        make_states(directory, num_parameters=num_parameters, cluster=config.resources.ray_address is not None)
    kept = kept_by(directory, alone=isinstance(grid, InProcessGrid))
    with kept, reproducible(config.training.threads), suppress(RoundsOver):
        strategy.start(
            grid,
            initial_arrays=ArrayRecord(),  # the strategy packs one blob per round itself
            num_rounds=strategy.num_rounds_left,
            timeout=config.server.round_timeout_seconds,
        )


def _write_model(strategy: FederationStrategy, recorder: Recorder, directory: Path) -> None:
    """Leave the federation's model in the run's directory."""
    federation, state = strategy.federation, strategy.state
    with reproducible(federation.blueprint.config.training.threads):
        write_federation_model(
            directory, federation.blueprint, statistics=state.statistics,
            encoder=final_encoder(federation, state, strategy.last_round),
            accuracy=recorder.final_accuracy, version=spatl.__version__, server_round=strategy.last_round,
        )  # fmt: skip


def agreed_selection(registered: Registered, known: Mapping[int, int]) -> Selection:
    """Return the mask that the saliencies of all clients make, the same for all.

    Raises:
        SpatlError: The run goes on, and the clients are others than those that agreed on its mask.
    """
    config, clients = registered.config, registered.clients
    if known and known.keys() != clients.keys():
        raise SpatlError(
            f"{config.row.title} goes on with the clients that agreed on its channels only: {sorted(known)}, "
            f"got {sorted(clients)}"
        )
    saliency = {client: registration.saliency for client, registration in clients.items()}
    weights = {**registered.num_examples, **bounded_weights(registered.num_examples, largest_share(config))}
    return common_selection(saliency, weights, registered.blueprint.costs, config.budget())


def _facts(strategy: FederationStrategy, members: Membership, recorder: Recorder, *, engine: str) -> dict[str, Any]:
    """Return the facts of the summary that do not follow from the rounds."""
    blueprint = strategy.federation.blueprint
    config = blueprint.config
    facts: dict[str, Any] = {
        "method": config.method,
        "title": config.row.title,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "num_clients": len(members.nodes),
        "engine": engine,
        "versions": {
            "spatl": spatl.__version__,
            "flwr": version("flwr"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    facts |= summarised(blueprint, strategy.state.statistics, recorder.final_globally)
    best = strategy.state.best
    if best is not None and len(recorder.history) < config.rounds:
        facts["ended_early"] = {"best_round": best.server_round, "best_accuracy": best.accuracy}
        EVENTS.info(
            "the run ended after round %d of %d: none since round %d was better on the validation splits",
            len(recorder.history), config.rounds, best.server_round,
        )  # fmt: skip
    if members.absent:
        facts["absent"] = {str(client): reason for client, reason in sorted(members.absent.items())}
    if (noise_multiplier := config.privacy.noise_multiplier) is not None:
        epsilon = epsilon_of(noise_multiplier, recorder.most_participations, config.privacy.delta)
        facts |= {"epsilon": epsilon, "delta": config.privacy.delta}
    return facts


def _warn_of_label_skew(blueprint: Blueprint) -> None:
    """Warn before the first round of clients that are to agree and have few classes in common, or may have."""
    rule = "server.aggregation: agreement is for clients that have most classes in common"
    if blueprint.config.partition.name == "own":
        logger.warning(
            "%s, which the server cannot know of devices: honest ones may be refused (docs/robustness.md)", rule
        )
        return
    labels = blueprint.dataset.targets
    everything, *own = (
        int((torch.bincount(each) > 0).sum()) for each in (labels, *(labels[part] for part in blueprint.partition))
    )
    typical = statistics.median_low(own)
    if 2 * typical < everything:
        logger.warning(
            "%s; here the median client has %d of %d, and honest ones may be refused (docs/robustness.md)",
            rule, typical, everything,
        )  # fmt: skip


def _engine_name(grid: Grid, config: ExperimentConfig) -> str:
    """Return the name of the engine that really ran: `flwr run` may run a config that says `inline`."""
    if isinstance(grid, InProcessGrid):
        return "inline"
    return config.engine if config.engine != "inline" else "flower"


def keys_of(run_config: Mapping[str, Any]) -> dict[int, int]:
    """Return the client whose key each node holds, by node id; nothing where nodes are not authenticated."""
    nodes: dict[str, int] = json.loads(str(run_config.get("nodes", "{}")))
    return {node_id: int(client) for client, node_id in nodes.items()}
