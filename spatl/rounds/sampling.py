"""Sampling of a round's clients: from a seed over the clients' stable identities, so that runs repeat.

In a simulation it is the run's. Clients of a deployment know that one, and could work out in which rounds they are
most: there it is a secret of the server's, which its checkpoint keeps.
"""

from collections.abc import Sequence

from spatl.seeding import numpy_generator


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
