"""Node of a client: its number, the place of its state, and the run's config as its device's owner lets it be run."""

import re
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from pydantic import ValidationError

from clients.owner import budget_of_node, owner_of
from clients.pinned import check_pinned, is_pinned
from clients.shared_store import SharedStore
from clients.store import ContextStore, DirectoryStore, StateStore
from spatl.channels.costs import Budget
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_run, on_device, with_agreement, with_clients
from spatl.config.sections import AgreedConfig
from spatl.data import is_read_from_path
from spatl.data.own import Agreement
from spatl.deployment.sites import NO_FINDINGS
from spatl.disk.writing import SYNCS_AT_ONCE
from spatl.errors import ConfigError, NotRegistered, SpatlError
from spatl.rounds.blueprint import cached_blueprint
from spatl.rounds.workplace import Workplace
from spatl.runs.states import states_of


def client_of(context: Context) -> int:
    """Return the client's partition id, which the node's own config says.

    Raises:
        ConfigError: It says none.
    """
    client = context.node_config.get("partition-id")
    if not isinstance(client, int) or client < 0:
        raise ConfigError(f"the node's config must give its partition-id, an integer from 0, got {client!r}")
    return client


def budget_of(context: Context) -> Budget | None:
    """The budget of a client's own, of its node's config or of its device's owner."""
    owner = owner_of(context)
    return budget_of_node(context) if owner is None else owner.own_budget


def store_of(context: Context) -> StateStore:
    """A deployed client's state lies in its own device's directory, whatever the server says.

    The clients of a simulation share a machine with the server, which makes one file for all of them
    (`spatl.runs.states`) and waits for the disk once a round; those of large networks, and those on the nodes of a
    cluster, have files of their own.
    """
    if is_device(context):
        return DirectoryStore(directory_of(context))
    if not (directory := str(context.run_config.get("out", ""))):
        return ContextStore(context.state)
    run, client = Path(directory), client_of(context)
    if (states := states_of(run)) is not None:
        return SharedStore(run, states, client)
    waits = not SYNCS_AT_ONCE or sent_config(context).resources.ray_address is not None
    return DirectoryStore(run / "clients" / str(client), synced=waits)


def directory_of(context: Context) -> Path:
    """Return the directory of a device's state in a run."""
    run = str(context.run_config.get("run", "")) or str(context.run_id)
    if not re.fullmatch(r"[0-9A-Za-z-]{1,100}", run):
        raise ConfigError(f"the run's name must be letters, digits and hyphens, 100 at most, got {run!r:.120}")
    return Path(str(context.node_config["state-dir"])) / run


def workplace_of(context: Context, *, registering: bool = False, agreement: Agreement | None = None) -> Workplace:
    """Workplace that the run's config describes, on the device and with the data that the node's own config names.

    Args:
        context: The node's.
        registering: Whether the run is none yet that a device has registered for.
        agreement: What the clients have just agreed on; as kept, where it is needed and not given.

    Raises:
        SpatlError: It does not work out, or this device does not know what the clients have agreed on.
        NotAllowed: A device's owner lets no such run take place, or it is another than the device has registered for.
    """
    config, sent = config_of(context), sent_config(context)
    if config.has_own_data and config.data.agreed is None:
        if agreement is None:
            agreed = store_of(context).agreed()
            if agreed is None:
                raise NotRegistered("this device has not registered, or lost what the clients have agreed on")
            agreement = agreement_of(agreed)
        config, sent = with_agreement(config, agreement), with_agreement(sent, agreement)
    check_same_run(context, sent, registering=registering)
    owner = owner_of(context)
    if owner is None or (not registering and is_pinned(directory_of(context))):  # its size was looked at then
        return _WORKPLACES.of(config)
    return _WORKPLACES.of(config, owner.most_bytes)


def check_same_run(context: Context, sent: ExperimentConfig, *, registering: bool) -> None:
    """Raise where a device is asked for another run than the one that it has registered for under this name."""
    if not is_device(context):
        return

    def trained() -> bool:
        try:
            return store_of(context).load(before=1) is not None
        except SpatlError:  # of later rounds
            return True

    check_pinned(directory_of(context), sent, trained=trained, registering=registering)


def sent_config(context: Context) -> ExperimentConfig:
    """The run's config, as the server sent it."""
    try:
        return config_from_run(context.run_config, reads_files=not is_device(context))
    except ConfigError as error:
        raise ConfigError(f"the node's config: {error}") from None


def config_of(context: Context) -> ExperimentConfig:
    """The run's config, as the node's own config and the owner of a device have it."""
    config, owner = _with_room(sent_config(context), client_of(context)), owner_of(context)
    device, data = (context.node_config.get(key) for key in ("device", "data-dir"))
    if owner is not None:
        config = owner.permitted(config.without_weights(), client_of(context))
        data = owner.data_dir if is_read_from_path(config.data.name) else None  # what is made here opens no file
    try:
        return on_device(
            config, device=None if device is None else str(device), data=None if data is None else str(data)
        )
    except ConfigError as error:
        raise ConfigError(f"the node's config: {error}") from None


def _with_room(config: ExperimentConfig, client: int) -> ExperimentConfig:
    """Return a run's config with as many clients as this one's number says: it may have come since the run was sent."""
    if config.has_own_data and client >= config.partition.num_clients:
        return with_clients(config, client + 1)
    return config


def tells_findings(context: Context) -> bool:
    """Return whether a client tells findings of its data."""
    owner = owner_of(context)
    return context.node_config.get("findings") != NO_FINDINGS and (owner is None or owner.rules.leaves.findings)


def agreement_of(text: str) -> Agreement:
    """Return what the clients have agreed on, from the JSON in which it came.

    Raises:
        ConfigError: It is none.
    """
    try:
        return AgreedConfig.model_validate_json(text).agreement()
    except ValidationError as error:
        raise ConfigError(f"what the clients have agreed on does not hold: {error.errors()[0]['msg']}") from None


def is_device(context: Context) -> bool:
    """Return whether this is a machine of its own, with a place for its state, and no part of a simulation."""
    return "state-dir" in context.node_config


@lru_cache(maxsize=2)
def _cached_workplace(config_json: str, *most_bytes: int) -> Workplace:
    return Workplace(cached_blueprint(config_json, *most_bytes))


class _Workplaces:
    """Workplaces by config, the last one without writing the config down: in a simulation it is the same object."""

    def __init__(self) -> None:
        self._last: tuple[ExperimentConfig, tuple[int, ...], Workplace] | None = None

    def of(self, config: ExperimentConfig, *most_bytes: int) -> Workplace:
        """Return the workplace of a config."""
        if self._last is None or self._last[0] is not config or self._last[1] != most_bytes:
            self._last = config, most_bytes, _cached_workplace(config.to_json(), *most_bytes)
        return self._last[2]


_WORKPLACES = _Workplaces()
