"""Updates drawn at random over a small layout."""

import torch

from spatl.wire.update import Update
from tests.support.layouts import interleaved_layout, make_update

LAYOUT = interleaved_layout([(3, 4), (2, 5)])
N = LAYOUT.num_entries


def random_updates(seed: int, number: int, layout=LAYOUT) -> list[tuple[Update, int]]:
    draw = torch.Generator().manual_seed(seed)
    updates = []
    for _ in range(number):
        mask = torch.rand(layout.num_channels, generator=draw) < 0.6
        scale = 10 ** float(torch.empty(()).uniform_(-6, 3, generator=draw))
        difference = scale * torch.randn(layout.num_entries, generator=draw)
        step_weight = float(torch.rand((), generator=draw)) + 0.1
        update = make_update(layout, mask.tolist(), difference, step_weight=step_weight, corrected=True)
        updates.append((update, int(torch.randint(1, 500, (), generator=draw))))
    return updates
