"""Kills in real deployments, after which what must hold is checked.

`python -m tests.studies.chaos [--federations F] [--cycles N]` runs them. Each is one server and four clients with TLS
and keys, on loopback. In every cycle, at random instants, SIGKILL of the process in which a client works on a message,
of a SuperNode, and of the server; what ended is started again, as systemd would.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatl.config.experiment import ExperimentConfig
from tests.support.federations import COMPRESSED, tiny_config
from tests.support.fleets import Fleet, check_run, history_of, make_federation

NUM_CLIENTS = 4
PARTS = ("client process", "SuperNode", "server")
_PATIENCE_SECONDS = 120.0
_TRIES = 20


@dataclass
class Outcome:
    """A run that was killed again and again.

    Attributes:
        config: The run.
        directory: The federation's.
        kills: How many SIGKILLs hit what.
        seconds: How long it took.
        histories: The history as each kill of the server left it.
    """

    config: ExperimentConfig
    directory: Path
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    def repeated(self) -> list[int]:
        """How many rounds that were in the history were done again, per kill of the server."""
        last = self.history()
        return [sum(row not in last for row in history) for history in self.histories]

    @property
    def run(self) -> Path:
        """The directory of the run's files."""
        return self.directory / "server" / "run"

    def history(self) -> list[dict[str, Any]]:
        """The rounds that are over; a last line that is being written is left out."""
        return history_of(self.run)


def cause(directory: Path, *, cycles: int, seed: int, say: Callable[[str], None] = print) -> Outcome:
    """Run a federation with three kills in every cycle, and stop it two rounds after the last.

    Raises:
        AssertionError: Something does not go on.
    """
    config = tiny_config(
        method="spatl", rounds=100 * cycles, wire=COMPRESSED, selection={"selector": "update"},
        data={"name": "synthetic", "options": {"num_examples": 200, "image_size": 8}},
        partition={"num_clients": NUM_CLIENTS}, training={"local_steps": 300},
        server={"round_timeout_seconds": 25.0, "patience": 1.0},
    )  # fmt: skip
    outcome, draw, began = Outcome(config, directory), random.Random(seed), time.monotonic()
    make_federation(config, directory)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(directory, NUM_CLIENTS, stack)
        for cycle in range(cycles):
            _get_on(fleet, outcome, rounds=1)
            for what in draw.sample(PARTS[:2], 2):
                for attempt in range(_TRIES):  # the work was over before: earlier in the next one
                    fleet.wait(fleet.working, _PATIENCE_SECONDS)
                    fleet.wait(lambda: False, draw.uniform(0, 1 / 2**attempt))
                    victims = fleet.working() if what == "client process" else fleet.supernodes()
                    if victims and _kill(draw.choice(victims), what, outcome):
                        break
            fleet.wait(lambda: False, draw.uniform(0, 8))
            if fleet.server.poll() is None:
                _kill(fleet.server.pid, "server", outcome)
                fleet.server.wait(_PATIENCE_SECONDS)
                outcome.histories.append(outcome.history())
            fleet.restart_server()
            over = len(outcome.history())
            say(f"cycle {cycle + 1} of {cycles}, round {over}, {dict(outcome.kills)}, "
                f"{time.monotonic() - began:.0f} s")  # fmt: skip
        _get_on(fleet, outcome, rounds=2)
    outcome.seconds = time.monotonic() - began
    return outcome


def _get_on(fleet: Fleet, outcome: Outcome, *, rounds: int) -> None:
    """Wait until so many more rounds are over, starting a server again that has ended.

    Raises:
        AssertionError: They do not come; the message is what all parts said last.
    """
    wanted, deadline = len(outcome.history()) + rounds, time.monotonic() + 3 * _PATIENCE_SECONDS
    while not fleet.wait(lambda: len(outcome.history()) >= wanted, _PATIENCE_SECONDS):
        assert time.monotonic() < deadline, fleet.told()
        if fleet.server.poll() is not None:
            fleet.restart_server()


def check(outcome: Outcome) -> float:
    """Check what must hold after any kill; return the largest entry of c, which should not be zero.

    Raises:
        AssertionError: As of `check_run`, or more than one round was done again.
    """
    assert max(outcome.repeated(), default=0) <= 1, outcome.repeated()
    return check_run(outcome.config, outcome.directory)


def _kill(pid: int, what: str, outcome: Outcome) -> bool:
    """Send SIGKILL; return whether the process was there: one that ended by itself just before is not counted."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    outcome.kills[what] += 1
    return True


def main() -> None:
    """Do it to some federations side by side, and print what came of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.chaos")
    parser.add_argument("--federations", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=20, help="of each federation")
    parser.add_argument("--seed", type=int, default=1, help="of the first federation, counted up for the others")
    parser.add_argument("--at-least", type=int, default=1, help="how often each part must have been killed, in all")
    options = parser.parse_args()

    def outcome_of(seed: int) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="spatl-chaos-", ignore_cleanup_errors=True) as scratch:
            outcome = cause(Path(scratch) / "federation", cycles=options.cycles, seed=seed,
                            say=lambda line: print(f"seed {seed}: {line}", flush=True))  # fmt: skip
            largest = check(outcome)
            rounds, repeated = len(outcome.history()), sum(outcome.repeated())
        print(f"seed {seed}: {dict(outcome.kills)} kills in {outcome.seconds:.0f} s; {rounds} rounds, each once; "
              f"{repeated} rounds done again; c is the weighted sum of the c_i (largest entry {largest:.3g})",
              flush=True)  # fmt: skip
        return outcome

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(outcome_of, range(options.seed, options.seed + options.federations)))
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    print(f"{dict(kills)} kills in all")
    assert min(kills[what] for what in PARTS) >= options.at_least, kills


if __name__ == "__main__":
    main()
