"""Owner of a device: what `device.yaml` and the options of `spatl deploy client` let a message do, and when.

The file is read for each message, so that a change counts at once. One that cannot be used stops the work: its content
is the owner's affair, so that only the device's own log says what is wrong with it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import FrameType

import torch
from flwr.app import Context

from spatl.channels.costs import BUDGET_KINDS, Budget
from spatl.config.device import DEVICE_FILE, DeviceConfig, Limits, read_device
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_budget
from spatl.config.permission import permitted
from spatl.deployment.sites import replace_private
from spatl.errors import ConfigError, NotAllowed, NotNow, SpatlError, lacks_memory
from spatl.extensions.listed import ListedFiles, only_listed

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

_COMMAND_SECONDS = 20.0
_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Owner:
    """Owner of the device on which this process runs.

    Attributes:
        directory: The device's own.
        rules: Content of its `device.yaml`.
        data_dir: Where the owner's data lie, if anywhere.
        own_budget: Budget of the node's config, which goes before the file's.
    """

    directory: Path
    rules: DeviceConfig
    data_dir: str | None
    own_budget: Budget | None

    @cached_property
    def listed(self) -> ListedFiles:
        """The files that the owner has listed."""
        return ListedFiles(self.directory, self.rules.files)

    @property
    def most_bytes(self) -> int:
        """Memory that a run may take."""
        return self.rules.limits.memory_megabytes * 10**6

    def permitted(self, config: ExperimentConfig, client: int) -> ExperimentConfig:
        """Return a run's config as this device may run it (`spatl.config.permission.permitted`).

        Raises:
            NotAllowed: It asks for more than the owner allows.
        """
        has_data = self.data_dir is not None
        return permitted(config, self.rules, self.listed, self.directory, client=client, has_data=has_data)

    def begin_round(self, state: Path) -> None:
        """Enter that a round of training begins.

        Args:
            state: Where the device's state lies, of all runs.

        Raises:
            NotNow: There were enough today.
        """
        if self.rules.limits.rounds_a_day is not None:
            _count_round(state, self.rules.limits.rounds_a_day)

    def check_length(self, num_bytes: int, setting: str) -> None:
        """Raise where a message is longer than the owner allows.

        Args:
            num_bytes: Its length.
            setting: `upload_megabytes` or `download_megabytes`.

        Raises:
            NotAllowed: It is.
        """
        most: float = getattr(self.rules.limits, setting)
        if num_bytes > most * 1e6:
            raise NotAllowed.of(f"limits.{setting}", f"a message of {num_bytes / 1e6:.4g}", f"{most:g}")


class _Overdue(BaseException):
    """The end of work that takes too long: no error of the work's own, for which anybody on the way would take it."""


def owner_of(context: Context) -> Owner | None:
    """Return the owner of the device of a node; None in a simulation, whose machine is the server's.

    Raises:
        ConfigError: The node's config sets no budget that is one.
        NotAllowed: The owner's file cannot be used.
    """
    node = context.node_config
    state = node.get("state-dir")
    if state is None:
        return None
    directory = Path(str(state)).parent
    rules = _rules(directory / DEVICE_FILE)
    data = node.get("data-dir", rules.data.dir)
    return Owner(
        directory, rules,
        data_dir=None if data is None else str(directory / os.path.expanduser(str(data))),
        own_budget=budget_of_node(context) or rules.budget.own_budget(),
    )  # fmt: skip


def without_places(context: Context, text: str) -> str:
    """Return a text for the server, without the paths of a device: where it and its data lie is its owner's affair."""
    node = context.node_config
    if "state-dir" not in node:
        return text
    directory = Path(str(node["state-dir"])).parent
    places = {str(directory): "(the device's directory)"}
    try:
        owner = owner_of(context)
    except SpatlError:  # whose file cannot be used
        owner = None
    if owner is not None and owner.data_dir is not None:
        places[owner.data_dir] = "(the owner's data)"
    places |= {os.path.realpath(place): told for place, told in places.items()}
    home = os.path.expanduser("~")
    for own, told in ((home, "~"), (sys.prefix, "(Python)")):
        if len(own) > 1:  # no root
            places.setdefault(own, told)
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def budget_of_node(context: Context) -> Budget | None:
    """Return the budget that the node's own config sets: keep-ratio, flops-ratio or uplink-bytes.

    Raises:
        ConfigError: It is none.
    """
    own = context.node_config
    values: dict[str, object] = {kind: own[key] for kind in BUDGET_KINDS if (key := kind.replace("_", "-")) in own}
    try:
        return parse_budget(values)
    except ConfigError as error:
        raise ConfigError(f"the node's config: {error}") from None


