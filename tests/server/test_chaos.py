"""SIGKILL of what works on a message, of a SuperNode and of the server, in a real deployment; `make chaos` does it more."""

import pytest

from tests.chaos import cause, check


@pytest.mark.slow
def test_kills_of_every_part_lose_and_repeat_nothing_and_c_stays_the_weighted_sum(tmp_path):
    outcome = cause(tmp_path / "federation", cycles=1, seed=7)
    assert outcome.kills.keys() == {"client process", "SuperNode", "server"}
    assert check(outcome) > 1e-3
