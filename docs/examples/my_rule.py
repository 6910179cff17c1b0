"""Two rules of aggregation: the geometric median of the updates, and a mean whose steps are bounded."""

import torch
from torch import Tensor

from spatl.rounds.aggregation import Aggregator


def geometric_median(updates: Tensor, num_examples: Tensor) -> Tensor:
    """Return by how much each entry moves [N]: Weiszfeld's algorithm, as in RFA (Pillutla et al. 2022).

    Args:
        updates: float32 [K, N], NaN where a client did not send an entry.
        num_examples: int64 [K].
    """
    sent = ~updates.isnan()
    values, share = updates.nan_to_num().double(), num_examples / num_examples.sum()
    moved, distance = torch.zeros(updates.shape[1], dtype=torch.float64), torch.ones(len(updates))
    for _ in range(8):
        weights = (share / distance.clamp(min=1e-6))[:, None] * sent
        moved = (values * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-30)
        distance = torch.where(sent, values - moved, 0.0).norm(dim=1)
    return moved


class Bounded(Aggregator):
    """The weighted mean, but no entry moves further than 0.01 in a round: memory stays that of the mean's."""

    def encoder(self) -> Tensor:
        """Return the encoder after the round, float32 [N]."""
        x = self.encoder_before
        return torch.clamp(super().encoder(), x - 0.01, x + 0.01)
