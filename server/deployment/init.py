"""Command `spatl deploy init`: the keys of a federation, and a directory for each machine."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from server.deployment.adding import fill_client
from server.deployment.certificates import make_authority, make_server_pair, pem, private_pem
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config, read_config
from spatl.data import OWN, is_read_from_path
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    CA_KEY,
    CONFIG,
    PUBLIC_KEYS,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    Address,
    ClientSite,
    ServerSite,
    check_host,
    make_private,
    private_files,
    write_private,
    write_site,
)
from spatl.errors import ConfigError, SpatlError
from spatl.extensions.late import LateModule
from spatl.extensions.references import is_reference

if TYPE_CHECKING:
    from spatl.rounds import blueprint, rules
else:  # with which PyTorch comes, where a network is to be built
    blueprint, rules = LateModule("spatl.rounds.blueprint"), LateModule("spatl.rounds.rules")

logger = logging.getLogger(__name__)


@private_files()
def init(options: Namespace, console: Console) -> None:
    """Make all keys of a deployment, and a directory for each machine.

    Raises:
        SpatlError: The config does not work out, or the directory is there already.
    """
    directory = Path(options.directory).absolute()
    if directory.exists():
        raise ConfigError(f"{directory} is already there; choose another directory, for keys are never overwritten")
    address = Address.parse(options.address)
    for name in options.names:
        check_host(name.removeprefix("*."))  # of all hosts of a domain
    values = read_config(options.config, options.overrides)
    section = values.get("partition") or {}
    given = not isinstance(section, dict) or section.get("name") is not None
    if not given:
        values["partition"] = {**section, "name": OWN}
    config = parse_config(values).located(Path.cwd())
    _check_data(config, given=given)
    if config.report.compare_alone:
        logger.warning("report.compare_alone is not kept: a deployment's clients train together only")
        config = config.model_copy(update={"report": config.report.model_copy(update={"compare_alone": False})})
    if is_reference(config.server.aggregation):
        rules.aggregation_rule(config.server.aggregation)
    if not config.has_own_data:  # a mistake in the config shows here, before anything is written
        blueprint.cached_blueprint(config.to_json()).check_clients()
    num_clients = config.partition.num_clients
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        ca, server = make_private(directory) / "ca", directory / "server"
        authority = make_authority()
        certificate = pem(authority.certificate)
        write_private(make_private(ca) / CA_KEY, private_pem(authority.key))
        write_private(ca / CA_CERTIFICATE, certificate)
        pair = make_server_pair(authority, [address.host, "127.0.0.1", "localhost", *options.names])
        write_private(make_private(server) / CA_CERTIFICATE, certificate)
        write_private(server / SERVER_CERTIFICATE, pair.public)
        write_private(server / SERVER_KEY, pair.private)
        write_private(server / CONFIG, config.to_yaml().encode())
        write_site(server, ServerSite(str(address), num_clients))
        make_private(server / PUBLIC_KEYS)
        for client in range(num_clients):
            own = make_private(directory / f"client-{client}")
            fill_client(own, ClientSite(str(address), client, num_clients), certificate, server)
    except OSError as error:
        raise SpatlError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    owned = f"partition.name: own{'' if given else ', for the config names none'}: what lies on a device is all its own"
    shares = f"partition.name: {config.partition.name}: each device gets its share of one data set, which all must hold"
    for line in (
        owned if config.has_own_data else f"{shares} alike",
        f"{directory}: keys for a server and {num_clients} clients. Keep ca/ offline; copy the others to their "
        "machines, each to its own alone, and start there:",
        f"  spatl deploy server {server}",
        *(f"  spatl deploy client {directory / f'client-{client}'}" for client in range(num_clients)),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_data(config: ExperimentConfig, *, given: bool) -> None:
    """Raise unless devices can have the data of a config; `given` says whether it names the partition itself."""
    if config.has_own_data and not is_read_from_path(config.data.name):
        raise ConfigError(
            f"partition.name: own{'' if given else ' (the default here)'} is for data that lie on the devices, but "
            f"data set {config.data.name!r} is read from no path: name a partitioner, e.g. --set partition.name=iid"
        )
    if config.partition.name == "file":
        raise ConfigError(
            "partition.name: file is for simulations, for devices open no file that another machine names: copy to "
            "each device what is its own, and take partition.name: own"
        )
