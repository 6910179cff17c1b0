"""Global accuracy of a run: the server's model on the official test set, on arrival and after the last round."""

from collections.abc import Mapping

from server.round_record import RoundRecord
from spatl.rounds.evaluation import final_encoder, statistics_of_all
from spatl.rounds.federation import Federation
from spatl.rounds.server_model import measure_server
from spatl.rounds.server_state import ServerState
from spatl.training.device import reproducible
from spatl.wire.statistics import Arrival


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
    with reproducible(blueprint.config.training.threads):
        record.arrived_globally = measure_server(
            blueprint, statistics=statistics, encoder=federation.reference(state).encoder
        )


def measure_final(record: RoundRecord, federation: Federation, state: ServerState, *, last_round: int) -> None:
    """Note in the last round's record how good the model is after it, with the BatchNorm statistics of all clients."""
    config = federation.blueprint.config
    if record.server_round != last_round or config.report.global_accuracy is None:
        return
    with reproducible(config.training.threads):
        record.final_globally = measure_server(
            federation.blueprint,
            statistics=state.statistics,
            encoder=final_encoder(federation, state, record.server_round),
        )
