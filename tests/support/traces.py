"""Networks, and what tracing finds in them."""

import torch

from spatl.channels.tracing import trace_groups
from spatl.models import build_model, make_split


def traced(model, cut, *, shape=(1, 1, 8, 8), statistics=False):
    split = make_split(model, cut)
    trace = trace_groups(
        model,
        torch.zeros(shape),
        parameters=list(split.encoder_parameters(model)),
        statistics=list(split.encoder_statistics(model)) if statistics else [],
    )
    return trace.layout, trace.flops


def built(name, *, size=8, in_channels=1, **options):
    model, cut = build_model(name, num_classes=10, in_channels=in_channels, image_size=size, options=options, seed=1)
    return model, cut, traced(model, cut, shape=(1, in_channels, size, size))
