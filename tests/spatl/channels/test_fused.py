"""Compiled passes: the same numbers, to the bit, as one step after the other, and nothing beyond what is given."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels import fused
from spatl.channels.kept import Kept, Stretch
from spatl.rounds.control import refresh_control
from spatl.rounds.exact_sum import ExactSum, Terms
from tests.support.layouts import interleaved_layout, make_update

compiled = pytest.mark.skipif(not fused.IS_COMPILED, reason="this installation has no compiled passes")

LENGTH = 700  # more than two of the blocks that values are added in
seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from([1.0, -1.0, 70.0, 1 / 3, 2.0**-9])


def step_by_step():
    return patch.object(fused, "IS_COMPILED", False)


def drawn_kept(rng: np.random.Generator) -> Kept | None:
    """All entries, some by their positions, or rows of ten of which some travel, behind others that all do."""
    bits = torch.from_numpy(rng.random(LENGTH) < 0.6)
    if rng.random() < 0.3:
        return None
    if rng.random() < 0.5:
        return Kept.of_bits(bits)
    rows = bits[:40].nonzero().squeeze(1)
    stretches = (
        Stretch(slice(0, 300), 30, None, slice(0, 300)),
        Stretch(slice(300, LENGTH), 10, rows, slice(300, 300 + 10 * len(rows))),
    )
    return Kept(stretches, 300 + 10 * len(rows))


def drawn_values(rng: np.random.Generator, number: int) -> torch.Tensor:
    """Of all magnitudes, the multiples of a step, zeros of both signs, and halves of 2^-58 among them."""
    values = rng.standard_normal(number) * 2.0 ** rng.integers(-70, 20, number)
    values[rng.random(number) < 0.3] = 0.0
    multiples = rng.random(number) < 0.3
    values[multiples] = rng.integers(-9, 9, number)[multiples] * 2.0 ** -rng.choice([1, 8, 9, 58, 59, 60])
    return torch.from_numpy(values * rng.choice([-1.0, 1.0], number))


@compiled
@given(seed=seeds, before=factors, divisor=factors, after=factors, exact=st.booleans())
def test_exact_sums_come_to_the_same(seed, before, divisor, after, exact):
    rng = np.random.default_rng(seed)
    sums, others = ExactSum(LENGTH), ExactSum(LENGTH)
    for _ in range(3):
        kept = drawn_kept(rng)
        values = drawn_values(rng, LENGTH if kept is None else kept.number).to(
            torch.float64 if exact else torch.float32
        )
        terms = Terms(values, before, divisor, after)
        sums.add_(kept, terms)
        with step_by_step():
            others.add_(kept, terms)
    found = sums.total()
    with step_by_step():
        assert found.tolist() == others.total().tolist() == sums.total().tolist()


@compiled
@given(seed=seeds, damping=st.sampled_from([1.0, 0.3]), step_weight=st.sampled_from([0.1, 3.7]))
def test_a_control_variate_follows_alike(seed, damping, step_weight):
    rng = np.random.default_rng(seed)
    layout = interleaved_layout([(8, 12), (3, 5)])
    own, common, change = (drawn_values(rng, layout.num_entries).float() for _ in range(3))
    update = make_update(layout, (rng.random(11) < 0.7).tolist(), change, step_weight=step_weight)
    found = refresh_control(own, common, update, layout, damping=damping)
    with step_by_step():
        again = refresh_control(own, common, update, layout, damping=damping)
    assert torch.equal(found.view(torch.int32), again.view(torch.int32))


@compiled
@given(seed=seeds)
def test_a_sketch_is_the_sum_of_signed_entries_where_their_rows_are_shifted_to(seed):
    """Rows of 100 entries, each added to a sketch of 100 numbers from its shift on, and from the beginning again."""
    rng = np.random.default_rng(seed)
    kept = drawn_kept(rng)
    values = drawn_values(rng, LENGTH if kept is None else kept.number).float()
    signs = rng.choice([-1.0, 1.0], (LENGTH // 100, 100)).astype(np.float32)
    shifts = rng.integers(0, 100, LENGTH // 100)
    places = range(LENGTH) if kept is None else kept.positions().tolist()
    expected = np.zeros(100)
    for place, value in zip(places, values.tolist(), strict=True):
        row, column = divmod(place, 100)
        expected[(column + shifts[row]) % 100] += signs[row, column] * value
    found = np.zeros(100)
    assert fused.add_to_sketch_(found, kept, values, LENGTH, signs, shifts)
    assert found.tolist() == expected.tolist()


@compiled
@pytest.mark.parametrize("rows", [[0, 7], [-1, 2], [1]])
def test_rows_beyond_the_vector_and_values_that_are_too_few_are_refused(rows):
    """Of seven rows of ten entries and twenty values, there is no eighth, none before the first, and one has ten."""
    kept = Kept((Stretch(slice(0, 70), 10, torch.tensor(rows), slice(0, 20)),), 20)
    sums, values, own = ExactSum(70), torch.ones(20), torch.zeros(70)
    with pytest.raises(ValueError, match="do not fit"):
        sums.add_(kept, Terms(values))
    with pytest.raises(ValueError, match="do not fit"):
        fused.refresh_(own, own, kept, values, step_weight=1.0, damping=1.0)
    signs, shifts = np.ones((7, 10), dtype=np.float32), np.zeros(7, dtype=np.int64)
    with pytest.raises(ValueError, match="do not fit"):
        fused.add_to_sketch_(np.zeros(10), kept, values, 70, signs, shifts)
    assert not sums.total().any()
    assert not own.any()
