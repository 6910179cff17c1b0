"""Trace of an encoder: its layout, its costs, and the layers that read its channels.

It is apart from the tracing itself, which loads torch-pruning: a budget needs the costs, not how they were found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spatl.channels.flops import FlopsModel
from spatl.channels.layout import EncoderLayout


@dataclass(frozen=True, eq=False)
class EncoderTrace:
    """Result of one trace of a network.

    Attributes:
        layout: The encoder's entries and who owns them.
        flops: What channels cost to compute.
        readers: int64 [I] by layer name, for every convolution and linear layer of the whole network that reads
            channels of the encoder: the channel behind each of its inputs, -1 where there is none. All of it is proved.
        doubtful: By name of a group whose readers could not be proved, why. Nobody is said to read its channels, and
            they cost the same however many of them are kept: they may stay out of an update, and are never pruned.
    """

    layout: EncoderLayout
    flops: FlopsModel
    readers: Mapping[str, Tensor]
    doubtful: Mapping[str, str] = field(default_factory=dict)
