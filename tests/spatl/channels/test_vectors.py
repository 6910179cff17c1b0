"""Long vectors in parts: what is found of the parts is what is found of the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels import vectors
from spatl.channels.vectors import all_finite, give_back, mean_square, parts_of


@given(length=st.integers(0, 100), size=st.integers(1, 40))
def test_parts_follow_one_another_and_cover_the_vector(length, size):
    covered = [place for part in parts_of(length, size) for place in range(part.start, part.stop)]
    assert covered == list(range(length))
    assert all(0 < part.stop - part.start <= size for part in parts_of(length, size))


def test_a_mean_square_is_the_same_in_parts(monkeypatch):
    """(1 + 4 + 9 + 16 + 25) / 5 = 11."""
    values = torch.arange(1.0, 6.0)
    assert mean_square(values) == 11.0
    monkeypatch.setattr(vectors, "SUMMED", 2)
    assert mean_square(values) == 11.0
    assert mean_square(torch.zeros(0)) == 0.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_lies(wrong):
    values = torch.zeros(2, vectors.PART)
    assert all_finite(values)
    values[1, 5] = wrong
    assert not all_finite(values)


def test_memory_is_given_back_of_large_vectors_only(monkeypatch):
    calls = []
    monkeypatch.setattr(vectors, "TRIM", calls.append)
    give_back(1000)
    assert calls == []
    give_back(10_000_000)
    assert calls == [0]
