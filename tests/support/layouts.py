"""Small encoder layouts for tests that need no network."""

from collections.abc import Sequence

import torch

from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.channels.selection import Selection
from spatl.wire.update import Update


def interleaved_layout(groups: Sequence[tuple[int, int]], *, statistics: int = 0) -> EncoderLayout:
    """A layout with one parameter per entry-of-a-channel of each group: `(size, entries_per_channel)`.

    The entries of a channel lie far apart, as those of a network do. `statistics` more entries, which are no
    parameters, belong to the first channel.
    """
    shapes: dict[str, torch.Size] = {}
    owner: list[torch.Tensor] = []
    made: list[ChannelGroup] = []
    first = 0
    for position, (size, entries) in enumerate(groups):
        extra = statistics if position == 0 else 0
        assert extra == 0 or size == 1
        made.append(ChannelGroup(f"layer{position}", first, size, entries + extra))
        for entry in range(entries):
            shapes[f"layer{position}.p{entry}"] = torch.Size([size])
            owner.append(torch.arange(first, first + size))
        first += size
    num_parameters = sum(len(part) for part in owner)
    if statistics:
        shapes["layer0.running_mean"] = torch.Size([statistics])
        owner.append(torch.zeros(statistics, dtype=torch.int64))
    return EncoderLayout(shapes, num_parameters, tuple(map(Labels, owner)), tuple(made))


def make_update(
    layout: EncoderLayout,
    mask: Sequence[bool],
    difference: torch.Tensor,
    *,
    step_weight: float = 1.0,
    corrected: bool = True,
) -> Update:
    """An update of round 1 that sends `difference` [N] on the channels of `mask`, from corrected gradients."""
    selection = Selection(torch.tensor(mask))
    return Update(1, 0, selection, difference[selection.entries(layout)], step_weight, corrected)


def split_labels(layout: EncoderLayout, labels: torch.Tensor) -> tuple[Labels, ...]:
    """Labels of all entries of a layout, [N], by tensor."""
    return tuple(Labels(own) for own in labels.split([shape.numel() for shape in layout.shapes.values()]))
