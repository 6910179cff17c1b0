"""Flower's programs as child processes: started with this interpreter's packages, stopped with all they started."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from spatl.errors import SpatlError

REASON_VARIABLE = "SPATL_REASON"
"""Environment variable with the path of a file for the reason why a process of a simulation ended itself."""
RAY_VARIABLE = "SPATL_RAY_ADDRESS"
"""Environment variable with the address of a simulation's Ray cluster; where it is not set, it has a Ray of its own."""
RUN_VARIABLE = "SPATL_RUN_DIRECTORY"
"""Environment variable with the run's directory, which all nodes of that cluster must see."""
_STOP_SECONDS = 10.0
_WATCH_SECONDS = 0.5
_LAST_WRITES_SECONDS = 2.0
_CHILD_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
_LOOPBACK = "127.0.0.1,localhost"


def environment(home: Path, *, here: bool = True) -> dict[str, str]:
    """Return the environment of Flower's processes: this interpreter's programs and packages, and no telemetry.

    Args:
        home: Flower's directory.
        here: Whether modules are found in the present directory, too; not on a device, which imports nobody's.
    """
    own = [str(Path.cwd())] if here else []
    roots = [str(Path(__file__).resolve().parents[2]), *own, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **past_proxies(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(root for root in roots if root),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def past_proxies() -> dict[str, str]:
    """Return the variables by which programs of this machine reach each other where a proxy leads to the network."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{known},{_LOOPBACK}" if known else _LOOPBACK
    return {"no_proxy": value, "NO_PROXY": value}


def script(name: str, *, needs: str = "flwr") -> str:
    """Return the path of a program that was installed beside this interpreter.

    Raises:
        SpatlError: It is not there; the message says to install `needs`.
    """
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise SpatlError(f"{name} is not installed: pip install '{needs}'")
    return found


def free_port() -> int:
    """Return a port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it: Flower's and Ray's run in process groups of their own."""
    below = descendants(process.pid)
    for number in (process.pid, *below):
        _signal(number, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline and (process.poll() is None or any(map(is_alive, below))):
        time.sleep(0.1)
    for number in (process.pid, *below):
        _signal(number, signal.SIGKILL)
    process.wait()


def end_with_parent(parent: int | None = None, *, remove: Path | None = None) -> None:
    """End this process and all below it, from now on, once the one that started it is gone.

    Args:
        parent: The number that the other has told, which may be gone by now; whoever is this one's parent if not given.
        remove: A directory to remove then, which the other can no more.
    """
    parent = os.getppid() if parent is None else parent
    threading.Thread(target=_watch, args=(parent, remove), name="spatl-parent", daemon=True).start()


def adopt_orphans() -> None:
    """Have processes below this one stay below it when those between have ended, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


def _watch(parent: int, remove: Path | None) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    below = descendants(os.getpid())
    for number in below:
        _signal(number, signal.SIGKILL)
    if remove is not None:
        deadline = time.monotonic() + _LAST_WRITES_SECONDS
        while time.monotonic() < deadline and any(map(is_alive, below)):
            time.sleep(0.05)
        shutil.rmtree(remove, ignore_errors=True)
    os._exit(1)


def descendants(root: int) -> list[int]:
    """Return the process ids below one, nearest first."""
    children: dict[int, list[int]] = {}
    for number, parent in _parents():
        children.setdefault(parent, []).append(number)
    found = [root]
    for number in found:
        found.extend(children.get(number, []))
    return found[1:]


def _parents() -> list[tuple[int, int]]:
    """Return each process of this machine with its parent; small container images have no `ps`, but /proc."""
    if sys.platform == "linux":
        return [(number, facts.parent) for number, facts in facts_of_all().items()]
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return [(int(number), int(parent)) for number, parent in (line.split() for line in listing.splitlines())]


@dataclass(frozen=True)
class ProcessFacts:
    """Facts of a process, or of one of its threads, as /proc has them.

    Attributes:
        state: A letter; `T` is stopped, `Z` a zombie.
        parent: The number of its parent.
        cpu_seconds: How long it has computed.
        started: When it was started, by the kernel's clock: numbers are given again.
    """

    state: str
    parent: int
    cpu_seconds: float
    started: int


def facts_of(number: int) -> ProcessFacts | None:
    """Return the facts of a process; None where it is gone, or where there is no /proc."""
    return _read_facts(Path(f"/proc/{number}/stat"))


def facts_of_all() -> dict[int, ProcessFacts]:
    """Return the facts of all processes of this machine by their numbers; of none where there is no /proc."""
    found = {int(path.parent.name): _read_facts(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return {number: facts for number, facts in found.items() if facts is not None}


def _read_facts(path: Path) -> ProcessFacts | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")  # a program's name may be any bytes
    except OSError:  # it has ended
        return None
    fields = text.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ProcessFacts(fields[0], int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"), int(fields[19]))


def is_alive(number: int) -> bool:
    """Return whether a process is there, and not only its status, which nobody has asked for."""
    if sys.platform == "linux":
        return state_of(number) not in ("", "Z")
    return _signal(number, 0)


def state_of(number: int) -> str:
    """Return the letter of a process's state as /proc has it (`T` is stopped); empty where it is gone, or no Linux."""
    facts = facts_of(number)
    return "" if facts is None else facts.state


def wants_cpu(number: int) -> bool:
    """Return whether a thread of a process computes, or would if it had a processor or its disk answered (Linux)."""
    found = map(_read_facts, Path(f"/proc/{number}/task").glob("*/stat"))
    return any(facts is not None and facts.state in ("R", "D") for facts in found)


def cpu_seconds(number: int) -> float:
    """Return how long a process has computed; 0 where it is gone, or where there is no /proc."""
    facts = facts_of(number)
    return 0.0 if facts is None else facts.cpu_seconds


def command_of(number: int) -> str:
    """Return the command line of a process; empty where it is gone, or where there is no /proc."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _signal(number: int, what: int) -> bool:
    """Send a signal; false if the process is gone."""
    try:
        os.kill(number, what)
    except (ProcessLookupError, PermissionError):
        return False
    return True
