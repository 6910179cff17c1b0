"""Claims of clients at their registration, held against what the server builds itself."""

from spatl.config.experiment import ExperimentConfig
from spatl.errors import DataError, SpatlError
from spatl.models.copies import DIGEST_BYTES
from spatl.rounds.blueprint import Blueprint


def check_share(client: int, num_examples: int, blueprint: Blueprint) -> None:
    """Raise unless a client of data that the server shares out has as many training examples as it says.

    Raises:
        SpatlError: It has not: nobody need believe the weight that it would have.
    """
    if not blueprint.config.has_own_data and num_examples != (share := blueprint.num_training[client]):
        raise SpatlError(
            f"client {client} says that it trains on {num_examples} examples, and its share of the data has {share}"
        )


def present(client: int, part: bytes | None, name: str) -> bytes:
    """Return a part of a client's answer.

    Raises:
        SpatlError: It is not there.
    """
    if part is None:
        raise SpatlError(f"client {client}: a client's registration lacks {name!r}")
    return part


def check_rest(client: int, digests: bytes, blueprint: Blueprint) -> None:
    """Raise where a client's model differs from the server's in something that no message carries, and name it."""
    rest = blueprint.rest
    if len(digests) != DIGEST_BYTES * len(rest):
        raise SpatlError(f"client {client} built another model from this config; do its versions differ?")
    for number, (name, own) in enumerate(rest.items()):
        if digests[DIGEST_BYTES * number : DIGEST_BYTES * (number + 1)] == own:
            continue
        if name in blueprint.users_parts:
            raise SpatlError(
                f"client {client} has another {name} than the server: the module must be the same on every machine, "
                "and give the same for the same seed"
            )
        raise SpatlError(
            f"client {client}'s model has another {name} than the server's, which no message carries: a frozen "
            "parameter, a buffer or an attribute must come out the same wherever the model is built"
        )


def check_digest(client: int, digest: bytes, shared: bytes, config: ExperimentConfig) -> None:
    """Raise unless a client has the data set that all have."""
    if digest != shared:
        raise DataError(
            f"its data set has the digest {digest.hex()[:16]}, the server's {shared.hex()[:16]}: the partitioner "
            f"{config.partition.name} gives out shares of one data set that every machine holds; copy the same there, "
            "or, where each device has data of its own, set partition.name: own"
        )
