"""Tests of neighbours by profile."""

import torch

from spatl.saliency.filters import filters_of
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.neighbours import nearest
from spatl.saliency.profiles import profiles
from tests.support.saliency import many_kinds, some_examples


def test_the_nearest_by_profile_is_the_example_itself_unless_it_is_among_the_others():
    network, examples = many_kinds(), some_examples(12)
    found = profiles(network, examples, filters_of(network)).absolute
    z = standardised(found, Moments.of(found))
    places, cosines = nearest(z, z, 3)
    assert places[:, 0].tolist() == list(range(12))
    assert torch.allclose(cosines[:, 0], torch.ones(12, dtype=torch.float64))
    places, cosines = nearest(z, z, 3, same=True)
    assert all(number not in row for number, row in enumerate(places.tolist()))
    assert (cosines[:, 0] >= cosines[:, 1]).all()
