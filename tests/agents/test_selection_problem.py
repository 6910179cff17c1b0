"""Every action is feasible, and the action 0 is the prior."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.selection_problem import Problem
from spatl.channels.costs import Budget
from spatl.errors import BudgetError
from spatl.selection.projection import project_ranking
from tests.support.problems import blueprint_for, problem_for

budgets = st.one_of(
    st.builds(Budget, st.just("keep_ratio"), st.floats(0.05, 1.0)),
    st.builds(Budget, st.just("flops_ratio"), st.floats(0.05, 1.0)),
    st.builds(Budget, st.just("uplink_bytes"), st.integers(20_000, 320_000).map(float)),
)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), budget=budgets, extreme=st.booleans())
def test_every_action_in_the_box_meets_the_budget_and_keeps_a_channel_of_every_group(seed, budget, extreme):
    problem = problem_for("resnet8", budget)
    groups = len(problem.costs.layout.groups)
    action = 2 * torch.rand(groups, generator=torch.Generator().manual_seed(seed)) - 1
    counts = problem.selection(action.sign() if extreme else action).counts(problem.costs.layout)
    assert bool((counts >= 1).all())
    assert problem.costs.of(counts, budget.kind) <= budget.limit


@pytest.mark.slow
@given(budget=budgets)
def test_the_zero_action_is_the_ranking_by_worth_per_cost_and_what_is_left_of_the_budget(budget):
    problem = problem_for("resnet8", budget)
    ranked = project_ranking(problem.ranking(), problem.costs, budget)
    assert bool((problem.prior().mask | ~ranked.mask).all())


def test_the_prior_prefers_what_is_worth_more_per_cost():
    costs = blueprint_for("resnet8").costs
    layout = costs.layout
    worth = torch.full((layout.num_channels,), 1e-6, dtype=torch.float64)
    first, last = layout.groups[1], layout.groups[-1]
    worth[first.first : first.first + first.size] = 1.0
    counts = Problem(costs, Budget("keep_ratio", 0.1), worth, "sent").prior().counts(layout)
    assert counts[1] == first.size
    assert counts[-1] < last.size / 4


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_action_moves_its_own_group(sign):
    problem = problem_for("resnet8", Budget("flops_ratio", 0.4))
    action = torch.zeros(len(problem.costs.layout.groups))
    action[2] = sign
    change = problem.counts(action)[2] - problem.counts(0 * action)[2]
    assert sign * change > 0


def test_what_is_no_number_or_outside_the_box_is_brought_inside():
    problem = problem_for("resnet8", Budget("flops_ratio", 0.4))
    zero = torch.zeros(len(problem.costs.layout.groups))
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 9.0, -9.0, 0.0])
    assert torch.equal(problem.counts(zero * float("nan")), problem.counts(zero))
    assert torch.equal(problem.counts(wild), problem.counts(torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0, 0.0])))


def test_a_budget_below_the_floor_names_the_smallest_possible():
    problem = problem_for("resnet8", Budget("keep_ratio", 0.001))
    with pytest.raises(BudgetError, match=r"raise it to at least 0\.0\d+"):
        problem.prior()
