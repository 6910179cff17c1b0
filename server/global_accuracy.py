"""Global accuracy of a run: the server's model on the official test set, on arrival and after the last round."""

from collections.abc import Callable, Mapping

from torch import Tensor

from server.round_record import RoundRecord
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.evaluation import final_encoder, statistics_of_all
from spatl.rounds.federation import Federation
from spatl.rounds.server_model import measure_server, why_not_measured
from spatl.rounds.server_state import ServerState
from spatl.training.device import reproducible
from spatl.training.evaluate import Evaluation
from spatl.wire.statistics import Arrival, Statistics


def measure_arrived(
    record: RoundRecord, federation: Federation, state: ServerState, told: Mapping[int, Arrival]
) -> None:
    """Note in a round's record how good the model is that its clients have received, in a round that is to tell.

    Where BatchNorm statistics are put together after the last round alone, there are none that belong to it, unless
    clients tell of theirs in every round (`report.best`); then it is not measured.

    Args:
        record: Of the round.
        federation: What holds for all rounds.
        state: The server's, whose versions are those that the clients hold.
        told: What clients told of the model when it arrived.
    """
    blueprint = federation.blueprint
    if not blueprint.config.report.measures_arrived(record.server_round):
        return
    statistics = statistics_of_all(federation, state, told)[0] if told else None
    record.arrived_globally = _measured(blueprint, statistics, lambda: federation.reference(state).encoder)


def measure_final(record: RoundRecord, federation: Federation, state: ServerState, *, last_round: int) -> None:
    """Note in the last round's record how good the model is after it, with the BatchNorm statistics of all clients."""
    config = federation.blueprint.config
    if record.server_round != last_round or config.report.global_accuracy is None:
        return
    record.final_globally = _measured(
        federation.blueprint, state.statistics, lambda: final_encoder(federation, state, last_round)
    )


def _measured(blueprint: Blueprint, statistics: Statistics | None, encoder: Callable[[], Tensor]) -> Evaluation | None:
    """Measure the server's model, whose encoder is made for that alone; None where it cannot be measured."""
    if why_not_measured(blueprint, statistics) is not None:
        return None
    with reproducible(blueprint.config.training.threads):
        return measure_server(blueprint, statistics=statistics, encoder=encoder())
