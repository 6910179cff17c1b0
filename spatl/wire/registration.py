"""Registration of a client: what it says of itself before the first round.

It travels in the fields of one of Flower's records, each of which costs 440 bytes, and not in a blob; one more field is
the digest of them all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected, printable
from spatl.wire.blob import BLOB, check_digest, digest_of

_LARGEST_SALIENCY: Final = 1e30
_MOST_EXAMPLES: Final = 1 << 32
_CLIENT, _EXAMPLES = "partition-id", "num-examples"
_FINGERPRINT, _AGREED, _REFUSED, _CHECK = "fingerprint", "agreed", "refused", "check"
_FIELDS: Final = {
    _FINGERPRINT: ("fingerprint", 64), "initial": ("initial", 64), "rest": ("rest", 1 << 20),
    BLOB: ("saliency", 1 << 30), "data": ("digest", 64), "description": ("description", 8 << 20),
}  # fmt: skip
"""The key of each part of an answer that is bytes, its name here, and the most bytes that anybody would send of it."""
_LONGEST_REASON: Final = 2000


@dataclass(frozen=True)
class RegistrationQuestion:
    """Question of the server to a client before the first round.

    Attributes:
        fingerprint: The layout's; empty where devices are asked for a description of their own data first.
        agreed: What the clients have agreed on, as JSON; None where it is not new to them.
    """

    fingerprint: bytes = b""
    agreed: str | None = None

    def fields(self) -> dict[str, bytes | str]:
        """Return what a message carries, by key."""
        return with_check({_FINGERPRINT: self.fingerprint} | ({} if self.agreed is None else {_AGREED: self.agreed}))

    @classmethod
    def of_fields(cls, fields: Mapping[str, object]) -> Self:
        """Return the question that a message carries; a client reads no more of it than the agreement.

        Raises:
            UpdateRejected: It was altered.
        """
        check_digest(fields.get(_CHECK), *_told(fields))
        agreed = fields.get(_AGREED)
        return cls(agreed=None if agreed is None else str(agreed))


@dataclass(frozen=True)
class RegistrationAnswer:
    """Answer of a client: its partition, how many examples it trains on, and what it would build.

    Attributes:
        client: Its partition id.
        num_examples: Its training examples (n_i); None where it cannot take part.
        fingerprint: The layout's, as it builds it.
        initial: Check of the initial encoder that it builds.
        rest: Digests of all else that both sides build and no message carries.
        saliency: Worth of each channel on its data (`pack_saliency`), for methods with one mask for all.
        digest: Digest of the data set that is shared out.
        description: What a device's own data are like (`spatl.data.own`).
        refused: Why it cannot take part, in one line.
    """

    client: int
    num_examples: int | None = None
    fingerprint: bytes | None = None
    initial: bytes | None = None
    rest: bytes | None = None
    saliency: bytes | None = None
    digest: bytes | None = None
    description: bytes | None = None
    refused: str | None = None

    def fields(self) -> dict[str, bytes | str | int]:
        """Return what a message carries, by key."""
        values = {key: getattr(self, name) for key, (name, _) in _FIELDS.items()}
        values |= {_CLIENT: self.client, _EXAMPLES: self.num_examples, _REFUSED: self.refused}
        return with_check({key: value for key, value in values.items() if value is not None})

    @staticmethod
    def client_of(fields: Mapping[str, object]) -> object:
        """Return the partition that a message says it is of, as it stands there.

        Raises:
            KeyError: It says none.
            UpdateRejected: It was altered.
        """
        client = fields[_CLIENT]
        check_digest(fields.get(_CHECK), *_told(fields))
        return client

    @classmethod
    def of_fields(cls, client: int, fields: Mapping[str, object]) -> Self:
        """Return the answer that a message of a client carries.

        Raises:
            UpdateRejected: A part of it has another type or range than it must have.
        """
        if _REFUSED in fields:
            return cls(client, refused=printable(str(fields[_REFUSED])[:_LONGEST_REASON]))
        examples = fields.get(_EXAMPLES)
        if type(examples) is not int or not 1 <= examples < _MOST_EXAMPLES:
            raise UpdateRejected(f"registered with {examples!r:.20} training examples, expected at least 1")
        parts: dict[str, bytes] = {}
        for key, (name, most) in _FIELDS.items():
            part = fields.get(key)
            if isinstance(part, bytes):
                if len(part) > most:
                    raise UpdateRejected(f"registered with {len(part)} bytes of {name}, at most {most} are read")
                parts[name] = part
            elif part is not None:
                raise UpdateRejected("registered with other than bytes where bytes are expected")
        return cls(
            client,
            examples,
            fingerprint=parts.get("fingerprint"),
            initial=parts.get("initial"),
            rest=parts.get("rest"),
            saliency=parts.get("saliency"),
            digest=parts.get("digest"),
            description=parts.get("description"),
        )


def with_check(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with one more, which is the digest of what they say."""
    return {**fields, _CHECK: digest_of(*_told(fields))}


def _told(fields: Mapping[str, object]) -> Iterator[bytes]:
    """Yield all that fields say, in an order of its own; the digest of it is none of them."""
    for key, value in sorted(fields.items()):
        if key != _CHECK:
            content = value if isinstance(value, bytes) else str(value).encode()
            yield f"{key} {type(value).__name__} {len(content)} ".encode()
            yield content


def pack_saliency(saliency: Tensor) -> bytes:
    """Pack a client's channel saliency, float32 [C] (`selection.static`): its numbers, little-endian."""
    return saliency.numpy().astype("<f4", copy=False).tobytes()


def unpack_saliency(blob: bytes, layout: EncoderLayout) -> Tensor:
    """Check and read what `pack_saliency` wrote.

    Raises:
        UpdateRejected: It is not one finite number per channel, at least 0 and not absurdly large.
    """
    if len(blob) != 4 * layout.num_channels:
        raise UpdateRejected(f"expected {4 * layout.num_channels} bytes of channel saliency, got {len(blob)}")
    saliency = torch.from_numpy(np.frombuffer(blob, dtype="<f4").astype(np.float32))
    if not bool(((saliency >= 0) & (saliency < _LARGEST_SALIENCY)).all()):
        raise UpdateRejected("channel saliency must be finite numbers from 0")
    return saliency
