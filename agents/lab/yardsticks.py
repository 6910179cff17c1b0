"""Yardsticks: the ways of choosing that an agent is compared with, most of which need no learning.

Each yardstick gets a network, a budget and a number of evaluations that it may or may not use, and returns a selection.
Those called global L2 rank channels by their weights, as pruning usually does; those called signal by what the layers
that read them receive (`spatl.selection.signal`), as the agent does, so that what the policy adds can be told from what
the measure adds.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from agents.graph import make_graph
from agents.measurement import Outcome, Trial
from agents.policy import GraphPolicy
from agents.selection_problem import Problem
from agents.selector import choose, propose
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.selection.projection import keep_top, project_ranking, project_ratios

_STREAM_LOGIT: Final = 0.5
_LEVELS: Final = (0.25, 0.5, 0.75)


@dataclass(eq=False)
class Setting:
    """Setting of a choice: one network under one budget, the same for every yardstick.

    Attributes:
        problem: The agent's view: channels worth their signal.
        magnitude: float64 [C], global L2.
        trial: Measures a selection on the validation split.
        policy: The policy.
        samples: How many evaluations fine-tuning and searching may use beside the start's.
        streams: bool [G], the groups that several layers write.
        generator: Random numbers of one yardstick.
    """

    problem: Problem
    magnitude: Tensor
    trial: Trial
    policy: GraphPolicy
    samples: int
    streams: Tensor
    generator: torch.Generator
    _measured: dict[bytes, Outcome] = field(default_factory=dict, repr=False)

    def measure(self, selection: Selection) -> Outcome:
        """Measure a selection, once however often it is asked for: yardsticks meet the same selections."""
        key = selection.mask.numpy().tobytes()
        if key not in self._measured:
            self._measured[key] = self.trial(selection)
        return self._measured[key]

    @property
    def by_magnitude(self) -> Problem:
        """Return the problem with channels worth their weights, at a cost of one each: its prior is global L2."""
        return _GlobalL2(self.problem.costs, self.problem.budget, self.magnitude, self.problem.objective)


class _GlobalL2(Problem):
    """Problem in which channels are ranked by weight alone, whatever they cost: global L2."""

    def ranking(self) -> Tensor:
        return self.worth.argsort(descending=True, stable=True)


def uniform(setting: Setting) -> Selection:
    """Keep the same ratio of every group, the largest weights inside each."""
    return _ratios(setting, torch.full((_num_groups(setting),), 0.5), setting.magnitude)


def random(setting: Setting) -> Selection:
    """Draw every group's ratio, and keep the largest weights inside each."""
    return _ratios(setting, torch.rand(_num_groups(setting), generator=setting.generator), setting.magnitude)


def global_l2(setting: Setting) -> Selection:
    """Rank all channels by their weights, normalised per layer."""
    ranking = setting.magnitude.argsort(descending=True, stable=True)
    return project_ranking(ranking, setting.problem.costs, setting.problem.budget)


def residual_rule(setting: Setting) -> Selection:
    """Rank by global L2 with half a logit more for groups that several layers write (residual streams)."""
    problem = setting.by_magnitude
    logits = torch.logit(problem.prior_ratios) + _STREAM_LOGIT * setting.streams
    return _ratios(setting, torch.sigmoid(logits), setting.magnitude)


def search_from_l2(setting: Setting) -> Selection:
    """Search locally from global L2."""
    return _searched(setting, setting.by_magnitude)


def uniform_signal(setting: Setting) -> Selection:
    """Keep the same ratio of every group, the strongest signal inside each."""
    return _ratios(setting, torch.full((_num_groups(setting),), 0.5), setting.problem.worth)


def prior(setting: Setting) -> Selection:
    """Rank all channels by signal per cost: the agent's prior."""
    return setting.problem.prior()


