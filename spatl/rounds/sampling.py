"""Sampling of a round's clients: from a seed over the clients' stable identities, so that runs repeat.

In a simulation it is the run's. Clients of a deployment know that one, and could work out in which rounds they are
most: there it is a secret of the server's, which its checkpoint keeps.
"""

from collections.abc import Iterable, Sequence

from spatl.config.experiment import ExperimentConfig
from spatl.errors import ConfigError
from spatl.seeding import numpy_generator


def able_clients(config: ExperimentConfig, clients: Iterable[int]) -> list[int]:
    """Return the clients that are asked to train: under `selection.selector: able` those whose budget pays for all."""
    if not config.row.selects or config.selection.selector != "able":
        return list(clients)
    budgets = {client: config.budget(client) for client in clients}
    return [client for client, own in budgets.items() if own.kind != "uplink_bytes" and own.limit >= 1]


def check_able(config: ExperimentConfig) -> None:
    """Raise where nobody would train.

    Raises:
        ConfigError: That is so.
    """
    if not able_clients(config, range(config.partition.num_clients)):
        raise ConfigError(
            "selection.selector: able leaves out every client, as no budget is a ratio of 1; give some clients one "
            "(selection.clients)"
        )


def sample_clients(clients: Sequence[int], *, fraction: float, seed: int, server_round: int) -> tuple[int, ...]:
    """Draw a round's participants.

    Args:
        clients: Partition ids.
        fraction: Share of them that trains, in (0, 1]; at least one client always does.
        seed: The run's, or the server's own.
        server_round: The round, from 1.

    Returns:
        Partition ids, ascending.
    """
    number = max(1, round(fraction * len(clients)))
    if number >= len(clients):
        return tuple(sorted(clients))
    draw = numpy_generator(seed, "sampling", server_round=server_round)
    return tuple(sorted(int(client) for client in draw.choice(sorted(clients), size=number, replace=False)))
