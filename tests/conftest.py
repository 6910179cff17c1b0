"""What all tests share."""

import pytest
import torch
from hypothesis import settings

from tests.support.longest import LONGEST

# Nothing is timed in a test, and a run of the suite is repeatable.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("repository")

# Networks here are too small for a second thread to help, and two test runs side by side would wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, and tests that need a GPU run where there is one."""
    places = {config.rootpath / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))