def sensitivity(setting: Setting) -> Selection:
    """Thin out one group at a time, and keep most where the loss rises most per cost: 3 G + 1 evaluations."""
    problem = setting.problem
    layout = problem.costs.layout
    whole = layout.group_sizes
    before = setting.measure(keep_top(problem.worth, whole, layout)).loss
    price = problem.costs.marginal(problem.budget.kind) * whole
    worth = torch.zeros(layout.num_channels, dtype=torch.float64)
    for position, group in enumerate(layout.groups):
        losses = [before]
        for level in sorted(_LEVELS, reverse=True):
            counts = whole.clone()
            counts[position] = max(1, round(level * group.size))
            losses.append(max(losses[-1], setting.measure(keep_top(problem.worth, counts, layout)).loss))
        # Channels from worst to best: the loss that each quarter of them saves, the last quarter at least as much.
        saved = [after - earlier for earlier, after in itertools.pairwise(losses)]
        saved.append(max(saved))
        order = problem.worth[group.first : group.first + group.size].argsort(stable=True)
        quarter = (torch.arange(group.size) * len(saved) // group.size).clamp(max=len(saved) - 1)
        steps = torch.tensor(saved, dtype=torch.float64).cummax(0).values[quarter]
        worth[group.first + order] = steps / price[position].clamp(min=1e-12)
    tie_break = 1e-9 * problem.worth / problem.worth.max().clamp(min=1e-30)
    ranking = (worth + tie_break).argsort(descending=True, stable=True)
    return project_ranking(ranking, problem.costs, problem.budget)


def search_from_prior(setting: Setting) -> Selection:
    """Search locally from the agent's prior."""
    return _searched(setting, setting.problem)


def agent(setting: Setting) -> Selection:
    """Take the policy's selection as it is, without evaluation."""
    return setting.problem.selection(setting.policy.act(make_graph(setting.problem)))


def agent_ppo(setting: Setting) -> Selection:
    """Fine-tune the policy's head by PPO; take the best of prior, policy and samples."""
    return _tuned(setting, "ppo")


def agent_search(setting: Setting) -> Selection:
    """Search locally from the policy's action; take the best of prior, policy and samples."""
    return _tuned(setting, "search")


YARDSTICKS: Final[dict[str, Callable[[Setting], Selection]]] = {
    "uniform ratios": uniform,
    "random ratios": random,
    "global L2": global_l2,
    "L2 + residual rule": residual_rule,
    "L2 + local search": search_from_l2,
    "uniform ratios, signal": uniform_signal,
    "signal (the prior)": prior,
    "signal + sensitivity": sensitivity,
    "signal + local search": search_from_prior,
    "agent, zero-shot": agent,
    "agent, fine-tuned (ppo)": agent_ppo,
    "agent, fine-tuned (search)": agent_search,
}


def num_evaluations(name: str, *, samples: int, num_groups: int) -> int:
    """Return how many evaluations on the validation split a yardstick uses, the prior's and the policy's included."""
    if name == "signal + sensitivity":
        return 3 * num_groups + 1
    if name.startswith("agent, fine-tuned"):
        return samples + 2
    return samples + 2 if name.endswith("local search") else 0


def _num_groups(setting: Setting) -> int:
    return len(setting.problem.costs.layout.groups)


def _ratios(setting: Setting, ratios: Tensor, worth: Tensor) -> Selection:
    costs = setting.problem.costs
    return keep_top(worth, project_ratios(ratios, costs, setting.problem.budget), costs.layout)


def _searched(setting: Setting, problem: Problem) -> Selection:
    """Return the best that local search finds from a problem's prior, chosen as the fine-tuned agent chooses."""
    proposal = propose(problem, GraphPolicy().double())  # untrained, it proposes the prior, which is measured once
    samples = setting.samples + 1
    return choose(proposal, setting.measure, samples=samples, tuning="search", generator=setting.generator).selection


def _tuned(setting: Setting, tuning: str) -> Selection:
    proposal = propose(setting.problem, setting.policy)
    samples = setting.samples
    return choose(proposal, setting.measure, samples=samples, tuning=tuning, generator=setting.generator).selection


def residual_streams(model: nn.Module, layout: EncoderLayout) -> Tensor:
    """Return the groups that several layers write, bool [G]; a depthwise layer passes on and does not write."""
    owners = layout.unflatten(layout.owner)
    writers = torch.zeros(len(layout.groups), dtype=torch.int64)
    for name, layer in model.named_modules():
        owner = owners.get(f"{name}.weight")
        if owner is None or not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            continue
        if getattr(layer, "groups", 1) == 1 or getattr(layer, "groups", 1) < layer.weight.shape[0]:
            writers[torch.bincount(layout.group_of[owner.reshape(-1)], minlength=len(writers)) > 0] += 1
    return writers > 1
