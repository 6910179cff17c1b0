"""One helper finds what a config names by `package.module:name`; every mistake is one line that says what to do."""

import sys
from pathlib import Path

import pytest

from spatl.errors import DataError, SpatlError
from spatl.extensions.references import Door, arguments_for, is_reference, resolve, row_of

DOOR = Door("gadget", "gadgets.name", "package.module:gadget", "a function", DataError)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that holds a function, a class and a number."""
    (tmp_path / "gadgets_of_a_test.py").write_text("def turn(): ...\nclass Wheel: ...\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gadgets_of_a_test", raising=False)
    return "gadgets_of_a_test"


def test_what_a_reference_names_comes_back_as_it_is(module: str) -> None:
    found = resolve(f"{module}:turn", DOOR, accepts=callable)
    assert found is sys.modules[module].turn


def test_a_name_of_a_table_is_no_reference() -> None:
    assert is_reference("my.module:name")
    assert not is_reference("spatl")


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        (":turn", "a gadget of your own is written \"package.module:gadget\", got ':turn'"),
        ("nowhere_at_all:turn", "gadget 'nowhere_at_all:turn': no module named 'nowhere_at_all': is it installed, "
         "or its folder on PYTHONPATH?"),
        ("{module}:trun", "gadget '{module}:trun': module '{module}' has no 'trun' (did you mean 'turn'?)"),
        ("{module}:NUMBER", "gadget '{module}:NUMBER': 'NUMBER' must be a function, got an object of type int "
         "(configs: gadgets.name)"),
        ("{module}:Wheel", "gadget '{module}:Wheel': 'Wheel' must be a function, got the class Wheel "
         "(configs: gadgets.name)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(module: str, reference: str, line: str) -> None:
    with pytest.raises(DataError) as caught:
        resolve(reference.format(module=module), DOOR, accepts=lambda found: type(found).__name__ == "function")
    assert str(caught.value) == line.format(module=module)


def test_an_unknown_name_is_told_with_the_known_ones_and_the_form_of_a_reference() -> None:
    table = {"wheel": 1, "crank": 2}
    assert row_of("crank", table, DOOR) == 2
    with pytest.raises(DataError) as caught:
        row_of("whel", table, DOOR)
    assert str(caught.value) == (
        "unknown gadget 'whel' (did you mean 'wheel'?); known: wheel, crank, or \"package.module:gadget\" for your own "
        "(configs: gadgets.name)"
    )


def arguments(function: object, **options: object) -> dict[str, object]:
    return arguments_for(
        function,  # type: ignore[arg-type]
        what="gadget 'g'", offered={"seed": 1, "labels": 2}, options=options, section="gadgets.options",
        error=SpatlError,
    )  # fmt: skip


def test_a_function_gets_what_its_signature_names() -> None:
    assert arguments(lambda seed: 0) == {"seed": 1}
    assert arguments(lambda: 0) == {}
    assert arguments(lambda labels, *, size=3: 0, size=5) == {"labels": 2, "size": 5}
    assert arguments(lambda **anything: 0, size=5) == {"seed": 1, "labels": 2, "size": 5}


@pytest.mark.parametrize(
    ("function", "options", "line"),
    [
        (lambda seed: 0, {"seed": 3}, "'seed' is given by the run and cannot be an option (configs: gadgets.options)"),
        (lambda size=1: 0, {"sise": 3}, "gadget 'g' has no option 'sise' (did you mean 'size'?); it takes size "
         "(configs: gadgets.options)"),
        (lambda y, seed: 0, {}, "gadget 'g' needs 'y', which nobody gives: it is called with seed, labels, or by "
         "gadgets.options"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_one_line(function: object, options: dict[str, object], line: str) -> None:
    with pytest.raises(SpatlError) as caught:
        arguments(function, **options)
    assert str(caught.value) == line
