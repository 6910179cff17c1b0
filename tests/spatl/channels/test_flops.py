"""Multiply-accumulates as a function of how many channels are kept."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from spatl.channels.flops import whole_flops_model
from spatl.channels.selection import select_all
from spatl.models import build_model
from tests.support.networks import ShuffleNet
from tests.support.traces import built, traced


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11"])
def test_all_channels_cost_all_flops_and_fewer_cost_less(name):
    _, _, (layout, flops) = built(name)
    full = select_all(layout).counts(layout)
    assert flops.ratio(full) == pytest.approx(1.0)
    previous = 1.0
    for share in (0.75, 0.5, 0.25):
        ratio = flops.ratio((full * share).round().clamp(min=1).long())
        assert ratio < previous
        previous = ratio


@pytest.mark.slow
def test_flops_of_half_the_channels_are_those_of_a_network_of_half_the_width():
    """VGG-11 at width 1 with half of every group, against VGG-11 built at width 0.5: same layers, same costs."""
    _, _, (layout, flops) = built("vgg11", size=32, in_channels=3)
    _, _, (narrow_layout, narrow) = built("vgg11", size=32, in_channels=3, width=0.5)
    half = select_all(layout).counts(layout) // 2
    assert half.tolist() == [group.size for group in narrow_layout.groups]
    assert flops.ratio(half) == pytest.approx(float(narrow.macs.sum() / flops.macs.sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11", "mobilenet", "shuffle"])
def test_multiply_accumulates_are_those_torch_counts(name):
    """torch's counter counts a multiplication and an addition as two; its total is over encoder and predictor."""
    if name == "shuffle":
        model, cut = ShuffleNet(num_classes=10, in_channels=1), ("head",)
    else:
        model, cut = build_model(name, num_classes=10, in_channels=1, image_size=8, seed=1)
    _, flops = traced(model, cut)
    head = model.get_submodule(cut[0]).weight.numel()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 1, 8, 8))
    assert int(flops.macs.sum()) + head == counter.get_total_flops() // 2


@pytest.mark.slow
@settings(max_examples=15)
@given(
    channels=st.lists(st.integers(1, 48), min_size=2, max_size=2),
    hidden=st.integers(1, 96),
    size=st.sampled_from([8, 12, 20, 28]),
    order=st.randoms(use_true_random=False),
)
def test_the_ratio_of_everything_is_exactly_one_and_every_channel_adds_to_it(channels, hidden, size, order):
    """Each of 49 inputs of 100 summed as a float is not a whole: 28x28 images once made 1.0000000000000067 of it."""
    _, _, (layout, flops) = built("cnn", size=size, channels=channels, hidden=hidden)
    assert flops.ratio(select_all(layout).counts(layout)) == 1.0
    counts = torch.ones(len(layout.groups), dtype=torch.int64)
    last = flops.ratio(counts)
    assert 0 < last <= 1
    more = [group for group, size in enumerate(layout.group_sizes.tolist()) for _ in range(size - 1)]
    order.shuffle(more)
    for group in more:
        counts[group] += 1
        ratio = flops.ratio(counts)
        assert last < ratio <= 1
        last = ratio
    assert last == 1.0


@pytest.mark.slow
@given(st.data())
def test_the_ratio_is_the_nearest_float_to_the_quotient_of_whole_numbers(data):
    """By fractions: each layer costs its whole times the shares kept of its outputs and of its inputs."""
    num_layers, num_groups = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    number = st.integers(0, 3)
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=num_groups, max_size=num_groups))
    tables = [
        [[data.draw(number) * (size if data.draw(st.booleans()) else 1) for size in sizes] for _ in range(num_layers)]
        for _ in range(2)
    ]
    widths = [[sum(row) + data.draw(st.integers(0 if sum(row) else 1, 3)) for row in table] for table in tables]
    macs = [data.draw(st.integers(1, 10**8)) for _ in range(num_layers)]
    kept = [data.draw(st.integers(1, size)) for size in sizes]
    flops = whole_flops_model(macs, *(torch.tensor(each) for each in (sizes, *tables, widths)))

    def share(table, width):
        whole = sum(Fraction(n * k, s) for n, k, s in zip(table, kept, sizes, strict=True)) + width - sum(table)
        return whole / width

    spent = sum(
        cost * share(tables[0][row], widths[0][row]) * share(tables[1][row], widths[1][row])
        for row, cost in enumerate(macs)
    )
    assert flops.ratio(torch.tensor(kept)) == pytest.approx(float(spent / sum(macs)), rel=1e-15)
    assert flops.ratio(torch.tensor(sizes)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mobilenet"])
@pytest.mark.parametrize("size", [28, 32])
def test_half_of_every_group_and_everything_have_exact_ratios(name, size):
    """Every width of these is even: half of the outputs and half of the inputs, but for the image and depthwise."""
    _, _, (layout, flops) = built(name, size=size)
    halved = flops.ratio(layout.group_sizes // 2)
    macs, kept = 0.0, layout.group_sizes.double() // 2
    for row, whole in enumerate(flops.macs.tolist()):
        outputs, inputs = (
            (table[row] @ kept + fixed[row]) / (table[row] @ flops.sizes + fixed[row])
            for table, fixed in ((flops.outputs, flops.fixed_outputs), (flops.inputs, flops.fixed_inputs))
        )
        assert float(outputs) == 0.5
        assert float(inputs) in (0.5, 1.0)
        macs += whole * float(outputs) * float(inputs)
    assert halved == macs / float(flops.macs.sum())
    assert flops.ratio(layout.group_sizes) == 1.0
