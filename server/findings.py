"""Question for findings: what the model of all does on each client's validation split (`report.findings`)."""

import logging
from pathlib import Path

from flwr.serverapp import Grid

from server.exchange import Exchange, contents
from spatl.errors import DivergedError
from spatl.rounds.evaluation import arrived_state, open_evaluation
from spatl.rounds.federation import Federation
from spatl.rounds.findings import close_findings
from spatl.rounds.server_state import ServerState
from spatl.runs.findings import write_findings
from spatl.saliency.filters import main_filters
from spatl.wire.findings import FINDINGS_QUESTION

logger = logging.getLogger(__name__)


def ask_for_findings(
    exchange: Exchange, grid: Grid, federation: Federation, state: ServerState, server_round: int, *,
    arrived: bool, run: Path,
) -> None:  # fmt: skip
    """Ask the clients that are connected, where it is time, and keep what they answer in the run's directory.

    Nothing else changes: neither side takes the encoder that is sent along for one that the client holds.

    Args:
        exchange: Carries the messages.
        grid: Flower's.
        federation: What holds for all rounds.
        state: The server's after the round.
        server_round: The round.
        arrived: Whether the state is already that in which clients hold the encoder after the round.
        run: The run's directory.
    """
    blueprint = federation.blueprint
    config = blueprint.config
    if not config.report.asks_findings(server_round, last=arrived):
        return
    try:
        state = state if arrived else arrived_state(federation, state, server_round)
    except DivergedError:  # which the next round ends with
        return
    connected = set(grid.get_node_ids())
    clients = [client for client, node in sorted(exchange.nodes.items()) if node in connected]
    if away := sorted(exchange.nodes.keys() - clients):
        logger.warning("findings: not connected, and not asked: client %s", ", ".join(map(str, away)),
                       extra={"round": server_round})  # fmt: skip
    _, downloads = open_evaluation(federation, state, server_round, clients)
    questions = exchange.ask(downloads, server_round, FINDINGS_QUESTION, connected)
    replies = grid.send_and_receive(questions, timeout=config.server.round_timeout_seconds)
    answers = exchange.answers(replies, server_round, "findings")
    found = close_findings(federation, state, server_round, contents(answers))
    if found:
        names = blueprint.dataset.class_names
        write_findings(run, server_round, found, filters=main_filters(blueprint.model), class_names=names)
