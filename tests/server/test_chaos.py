"""SIGKILL of every part of a real deployment: once each here, more often by `make chaos`."""

import pytest

from tests.chaos import PARTS, cause, check


@pytest.mark.slow
def test_kills_of_every_part_lose_and_repeat_nothing_and_c_stays_the_weighted_sum(tmp_path):
    outcome = cause(tmp_path / "federation", cycles=1, seed=7)
    assert outcome.kills.keys() == set(PARTS)
    assert check(outcome) > 1e-3
