"""Things that hold of the tests as a whole."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.longest import LONGEST

ROOT = Path(__file__).parents[1]
PACKAGES = ("spatl", "clients", "server", "agents")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def private_names(tree: ast.AST) -> set[str]:
    """The names with one underscore in front that a module defines: globals, classes, methods and attributes."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    # What ends with one, too, is a protocol's, as `_repr_html_`.
    return {name for name in names if re.fullmatch(r"_[^_]\w*(?<!_)", name)}


def read_from_others(path: Path, private: set[str]) -> set[str]:
    """The private names of the product that a module of the tests imports, reads or replaces, also in strings."""
    tree = ast.parse(path.read_text())
    of_others = private - private_names(tree)
    product = "|".join(PACKAGES)
    in_text = re.compile(
        rf"\b(?:{product})(?:\.\w+)*[.:](_[a-zA-Z]\w*)|\bfrom (?:{product})\S* import .*?\b(_[a-z]\w*)"
    )
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=aliases) if module.split(".")[0] in PACKAGES:
                found |= {alias.name for alias in aliases if re.match("_[^_]", alias.name)}
            case ast.Attribute(attr=name) if name in of_others:
                found.add(name)
            case ast.Call(func=ast.Attribute() | ast.Name(), args=[_, ast.Constant(value=str(text)), *_]):
                found |= {text} & of_others  # as `setattr`, `getattr` and `patch.object` take it
            case ast.Constant(value=str(text)):
                found |= {one or other for one, other in in_text.findall(text)}
    return found


def test_no_file_of_tests_is_longer_than_400_lines():
    assert [name_of(path) for path in TESTS if len(path.read_text().splitlines()) > 400] == []


def test_the_files_that_a_run_begins_with_are_there():
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []


def test_tests_read_nothing_private_of_the_product():
    """Those that do so yet; one that does not any more is taken off the list."""
    to_be_done = {
        "tests/server/test_lost_replies.py": {"_shortest"},
        "tests/studies/fuzzing.py": {"_struct"},
    }
    private = set().union(*(private_names(ast.parse(path.read_text())) for path in SOURCES))
    found = {name_of(path): read_from_others(path, private) for path in TESTS if path != Path(__file__)}
    assert {name: names for name, names in found.items() if names} == to_be_done


@pytest.mark.parametrize(
    "code",
    [
        "from spatl.runner import _there", "from spatl import runner\nrunner._there()", "run(config)._there = 3",
        "monkeypatch.setattr(runner, '_there', None)", "patch('spatl.runner._there')", "'spatl.runner:_there'",
        "script = 'import sys\\nfrom server.engines import start, _there'",
    ],
)  # fmt: skip
def test_what_is_private_is_found_however_it_is_read(code, tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text(code)
    names = {"_there"} if "= 3" not in code else set()  # a test may give an object of its own any attribute
    assert read_from_others(path, {"_there", "_elsewhere"}) == names


def test_a_fixture_has_a_name_of_its_own():
    found = defaultdict(set)
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(d) for d in node.decorator_list):
                found[node.name].add(name_of(path))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_what_tests_share_stands_in_support_and_not_in_a_module_of_tests():
    """Support holds no tests; `conftest.py` holds fixtures; what is run as a command is a study."""
    importing = [
        f"{name_of(path)}: {node.module}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.match(r"tests\.(.*\.)?test_", node.module or "")
    ]
    assert importing == []
    assert list((ROOT / "tests" / "support").rglob("test_*.py")) == []
    modules = {path for path in TESTS if not path.name.startswith("test_")}
    elsewhere = {path for path in modules if path.name not in ("__init__.py", "conftest.py")}
    assert {path.relative_to(ROOT / "tests").parts[0] for path in elsewhere} == {"support", "studies"}
