"""The server after the rounds: the encoder that all have arrived at is delivered, and evaluated.

Where BatchNorm statistics are aggregated, every client is asked twice: for the statistics of its own data under that
encoder, and then, with those of all data, for its accuracy. The rounds' state stays as it was, so that a run can go on.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from spatl.rounds.answers import Answer, read_answers
from spatl.rounds.federation import Federation
from spatl.rounds.judging import most_tested
from spatl.rounds.server import advanced, pack_downloads
from spatl.rounds.server_state import ServerState
from spatl.rounds.statistics import aggregate_statistics, without_outliers
from spatl.wire.reports import EvaluateReport
from spatl.wire.statistics import Arrival, Statistics, unpack_statistics

logger = logging.getLogger(__name__)


def arrived_state(federation: Federation, state: ServerState, server_round: int) -> ServerState:
    """Return the state in which clients hold the encoder after a round, as near as one more change brings them.

    Args:
        federation: What holds for all rounds.
        state: The server's, after the round.
        server_round: The round.

    Raises:
        DivergedError: The encoder has left all bounds.
    """
    reference, _ = advanced(federation, state, federation.reference(state), server_round + 1)
    return replace(state, versions=reference.versions, statistics=None)  # those of an evaluation before are of another


def final_encoder(federation: Federation, state: ServerState, server_round: int) -> Tensor:
    """Return float32 [N], the encoder as the clients hold it after the last round, x_hat.

    Args:
        federation: What holds for all rounds.
        state: The server's, after the last round.
        server_round: The last round.
    """
    return federation.reference(arrived_state(federation, state, server_round)).encoder


def open_evaluation(
    federation: Federation, state: ServerState, server_round: int, clients: Iterable[int]
) -> tuple[ServerState, dict[int, bytes]]:
    """Pack what leads each client to the encoder after the last round, with the statistics if they are known.

    Args:
        federation: What holds for all rounds.
        state: As `arrived_state` returns it, or `close_statistics`.
        server_round: The last round.
        clients: Who is asked.

    Returns:
        The state that knows of the downloads, and one blob by client.
    """
    return pack_downloads(federation, state, federation.reference(state), server_round, clients, trains=False)


def close_statistics(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> tuple[ServerState, dict[int, Arrival]]:
    """Put the clients' BatchNorm statistics together; what cannot be used is left out, with a warning.

    Args:
        federation: What holds for all rounds.
        state: The server's, as `open_evaluation` returned it.
        server_round: The last round.
        answers: Each client that answered, once, in any order.

    Returns:
        The state with the statistics, or without any where no answer can be used; and what each client told.
    """
    blueprint = federation.blueprint
    told, refused = read_answers(
        answers,
        lambda _, blob: unpack_statistics(
            blob, blueprint.layout, blueprint.codecs.uplink, server_round=server_round, version=state.versions.version,
            num_channels=blueprint.num_statistics, with_accuracy=blueprint.config.keeps_best, judging=blueprint.judging,
        ),
    )  # fmt: skip
    reasons = {client: str(error) for client, error in refused.items()}
    state = replace(state, held={**state.held, **dict.fromkeys(told, state.versions.version)})
    statistics, outlying = statistics_of_all(federation, state, told)
    for client, reason in sorted((reasons | outlying).items()):
        logger.warning("the BatchNorm statistics of client %d are not used: %s", client, reason,
                       extra={"client": client})  # fmt: skip
    if statistics is None and blueprint.statistics:
        logger.warning("no client sent BatchNorm statistics that can be used: each is evaluated with its own")
    return replace(state, statistics=statistics), told


def evaluated(federation: Federation, client: int, blob: bytes) -> EvaluateReport:
    """Return a client's report on the encoder after the last round, once it is seen to be one.

    Raises:
        UpdateRejected: It is none.
    """
    blueprint = federation.blueprint
    return EvaluateReport.from_bytes(blob, blueprint.judging, most_examples=most_tested(blueprint, client))


def statistics_of_all(
    federation: Federation, state: ServerState, told: Mapping[int, Arrival]
) -> tuple[Statistics | None, dict[int, str]]:
    """Return the statistics of what clients told, None where there are none; and why some are not part of it."""
    usable, outlying = without_outliers({client: each.statistics for client, each in told.items()})
    if not usable or not federation.blueprint.statistics:
        return None, outlying
    medians = federation.blueprint.config.server.aggregation != "mean"
    return aggregate_statistics(usable, state.shares, medians=medians), outlying
