"""Choosing the widths of a cut network under a budget."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatl.artifacts.widths import CutAgent, CutBudget, WidthRequest, latency_limited
from spatl.channels.prunable import find_prunable
from spatl.channels.selection import Selection
from spatl.errors import BudgetError, ConfigError
from spatl.models import build_model
from tests.support.cuts import EXAMPLE, dense, examples, settled
from tests.support.networks import GroupedNet

CHOICES = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def request(name, **options):
    network, prunable = dense(name)
    return WidthRequest(network, prunable, examples(), examples(seed=5), **options)


def cost(asked, kind, selection):
    model = asked.prunable.trace.flops if kind == "flops" else asked.prunable.parameters
    return model.ratio(selection.counts(asked.prunable.layout))


def counts(asked, selection):
    found = selection.counts(asked.prunable.layout).tolist()
    return list(zip(found, asked.prunable.layout.group_sizes.tolist(), strict=True))


@pytest.mark.slow
@CHOICES
@given(
    name=st.sampled_from(["cnn", "resnet20", "mobilenet", "broad"]), kind=st.sampled_from(["flops", "parameters"]),
    above=st.floats(0.0, 1.0), selector=st.sampled_from(["signal", "magnitude", "random"]), exact=st.booleans(),
)  # fmt: skip
def test_a_choice_meets_its_budget_in_multiples_of_eight_unless_exact(name, kind, above, selector, exact):
    asked = request(name, selector=selector, exact=exact)
    floor = asked.floor(kind)
    limit = floor + above * (1 - floor)
    selection = asked.select(kind, limit)
    assert cost(asked, kind, selection) <= limit
    for (number, size), whole in zip(counts(asked, selection), asked.prunable.is_whole.tolist(), strict=True):
        assert number == size if whole else 1 <= number <= size
        assert exact or number == size or (number >= 8 and number % 8 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_nothing_more_fits_where_the_budget_is_filled(exact):
    """Half of ResNet-20's multiply-accumulates are met from below, within what one more step of eight costs."""
    asked = request("resnet20", exact=exact)
    found = cost(asked, "flops", asked.select("flops", 0.5))
    assert 0.47 < found <= 0.5


def test_the_whole_budget_cuts_nothing():
    asked = request("resnet8")
    assert bool(asked.select("flops", 1.0).mask.all())
    assert bool(asked.select("parameters", 1.0).mask.all())


def test_the_signal_decides_which_channels_stay():
    """Of the hidden units of the CNN those stay that the classifier hears most of."""
    asked = request("cnn")
    selection = asked.select("flops", 0.5)
    for number, group in enumerate(asked.prunable.layout.groups):
        if bool(asked.prunable.is_whole[number]):
            continue
        own = slice(group.first, group.first + group.size)
        kept, dropped = asked.worth[own][selection.mask[own]], asked.worth[own][~selection.mask[own]]
        assert len(dropped) == 0 or kept.min() >= dropped.max()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["flops", "parameters"])
def test_a_budget_below_the_floor_names_the_smallest_possible(kind, exact):
    asked = request("resnet8", exact=exact)
    with pytest.raises(BudgetError, match=rf"^{kind} is 0.001, but .* raise it to at least 0\.\d+$") as error:
        asked.select(kind, 0.001)
    smallest = float(re.search(r"at least (\S+)$", str(error.value))[1])
    assert cost(asked, kind, asked.select(kind, smallest)) <= smallest
    with pytest.raises(BudgetError):
        asked.select(kind, smallest - 1e-4)


@pytest.mark.slow
def test_the_agent_chooses_within_the_budget_and_never_the_logits():
    asked = request("resnet20", selector="agent", agent=CutAgent(samples=2))
    selection = asked.select("flops", 0.5)
    assert cost(asked, "flops", selection) <= 0.5
    assert counts(asked, selection)[-1] == (10, 10)
    assert torch.equal(selection.mask, request("resnet20", selector="agent", agent=CutAgent(samples=2)).select(
        "flops", 0.5
    ).mask)  # fmt: skip


@pytest.mark.slow
def test_grouped_convolutions_keep_their_divisibility():
    """Of twelve outputs in four groups eight stay, two in each."""
    network = settled(GroupedNet(num_classes=3, in_channels=1))
    asked = WidthRequest(network, find_prunable(network, EXAMPLE), examples(), examples(seed=5))
    selection = asked.select("flops", 0.8)
    group = asked.prunable.layout.groups[asked.prunable.names.index("grouped")]
    kept = selection.mask[group.first : group.first + group.size].view(4, 3)
    assert kept.sum(1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("selector", ["update", "drawn", "all", "none"])
def test_selectors_that_need_a_round_are_refused(selector):
    with pytest.raises(ConfigError, match=f"must be one of signal, agent, .* got '{selector}'"):
        request("cnn", selector=selector)


def test_a_selector_of_a_users_own_chooses():
    asked = request("cnn", selector="tests.support.cuts:last_first", exact=True)
    selection = asked.select("flops", 0.5)
    for group in asked.prunable.layout.groups:
        own = selection.mask[group.first : group.first + group.size]
        assert bool(own[-int(own.sum()) :].all())


@pytest.mark.parametrize(
    ("kind", "limit", "message"),
    [
        ("flops", 0.0, r"flops must be in \(0, 1\], got 0"), ("flops", 1.1, r"flops must be in \(0, 1\], got 1.1"),
        ("parameters", float("nan"), r"parameters must be in \(0, 1\], got nan"),
        ("latency_ms", -1.0, "latency_ms must be positive, got -1"), ("bytes", 0.5, "must be one of flops, parameters"),
    ],
)  # fmt: skip
def test_a_budget_that_is_none_is_one_clear_error(kind, limit, message):
    with pytest.raises(ConfigError, match=message):
        CutBudget(kind, limit)


def selected(share):
    return Selection(torch.arange(100) < round(100 * share))


def test_a_latency_is_met_by_the_widest_network_that_was_measured():
    """One channel takes 0.1 ms; at most 6.35 ms: of a hundred channels between 25 and 100, those found by halving."""
    measured = []

    def measure(selection):
        measured.append(int(selection.mask.sum()))
        return 0.1 * measured[-1]

    best = latency_limited(selected, measure, 6.35, floor=0.25, most=10)
    assert int(best.mask.sum()) == 63
    assert measured[:4] == [100, 25, 62, 81]
    assert len(measured) <= 10


def test_a_latency_that_the_dense_network_meets_cuts_nothing():
    assert bool(latency_limited(selected, lambda _: 1.0, 1.0, floor=0.25, most=10).mask.all())


def test_a_latency_below_the_narrowest_networks_names_what_is_possible():
    with pytest.raises(BudgetError, match=r"latency_ms is 1, but .* already takes 2.500 ms here; .* at least 2.500"):
        latency_limited(selected, lambda each: 0.1 * float(each.mask.sum()), 1.0, floor=0.25, most=10)


@pytest.mark.slow
def test_a_wide_network_is_cut_in_every_group_it_pays_for():
    model, _ = build_model("vgg11", num_classes=10, in_channels=1, image_size=8, options={"width": 0.5}, seed=1)
    network = settled(model)
    asked = WidthRequest(network, find_prunable(network, EXAMPLE), examples(), examples(seed=5))
    found = counts(asked, asked.select("flops", 0.1))
    assert sum(number < size for number, size in found) >= 6
    assert cost(asked, "flops", asked.select("flops", 0.1)) > 0.09
