"""Networks, and what tracing finds in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spatl.channels.flops import FlopsModel
from spatl.channels.layout import EncoderLayout
from spatl.channels.trace import EncoderTrace
from spatl.channels.tracing import trace_groups
from spatl.models import build_model, make_split


def trace_of(
    model: nn.Module, cut: Sequence[str] = ("head",), *, shape: Sequence[int] = (1, 1, 8, 8), statistics: bool = False
) -> EncoderTrace:
    """What tracing finds in the encoder of a network, on zeros of this shape."""
    split = make_split(model, cut)
    return trace_groups(
        model,
        torch.zeros(*shape),
        parameters=list(split.encoder_parameters(model)),
        statistics=list(split.encoder_statistics(model)) if statistics else [],
    )


def traced(model: nn.Module, cut: Sequence[str], **options: Any) -> tuple[EncoderLayout, FlopsModel]:
    """The layout and the costs of the encoder of a network."""
    trace = trace_of(model, cut, **options)
    return trace.layout, trace.flops


def built(
    name: str, *, size: int = 8, in_channels: int = 1, **options: Any
) -> tuple[nn.Module, Sequence[str], tuple[EncoderLayout, FlopsModel]]:
    """A network that is built in, its cut, and what is traced in it."""
    model, cut = build_model(name, num_classes=10, in_channels=in_channels, image_size=size, options=options, seed=1)
    return model, cut, traced(model, cut, shape=(1, in_channels, size, size))
