"""MOON's loss on representations (Li, He and Song 2021, arXiv 2103.16257, equation 3).

A representation is what the predictor is given. MOON's authors put a projection head of two layers before that; there
is none here (a departure), for a network is the user's own, and has the layers that it has.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.errors import ModelError


@dataclass
class _Tap:
    """What the first part of a predictor was given in a forward pass."""

    seen: list[Tensor] = field(default_factory=list)

    def note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.seen and inputs and isinstance(inputs[0], Tensor):
            self.seen.append(inputs[0])

    def taken(self, cut: Sequence[str]) -> Tensor:
        """Return the representations [B, D], which are forgotten here."""
        if not self.seen:
            raise ModelError(
                f"MOON compares what the predictor {list(cut)} is given, and the forward pass gives it no tensor: name "
                "the submodule that is called last (configs: model.cut)"
            )
        return self.seen.pop().flatten(1).float()


class Contrast:
    """Loss of a model's representations: near those of the server's model, far from those of the one before.

    With z of the model, z_s of the server's and z_b of the one before,

        mu * -log(exp(cos(z, z_s) / tau) / (exp(cos(z, z_s) / tau) + exp(cos(z, z_b) / tau)))

    in the mean over a batch. Both others are in eval mode, and nothing of them is trained.

    Args:
        model: The network that is trained.
        server: A copy with the server's weights.
        before: A copy as the client trained it in the round before.
        cut: The submodules that form the predictor, of each.
        weight: mu.
        temperature: tau.
    """

    def __init__(
        self, model: nn.Module, server: nn.Module, before: nn.Module, cut: Sequence[str], *, weight: float,
        temperature: float,
    ) -> None:  # fmt: skip
        self._others = server.eval(), before.eval()
        self._cut = cut
        self._weight = weight
        self._temperature = temperature
        self._taps = [_Tap() for _ in range(3)]
        self._networks = (model, *self._others)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of representations while it lasts."""
        pairs = zip(self._networks, self._taps, strict=True)
        handles = [
            network.get_submodule(name).register_forward_pre_hook(tap.note)
            for network, tap in pairs
            for name in self._cut
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, inputs: Any) -> Tensor:
        """Return the loss of a batch that the model has just passed, float32, a scalar.

        Raises:
            ModelError: The predictor is given no tensor.
        """
        own = self._taps[0].taken(self._cut)
        with torch.no_grad():
            for network in self._others:
                network(inputs)
        near, far = (F.cosine_similarity(own, tap.taken(self._cut), dim=1) for tap in self._taps[1:])
        logits = torch.stack([near, far], dim=1) / self._temperature
        return self._weight * F.cross_entropy(logits, torch.zeros(len(own), dtype=torch.int64, device=own.device))
