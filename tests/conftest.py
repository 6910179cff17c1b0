"""What all tests share."""

import pytest
import torch
from hypothesis import settings

# Nothing is timed in a test, and a run of the suite is repeatable.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("repository")

# Networks here are too small for a second thread to help, and two test runs side by side would wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU run where there is one."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))
