"""Fixtures of exported models."""

from pathlib import Path

import pytest
import torch

from tests.support import exports

OFFSET = torch.tensor([0.5, -1.0, 0.25])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an exported network with an offset and in 8 bits, which nobody may change."""
    return exports.write(tmp_path_factory.mktemp("exported") / "model", offset=OFFSET)
