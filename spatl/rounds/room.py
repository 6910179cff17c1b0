"""Room for values in messages whose length is limited."""

import math

from spatl.channels.layout import EncoderLayout
from spatl.errors import ConfigError
from spatl.wire.blob import RECORD_BYTES
from spatl.wire.codecs import CODECS
from spatl.wire.update import update_bytes


def check_room(layout: EncoderLayout, limit: int | None, ratio: float | None) -> None:
    """Raise if messages of the length asked for are mostly overhead.

    Args:
        layout: The encoder.
        limit: How many bytes a message may have; None for any.
        ratio: `wire.target_ratio`, from which that comes.

    Raises:
        ConfigError: They are.
    """
    if limit is None or ratio is None or not layout.num_entries:
        return
    overhead = update_bytes(layout, CODECS["float32"], num_values=0, num_channels=0) + 4 * len(layout.shapes)
    if limit < 2 * overhead:
        most = 4 * layout.num_entries / (RECORD_BYTES + 2 * overhead)
        raise ConfigError(
            f"wire.target_ratio is {ratio:g}, which leaves messages of {limit} bytes, of which {overhead} are "
            f"overhead; for this encoder give at most {math.floor(most)}"
        )
