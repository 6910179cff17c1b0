"""Things that hold of the repository as a whole."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import spatl

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("spatl", "clients", "server", "agents") for path in (ROOT / package).rglob("*.py")]


def test_the_version_stands_in_four_places_and_is_the_same():
    """And the newest release in the changelog has its date in the citation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[0] == "Unreleased"
    assert changes[1].split(" - ") == [citation["version"], citation["date-released"]]
    assert project["version"] == spatl.__version__ == citation["version"]
    assert project["license"] == citation["license"]


def test_the_citation_has_what_its_format_requires_and_names_the_papers():
    """By the Citation File Format 1.2.0, which asks of a reference for its type, title and authors."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert all({"type", "title", "authors"} <= reference.keys() for reference in citation["references"])
    arxiv = [reference["url"].rpartition("/")[2] for reference in citation["references"]]
    assert arxiv == ["2111.14345", "2108.01335"]


def test_the_public_names_are_these():
    assert set(spatl.__all__) == {
        "ExperimentConfig", "RunResult", "SpatlError", "load_config", "parse_config", "read_run", "resume", "run",
    }  # fmt: skip
    assert all(hasattr(spatl, name) for name in spatl.__all__)


def test_no_source_unpickles():
    """`np.load` is allowed where the same call says that it opens plain arrays only."""
    allowed = re.compile(r"\bnp\.load\(\w+, allow_pickle=False\)")
    forbidden = re.compile(r"\b(pickle|torch\.load|np\.load|numpy\.load|joblib|allow_pickle)\b")
    assert [str(path) for path in SOURCES if forbidden.search(allowed.sub("", path.read_text()))] == []


def test_no_source_seeds_or_draws_from_a_global_generator():
    """Only `seeding` touches torch's; NumPy's and Python's are nobody's."""
    forbidden = re.compile(
        r"torch\.manual_seed|np\.random\.(?!default_rng|Generator)|^import random|^from random", re.M
    )
    assert [str(p) for p in SOURCES if p.name != "seeding.py" and forbidden.search(p.read_text())] == []


def test_one_function_writes_the_json_that_others_read():
    """It makes null of what is not finite. What is left writes no number that could be so."""
    allowed = {
        "spatl/json_files.py": 1,  # the function itself
        "spatl/sealed_files.py": 1,  # the header of a sealed file
        "server/engines.py": 2, "clients/deploy.py": 1,  # strings as TOML has them, and node ids
        "spatl/data/own.py": 1,  # numbers that are then checked
        "clients/device/handover.py": 1, "clients/device/cold_start.py": 2,  # a device's processes among themselves
    }  # fmt: skip
    found = {str(path.relative_to(ROOT)): path.read_text().count("json.dump") for path in SOURCES}
    assert {name: number for name, number in found.items() if number} == allowed


def test_no_source_replaces_a_measured_zero():
    """`row["accuracy"] or other` takes the other where the accuracy is 0.0; what may be None is compared with None."""
    measured = re.compile(
        r"(accuracy|accuracies|loss|bytes|rounds?|seconds|ratio|count|examples|steps|deadline|total|share|rate|gain)"
        r"(_to_target|_min|_max|_mean)?'?\]?$"
    )

    named = ast.Name | ast.Attribute | ast.Subscript

    def taken_by_default(tree):
        """Left sides of `or` that are values, not conditions."""
        tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert)]
        tests += [test for node in ast.walk(tree) if isinstance(node, ast.comprehension) for test in node.ifs]
        conditions = {inner for test in tests for inner in ast.walk(test)}
        for node in ast.walk(tree):
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and node not in conditions:
                yield from (ast.unparse(value) for value in node.values[:-1] if isinstance(value, named))

    allowed = {"plan.bench.tune_rounds"}  # at least 1, or null
    found = {
        text for path in SOURCES for text in taken_by_default(ast.parse(path.read_text())) if measured.search(text)
    }
    assert found - allowed == set()


@pytest.mark.slow
def test_a_client_imports_no_package_of_an_extra():
    code = (
        "import sys, clients.app\n"
        "from spatl.data.sources import load_dataset\n"
        "load_dataset('digits', seed=1)  # whose file scikit-learn holds\n"
        "heavy = {'matplotlib', 'ray', 'sklearn', 'gymnasium', 'stable_baselines3'}\n"
        "of_data = {'datasets', 'flwr_datasets', 'pandas', 'pyarrow', 'PIL'}\n"
        "bad = (heavy | of_data) & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
