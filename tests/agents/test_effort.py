"""What measuring takes beside the training: worked out by hand, and never more than its share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from agents.effort import Effort
from tests.support.problems import blueprint_for

EFFORT = Effort(layers=20, macs=1e6, parameters=50_000, entries=40_000)


def test_a_step_is_three_passes_of_its_examples_and_one_over_the_parameters():
    """20 calls of 150 us, 3 * 8 * 10^6 products of 50 ps, 50,000 numbers of 1 ns: 3 + 1.2 + 0.05 ms."""
    assert EFFORT.step(8) == pytest.approx(4.25e-3)


def test_a_trial_is_one_pass_and_the_weights_put_together():
    """3 ms, 40 * 10^6 products of 50 ps, 40,000 entries of 6 ns: 3 + 2 + 0.24 ms."""
    assert EFFORT.trial(40) == pytest.approx(5.24e-3)
    assert EFFORT.forward(40) == pytest.approx(5e-3)


@pytest.mark.parametrize(
    ("share", "signal", "samples"),
    [
        # 100 steps of 4.25 ms are 425. The proposal's 3 ms and two trials of 5.24 are 13.48, each sample is 6.24 more.
        (13.4 / 425, 0, None), (13.5 / 425, 0, 0), (19.7 / 425, 0, 0), (19.8 / 425, 0, 1), (26.0 / 425, 0, 2),
        (13.5 / 425, 64, None), (19.8 / 425, 64, 0),  # a pass of 64 that says what channels are worth is 6.2
    ],
)  # fmt: skip
def test_samples_that_a_share_pays_for(share, signal, samples):
    training = 100 * EFFORT.step(8)
    assert EFFORT.affordable_samples(training, share=share, examples=40, signal=signal) == samples


@given(
    layers=st.integers(1, 200), macs=st.floats(0, 1e10), parameters=st.integers(1, 10**8), steps=st.integers(1, 1000),
    batch=st.integers(1, 256), examples=st.integers(1, 256), share=st.floats(0.01, 1.0),
)  # fmt: skip
def test_all_that_is_measured_stays_within_the_share_and_one_more_would_not(
    layers, macs, parameters, steps, batch, examples, share
):
    effort = Effort(layers, macs, parameters, parameters)
    training, trial = steps * effort.step(batch), effort.trial(examples)
    samples = effort.affordable_samples(training, share=share, examples=examples)
    if samples is None:
        assert 2 * trial + 3e-3 > share * training
    else:
        spent = 3e-3 + 2 * trial + samples * (trial + 1e-3)
        assert spent <= share * training * (1 + 1e-9) < spent + (trial + 1e-3) * (1 + 1e-6)


def test_the_layers_of_a_network_are_those_that_have_none_inside():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 2))))
    costs = blueprint_for("resnet8").costs
    effort = Effort.of(network, costs)
    assert (effort.layers, effort.parameters) == (3, 4 * 4 + 2 * 5)
    assert (effort.macs, effort.entries) == (float(costs.flops.macs.sum()), costs.layout.num_entries)
