"""Rounds of one client, without a server and its downloads."""

from torch import Tensor

from spatl.channels.costs import Budget
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.client import train_round
from spatl.rounds.client_evaluation import evaluate_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.control import half_life_of
from spatl.rounds.workplace import Workplace
from spatl.wire.download import Model
from spatl.wire.reports import EvaluateReport


def received(blueprint: Blueprint, *, server_round: int = 1, control: Tensor | None = None) -> Model:
    """What a download leads to: the initial encoder."""
    return Model(server_round, server_round - 1, blueprint.initial_encoder(), control)


def train(
    workplace: Workplace,
    client: int,
    received: Model,
    state: ClientState | None,
    *,
    acknowledged_round: int,
    budget: Budget | None = None,
) -> tuple[bytes, ClientState]:
    """Train from a state that has just come, of which the server has folded in the update of a round."""
    settled = settle(workplace, received, state, acknowledged_round)
    return train_round(workplace, client, received, settled, budget=budget)


def evaluate(
    workplace: Workplace, client: int, received: Model, state: ClientState | None, *, acknowledged_round: int
) -> tuple[EvaluateReport, ClientState]:
    """Evaluate likewise."""
    return evaluate_round(workplace, client, received, settle(workplace, received, state, acknowledged_round))


def settle(workplace: Workplace, received: Model, state: ClientState | None, acknowledged_round: int) -> ClientState:
    """Return the state as `spatl.rounds.client.receive` settles it."""
    return (state or ClientState.initial(workplace.blueprint.layout)).settle(
        acknowledged_round=acknowledged_round,
        server_round=received.server_round,
        half_life=half_life_of(workplace.config),
    )
