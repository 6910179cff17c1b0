"""What all tests share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.support.longest import LONGEST

# Nothing is timed in a test, and a run of the suite is repeatable.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("repository")

# Networks here are too small for a second thread to help, and two test runs side by side would wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn of a run or a benchmark, which takes one to two seconds each; the files are there."""

    def leave(what: Any, path: Path, **options: Any) -> None:
        path.write_text("undrawn")

    for name in ("draw_curves", "write_report"):
        monkeypatch.setattr(f"spatl.report.pictures.{name}", leave)
    for name in ("draw_curves", "draw_bytes"):
        monkeypatch.setattr(f"spatl.bench.report.{name}", leave)
    for name in ("accuracy_svg", "clients_svg", "factors_svg", "loss_svg", "parts_svg"):
        monkeypatch.setattr(f"spatl.bench.report.{name}", lambda *args, **kwargs: "<svg></svg>")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, and tests that need a GPU run where there is one."""
    places = {config.rootpath / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))
