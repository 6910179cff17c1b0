"""Cuts in real deployments: bad networks, stopped processes, full disks, clocks an hour off.

`python -m tests.studies.cuts [--only KIND ...]` runs two federations side by side, each a server and three clients on
loopback with a proxy between each client and the server. One has TLS and keys, and meets accept-and-close and black
holes of 5, 20, 60 and 180 s, thin lines, SIGSTOP of each process for a minute, full disks, clocks an hour off, and
resets while a client starts. The other has none, so that its proxies see calls: each call that a client makes in a
round is reset in mid-message, both ways. (Without keys a client that starts anew is another one to Flower.) After each
fault the time is taken to the next round in which all clients take part; at the end all must hold that holds without
faults.
"""

import argparse
import contextlib
import errno
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spatl.config.experiment import ExperimentConfig
from tests.support.clocks import can_be_wrong, wrong_clock
from tests.support.federations import COMPRESSED, tiny_config
from tests.support.fleets import Fleet, check_run, history_of, make_federation, put_between
from tests.support.proxies import Direction, Proxy, Weather

NUM_CLIENTS = 3
KINDS = ("network", "slow", "stopped", "disk", "clock", "starts", "calls")
LENGTHS = (5.0, 20.0, 60.0, 180.0)
_PATIENCE_SECONDS = 400.0
_STOPPED_SECONDS = 60.0
_ONE_AT_A_TIME = threading.Lock()  # Python 3.11 may fail where two threads parse source, as tracing a network does
_DISK_BYTES = 256 << 20
_LEAST_CONTROL = 1e-5  # an entry of c, beside the 1e-6 that it may differ by from the weighted sum of the c_i
_FAR_ROUND = 100_000
_CALLS = (
    "pull-messages", "pull-object", "confirm-message-received", "push-messages", "push-object", "send-node-heartbeat",
)  # fmt: skip
"""Calls of a SuperNode of flwr 1.41 in a round, below `/v1/fleet/`."""
_BYTES_OF_STARTS = (0, 300, 1500, 3000, 6000)
"""Bytes of a connection after which it is reset while a client starts: within TLS's handshake, and within calls."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: One of `KINDS`.
        name: What it is.
        seconds: Its length.
        during: A context that makes it and ends it.
    """

    kind: str
    name: str
    seconds: float
    during: Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Recovery:
    """A fault, and the seconds from its end to the end of the next round in which all clients took part."""

    fault: Fault
    seconds: float


