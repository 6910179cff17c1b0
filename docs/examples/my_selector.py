"""A selector with a memory: what a channel's update holds counts more, the longer the channel has not been sent."""

import torch
from torch import Tensor

from spatl.selection.projection import project_ranking
from spatl.selection.protocol import Choice, SelectionRequest


def by_update(request: SelectionRequest) -> Tensor:
    """The energy of each channel's update [C]: what is worth most is kept, as far as the budget goes."""
    layout = request.costs.layout
    return torch.zeros(layout.num_channels).index_add_(0, layout.owner, request.update.square())


class Overdue:
    """The same, times the rounds since this client sent the channel last."""

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return the channels that travel, and the age of each for the client's next round."""
        worth = by_update(request)
        age = request.state.get("age", torch.ones_like(worth))
        ranking = (worth * age).argsort(descending=True, stable=True)
        selection = project_ranking(ranking, request.costs, request.budget)
        return Choice(selection, state={"age": torch.where(selection.mask, 1.0, age + 1)})
