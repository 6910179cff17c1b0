"""Keys of clients, as a server's directory has them."""

from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from spatl.deployment.sites import PUBLIC_KEYS
from spatl.errors import SpatlError


def read_public_keys(directory: Path, clients: Iterable[int]) -> dict[int, bytes]:
    """Return the public keys of clients (PEM), from the server's directory.

    Raises:
        SpatlError: One is missing, or is no key that Flower takes.
    """
    keys = {}
    for client in clients:
        path = directory / PUBLIC_KEYS / f"client-{client}.pub"
        try:
            key = load_ssh_public_key(path.read_bytes())
        except OSError as error:
            raise SpatlError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SpatlError(f"{path} holds no public key of OpenSSH's on an elliptic curve (ssh-keygen -t ecdsa)")
        keys[client] = public_key_to_bytes(key)
    return keys
