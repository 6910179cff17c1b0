"""The best model of a run so far, by the clients' validation splits (`report.best`)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import spatl
from spatl.artifacts.description import DESCRIPTION, read_description
from spatl.artifacts.model_files import describe_model, write_model
from spatl.artifacts.names import BEST, MODEL
from spatl.config.experiment import ExperimentConfig
from spatl.rounds.best import better_of, is_enough
from spatl.rounds.evaluation import statistics_of_all
from spatl.rounds.federation import Federation
from spatl.rounds.server_model import server_tensors
from spatl.rounds.server_state import ServerState
from spatl.runs.records import known, mean
from spatl.wire.statistics import Arrival


class RoundsOver(Exception):
    """No round is left, though Flower counts on: the run has ended by itself (`server.stop_after`)."""


def check_rounds_left(server_round: int, last_round: int) -> None:
    """Raise where a round comes after the last one.

    Raises:
        RoundsOver: It does.
    """
    if server_round > last_round:
        raise RoundsOver


def last_round_after(state: ServerState, server_round: int, config: ExperimentConfig) -> int:
    """Return the last round of a run as far as is known after a round: it, where none of late was better."""
    over = is_enough(state.best, server_round, config.server.stop_after)
    return server_round if over else config.rounds


def watched(federation: Federation, state: ServerState, server_round: int, told: Mapping[int, Arrival]) -> ServerState:
    """Return the state that knows what clients told of the model as it stood after a round."""
    return replace(state, best=better_of(state.best, _accuracy(told), server_round, task=federation.blueprint.task))


def keep_best(
    run: Path, federation: Federation, state: ServerState, server_round: int, told: Mapping[int, Arrival]
) -> None:
    """Write the model that clients hold if it is better than all before it on their validation splits.

    Of equal ones the last is kept. The initial model is none: there is nothing in it of the run.

    Args:
        run: The run's directory.
        federation: What holds for all rounds.
        state: The server's, whose versions are those that the clients hold.
        server_round: The round after which the model stands; 0 for the initial one.
        told: What clients told of it when it arrived.
    """
    accuracy = _accuracy(told)
    directory = run / MODEL / BEST
    if accuracy is None or server_round < 1:
        return
    if (directory / DESCRIPTION).exists():
        best = read_description(directory)
        sign = federation.blueprint.task.score.sign
        if best.accuracy is not None and (sign * best.accuracy, best.round) > (sign * accuracy, server_round):
            return
    encoder = federation.reference(state).encoder
    statistics, _ = statistics_of_all(federation, state, told)
    description = describe_model(
        federation.blueprint, statistics=statistics, encoder=encoder, accuracy=accuracy, version=spatl.__version__
    ).named(round=server_round)
    write_model(directory, description, server_tensors(federation.blueprint, statistics=statistics, encoder=encoder))


def _accuracy(told: Mapping[int, Arrival]) -> float | None:
    return mean(known(each.accuracy for each in told.values()))
