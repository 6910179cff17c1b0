"""Error feedback: what a coarse codec lost of a client's updates goes into its next one (Seide et al. 2014).

With p = D + e for a client's update D and what is left of those before, e, it sends C(p), and e becomes p - C(p): what
it has sent and what is left add up to its updates, however biased C is (Karimireddy et al. 2019, arXiv 1901.09847,
algorithm 1). Both sides compute with the numbers that the receiver decodes.

An update that the server did not fold in counts as never made, like its control variate: what is left is then what it
was before that round (`ClientState.settle`). So the sum holds over the rounds that count, whichever replies are lost.
What a client did not select stays out of it: that was chosen, not lost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatl.channels.kept import put_
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection


@dataclass(frozen=True, eq=False)
class Feedback:
    """Remains of a client's updates, of a codec that feeds them back.

    Attributes:
        residual: float32 [N], what is left of updates before (e); empty for zeros.
        memory: float32 [any], what the codec begins its next with (`Codec.encode_with_memory`); empty at first.
    """

    residual: Tensor
    memory: Tensor

    @classmethod
    def none(cls) -> "Feedback":
        """Return nothing left, and nothing kept."""
        return cls(torch.zeros(0), torch.zeros(0))

    def wanted(self, values: Tensor, selection: Selection, layout: EncoderLayout) -> Tensor:
        """Return what a client wants to send of the selected entries: p = D + e, float32 [V], a new tensor.

        Args:
            values: float32 [V], D on the selected entries.
            selection: Which they are.
            layout: The encoder.
        """
        return values + selection.take(self.residual, layout) if len(self.residual) else values.clone()

    def after(
        self, wanted: Tensor, sent: Tensor, selection: Selection, layout: EncoderLayout, memory: Tensor
    ) -> "Feedback":
        """Return what is left once a message is sent: e = p - C(p) on the selected entries, as before elsewhere.

        Args:
            wanted: float32 [V], p.
            sent: float32 [V], C(p), as the server decodes it.
            selection: The entries of both.
            layout: The encoder.
            memory: What the codec begins its next with.
        """
        residual = self.residual.clone() if len(self.residual) else torch.zeros(layout.num_entries)
        for part, kept, values in selection.value_parts(layout):
            put_(residual[part], kept, wanted[values] - sent[values])
        return Feedback(residual, memory)
