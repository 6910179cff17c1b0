"""The server's part of FedDyn (Acar et al. 2021, arXiv 2111.04263, algorithm 1)."""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from spatl.channels.vectors import parts_of
from spatl.rounds.aggregation import Aggregator, AverageSettings
from spatl.wire.update import Update


class DynamicAggregator(Aggregator):
    """An average that goes on from the clients' mean by what their linear terms add up to: x = mean - h / alpha.

    h stands where c does, and moves by sum_i p_i (-alpha D_ij): as a c that no client holds would move undamped, with
    1 / alpha for every a_i. So it is the weighted sum of the g_i (`spatl.rounds.control.followed_gradient`).

    Args:
        alpha: `training.dynamic_alpha`.
        settings: Of `Aggregator`, with h for `control`. A learning rate counts for the mean and for h.
    """

    def __init__(self, *, alpha: float, **settings: Unpack[AverageSettings]) -> None:
        super().__init__(**settings)
        if self._control is None:
            raise ValueError("FedDyn's server keeps h, which was not given")
        self._alpha = alpha
        self._held_control, self._damping = torch.zeros(1).expand(len(self._control)), 1.0

    def add(self, update: Update, num_examples: int) -> None:
        """As of `Aggregator`."""
        super().add(replace(update, step_weight=1 / self._alpha), num_examples)

    def encoder(self) -> Tensor:
        """The encoder x after the round, float32 [N], with h as of after the round."""
        encoder, after = super().encoder().clone(), self.control()
        if after is None:
            return encoder
        for part in parts_of(self._layout.num_parameter_entries):
            held_back = self._learning_rate / self._alpha * after[part].double()
            sent = self._examples[self._layout.owner_in(part)] > 0
            encoder[part] = torch.where(sent, (encoder[part].double() - held_back).float(), encoder[part])
        return encoder
