"""Admission: a client's first look at its server, which ends the command only where waiting would not help."""

import logging
import ssl
import time
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.device.refusals import Refusal, gist, refusal
from clients.device.supernode import end_session
from spatl.deployment.sites import Address, check_private
from spatl.errors import SpatlError

logger = logging.getLogger(__name__)

_CALL_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 5.0


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return this client's key.

    Raises:
        SpatlError: It is missing, open to others, or no key that Flower takes.
    """
    check_private(path)
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SpatlError(f"{path} holds no private key of OpenSSH's on an elliptic curve, without a password")
    return key


def await_server(
    address: Address, ca: Path, key: ec.EllipticCurvePrivateKey, *, added: bool, session: Path | None = None
) -> None:
    """Return once the server lets this client in; whatever may pass is waited for, and said when it is another.

    Args:
        address: The server's.
        ca: Certificate of the federation's authority.
        key: This client's.
        added: Whether it was added to a federation: then its key being unknown may pass, too.
        session: The file in which its last SuperNode left its node's id.

    Raises:
        SpatlError: The server is not the one of this authority, or does not know the key.
    """
    said = ""
    while (refused := check_server(address, ca, key, session=session)) is not None:
        waits = refused.passes or (added and refused.is_of_key)
        if not waits:
            raise SpatlError(refused.reason)
        if gist(refused.reason) != said:
            hint = (
                "; this client was added (spatl deploy add-client): a server that runs knows it within seconds, one "
                "that does not from its next start on (spatl deploy server DIR --resume)"
                if refused.is_of_key
                else ""
            )
            logger.warning("waiting: %s%s", refused.reason, hint)
            said = gist(refused.reason)
        time.sleep(_ASK_AGAIN_SECONDS)


def check_server(
    address: Address, ca: Path, key: ec.EllipticCurvePrivateKey, *, session: Path | None = None
) -> Refusal | None:
    """Return why the server does not let this client in, None where it does.

    Raises:
        SpatlError: There is no certificate in `ca`.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as error:
        raise SpatlError(f"cannot use {ca}: {error.strerror or 'it holds no certificate'}") from error
    public = key.public_key()
    own: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),
    ]
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    try:
        with FleetHttpClient(f"https://{address}", interceptors=own, verify=context, timeout=_CALL_SECONDS) as client:
            end_session(client, session)
            client.DeactivateNode(DeactivateNodeRequest(node_id=client.ActivateNode(request).node_id))
    except (httpx.HTTPError, OSError, ValueError) as error:
        return refusal(error, address)
    return None