def _rules(path: Path) -> DeviceConfig:
    """Return what a file says: read again where it is another one than before, for a message asks several times."""
    try:
        found = path.stat()
    except OSError:
        return _read(path)
    return _read(path, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)


@lru_cache(maxsize=8)
def _known(path: Path, *identity: int) -> DeviceConfig:
    return read_device(path) or DeviceConfig()


def _read(path: Path, *identity: int) -> DeviceConfig:
    try:
        return _known(path, *identity) if identity else read_device(path) or DeviceConfig()
    except ConfigError as error:
        logger.error("nothing is done for the server until this is put right: %s", error)
        raise NotAllowed(f"the {DEVICE_FILE} of this device cannot be used; its own log says why") from None


@contextmanager
def governed(context: Context, message_type: str) -> Iterator[None]:
    """Work on a message under the rules of the device's owner: what is imported, how long, with how much memory, when.

    Args:
        context: The node's.
        message_type: Flower's; a plain query is the registration, which takes place at any hour.

    Raises:
        NotAllowed: The work went beyond a limit.
        NotNow: It is not the time for work.
    """
    owner = owner_of(context)
    if owner is None:
        yield
        return
    limits = owner.rules.limits
    with ExitStack() as stack:
        stack.enter_context(only_listed(owner.listed))
        stack.enter_context(_bounded_seconds(limits.seconds))
        stack.enter_context(_bounded_memory(owner.most_bytes))
        if message_type != "query":
            check_now(limits, owner.directory)
        yield


def check_now(limits: Limits, directory: Path, *, now: time.struct_time | None = None) -> None:
    """Raise unless the device may work now: by its clock, and by the owner's command.

    Args:
        limits: What the owner allows.
        directory: Where the command runs.
        now: The local time; that of the clock if not given.

    Raises:
        NotNow: It may not.
    """
    now = now or time.localtime()
    if limits.hours is not None:
        begin, end = ((60 * int(text[:2]) + int(text[3:])) for text in limits.hours.split("-"))
        minute = 60 * now.tm_hour + now.tm_min
        inside = begin <= minute < end if begin < end else minute >= begin or minute < end
        if not inside:
            raise NotNow.of("limits.hours", f"work at {now.tm_hour:02}:{now.tm_min:02}", limits.hours)
    if limits.command is not None:
        try:
            status: int | str = subprocess.run(
                limits.command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, timeout=_COMMAND_SECONDS, check=False,
            ).returncode  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.error("limits.command: %s", error)
            status = "no status"
        if status != 0:
            raise NotNow(f"limits.command: the owner of this device lets nothing run now (status {status})")


def _count_round(state: Path, most: int) -> None:
    """Enter that a round begins, unless there were enough within a day.

    Each is a file's time: no clock of the server's counts, and a crash costs one round at most.

    Raises:
        NotNow: There were enough.
    """
    path, now = state / "rounds.txt", time.time()  # no run has this name
    try:
        begun = [float(line) for line in path.read_text(encoding="ascii").split()]
    except FileNotFoundError:
        begun = []
    except (OSError, ValueError) as error:
        logger.error("%s cannot be used, and is begun anew: %s", path, error)
        begun = []
    begun = [moment for moment in begun if 0 <= now - moment < 24 * 3600]
    if len(begun) >= most:
        hours = (24 * 3600 - (now - min(begun))) / 3600
        asked = f"round {len(begun) + 1} in 24 hours"
        raise NotNow.of("limits.rounds_a_day", asked, f"{most}; the next in {hours:.1f} h")
    state.mkdir(parents=True, exist_ok=True)
    replace_private(path, "".join(f"{moment:.3f}\n" for moment in (*begun, now)).encode("ascii"))


@contextmanager
def _bounded_seconds(seconds: float) -> Iterator[None]:
    """End the block after so many seconds; where a process cannot be interrupted, it is not."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Overdue

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)  # again, if what was interrupted went on
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    except _Overdue:
        raise NotAllowed.of("limits.seconds", f"more than {seconds:g} for one message", f"{seconds:g}") from None


@contextmanager
def _bounded_memory(most_bytes: int) -> Iterator[None]:
    """Let this process take so much more memory than it has. Not with a GPU: its driver reserves more than it uses."""
    status = Path("/proc/self/status")
    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    held = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + most_bytes
    known = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *known]), hard))
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise NotAllowed.of("limits.memory_megabytes", "more", f"{most_bytes / 1e6:,.0f}") from None
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
