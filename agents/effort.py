"""Estimate of what measuring takes beside the local training, the same on every machine.

`agent.max_share` bounds a share of time. A clock would have the choice depend on what else a machine does, and no run
would give the same twice: so time is estimated from what is computed. On small networks a call of a layer takes longer
than its multiplications; examples alone, which were counted before, said nothing of that.

The constants are fits, by least squares of the relative error, to seven networks of 17,000 to 9 million parameters on
images of 8x8 and 32x32, twelve cases, on one core of a server (AVX2). A machine that is faster or slower in all of them
cancels in a share: of 108 ratios of a trial (6 to 160 examples) to a step (8 to 32), 106 came within a factor of 2 of
what was measured, half of them between 0.87 and 1.30 times of it.
"""

from dataclasses import dataclass
from typing import Final

from torch import nn

from spatl.channels.costs import Costs

_PER_LAYER: Final = 150e-6  # a layer's call in a step, backward included; in a trial, what is set up for it included
_PER_MAC: Final = 50e-12
_PER_STEP_PARAMETER: Final = 1e-9  # gradients and momentum
_PER_TRIAL_ENTRY: Final = 6e-9  # the weights of a selection are put together anew
_PER_SAMPLE: Final = 1e-3  # drawn, projected on the budget, learned from
_PROPOSAL: Final = 3e-3  # graph and policy
_FORWARDS_PER_STEP: Final = 3  # a forward pass, and a backward pass of twice that


@dataclass(frozen=True)
class Effort:
    """Effort of a network's steps and trials, in seconds of a core that stands for all.

    Attributes:
        layers: Modules that have none inside.
        macs: Multiply-accumulates of the encoder for one example.
        parameters: Of the whole network.
        entries: Of the encoder, N.
    """

    layers: int
    macs: float
    parameters: int
    entries: int

    @classmethod
    def of(cls, model: nn.Module, costs: Costs) -> "Effort":
        """Return the effort of a network whose encoder has these costs."""
        return cls(
            layers=sum(1 for module in model.modules() if next(module.children(), None) is None),
            macs=float(costs.flops.macs.sum()),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            entries=costs.layout.num_entries,
        )

    def step(self, examples: int) -> float:
        """Return the seconds of an optimizer step on so many examples."""
        computed = _FORWARDS_PER_STEP * examples * self.macs * _PER_MAC
        return self.layers * _PER_LAYER + computed + self.parameters * _PER_STEP_PARAMETER

    def forward(self, examples: int) -> float:
        """Return the seconds of a forward pass that measures something of so many examples."""
        return self.layers * _PER_LAYER + examples * self.macs * _PER_MAC

    def trial(self, examples: int) -> float:
        """Return the seconds of a trial of a selection on so many examples."""
        return self.forward(examples) + self.entries * _PER_TRIAL_ENTRY

    def affordable_samples(self, training: float, *, share: float, examples: int, signal: int = 0) -> int | None:
        """Return how many samples a share of the local training pays for, beside the prior's and the policy's trial.

        Args:
            training: Seconds of the local training, as `step` has them.
            share: Of them, in (0, 1].
            examples: Of the validation split, in each trial.
            signal: Examples of a forward pass that says what channels are worth; 0 where none does.

        Returns:
            At least 0; None where not even the proposal and its two trials are paid for.
        """
        fixed = _PROPOSAL + 2 * self.trial(examples) + (self.forward(signal) if signal else 0.0)
        left = share * training - fixed
        return int(left / (self.trial(examples) + _PER_SAMPLE)) if left >= 0 else None
