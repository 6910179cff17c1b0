"""What the tests of the commands share."""

from pathlib import Path

import pytest

from tests.support.federations import tiny_config


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    """The file of a small federation of two rounds, after which each client trains alone."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(rounds=2, report={"compare_alone": True}).to_yaml())
    return str(path)
