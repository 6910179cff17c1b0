"""What the tests of the server share."""

from pathlib import Path

import pytest

from server.strategy import FederationStrategy
from tests.support.own_data import CLASSES, NUMBERS, write_data


@pytest.fixture
def strategies(monkeypatch) -> list[FederationStrategy]:
    """The strategies that are made from now on."""
    made, truly = [], FederationStrategy.__init__

    def kept(self, *args, **kwargs):
        truly(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(FederationStrategy, "__init__", kept)
    return made


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Three devices with unequal numbers of examples, the last without class 2."""
    for client, (number, classes) in enumerate(zip(NUMBERS, CLASSES, strict=True)):
        write_data(tmp_path / f"{client}.npz", number, classes, seed=client)
    return tmp_path
