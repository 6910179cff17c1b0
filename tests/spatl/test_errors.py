"""What is said of an exception of the user's code: its type, its first line, its place."""

import pytest
import torch

from spatl.errors import ConfigError, DataError, ModelError, from_outside, printable, told, traceback_of
from spatl.models import build_model

SIZES = {"num_classes": 10, "in_channels": 1, "image_size": 8, "seed": 1}


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_error_keeps_its_type_its_first_line_and_its_place() -> None:
    line = told(raised(RuntimeError("shapes do not fit\nhere is why")))
    assert line == "RuntimeError: shapes do not fit (test_errors.py:14, in raised)"


def test_an_error_without_a_message_keeps_its_type_and_place() -> None:
    assert told(raised(NotImplementedError())) == "NotImplementedError (test_errors.py:14, in raised)"


def test_an_error_that_nobody_raised_has_no_place() -> None:
    assert told(KeyError("width")) == "KeyError: 'width'"


def test_our_own_errors_are_their_message() -> None:
    assert told(raised(ConfigError("rounds must be at least 1"))) == "rounds must be at least 1"


def test_the_place_is_the_users_and_not_the_librarys() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(3, 2)(torch.zeros(1, 4))
    assert told(caught.value).endswith("(test_errors.py:38, in test_the_place_is_the_users_and_not_the_librarys)")


def test_a_syntax_error_of_the_users_module_has_its_own_place(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken_net.py").write_text("import torch\n\ndef make(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be imported: SyntaxError: invalid syntax \(broken_net\.py:3\)$"):
        build_model("broken_net:make", cut=["head"], **SIZES)


def test_nothing_of_a_message_reaches_the_terminals_cursor() -> None:
    assert printable("a\x1b[2Jb\rc\x9bd\u202ee\tf\ng\ud800") == "a?[2Jb?c?d?e\tf\ng?"
    assert "\x1b" not in told(raised(ValueError("\x1b]0;title\x07")))
    assert len(told(raised(ValueError("x" * 10_000)))) < 400
    assert len(traceback_of(raised(ValueError("x" * 100_000)))) < 16_000


def test_only_what_is_not_ours_has_a_traceback_worth_printing() -> None:
    caused = ModelError("fails")
    caused.__cause__ = RuntimeError()
    noted = ConfigError("elsewhere")
    noted.add_note("Traceback (most recent call last): ...")
    assert [from_outside(each) for each in (RuntimeError(), caused, noted)] == [True] * 3
    ordinary = DataError("cannot read")
    ordinary.__cause__ = OSError()
    assert [from_outside(each) for each in (ConfigError("wrong"), ModelError("wrong"), ordinary)] == [False] * 3
