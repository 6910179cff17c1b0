"""Registration of a client: what it says of itself before the first round."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected

AGREED, DESCRIPTION, DIGEST, REFUSED = "agreed", "description", "data", "refused"
"""What else the record of a registration may have: what the clients have agreed on, as JSON; what a device's own data
are like (`spatl.data.own`); the digest of a data set that is shared out; why a client cannot take part."""

_LARGEST_SALIENCY: Final = 1e30


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
