"""Names cost nothing, what they stand for is imported when it is needed, and is then the thing itself."""

import inspect
import subprocess
import sys

import pytest

import spatl
import spatl.data
import spatl.models
from spatl.data.datasets import DATASETS
from spatl.extensions.late import LateModule, LateTable, late_names

HALVES = LateModule("statistics")


def test_a_function_is_called_as_itself_and_has_its_signature():
    assert HALVES.median([3, 1, 2]) == 2
    assert HALVES.quantiles([1, 2, 3], n=2) == [2.0]
    assert list(inspect.signature(HALVES.quantiles).parameters) == ["data", "n", "method"]
    assert repr(HALVES.median) == "Late('statistics', 'median')"


def test_what_a_module_has_not_is_told_when_it_is_called():
    with pytest.raises(AttributeError, match="medium"):
        HALVES.medium([1])


def test_a_packages_names_are_imported_when_they_are_asked_for():
    found = late_names("here", {"isleap": "calendar"})
    assert found("isleap")(2028)
    with pytest.raises(AttributeError, match=r"^module 'here' has no attribute 'leap'$"):
        found("leap")
    for package in (spatl, spatl.data, spatl.models):
        assert all(hasattr(package, name) for name in package.__all__)
        assert not hasattr(package, "no_such_name")


def test_a_row_is_made_once_and_only_when_it_is_asked_for():
    made = []
    table = LateTable({name: lambda name=name: made.append(name) or [name] for name in ("a", "b")})
    assert (list(table), len(table), "a" in table, "c" in table, made) == (["a", "b"], 2, True, False, [])
    assert table["b"] is table["b"]
    assert (table.get("c"), made) == (None, ["b"])
    with pytest.raises(KeyError):
        table["c"]
    assert table == {"a": ["a"], "b": ["b"]}
    assert made == ["b", "a"]


def test_the_module_is_imported_by_the_first_call_or_with_all_others():
    code = (
        "import sys\n"
        "from spatl.extensions.late import LateModule, import_late_modules\n"
        "one, other = LateModule('statistics'), LateModule('calendar')\n"
        "one.mean, other.isleap; assert not {'statistics', 'calendar'} & set(sys.modules)\n"
        "assert other.isleap(2028) and 'statistics' not in sys.modules\n"
        "import_late_modules(); assert 'statistics' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_data_set_is_said_to_be_read_from_a_path_where_its_loader_takes_one():
    """What a config needs of a loader is a fact of its row, or PyTorch would be imported to look at a signature."""
    said = {name: row.default_path for name, row in DATASETS.items() if row.reads_path}
    assert said == {name: row.options["path"] for name, row in DATASETS.items() if "path" in row.options}
    assert len(said) > 5
