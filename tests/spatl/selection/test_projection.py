"""Budgets are met exactly by projection, or refused with the smallest value that would do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.costs import Budget, Costs, check_budget
from spatl.channels.selection import Selection
from spatl.channels.tracing import trace_groups
from spatl.errors import BudgetError
from spatl.models import build_model, make_split
from spatl.selection.projection import keep_top, project_ranking, project_ratios
from spatl.wire.codecs import CODECS
from spatl.wire.update import update_bytes


def costs_of_resnet8() -> Costs:
    model, cut = build_model("resnet8", num_classes=10, in_channels=1, image_size=8, seed=1)
    trace = trace_groups(
        model, torch.zeros(1, 1, 8, 8), parameters=list(make_split(model, cut).encoder_parameters(model))
    )

    layout = trace.layout

    def num_bytes(num_values: int, num_channels: int) -> int:
        return update_bytes(layout, CODECS["float32"], num_values=num_values, num_channels=num_channels)

    return Costs(trace, num_bytes)


COSTS = costs_of_resnet8()
LAYOUT = COSTS.layout
budgets = st.one_of(
    st.builds(Budget, st.just("keep_ratio"), st.floats(0.05, 1.0)),
    st.builds(Budget, st.just("flops_ratio"), st.floats(0.05, 1.0)),
    st.builds(Budget, st.just("uplink_bytes"), st.integers(20_000, 320_000).map(float)),
)


@given(seed=st.integers(0, 2**32), budget=budgets)
def test_a_projected_ranking_fits_the_budget_and_no_further_channel_would(seed, budget):
    ranking = torch.randperm(LAYOUT.num_channels, generator=torch.Generator().manual_seed(seed))
    selection = project_ranking(ranking, COSTS, budget)
    counts = selection.counts(LAYOUT)
    assert bool((counts >= 1).all())
    assert COSTS.of(counts, budget.kind) <= budget.limit
    left_out = [channel for channel in ranking.tolist() if not selection.mask[channel]]
    if left_out:
        more = selection.mask.clone()
        more[left_out[0]] = True
        assert COSTS.of(Selection(more).counts(LAYOUT), budget.kind) > budget.limit


@given(seed=st.integers(0, 2**32), budget=budgets)
def test_a_ranking_is_followed_but_for_the_best_of_each_group(seed, budget):
    ranking = torch.randperm(LAYOUT.num_channels, generator=torch.Generator().manual_seed(seed))
    mask = project_ranking(ranking, COSTS, budget).mask[ranking]
    group_of = torch.repeat_interleave(torch.tensor([group.size for group in LAYOUT.groups]))[ranking]
    first = torch.tensor([bool((group_of[:i] != group_of[i]).all()) for i in range(len(group_of))])
    kept = mask[~first]
    assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert bool(mask[first].all())


@given(seed=st.integers(0, 2**32), budget=budgets)
def test_projected_ratios_fit_the_budget_and_keep_their_order(seed, budget):
    ratios = 0.02 + 0.96 * torch.rand(len(LAYOUT.groups), generator=torch.Generator().manual_seed(seed))
    counts = project_ratios(ratios, COSTS, budget)
    sizes = torch.tensor([group.size for group in LAYOUT.groups])
    assert bool(((counts >= 1) & (counts <= sizes)).all())
    assert COSTS.of(counts, budget.kind) <= budget.limit
    for i in range(len(sizes)):
        for j in range(len(sizes)):
            if sizes[i] == sizes[j] and ratios[i] < ratios[j]:
                assert counts[i] <= counts[j]


def test_a_whole_budget_keeps_everything():
    ranking = torch.arange(LAYOUT.num_channels)
    for kind in ("keep_ratio", "flops_ratio"):
        assert project_ranking(ranking, COSTS, Budget(kind, 1.0)).mask.all()
        assert project_ratios(torch.full((len(LAYOUT.groups),), 0.5), COSTS, Budget(kind, 1.0)).tolist() == [
            group.size for group in LAYOUT.groups
        ]


@pytest.mark.parametrize("kind", ["keep_ratio", "flops_ratio", "uplink_bytes"])
def test_a_budget_below_the_floor_names_the_smallest_possible_one(kind):
    floor = COSTS.of(torch.ones(len(LAYOUT.groups), dtype=torch.int64), kind)
    with pytest.raises(BudgetError, match=rf"selection\.{kind}.*raise it to at least"):
        check_budget(Budget(kind, 0.9 * floor), COSTS)
    check_budget(Budget(kind, floor), COSTS)
    counts = project_ranking(torch.arange(LAYOUT.num_channels), COSTS, Budget(kind, floor)).counts(LAYOUT)
    assert COSTS.of(counts, kind) <= floor


@given(seed=st.integers(0, 2**32))
def test_keep_top_keeps_the_highest_scores_of_each_group(seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(LAYOUT.num_channels, generator=draw)
    counts = torch.tensor([int(torch.randint(1, g.size + 1, (), generator=draw)) for g in LAYOUT.groups])
    selection = keep_top(scores, counts, LAYOUT)
    assert torch.equal(selection.counts(LAYOUT), counts)
    for group in LAYOUT.groups:
        own = slice(group.first, group.first + group.size)
        kept, dropped = scores[own][selection.mask[own]], scores[own][~selection.mask[own]]
        assert dropped.numel() == 0 or kept.min() >= dropped.max()
