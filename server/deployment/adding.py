"""Command `spatl deploy add-client`: keys and directories of clients that come to a deployment that is there already.

It works on the server's directory, and needs no key of the authority: a client shows its own key, which the server
looks up in `clients/`, and trusts the authority by its certificate. `server.json` is the one file that says how many
clients there are, and is written last of what must be there; a server that runs looks at it (`following`).
"""

import contextlib
import shlex
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from server.deployment.certificates import make_client_pair
from spatl.config.device import DEVICE_FILE, device_text
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, with_clients
from spatl.data import OWN
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    CLIENT_KEY,
    CONFIG,
    PUBLIC_KEYS,
    ClientSite,
    ServerSite,
    make_private,
    read_server_site,
    replace_private,
    replace_site,
    write_private,
    write_site,
)
from spatl.errors import ConfigError, SpatlError


def add_clients(options: Namespace, console: Console) -> None:
    """Make keys and directories of new clients, have the server know them, and say what to do with them.

    Raises:
        SpatlError: The directory is none of a deployment, its federation cannot grow, what is to be made is there, or
            it cannot be written.
    """
    if options.count < 1:
        raise ConfigError(f"--count must be at least 1, got {options.count}")
    server = servers_directory(Path(options.directory).absolute())
    site = read_server_site(server)
    config = load_config(server / CONFIG)
    check_growing(config, server)
    added = range(site.num_clients, site.num_clients + options.count)
    _check_free(server, added)
    total = added[-1] + 1
    with contextlib.ExitStack() as undo:
        try:
            certificate = (server / CA_CERTIFICATE).read_bytes()
            for client in added:
                own = make_private(server.parent / f"client-{client}")  # which one of two such commands can
                undo.callback(shutil.rmtree, own, ignore_errors=True)
                fill_client(own, ClientSite(site.address, client, total, added=True), certificate, server)
                undo.callback((server / PUBLIC_KEYS / f"client-{client}.pub").unlink, missing_ok=True)
            replace_site(server, replace(site, num_clients=total))
            undo.pop_all()
            replace_private(server / CONFIG, with_clients(config, total).to_yaml().encode())
        except OSError as error:
            raise SpatlError(f"cannot use {error.filename or server}: {error.strerror}") from error

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    _tell(server, [server.parent / f"client-{client}" for client in added], total, say)


def fill_client(directory: Path, site: ClientSite, certificate: bytes, server: Path) -> None:
    """Write all that a client needs into its directory, with a new key, and the public key into the server's.

    Args:
        directory: The client's, which is empty.
        site: What the client is.
        certificate: Of the authority.
        server: The server's directory.
    """
    pair = make_client_pair()
    write_private(directory / CA_CERTIFICATE, certificate)
    write_private(directory / CLIENT_KEY, pair.private)
    write_private(directory / DEVICE_FILE, device_text().encode())
    write_site(directory, site)
    write_private(server / PUBLIC_KEYS / f"client-{site.client}.pub", pair.public)


def servers_directory(directory: Path) -> Path:
    """Return the server's directory of a deployment: the one given, or the one in it.

    Raises:
        ConfigError: There is none.
    """
    for server in (directory, directory / "server"):
        if (server / ServerSite.FILE).is_file():
            return server
    raise ConfigError(
        f"{directory} is no deployment: neither {ServerSite.FILE} nor server/{ServerSite.FILE} is there (spatl deploy "
        "init makes one; add clients where its server's directory lies)"
    )


def check_growing(config: ExperimentConfig, server: Path) -> None:
    """Raise unless clients can come to a federation that has begun.

    Raises:
        ConfigError: They would change what others have, or what all have agreed on.
    """
    if not config.has_own_data:
        raise ConfigError(
            f"{server / CONFIG}: partition.name is {config.partition.name}, which gives out shares of one data set, so "
            f"that another client would change everybody's; only where each device has data of its own (partition."
            f"name: {OWN}) can clients be added"
        )
    if config.row.static_mask:
        raise ConfigError(
            f"{server / CONFIG}: the clients of {config.row.title} agree on their channels before the first round, so "
            "that none can be added; make a deployment of its own (spatl deploy init)"
        )


def of_all_clients(config: ExperimentConfig, site: ServerSite, path: Path) -> ExperimentConfig:
    """Return a config with as many clients as its deployment has by now.

    Args:
        config: What a file says.
        site: The deployment.
        path: The file, for messages.

    Raises:
        ConfigError: The config has more, or is of a federation that cannot grow.
    """
    number = config.partition.num_clients
    if number == site.num_clients:
        return config
    if number > site.num_clients or not config.has_own_data:
        raise ConfigError(f"{path} has {number} clients, the deployment {site.num_clients}")
    return with_clients(config, site.num_clients)


def _check_free(server: Path, clients: range) -> None:
    for client in clients:
        for path in (server.parent / f"client-{client}", server / PUBLIC_KEYS / f"client-{client}.pub"):
            if path.exists():
                raise ConfigError(
                    f"{path} is already there, and keys are never overwritten; client {client} would be a new one: "
                    "move it away"
                )


def _tell(server: Path, made: list[Path], total: int, say: Callable[[str], None]) -> None:
    clients = f"{len(made)} client{'s were' if len(made) > 1 else ' was'} added; the federation has {total}"
    say(f"{clients}. Move each directory to its own device, and its key nowhere else (scp -rp, then delete it here):")
    for own in made:
        say(f"  {own}")
    say("and start there, before or after the server knows it (until then it waits):")
    for own in made:
        say(f"  {shlex.join(['spatl', 'deploy', 'client', own.name, '--data-dir', 'PATH'])}")
    say("A server that runs knows them within seconds, and takes each in before the round after it is there; one that")
    say("does not run knows them from its next start on:")
    say(f"  {shlex.join(['spatl', 'deploy', 'server', str(server), '--resume'])}")
    say("and, where its run is over, with --set rounds=N for more rounds.")
