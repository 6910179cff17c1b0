"""Tests of the claims: on a network whose fault is known, and laws that hold on any."""

import pytest
import torch
from torch import nn

from spatl.config.loading import parse_config
from spatl.config.saliency import CLAIMS, SaliencyConfig
from spatl.data import Examples
from spatl.experiments.claims import CLAIM_TABLE, GRADIENT_X_WEIGHT, LEAST, RANDOM, SAME_LAYERS, switching_off
from spatl.experiments.measures import rows_of
from spatl.experiments.networks import Subject, make_subject
from spatl.saliency.filters import filters_of
from spatl.saliency.moments import Moments
from spatl.saliency.profiles import profiles

SMALL = SaliencyConfig(
    top_k=(1, 2), most_repaired=4, draws=2, neighbours=2, repair_lengths=(0.01,), masked=(0.1,), repaired=3, boosted=3
)


@pytest.fixture(scope="module")
def subject():
    """A small network that was trained for one epoch on the digits."""
    values = {
        "data": {"name": "digits", "test_fraction": 0.5}, "model": {"name": "cnn"},
        "saliency": {"epochs": 1, "most_errors": 30},
    }  # fmt: skip
    return make_subject(parse_config(values), 1)


class _OneFault(nn.Module):
    """Four filters of which the last, a bright image alone, speaks for class 1 against everything."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.2, 0.2, 0], [0, 0, 5.0]])[..., None, None])
            self.head.weight.copy_(torch.tensor([[1.0, 0.5, 0.1, 0.0], [0.0, 0.0, 0.0, 3.0]]))

    def forward(self, images):
        return self.head(self.mix(images).relu().mean((2, 3)))


def test_the_filter_that_is_at_fault_is_switched_off_first_and_that_rights_every_error():
    network = _OneFault().double().eval()
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    examples = Examples(images, torch.zeros(20, dtype=torch.int64))
    filters = filters_of(network)
    found = profiles(network, examples, filters)
    assert (found.predictions == 1).all()
    known = Subject(1, network, filters, 0.0, Moments.of(found.absolute), examples, found, examples)
    righted = {
        row.way: row.mean
        for row in rows_of([list(switching_off(known, SMALL))])
        if (row.quantity, row.setting) == ("righted", "k = 1")
    }
    assert righted[GRADIENT_X_WEIGHT] == 1.0
    assert 0.0 <= righted[RANDOM] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS)
def test_every_way_has_a_control_and_is_measured_again_to_the_bit(claim, subject):
    measures = [list(CLAIM_TABLE[claim].measure(subject, SMALL)) for _ in range(2)]
    rows = rows_of([measures[0]])
    assert rows == rows_of([measures[1]])
    for row in rows:
        controls = [other for other in rows if (other.quantity, other.setting) == (row.quantity, row.setting)
                    and other.control is None]  # fmt: skip
        assert len(controls) == 1
        assert -1.0 <= row.mean <= 1.0
        assert row.num_examples in (1, min(30, len(subject.errors)), SMALL.most_repaired)


def test_the_controls_are_drawn_and_the_least_salient_are_not_the_most(subject):
    rows = {(row.quantity, row.setting, row.way): row for row in rows_of([list(switching_off(subject, SMALL))])}
    for setting in ("k = 1", "k = 2"):
        assert {way for quantity, own, way in rows if own == setting} >= {RANDOM, SAME_LAYERS, LEAST}
        best = rows["righted", setting, GRADIENT_X_WEIGHT]
        assert best.mean > rows["righted", setting, LEAST].mean
        assert best.gain is not None
        assert best.gain > 0


@pytest.mark.slow
def test_a_network_without_errors_is_refused():
    values = {"data": {"name": "digits", "test_fraction": 0.01}, "model": {"name": "cnn"}, "saliency": {"epochs": 12}}
    with pytest.raises(Exception, match="test examples wrong, and the experiments need two errors at least"):
        make_subject(parse_config(values), 1)
