"""A few evaluations improve on the policy's action, and what they taught stays in the client's own head."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.graph import make_graph
from agents.search import Start, local_search, tune_head
from agents.selector import personal
from spatl.channels.costs import Budget
from tests.support.problems import drawn_policy, problem_for

PROBLEM = problem_for("resnet8", Budget("flops_ratio", 0.5))
GRAPH = make_graph(PROBLEM)
WANTED = torch.tensor([0.5, -0.5, 0.3, 0.0, -0.2, 0.8], dtype=torch.float64)


def closeness(action):
    return -float((action.double() - WANTED).square().mean())


def tuned(method, samples, seed=0):
    policy = drawn_policy(3, scale=0.15)
    action = policy.act(GRAPH)
    start = Start(policy, GRAPH, action, closeness(action), closeness)
    return policy, method(start, samples=samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("method", [local_search, tune_head])
@given(samples=st.integers(0, 20), seed=st.integers(0, 2**32))
def test_as_many_samples_as_allowed_are_measured_all_in_the_box(method, samples, seed):
    _, result = tuned(method, samples, seed)
    assert result.actions.shape == (samples, 6)
    assert result.rewards.tolist() == [closeness(action) for action in result.actions]
    assert bool((result.actions.abs() <= 1).all())


@pytest.mark.slow
@pytest.mark.parametrize("method", [local_search, tune_head])
def test_the_new_head_starts_closer_to_what_was_rewarded(method):
    policy, result = tuned(method, 48)
    before, after = closeness(policy.act(GRAPH)), closeness(personal(policy, result.head).act(GRAPH))
    assert max(result.rewards) > before
    assert after > before


@pytest.mark.slow
@pytest.mark.parametrize("method", [local_search, tune_head])
def test_the_policy_itself_is_left_alone(method):
    policy, result = tuned(method, 8)
    untouched = drawn_policy(3, scale=0.15).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in policy.state_dict().items())
    assert set(result.head) == {"weight", "bias"}


@pytest.mark.slow
@pytest.mark.parametrize("method", [local_search, tune_head])
def test_a_search_repeats_with_its_seed(method):
    assert torch.equal(tuned(method, 6, 1)[1].actions, tuned(method, 6, 1)[1].actions)
    assert not torch.equal(tuned(method, 6, 1)[1].actions, tuned(method, 6, 2)[1].actions)
