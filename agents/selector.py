"""The selector that clients use: the shipped policy, a few measured samples, and the best of them under the budget.

The prior is always measured too, and nothing that classifies fewer validation examples correctly is ever chosen: the
agent is never below its prior there, whatever the policy says.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agents.graph import Graph, make_graph
from agents.policy import GraphPolicy, load_policy
from agents.problem import Problem
from agents.search import local_search, tune_head
from agents.trial import Trial, pruned_trial, reward, sent_trial
from spatl.data import Examples
from spatl.selection.selection import Selection
from spatl.selection.selectors import AgentSettings, Choice, SelectionRequest, update_energy
from spatl.selection.signal import channel_signal
from spatl.training.evaluate import Evaluation

_MAX_EXAMPLES = 256  # of the validation split, in one measurement
_SIGNAL_EXAMPLES = 32  # of the training split, in measuring the channels' signal
_FORWARDS_PER_STEP = 3  # a training step costs a forward pass and a backward pass of twice that
_TUNING = {"search": local_search, "ppo": tune_head}


@dataclass(frozen=True, eq=False)
class _Measured:
    """A selection with what it was found to be worth."""

    selection: Selection
    evaluation: Evaluation


class AgentSelector:
    """A `spatl.selection.selectors.Selector`.

    Args:
        settings: Reward, number of samples, how they are drawn, and which weights.

    Raises:
        SpatlError: The policy's file is not there or holds none.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._policy = load_policy(Path(settings.policy) if settings.policy else None)

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return the best of prior, policy and samples; the state is the client's own head."""
        problem, trial = self._problem(request)
        started = time.perf_counter()
        proposal = propose(problem, personal(self._policy, request.state))
        decision_seconds = time.perf_counter() - started
        samples = self._samples(request)
        if trial is None or samples is None:  # nothing can be measured: the prior needs no measuring
            return Choice(proposal.prior, request.state, decision_seconds)
        best, head = choose(proposal, trial, samples=samples, tuning=self._settings.tuning, generator=request.generator)
        gain = best.evaluation.accuracy - best.prior.accuracy
        return Choice(best.selection, {**request.state, **head}, decision_seconds, gain)

    def _problem(self, request: SelectionRequest) -> tuple[Problem, Trial | None]:
        layout, costs, examples = request.costs.layout, request.costs, _some(request.validation)
        if self._settings.reward == "sent":
            problem = Problem(costs, request.budget, update_energy(request.update, layout), "sent")
            received = request.weights - request.update
            trial = sent_trial(request.model, layout, received=received, update=request.update, examples=examples)
        else:
            images = request.train.images[:_SIGNAL_EXAMPLES]
            signal = channel_signal(request.model, layout, costs.trace.readers, images)
            problem = Problem(costs, request.budget, signal, "pruned")
            trial = pruned_trial(request.model, costs.trace, examples)
        return problem, trial if len(examples) > 1 else None

    def _samples(self, request: SelectionRequest) -> int | None:
        """How many samples the settings and the client's budget of time allow; None when not even two trials."""
        settings = self._settings
        training = request.num_steps * min(request.batch_size, len(request.train)) * _FORWARDS_PER_STEP
        spent = min(_SIGNAL_EXAMPLES, len(request.train)) if settings.reward == "pruned" else 0
        affordable = int((settings.max_share * training - spent) // len(_some(request.validation))) - 2
        tuning = settings.tuning_rounds is None or request.server_round <= settings.tuning_rounds
        return min(settings.samples if tuning else 0, affordable) if affordable >= 0 else None


@dataclass(frozen=True, eq=False)
class Proposal:
    """What the policy says, nothing being measured yet.

    Attributes:
        problem: What is to be selected.
        policy: The policy, with the client's own head if it has one.
        graph: The problem as the policy sees it.
        action: [G], what the policy does.
        prior: The selection of the action 0.
        chosen: The selection of the policy's action.
    """

    problem: Problem
    policy: GraphPolicy
    graph: Graph
    action: Tensor
    prior: Selection
    chosen: Selection


def propose(problem: Problem, policy: GraphPolicy) -> Proposal:
    """Ask a policy."""
    graph = make_graph(problem)
    action = policy.act(graph)
    return Proposal(problem, policy, graph, action, problem.prior(), problem.selection(action))


@dataclass(frozen=True, eq=False)
class Best(_Measured):
    """The selection chosen, beside the prior it had to beat.

    Attributes:
        prior: What the prior reached.
    """

    prior: Evaluation


def choose(
    proposal: Proposal, trial: Trial, *, samples: int, tuning: str, generator: torch.Generator
) -> tuple[Best, dict[str, Tensor]]:
    """Measure the prior, the policy's selection and further samples, and keep the best.

    Args:
        proposal: The policy's.
        trial: Measures a selection.
        samples: How many further selections may be measured.
        tuning: `"search"` or `"ppo"`.
        generator: Draws them.

    Returns:
        The best: the highest reward among those no less accurate than the prior. And the client's head, empty if
        nothing was sampled.
    """
    first = _Measured(proposal.prior, trial(proposal.prior))
    measured = [first, _Measured(proposal.chosen, trial(proposal.chosen))]

    def evaluate(action: Tensor) -> float:
        selection = proposal.problem.selection(action)
        measured.append(_Measured(selection, trial(selection)))
        return reward(measured[-1].evaluation, first.evaluation)

    head: dict[str, Tensor] = {}
    if samples:
        own = reward(measured[1].evaluation, first.evaluation)
        # What is worse than the prior is no place to start from.
        start = proposal.action if own >= 0 else torch.zeros_like(proposal.action)
        head = _TUNING[tuning](
            proposal.policy, proposal.graph, start, max(own, 0.0), evaluate, samples=samples, generator=generator
        ).head
    allowed = [each for each in measured if each.evaluation.accuracy >= first.evaluation.accuracy]
    best = max(allowed, key=lambda each: reward(each.evaluation, first.evaluation))
    return Best(best.selection, best.evaluation, first.evaluation), head


def personal(policy: GraphPolicy, head: Mapping[str, Tensor]) -> GraphPolicy:
    """Return the policy with a client's own head, or the policy itself for a client that has none yet."""
    if not head:
        return policy
    own = copy.deepcopy(policy)
    own.head.load_state_dict(dict(head))
    return own


def _some(examples: Examples) -> Examples:
    return Examples(examples.images[:_MAX_EXAMPLES], examples.labels[:_MAX_EXAMPLES])
