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
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clients.store import DirectoryStore
from spatl.config.experiment import ExperimentConfig
from spatl.console.main import main as spatl
from spatl.deployment.processes import descendants, free_port
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from tests.support.deployments import started
from tests.support.federations import COMPRESSED, blueprint_of, tiny_config
from tests.support.processes import command_of

NUM_CLIENTS = 4
PARTS = ("client process", "SuperNode", "server")
_PATIENCE_SECONDS = 120.0
_RESTART_SECONDS = 3.0
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
        path = self.run / "history.jsonl"
        return read_lines(path) if path.exists() else []


class Fleet:
    """The server and the clients of a deployment, each started again when it has ended."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self.server = self._start("server", "--resume")
        self.clients = [self._start(f"client-{client}") for client in range(NUM_CLIENTS)]
        self._ended = [0.0] * NUM_CLIENTS

    def _start(self, who: str, *more: str) -> subprocess.Popen[bytes]:
        role, log = who.partition("-")[0], self._directory / f"{who}.log"
        return self._stack.enter_context(started("deploy", role, str(self._directory / who), *more, log=log))

    def restart_server(self) -> None:
        """Start the server on what the last one left."""
        self.server = self._start("server", "--resume")

    def tend(self) -> None:
        """Start again the clients that have ended a while ago."""
        for client, process in enumerate(self.clients):
            if process.poll() is None:
                self._ended[client] = 0.0
            elif not self._ended[client]:
                self._ended[client] = time.monotonic()
            elif time.monotonic() - self._ended[client] > _RESTART_SECONDS:
                self.clients[client] = self._start(f"client-{client}")
                self._ended[client] = 0.0

    def working(self) -> list[int]:
        """The processes that work on a message: what Flower started for it, and the fork that does it."""
        below = (pid for process in self.clients if process.poll() is None for pid in descendants(process.pid))
        commands = {pid: command_of(pid) for pid in below}
        forks = {
            fork
            for pid, command in commands.items()
            if "clients.device.preloaded" in command
            for fork in descendants(pid)
        }
        started = {
            pid
            for pid, command in commands.items()
            if "handover.py" in command or "clients.device.message_process" in command
        }
        return sorted(forks | started)

    def supernodes(self) -> list[int]:
        """The SuperNodes, and what keeps them running, with which they end."""
        running = [process.pid for process in self.clients if process.poll() is None]
        below = [pid for client in running for pid in descendants(client) if "flower-supernode" in command_of(pid)]
        return running + below

    def wait(self, over: Callable[[], Any], seconds: float) -> bool:
        """Tend the clients until `over`, the server has ended, or the time is up; return whether `over`."""
        deadline = time.monotonic() + seconds
        while not (done := bool(over())) and time.monotonic() < deadline and self.server.poll() is None:
            self.tend()
            time.sleep(0.05)
        return done


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
    (directory.parent / "chaos.yaml").write_text(config.to_yaml())
    address = f"127.0.0.1:{free_port()}"
    status = spatl(["deploy", "init", str(directory), str(directory.parent / "chaos.yaml"), "--address", address])
    assert status == 0
    with contextlib.ExitStack() as stack:
        fleet = Fleet(directory, stack)
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
        logs = sorted(outcome.directory.glob("*.log"))
        assert time.monotonic() < deadline, "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)
        if fleet.server.poll() is not None:
            fleet.restart_server()


def check(outcome: Outcome) -> float:
    """Check what must hold after any kill; return the largest entry of c, which should not be zero.

    Raises:
        AssertionError: A round is missing or twice there, more than one round was done again, more replies than clients
            were counted in one, or c is not the weighted sum of what the clients hold.
    """
    history, last = outcome.history(), load_checkpoint(outcome.run)
    assert last is not None
    done = last.server_round
    assert [row["round"] for row in history if row["round"] <= done] == list(range(1, done + 1))
    assert max(outcome.repeated(), default=0) <= 1, outcome.repeated()
    assert all(row["participants"] <= NUM_CLIENTS for row in history)
    uploads = Counter((row["round"], row["client"], row["phase"]) for row in read_lines(outcome.run / "ledger.jsonl")
                      if row["direction"] == "uplink")  # fmt: skip
    for row in history:
        replies = sum(number for (of, _, phase), number in uploads.items() if (of, phase) == (row["round"], "train"))
        assert row["participants"] + row["rejected"] <= replies
    assert last.state.control is not None
    examples = {row["client"]: row["num_examples"] for row in read_lines(outcome.run / "clients.jsonl")}
    total, layout = sum(examples.values()), blueprint_of(outcome.config).layout
    expected = torch.zeros(layout.num_parameter_entries, dtype=torch.float64)
    for client, number in examples.items():
        (directory,) = (outcome.directory / f"client-{client}" / "state").iterdir()
        state = DirectoryStore(directory).load(before=done + 1)
        assert state is not None
        settled = state.settle(
            acknowledged_round=last.state.folded.get(client, 0), server_round=done,
            half_life=outcome.config.control.half_life,
        )  # fmt: skip
        expected += number / total * settled.control.double()
    torch.testing.assert_close(last.state.control.double(), expected, rtol=1e-4, atol=1e-6)
    return float(expected.abs().max())


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
