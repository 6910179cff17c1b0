"""Command `spatl deploy retire`: a client is taken out of a deployment for good, whether or not it runs.

`server.json` says who is out, and the public key goes. A server that runs follows that file; one that does not reads it
when it starts. The number is nobody else's from then on.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from server.deployment.adding import servers_directory
from spatl.config.loading import load_config
from spatl.deployment.sites import CONFIG, PUBLIC_KEYS, read_server_site, replace_site
from spatl.errors import ConfigError, SpatlError


def retire(options: Namespace, console: Console) -> None:
    """Take a client out, and say what follows.

    Raises:
        SpatlError: The directory is none of a deployment, it has no such client, too few would be left, or all have
            agreed on something that holds for all.
    """
    server = servers_directory(Path(options.directory).absolute())
    site, config, client = read_server_site(server), load_config(server / CONFIG), options.client
    if client not in site.clients:
        known = (
            "was retired before" if client in site.retired else f"is none of its clients 0 to {site.num_clients - 1}"
        )
        raise ConfigError(f"{server}: client {client} {known}")
    if config.row.static_mask:
        raise ConfigError(
            f"{server / CONFIG}: the clients of {config.row.title} agreed on their channels before the first round, so "
            "that none can be taken out; make a deployment of its own (spatl deploy init)"
        )
    left, needed = len(site.clients) - 1, max(1, config.server.min_replies)
    if left < needed:
        raise ConfigError(f"{server}: without client {client} it has {left} clients, and a round needs {needed} "
                          "(server.min_replies)")  # fmt: skip
    try:
        replace_site(server, replace(site, retired=(*site.retired, client)))
        (server / PUBLIC_KEYS / f"client-{client}.pub").unlink(missing_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot use {error.filename or server}: {error.strerror}") from error
    console.print(
        f"client {client} was retired, {left} are left: a server that runs refuses its key within seconds and goes on "
        "without it from the next round, one that does not from its next start. What it has taught stays in the model. "
        "Delete its directory on its device.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
