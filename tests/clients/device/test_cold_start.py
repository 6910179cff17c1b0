"""The cold start of a message, as `spatl show cold-start` measures it."""

import pytest

from clients.device.cold_start import handle, measure


@pytest.mark.slow
def test_what_is_timed_is_a_message_that_is_handled():
    handle()


@pytest.mark.slow
def test_each_step_is_measured_in_a_process_of_its_own():
    """No claim about seconds, which a machine at work would break."""
    costs = measure(repeats=1)
    assert list(costs)[:3] == ["import torch", "import clients.app", "ready to train"]
    assert all(min(cost.seconds, cost.cpu_seconds, cost.peak_megabytes) > 0 for cost in costs.values())
