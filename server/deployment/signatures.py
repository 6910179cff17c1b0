"""Signatures of SuperNodes, seen before the body of a request is read: Flower looks at them afterwards."""

import datetime
from base64 import b64decode
from collections.abc import Mapping

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature


def signer_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the public key (PEM) that has signed a request's time, as Flower checks it; None where none has.

    Args:
        headers: Of the request, with names in lower case.
    """
    try:
        key, signature = (
            b64decode(headers[name.lower().encode()], validate=True)
            for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
        )
        signed = headers[TIMESTAMP_HEADER.lower().encode()]
        age = (now() - datetime.datetime.fromisoformat(signed.decode("ascii"))).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return None
        return key if verify_signature(bytes_to_public_key(key), signed, signature) else None
    except (KeyError, ValueError, TypeError):
        return None
