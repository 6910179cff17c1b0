"""Choices before training: within the budget, whole networks, and of widths that hardware computes well."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.costs import Budget, Costs
from spatl.channels.selection import select_all
from spatl.channels.subnetworks import SubNetworks
from spatl.channels.tracing import trace_groups
from spatl.errors import BudgetError
from spatl.selection.before import check_part_budget, choose_part, half_of
from spatl.selection.ordered import drawn_width, first_channels, rolling_window
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.selection.selectors import rank_magnitude, rank_random, rank_signal
from tests.support.cuts import CHOICES, EXAMPLE, dense, examples, last_first

SELECTORS = (first_channels, drawn_width, rolling_window, rank_random, rank_magnitude, rank_signal)


@cache
def encoder(name):
    network, _ = dense(name)
    trace = trace_groups(network, EXAMPLE, parameters=[own for own, _ in network.named_parameters()])
    parts = SubNetworks(network, EXAMPLE, trace)
    return network, Costs(trace, lambda values, channels: 100 + 4 * values), parts.prunable


def part(name, selector, budget, *, server_round=1, seed=0):
    network, costs, prunable = encoder(name)
    weights = costs.layout.flatten(dict(network.named_parameters()))
    request = SelectionRequest(
        model=network, weights=weights, update=torch.zeros(1).expand(len(weights)), costs=costs, budget=budget,
        train=examples(), validation=examples(), num_steps=10, batch_size=8, server_round=server_round,
        generator=torch.Generator().manual_seed(seed), state={},
    )  # fmt: skip
    return choose_part(selector, request, prunable).selection


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "broad"])
@settings(CHOICES, max_examples=12)
@given(
    kind=st.sampled_from(["flops_ratio", "keep_ratio", "uplink_bytes"]), selector=st.sampled_from(SELECTORS),
    share=st.floats(0.3, 1.0), server_round=st.integers(1, 99), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_part_is_a_network_within_the_budget(name, kind, selector, share, server_round, seed):
    _, costs, prunable = encoder(name)
    limit = 100 + int(share * 4 * costs.layout.num_entries) if kind == "uplink_bytes" else share
    found = part(name, selector, Budget(kind, limit), server_round=server_round, seed=seed)
    assert found.closed
    assert torch.equal(prunable.completed(found, torch.zeros(len(found.mask))).mask, found.mask)
    number = found.num_entries(costs.layout)
    cost = {
        "flops_ratio": costs.flops.ratio(found.counts(costs.layout)),
        "keep_ratio": number / costs.layout.num_entries,
        "uplink_bytes": costs.update_bytes(number, 0),
    }[kind]
    assert cost <= limit


@pytest.mark.slow
@pytest.mark.parametrize("selector", [first_channels, rolling_window, rank_random, rank_signal])
def test_numbers_of_channels_are_multiples_of_eight_where_the_budget_pays_for_that(selector):
    _, costs, prunable = encoder("resnet8")
    counts = part("resnet8", selector, Budget("flops_ratio", 0.5)).counts(costs.layout)[~prunable.is_whole]
    assert (counts % 8 == 0).all()
    few = part("resnet8", first_channels, Budget("flops_ratio", 0.02)).counts(costs.layout)[~prunable.is_whole]
    assert int(few.min()) < 8


@pytest.mark.slow
def test_windows_of_a_cut_network_still_lie_in_a_row():
    _, costs, prunable = encoder("resnet8")
    layout = costs.layout
    for server_round in (1, 6, 30):
        mask = part("resnet8", rolling_window, Budget("flops_ratio", 0.5), server_round=server_round).mask
        for group, whole in zip(layout.groups, prunable.is_whole.tolist(), strict=True):
            if not whole:
                kept = mask[group.first : group.first + group.size]
                start = (server_round - 1) % group.size
                assert bool(kept.roll(-start)[: int(kept.sum())].all())


def test_everything_is_kept_where_the_budget_pays_for_it():
    for selector in (first_channels, rolling_window, rank_random, rank_signal):
        assert bool(part("resnet8", selector, Budget("flops_ratio", 1.0)).mask.all())


@pytest.mark.slow
def test_a_selector_of_the_users_own_is_completed_to_a_network():
    def users(request):
        order = last_first(request)
        return Choice(select_all(request.costs.layout), worth=order)

    _, costs, prunable = encoder("broad")
    found = part("broad", users, Budget("flops_ratio", 0.5))
    assert costs.flops.ratio(found.counts(costs.layout)) <= 0.5
    assert torch.equal(prunable.completed(found, torch.zeros(len(found.mask))).mask, found.mask)


@pytest.mark.parametrize(("kind", "limit"), [("flops_ratio", 1e-4), ("keep_ratio", 1e-4), ("uplink_bytes", 101)])
def test_a_budget_below_the_least_network_is_refused_with_what_would_do(kind, limit):
    _, costs, prunable = encoder("resnet8")
    with pytest.raises(
        BudgetError, match=f"selection.{kind} is {limit:g}, but the least .* raise it to at least"
    ) as told:
        check_part_budget(Budget(kind, limit), costs, prunable)
    least = float(str(told.value).rpartition(" ")[2])
    check_part_budget(Budget(kind, least), costs, prunable)


@pytest.mark.slow
def test_half_of_a_network_is_one():
    _, costs, prunable = encoder("broad")
    half = half_of(prunable)
    assert half.closed
    assert 0 < half.num_entries(costs.layout) < costs.layout.num_entries
