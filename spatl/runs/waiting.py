"""Waiting of a deployment's server for its clients, kept in the run's directory while it lasts."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from spatl.errors import DamagedState
from spatl.json_files import read_object, write_json
from spatl.runs.files import WAITING


@dataclass(frozen=True)
class Waiting:
    """Waiting for clients.

    Attributes:
        server_round: The round that cannot begin; 0 before the run does.
        since: Since when, in seconds since 1970.
        needed: How many clients must be connected.
        connected: How many are.
        missing: Those that are not.
        resting: Those whose owners let them rest, where they are what is waited for.
    """

    server_round: int
    since: float
    needed: int
    connected: int
    missing: tuple[int, ...]
    resting: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return it as a line."""
        before = f"round {self.server_round}" if self.server_round else "the start"
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        if self.resting:
            return (
                f"{before} waits since {began} for {self.needed - self.connected} more of {self.needed} clients; the "
                f"owners of their devices let them rest: {', '.join(map(str, self.resting))}"
            )
        named = ", ".join(map(str, self.missing))
        return (
            f"{before} waits since {began} for {self.needed - self.connected} more of {self.needed} clients; "
            f"not connected: {named or 'unknown'}"
        )


def read_waiting(directory: Path) -> Waiting | None:
    """Return what the server of a run waits for; None where it does not.

    Raises:
        SpatlError: What is written there is damaged.
    """
    try:
        values = read_object(directory / WAITING)
    except FileNotFoundError:
        return None
    try:
        return Waiting(**{**values, "missing": tuple(values["missing"]), "resting": tuple(values.get("resting", ()))})
    except (KeyError, TypeError) as error:
        raise DamagedState(f"{directory / WAITING} is damaged: {error}") from error


def write_waiting(directory: Path, waiting: Waiting | None) -> None:
    """Write what a server waits for, or that it does not any more."""
    if waiting is None:
        (directory / WAITING).unlink(missing_ok=True)
    else:
        write_json(directory / WAITING, asdict(waiting))
