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

from agents.graph import make_graph
from agents.policy import GraphPolicy, load_policy
from agents.problem import Problem
from agents.search import Evaluate, Tuned, local_search, tune_head
from agents.trial import Trial, pruned_trial, reward, sent_trial
from spatl.data import Examples
from spatl.selection.selection import Selection
from spatl.selection.selectors import AgentSettings, Choice, SelectionRequest, update_energy
from spatl.selection.signal import channel_signal
from spatl.training.evaluate import Evaluation

_MAX_EXAMPLES = 256  # of the validation split, in one measurement
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
        policy = personal(self._policy, request.state)
        graph = make_graph(problem)
        action = policy.act(graph)
        prior, chosen = problem.prior(), problem.selection(action)
        decision_seconds = time.perf_counter() - started
        if trial is None:  # too few examples to measure anything: the prior needs none
            return Choice(prior, request.state, decision_seconds)
        samples = self._samples(request)
        if samples < 0:
            return Choice(prior, request.state, decision_seconds)
        best, head = choose(
            problem, trial, policy, prior, chosen, action, samples=samples, tuning=self._settings.tuning,
            generator=request.generator,
        )  # fmt: skip
        gain = best.evaluation.accuracy - best.prior.accuracy
        return Choice(best.selection, {**request.state, **head}, decision_seconds, gain)

    def _problem(self, request: SelectionRequest) -> tuple[Problem, Trial | None]:
        layout, costs, examples = request.costs.layout, request.costs, _some(request.validation)
        if self._settings.reward == "sent":
            problem = Problem(costs, request.budget, update_energy(request.update, layout), "sent")
            received = request.weights - request.update
            trial = sent_trial(request.model, layout, received=received, update=request.update, examples=examples)
        else:
            signal = channel_signal(request.model, layout, costs.trace.readers, request.train.images)
            problem = Problem(costs, request.budget, signal, "pruned")
            trial = pruned_trial(request.model, costs.trace, examples)
        return problem, trial if len(examples) > 1 else None

    def _samples(self, request: SelectionRequest) -> int:
        """How many samples the settings and the client's budget of time allow; -1 when not even the prior's trial."""
        settings = self._settings
        training = request.num_steps * min(request.batch_size, len(request.train)) * _FORWARDS_PER_STEP
        affordable = int(settings.max_share * training / len(_some(request.validation))) - 2
        tuning = settings.tuning_rounds is None or request.server_round <= settings.tuning_rounds
        return max(-1, min(settings.samples if tuning else 0, affordable))


@dataclass(frozen=True, eq=False)
class Best(_Measured):
    """The selection chosen, beside the prior it had to beat.

    Attributes:
        prior: What the prior reached.
    """

    prior: Evaluation


def choose(
    problem: Problem,
    trial: Trial,
    policy: GraphPolicy,
    prior: Selection,
    chosen: Selection,
    action: Tensor,
    *,
    samples: int,
    tuning: str,
    generator: torch.Generator,
) -> tuple[Best, dict[str, Tensor]]:
    """Measure the prior, the policy's selection and further samples, and keep the best.

    Args:
        problem: What is to be selected.
        trial: Measures a selection.
        policy: The policy with the client's own head.
        prior: The prior's selection.
        chosen: The policy's selection.
        action: float32 [G], the action behind it.
        samples: How many further selections may be measured.
        tuning: `"search"` or `"ppo"`.
        generator: Draws them.

    Returns:
        The best: the highest reward among those no less accurate than the prior. And the client's head.
    """
    first = _Measured(prior, trial(prior))
    measured = [first, _Measured(chosen, trial(chosen))]

    def evaluate(candidate: Tensor) -> float:
        selection = problem.selection(candidate)
        measured.append(_Measured(selection, trial(selection)))
        return reward(measured[-1].evaluation, first.evaluation)

    own = reward(measured[1].evaluation, first.evaluation)
    head = _tune(policy, problem, action, own, evaluate, samples=samples, tuning=tuning, generator=generator)
    allowed = [each for each in measured if each.evaluation.accuracy >= first.evaluation.accuracy]
    best = max(allowed, key=lambda each: reward(each.evaluation, first.evaluation))
    return Best(best.selection, best.evaluation, first.evaluation), head


def _tune(
    policy: GraphPolicy,
    problem: Problem,
    action: Tensor,
    own: float,
    evaluate: Evaluate,
    *,
    samples: int,
    tuning: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    if samples == 0:
        return {}
    # What is worse than the prior is no place to start from.
    start = action if own >= 0 else torch.zeros_like(action)
    tuned: Tuned = _TUNING[tuning](
        policy, make_graph(problem), start, max(own, 0.0), evaluate, samples=samples, generator=generator
    )
    return tuned.head


def personal(policy: GraphPolicy, head: Mapping[str, Tensor]) -> GraphPolicy:
    """Return the policy with a client's own head, or the policy itself for a client that has none yet."""
    if not head:
        return policy
    own = copy.deepcopy(policy)
    own.head.load_state_dict(dict(head))
    return own


def _some(examples: Examples) -> Examples:
    return Examples(examples.images[:_MAX_EXAMPLES], examples.labels[:_MAX_EXAMPLES])