class Site:
    """A federation in which faults are made.

    Args:
        directory: A new directory.
        config: The run.
        stack: What ends all.
        insecure: Whether it does without TLS and keys.
        disks: Whether the server and client 0 get small disks of their own.
    """

    def __init__(
        self, directory: Path, config: ExperimentConfig, stack: contextlib.ExitStack, *, insecure: bool, disks: bool
    ) -> None:
        self.directory, self.config = directory, config
        with _ONE_AT_A_TIME:
            port = make_federation(config, directory)
        self.disks = disks and all(stack.enter_context(_own_disk(directory / who)) for who in ("server", "client-0"))
        self.proxies = [stack.enter_context(contextlib.closing(Proxy(port))) for _ in range(NUM_CLIENTS)]
        put_between(directory, dict(enumerate(self.proxies)))
        self.fleet = Fleet(directory, NUM_CLIENTS, stack, insecure=insecure)

    @property
    def run(self) -> Path:
        """The directory of the run's files."""
        return self.directory / "server" / "run"

    def live(self, seconds: float) -> None:
        """Let so much time pass, starting again what has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tend()
            time.sleep(0.1)

    def tend(self) -> None:
        """Start again what has ended."""
        self.fleet.tend()
        if self.fleet.server.poll() is not None:
            time.sleep(1.0)
            self.fleet.restart_server()

    def next_full_round(self) -> float:
        """Wait until all clients have taken part in a round that was not over before; return how long it took.

        Raises:
            AssertionError: It does not come.
        """
        began, before = time.monotonic(), max((row["round"] for row in history_of(self.run)), default=0)
        while not any(
            row["round"] > before and row["participants"] == NUM_CLIENTS for row in history_of(self.run)[-5:]
        ):
            assert time.monotonic() - began < _PATIENCE_SECONDS, self.fleet.told()
            self.tend()
            time.sleep(0.1)
        return time.monotonic() - began


@contextlib.contextmanager
def _own_disk(directory: Path) -> Iterator[bool]:
    """Put a directory on a small disk of its own; false where this machine does not allow it."""
    kept = directory.parent / f"{directory.name}.kept"
    directory.rename(kept)
    directory.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=700", "tmpfs", str(directory)],
        capture_output=True, check=False,
    )  # fmt: skip
    shutil.copytree(kept, directory, dirs_exist_ok=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            shutil.copytree(directory, kept, dirs_exist_ok=True, ignore=_sockets)
            subprocess.run(["umount", "-l", str(directory)], check=False)
            shutil.copytree(kept, directory, dirs_exist_ok=True)


def _sockets(directory: str, names: list[str]) -> list[str]:
    """Names in a directory that are no files to copy."""
    return [name for name in names if Path(directory, name).is_socket()]


def faults_of(site: Site) -> list[Fault]:
    """All faults of the federation with TLS."""
    everybody = range(NUM_CLIENTS)
    directions: tuple[Direction, ...] = ("up", "down")
    found = [
        Fault("network", f"{_told(weather)}, {'all clients' if len(whose) > 1 else f'client {whose[0]}'}", seconds,
              partial(_weather, site, weather, whose))
        for weather in ("refused", "swallowed")
        for seconds, whose in [
            *((seconds, [number % NUM_CLIENTS]) for number, seconds in enumerate(LENGTHS)),
            *((seconds, list(everybody)) for seconds in LENGTHS[:2]),
        ]
    ]  # fmt: skip
    found += [
        Fault("slow", f"20 kB/s and 300 ms, {'all clients' if len(whose) > 1 else f'client {whose[0]}'}", 60.0,
              partial(_weather, site, "slow", whose))
        for whose in ([1], list(everybody))
    ]  # fmt: skip
    of_server: list[tuple[str, int | None]] = [
        ("spatl deploy server", None), ("SuperLink", None), ("SuperExec of the server", None), ("ServerApp", None),
    ]  # fmt: skip
    of_client: list[tuple[str, int | None]] = [
        ("supervisor", 0), ("SuperNode", 1), ("SuperExec of a client", 2), ("preloaded", 0), ("message process", 1),
    ]  # fmt: skip
    found += [
        Fault("stopped", f"SIGSTOP, {part}", _STOPPED_SECONDS, partial(_stopped, site, part, client))
        for part, client in of_server + of_client
    ]
    if site.disks:
        found += [
            Fault("disk", f"full disk, {who}", seconds, partial(_full, site.directory / who))
            for who, seconds in (("server", 20.0), ("client-0", 20.0), ("server", 60.0), ("client-0", 60.0))
        ]
    if can_be_wrong():
        found += [
            Fault("clock", f"clock {hours:+} h off, {who}", 40.0, partial(_clock, site, who, hours))
            for who, hours in (("client-1", 1), ("client-2", -1), ("server", 1), ("server", -1))
        ]
    found += [
        Fault("starts", f"a start of client {number % NUM_CLIENTS}, reset after {after} bytes {direction}", 0.0,
              partial(_cut_start, site, number % NUM_CLIENTS, direction, after))
        for number, after in enumerate(_BYTES_OF_STARTS) for direction in directions
    ]  # fmt: skip
    return found


def cuts_of(site: Site) -> list[Fault]:
    """All calls, reset in mid-message both ways, at once and after some bytes."""
    found = []
    for number, call in enumerate(_CALLS):
        for direction in ("up", "down"):
            for after in (0, 250):
                client = number % NUM_CLIENTS
                name = f"{call} reset after {after} bytes of the {'request' if direction == 'up' else 'response'}"
                found.append(Fault("calls", name, 0.0, partial(_cut, site, client, call, direction, after)))
    return found


def _told(weather: str) -> str:
    return {"refused": "accepted and closed", "swallowed": "black hole"}[weather]


@contextlib.contextmanager
def _weather(site: Site, weather: Weather, whose: Sequence[int]) -> Iterator[None]:
    for client in whose:
        site.proxies[client].turn(weather)
    yield
    for client in whose:
        site.proxies[client].turn("fine")


@contextlib.contextmanager
def _stopped(site: Site, part: str, client: int | None) -> Iterator[None]:
    deadline, victims = time.monotonic() + 60.0, list[int]()
    while not victims and time.monotonic() < deadline:
        victims = [site.fleet.server.pid] if part == "spatl deploy server" else site.fleet.parts(part, client)
        time.sleep(0.01)
    assert victims, f"no process is {part}"
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _full(directory: Path) -> Iterator[None]:
    """Leave not a byte on a directory's own disk."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for piece in (b"\0" * (1 << 20), b"\0" * 512, b"\0"):
            try:
                while True:
                    file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    yield
    filler.unlink()


@contextlib.contextmanager
def _clock(site: Site, who: str, hours: int) -> Iterator[None]:
    """Start a part anew on a machine whose clock is wrong, and then on one whose clock is right."""
    _start_again(site, who, wrong_clock(site.directory, 3600 * hours))
    yield
    _start_again(site, who, {})


