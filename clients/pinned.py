"""Config that a device has registered for, kept beside its state: a run stays what it was while it has its name.

A server that goes on with a run may ask for more rounds, and, where each device has data of its own, for more clients.
Before the device has trained at all, the clients may agree anew on their classes and their scale, as they do where a
server starts again; then it registers once more. Any other setting that changes is refused, with the setting and both
values.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_json
from spatl.deployment.sites import replace_private
from spatl.errors import DamagedState, NotAllowed, NotRegistered, SpatlError, in_short

_FILE: Final = "pinned.json"
_LAST: Final = "last"
_GROWS: Final = ("rounds",)
_NOTHING: Final = object()


def pin(directory: Path, config: ExperimentConfig) -> None:
    """Keep the config of a run for which this device has registered.

    Args:
        directory: Of the device's state in the run.
        config: What the server sent, with what the clients have agreed on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = config.to_json()
    if _read(directory) != text:
        replace_private(directory / _FILE, text.encode())


def is_pinned(directory: Path) -> bool:
    """Return whether this device keeps what it has registered for."""
    return (directory / _FILE).exists()


def check_pinned(
    directory: Path, config: ExperimentConfig, *, trained: Callable[[], bool], registering: bool = False
) -> None:
    """Raise unless a config is the one that this device has registered for.

    Args:
        directory: Of the device's state in the run.
        config: What the server sent.
        trained: Returns whether the device has trained in this run.
        registering: Whether it registers, so that there need be none yet.

    Raises:
        NotAllowed: It is another one.
        NotRegistered: The device has not registered, or keeps nothing of it any more.
        DamagedState: What was kept is damaged.
    """
    text = _read(directory)
    if text is None:
        if registering:
            return
        raise NotRegistered(
            "this device has not registered for this run, or what it kept of it was emptied or renamed: it does "
            "nothing before it has registered again"
        )
    if text == config.to_json():
        return
    try:
        before = config_from_json(text)
    except NotAllowed:
        raise
    except SpatlError as error:
        raise _damaged(_FILE) from error
    for setting, old, new in _changes(before, config):
        if setting in _GROWS and isinstance(new, int) and new > old:
            continue
        if setting == "partition.num_clients" and config.has_own_data and new > old:
            continue
        if setting.startswith("data.agreed") and registering and (config.data.agreed is None or not trained()):
            continue  # what is agreed anew is looked at as at first
        raise NotAllowed(
            f"{setting}: this run asks for {in_short(new)} under its name, this device registered for {in_short(old)}"
        )


def check_last(directory: Path, server_round: int, config: ExperimentConfig) -> None:
    """Raise unless an evaluation comes after the last round, and keep that it has: then no round before it comes again.

    Args:
        directory: Of the device's state in the run.
        server_round: The round that the message says it is after.
        config: The run's.

    Raises:
        NotAllowed: It comes earlier, when nothing is to be told beside updates.
    """
    if not config.may_be_last(server_round):
        raise NotAllowed(
            f"an evaluation is asked for after round {server_round}, and this run has {config.rounds} rounds"
        )
    if _last(directory) < server_round:
        replace_private(directory / _LAST, f"{server_round}\n".encode("ascii"))


def check_not_over(directory: Path, server_round: int, rounds: int) -> None:
    """Raise where a round is asked for that was over before the last evaluation, or that the run does not have.

    A server that goes on from its checkpoint, or the one before, asks for the last round again, or the one before it.

    Args:
        directory: Of the device's state in the run.
        server_round: The round.
        rounds: How many the run has.

    Raises:
        NotAllowed: It is.
    """
    if not 1 <= server_round <= rounds:
        raise NotAllowed(f"round {server_round} is asked for, and this run has {rounds} rounds")
    if server_round < (last := _last(directory)) - 1:
        raise NotAllowed(f"round {server_round} is asked for after the evaluation of round {last}, the last one")


def _last(directory: Path) -> int:
    """Return the round after which the device was last evaluated; 0 before."""
    try:
        return int((directory / _LAST).read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise _damaged(_LAST) from error


def _read(directory: Path) -> str | None:
    try:
        return (directory / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _damaged(_FILE) from error


def _damaged(name: str) -> DamagedState:
    return DamagedState(f"{name} of this run is damaged: delete the run's state on this device")


def _changes(before: ExperimentConfig, after: ExperimentConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ, with both values."""
    old, new = (dict(_leaves(json.loads(config.to_json()))) for config in (before, after))
    for setting in {**old, **new}:
        if old.get(setting, _NOTHING) != new.get(setting, _NOTHING):
            yield setting, old.get(setting), new.get(setting)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
