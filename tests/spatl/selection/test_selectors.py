"""What the selectors' scores mean, on small layouts."""

import pytest
import torch

from spatl.selection.energy import drawn_energy, magnitude_scores, update_energy
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(4, 3), (2, 5)])


def test_the_energy_of_a_channel_is_the_sum_of_its_squares():
    """Channel c of the first group owns entries c, 4 + c, 8 + c; of the second 12 + c, 14 + c, ..., 20 + c."""
    update = torch.arange(22.0)
    energy = update_energy(update, LAYOUT)
    assert energy[1] == 1 + 25 + 81
    assert energy[4] == sum(n * n for n in (12, 14, 16, 18, 20))


def test_magnitude_knows_no_scale_of_a_layer():
    weights = torch.randn(22, generator=torch.Generator().manual_seed(1))
    scaled = weights.clone()
    scaled[:4] *= 100
    torch.testing.assert_close(magnitude_scores(scaled, LAYOUT), magnitude_scores(weights, LAYOUT))


@pytest.mark.slow
def test_channels_are_drawn_in_proportion_to_their_energy():
    """The first of the ranking is channel c with probability energy_c / sum: 1, 2, 3, 4 out of 10 for four channels."""
    layout = interleaved_layout([(4, 1)])
    update = torch.tensor([1.0, 2.0, 3.0, 4.0]).sqrt()
    draws = torch.Generator().manual_seed(0)
    first = torch.stack([drawn_energy(update, layout, draws).argmax() for _ in range(4000)])
    shares = torch.bincount(first, minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_a_channel_that_did_not_move_is_never_preferred_to_one_that_did():
    layout = interleaved_layout([(3, 2)])
    update = torch.tensor([0.0, 1.0, 1e-3, 0.0, 1.0, 1e-3])
    for seed in range(20):
        energy = drawn_energy(update, layout, torch.Generator().manual_seed(seed))
        assert energy[0] == 0
        assert bool(energy.isfinite().all())
        assert bool((energy[1:] > 0).all())