def _start_again(site: Site, who: str, variables: Mapping[str, str]) -> None:
    client = None if who == "server" else int(who.partition("-")[2])
    _end(site.fleet.server if client is None else site.fleet.clients[client])
    if client is None:
        site.fleet.restart_server(variables)
    else:
        site.fleet.restart_client(client, variables)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30.0)


@contextlib.contextmanager
def _cut(site: Site, client: int, call: str, direction: Direction, after: int) -> Iterator[bool]:
    done = site.proxies[client].cut(f"/v1/fleet/{call}", direction, after=after)
    yield _made(site, client, done)


@contextlib.contextmanager
def _cut_start(site: Site, client: int, direction: Direction, after: int) -> Iterator[bool]:
    _end(site.fleet.clients[client])
    done = site.proxies[client].cut(None, direction, after=after)
    site.fleet.restart_client(client)
    yield _made(site, client, done)


def _made(site: Site, client: int, done: threading.Event) -> bool:
    """Wait until a connection has been cut; false where none was long enough for it."""
    deadline = time.monotonic() + 90.0
    while not done.is_set() and time.monotonic() < deadline:
        site.tend()
        time.sleep(0.05)
    if not done.is_set():
        site.proxies[client].forget()
    return done.is_set()


def endure(site: Site, faults: Sequence[Fault], say: Callable[[str], None]) -> list[Recovery]:
    """Make one fault after the other, each once all is well again."""
    site.next_full_round()
    recoveries = []
    for number, fault in enumerate(faults, 1):
        with fault.during() as made:
            site.live(fault.seconds)
        if made is False:
            say(f"{number} of {len(faults)}: {fault.name}: no call was as long, nothing was cut")
            continue
        recoveries.append(Recovery(fault, site.next_full_round()))
        say(f"{number} of {len(faults)}: {fault.name}, {fault.seconds:g} s: "
            f"all take part again after {recoveries[-1].seconds:.1f} s")  # fmt: skip
    return recoveries


def federation(directory: Path, only: Sequence[str], *, calls: bool, say: Callable[[str], None]) -> list[Recovery]:
    """Run one of the two federations through its faults, and check what it leaves.

    Raises:
        AssertionError: Something does not hold.
    """
    # c is sent: who missed a round would do without it for longer than the next fault is away. The rate is so low that
    # there is something left to learn, and of c to compare, after a thousand rounds.
    config = tiny_config(
        method="spatl", rounds=_FAR_ROUND, wire=COMPRESSED, selection={"selector": "update"},
        data={"name": "synthetic", "options": {"num_examples": 200, "image_size": 8}}, control={"downlink": "sent"},
        partition={"num_clients": NUM_CLIENTS}, training={"local_steps": 100, "learning_rate": 0.00002},
    )  # fmt: skip
    if not (set(only) & ({"calls"} if calls else set(KINDS) - {"calls"})):
        return []
    with contextlib.ExitStack() as stack:
        site = Site(directory, config, stack, insecure=calls, disks=not calls and "disk" in only)
        faults = [fault for fault in (cuts_of(site) if calls else faults_of(site)) if fault.kind in only]
        recoveries = endure(site, faults, say)
        rounds = len(history_of(site.run))
    largest = check_run(config, directory)
    assert largest > _LEAST_CONTROL, f"c has come to {largest:.3g}: that it is a sum says nothing"
    say(f"{rounds} rounds, each once; c is the weighted sum of the c_i (largest entry {largest:.3g})")
    return recoveries


def main() -> int:
    """Run both federations, print each recovery, the median and the worst; 1 where one is above a minute."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.cuts")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    began = time.monotonic()

    def of(calls: bool) -> list[Recovery]:
        name = "calls" if calls else "TLS"
        try:
            with tempfile.TemporaryDirectory(prefix="spatl-cuts-", ignore_cleanup_errors=True) as scratch:
                return federation(Path(scratch) / "federation", options.only, calls=calls,
                                  say=lambda line: print(f"{name}: {line}", flush=True))  # fmt: skip
        except Exception as error:  # the other one goes on for a while
            print(f"{name}: {error!r:.3000}", flush=True)
            raise

    with ThreadPoolExecutor() as pool:
        recoveries = [each for found in pool.map(of, (False, True)) for each in found]
    seconds = [each.seconds for each in recoveries]
    worst = max(recoveries, key=lambda each: each.seconds)
    print(f"{len(recoveries)} faults in {time.monotonic() - began:.0f} s; to the next round of all clients: median "
          f"{statistics.median(seconds):.1f} s, worst {worst.seconds:.1f} s ({worst.fault.name})")  # fmt: skip
    return int(worst.seconds > 60.0)


if __name__ == "__main__":
    sys.exit(main())
