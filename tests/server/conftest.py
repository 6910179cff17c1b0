"""What the tests of the server share."""

import pytest

from server.strategy import Federation


@pytest.fixture
def strategies(monkeypatch) -> list[Federation]:
    """The strategies that are made from now on."""
    made, truly = [], Federation.__init__

    def kept(self, *args, **kwargs):
        truly(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Federation, "__init__", kept)
    return made
