"""Start of a run that goes on: its checkpoint, held against all else it needs, before anything is cut or written."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from spatl.errors import DamagedState, SpatlError
from spatl.rounds.client_state import FORMAT
from spatl.runs.checkpoint import Checkpoint, load_checkpoint
from spatl.runs.files import PREVIOUS_STATE, STATE
from spatl.runs.marks import Mark, check_without_checkpoint, checked_marks
from spatl.runs.states import States, reading_states
from spatl.sealed_files import read_sealed

_CLIENTS = "clients"  # of a simulation, each with a directory of its own


def where_to_go_on(directory: Path, *, devices: bool) -> tuple[Checkpoint | None, dict[str, Mark] | None]:
    """Return the checkpoint of a run, None before its first round is over, and the marks of its record.

    Args:
        directory: The run's.
        devices: Whether clients are machines of their own, which keep what is theirs.

    Raises:
        SpatlError: They do not fit each other, or are damaged; or what a client of a simulation keeps is.
    """
    checkpoint = load_checkpoint(directory)
    if checkpoint is None:
        check_without_checkpoint(directory)
        return None, None
    marks = checked_marks(directory, checkpoint.server_round)
    if not devices:
        check_client_states(directory, checkpoint.state.folded, server_round=checkpoint.server_round)
    return checkpoint, marks


def check_client_states(directory: Path, folded: Mapping[int, int], *, server_round: int) -> None:
    """Raise unless each client of a simulation keeps what it goes on from; nothing is written.

    A client whose state is damaged would go on from an older one, or be refused, and the run come to other numbers.

    Args:
        directory: The run's.
        folded: The last round of each client that the server has folded in; 0 for none.
        server_round: The last round that is over.

    Raises:
        DamagedState: One of them does not.
    """
    with reading_states(directory) as states:
        for client, last in sorted(folded.items()):
            faults = list[str]()
            kept = _in_files(directory, client) if states is None else _in_one_file(states, client)
            if last and not any(_fits(where, round_of, last, server_round, faults) for where, round_of in kept):
                raise DamagedState(
                    f"client {client} cannot go on after round {server_round}: {faults[0]}; put it back from a copy of "
                    "the run, or start a run in another directory"
                )
        if states is not None:
            states.check()


_Kept = Sequence[tuple[str, Callable[[], int]]]
"""Places of a client's states, the newest first, and what reads the round of each."""


def _in_files(directory: Path, client: int) -> _Kept:
    def round_of(path: Path) -> int:
        _, header = read_sealed(path, version=FORMAT, what="the client's state")
        return int(header["control_round"])

    paths = (directory / _CLIENTS / str(client) / name for name in (STATE, PREVIOUS_STATE))
    return [(str(path), partial(round_of, path)) for path in paths]


def _in_one_file(states: States, client: int) -> _Kept:
    def round_of(before: bool) -> int:
        state = states.read(client, before=before)
        if state is None:
            raise FileNotFoundError
        return state.control_round

    return [(f"the state in {states.path}", partial(round_of, before)) for before in (False, True)]


def _fits(where: str, round_of: Callable[[], int], first: int, last: int, faults: list[str]) -> bool:
    """Return whether a state is whole and of a round from `first` to `last`; why not is added to the faults."""
    try:
        number = round_of()
    except FileNotFoundError:
        faults.append(f"{where} is not there")
    except SpatlError as error:
        faults.append(f"{error} ({where})")
    else:
        if first <= number <= last:
            return True
        faults.append(f"{where} is of round {number}")
    return False
