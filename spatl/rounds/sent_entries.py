"""Examples that stand behind each entry, where clients send parts of a network."""

import torch

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection


class SentEntries:
    """Examples that stand behind each entry, of clients that each send a part of the network.

    A channel that two of them sent may have entries that only one did.

    Args:
        layout: The shared encoder.

    Attributes:
        examples: int64 [N], training examples of the clients that sent an entry.
        corrected: int64 [P], likewise of those whose gradients were corrected.
    """

    def __init__(self, layout: EncoderLayout) -> None:
        self._layout = layout
        self.examples = torch.zeros(layout.num_entries, dtype=torch.int64)
        self.corrected = torch.zeros(layout.num_parameter_entries, dtype=torch.int64)

    def add(self, selection: Selection, num_examples: int, *, corrected: bool) -> None:
        """Count a client in."""
        counted = [self.examples, *([self.corrected] if corrected else [])]
        for part, kept in selection.parts(self._layout):
            for counts in counted:
                own = counts[part]
                own += num_examples if kept is None else num_examples * kept[: len(own)]
