"""Laws of the private average: what one client can move, and the noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.aggregation import PrivateAggregator
from tests.support.updates import LAYOUT, N, random_updates


def privately(updates, encoder, *, clip, noise_multiplier=0.0, num_expected=10, seed=0):
    noise = np.random.default_rng(seed)
    aggregator = PrivateAggregator(
        layout=LAYOUT, encoder=encoder, control=None, total_examples=10_000, clip=clip,
        noise_multiplier=noise_multiplier, num_expected=num_expected, noise=noise,
    )  # fmt: skip
    for update, num_examples in updates:
        aggregator.add(update, num_examples)
    return aggregator.encoder()


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), number=st.integers(1, 8), clip=st.floats(1e-3, 1e3), data=st.data())
def test_one_client_moves_a_private_average_by_at_most_its_share_of_the_clip(seed, number, clip, data):
    """Whatever it sends, whichever channels it chose, and however many examples it says it has."""
    updates = random_updates(seed, number)
    left_out = data.draw(st.integers(0, number - 1))
    without = updates[:left_out] + updates[left_out + 1 :]
    moved = [privately(some, torch.zeros(N), clip=clip) for some in (updates, without)]
    assert float((moved[0].double() - moved[1].double()).norm()) <= clip / 10 * (1 + 1e-5)


def test_short_updates_pass_a_private_average_as_they_are():
    (update, _), = random_updates(3, 1)  # fmt: skip
    own = torch.zeros(N).index_copy_(0, update.selection.entries(LAYOUT), update.values)
    torch.testing.assert_close(privately([(update, 7)], torch.zeros(N), clip=1e9), own / 10)


@pytest.mark.slow
def test_noise_of_the_said_size_is_on_every_entry_although_nobody_sent_it():
    encoder = torch.ones(N)
    draws = torch.stack([privately([], encoder, clip=3.0, noise_multiplier=2.0, seed=seed) for seed in range(2000)])
    torch.testing.assert_close(draws.mean(dim=0), encoder, atol=0.06, rtol=0)  # 4.5 standard errors
    torch.testing.assert_close(draws.std(dim=0), torch.full((N,), 2.0 * 3.0 / 10), atol=0, rtol=0.08)
