"""Selector that clients use: the shipped policy, a few measured samples, and the best of them under the budget.

The prior is always measured too, and nothing that classifies fewer validation examples correctly is ever chosen: the
agent is never below its prior there, whatever the policy says. What is chosen must be better by more than the standard
error of the difference, or a client with few examples would choose by chance.
"""

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agents.effort import Effort
from agents.graph import Graph, make_graph
from agents.measurement import Trial, pruned_trial, reward, sent_trial
from agents.policy import GraphPolicy, load_policy
from agents.search import Start, local_search, refitted, tune_head
from agents.selection_problem import Problem
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.selection.energy import drawn_energy
from spatl.selection.protocol import AgentSettings, Choice, SelectionRequest
from spatl.selection.signal import MAX_EXAMPLES, channel_signal

logger = logging.getLogger(__name__)

_MAX_EXAMPLES = 256  # of the validation split, in one measurement
_TUNING = {"search": local_search, "ppo": tune_head}


class AgentSelector:
    """Selector (`spatl.selection.protocol`) by the shipped policy.

    Args:
        settings: Reward, number of samples, how they are drawn, and which weights.

    Raises:
        SpatlError: The policy's file is not there or holds none.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._policy = load_policy(Path(settings.policy) if settings.policy else None)
        self._fingerprint = self._policy.fingerprint()

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return the best of prior, policy and samples; the state is the client's own head."""
        problem, trial = self._problem(request)
        started = time.perf_counter()
        state = self._own_head(request.state)
        samples = None if trial is None else self._samples(request)
        if trial is None or samples is None:  # nothing can be measured: the prior needs no measuring
            prior = problem.prior()
            return Choice(prior, self._state(state), time.perf_counter() - started, worth=problem.worth)
        proposal = propose(problem, personal(self._policy, state))
        decision_seconds = time.perf_counter() - started
        best = choose(proposal, trial, samples=samples, tuning=self._settings.tuning, generator=request.generator)
        return Choice(best.selection, self._state(best.head or state), decision_seconds, best.gain, worth=problem.worth)

    def _state(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**head, "policy": self._fingerprint} if head else {}

    def _own_head(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the client's head, or none where it was tuned under another policy or is damaged."""
        head = {name: tensor for name, tensor in state.items() if name != "policy"}
        own = dict(self._policy.head.named_parameters())
        fits = head.keys() == own.keys() and all(
            head[name].shape == own[name].shape and bool(head[name].isfinite().all()) for name in own
        )
        if head and not (fits and torch.equal(state.get("policy", torch.tensor(0)), self._fingerprint)):
            logger.warning("the client's own head does not belong to this policy; it starts from the policy's again")
            return {}
        return head

    def _problem(self, request: SelectionRequest) -> tuple[Problem, Trial | None]:
        layout, costs, examples = request.costs.layout, request.costs, _some(request.validation)
        if self._settings.reward == "sent":
            problem = Problem(costs, request.budget, drawn_energy(request.update, layout, request.generator), "sent")
            trial = sent_trial(request.model, layout, trained=request.weights, update=request.update,
                               examples=examples, task=request.task)  # fmt: skip
        else:
            signal = channel_signal(request.model, layout, costs.trace.readers, request.train.inputs)
            problem = Problem(costs, request.budget, signal, "pruned")
            trial = pruned_trial(request.model, costs.trace, examples, task=request.task)
        return problem, trial if len(examples) > 1 else None

    def _samples(self, request: SelectionRequest) -> int | None:
        """Return the number of samples that the settings and `max_share` allow; None where not even two trials are."""
        settings, effort = self._settings, Effort.of(request.model, request.costs)
        training = request.num_steps * effort.step(min(request.batch_size, len(request.train)))
        affordable = effort.affordable_samples(
            training, share=settings.max_share, examples=len(_some(request.validation)),
            signal=min(MAX_EXAMPLES, len(request.train)) if settings.reward == "pruned" else 0,
        )  # fmt: skip
        tuning = settings.tuning_rounds is None or request.server_round <= settings.tuning_rounds
        return None if affordable is None else min(settings.samples if tuning else 0, affordable)


@dataclass(frozen=True, eq=False)
class Proposal:
    """Proposal of the policy, before anything is measured.

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
    """Return a policy's proposal for a problem."""
    graph = make_graph(problem)
    action = policy.act(graph)
    return Proposal(problem, policy, graph, action, problem.prior(), problem.selection(action))


@dataclass(frozen=True, eq=False)
class Best:
    """Best selection that a client found.

    Attributes:
        selection: The selection.
        head: The client's head afterwards, by parameter name; empty if nothing was sampled.
        gain: By how much the selection beats the prior in accuracy on the examples it was chosen by, at least 0.
    """

    selection: Selection
    head: dict[str, Tensor]
    gain: float


def choose(proposal: Proposal, trial: Trial, *, samples: int, tuning: str, generator: torch.Generator) -> Best:
    """Measure the prior, the policy's selection and further samples, and keep the best.

    The best has the largest advantage over the prior that is more than chance (`Outcome.advantage`) among those that
    are no less accurate than the prior; it is the prior itself if there is none.

    Args:
        proposal: The policy's.
        trial: Measures a selection.
        samples: How many further selections may be measured.
        tuning: `"search"` or `"ppo"`.
        generator: Draws them.
    """
    prior = trial(proposal.prior)
    measured = [(proposal.prior, prior), (proposal.chosen, trial(proposal.chosen))]

    def evaluate(action: Tensor) -> float:
        selection = proposal.problem.selection(action)
        measured.append((selection, trial(selection)))
        return reward(measured[-1][1], prior)

    head: dict[str, Tensor] = {}
    if samples:
        policy, action, own = proposal.policy, proposal.action, reward(measured[1][1], prior)
        if own < 0:  # what is worse than the prior is no place to start from, nor to come back to
            action, own = torch.zeros_like(action), 0.0
            policy = personal(policy, refitted(policy, proposal.graph, action))
        start = Start(policy, proposal.graph, action, own, evaluate)
        head = _TUNING[tuning](start, samples=samples, generator=generator).head
    allowed = [(selection, found) for selection, found in measured if found.accuracy >= prior.accuracy]
    selection, found = max(allowed, key=lambda each: each[1].advantage(prior))
    return Best(selection, head, found.accuracy - prior.accuracy)


def personal(policy: GraphPolicy, head: Mapping[str, Tensor]) -> GraphPolicy:
    """Return the policy with a client's own head, or the policy itself for a client that has none yet."""
    if not head:
        return policy
    shared = {id(each): each for each in policy.children() if each is not policy.head}  # which nothing writes into
    own = copy.deepcopy(policy, shared)
    own.head.load_state_dict(dict(head))
    return own


def _some(examples: Examples) -> Examples:
    return Examples(examples.inputs[:_MAX_EXAMPLES], examples.targets[:_MAX_EXAMPLES])
