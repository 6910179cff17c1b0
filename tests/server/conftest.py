"""What the tests of the server share."""

import pytest

from server.strategy import FederationStrategy


@pytest.fixture
def strategies(monkeypatch) -> list[FederationStrategy]:
    """The strategies that are made from now on."""
    made, truly = [], FederationStrategy.__init__

    def kept(self, *args, **kwargs):
        truly(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(FederationStrategy, "__init__", kept)
    return made
