"""Federations whose clients lose what they keep between two rounds, or get back an older copy of it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from unittest.mock import patch

from server.recorder import Recorder
from server.strategy import FederationStrategy
from spatl.config.experiment import ExperimentConfig
from spatl.rounds.client_state import ClientState
from spatl.runs.states import states_of
from tests.support.federations import harm_state, run_tiny, weighted_control

Harm = Callable[[Path, int], None]


def distances_with(config: ExperimentConfig, directory: Path, harms: Mapping[int, Iterable[Harm]]) -> list[float]:
    """How far c is from the weighted sum of the c_i after each round, as a share of c's length.

    Args:
        config: The run.
        directory: Where it goes.
        harms: What is done to the clients' states after each round, once the distance is known; each is called with the
            run's directory and the round.
    """
    strategies, found = list[FederationStrategy](), list[float]()
    made, finished = FederationStrategy.__init__, Recorder.finish_round

    def make(self, *args, **kwargs):
        made(self, *args, **kwargs)
        strategies.append(self)

    def finish(self, **kwargs):
        number, state = self.round.server_round, strategies[-1].state
        summed = weighted_control(config, directory, state, server_round=number)
        found.append(float((state.control.double() - summed).norm() / state.control.double().norm()))
        row = finished(self, **kwargs)
        for harm in harms.get(number, ()):
            harm(directory, number)
        return row

    with patch.object(FederationStrategy, "__init__", make), patch.object(Recorder, "finish_round", finish):
        run_tiny(config, directory)
    return found


def loss_of(*clients: int) -> Harm:
    """All that these clients keep is gone."""

    def harm(directory: Path, server_round: int) -> None:
        for client in clients:
            harm_state(directory, client, lost=True, running=True)

    return harm


_BACKUPS: dict[tuple[Path, int], list[ClientState]] = {}


def backup_of(client: int) -> Harm:
    """What a client keeps is copied."""

    def harm(directory: Path, server_round: int) -> None:
        states = states_of(directory)
        assert states is not None
        kept = [states.read(client, before=before) for before in (True, False)]
        _BACKUPS[directory, client] = [state for state in kept if state is not None]

    return harm


def return_of_backup(client: int) -> Harm:
    """The copy takes the place of what the client keeps."""

    def harm(directory: Path, server_round: int) -> None:
        loss_of(client)(directory, server_round)
        states = states_of(directory)
        assert states is not None
        for state in _BACKUPS.pop((directory, client)):
            states.write(client, state)

    return harm
