"""A compiled module is taken where it is there, and where the environment does not say otherwise."""

from spatl.extensions.compiled import NO_EXTENSION, extension


def test_the_environment_says_whether_an_extension_is_wanted(monkeypatch):
    assert extension("spatl.channels.no_such_extension") is None
    monkeypatch.setenv(NO_EXTENSION, "")
    assert extension("math") is not None
    monkeypatch.setenv(NO_EXTENSION, "1")
    assert extension("math") is None
