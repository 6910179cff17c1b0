"""Things that hold of the repository as a whole."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import spatl
from spatl.extensions.references import Door
from spatl.runs import files

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
        "spatl/sealed_files.py": 2,  # the header of a sealed file, and the table around it
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
    found = {text for path in SOURCES for text in taken_by_default(_tree(path)) if measured.search(text)}
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


@functools.cache
def _tree(path):
    """A source, parsed once for all tests."""
    return ast.parse(path.read_text())


def _constants(path):
    """The strings of a module, without its docstrings."""
    tree = _tree(path)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_every_reference_by_string_resolves_and_stands_in_one_of_these_files():
    """import-linter cannot see `"package.module:name"`; a moved module shows here, and not when a user needs it."""
    reference = re.compile(r"(spatl|clients|server|agents)(\.\w+)+:\w+")
    found = {
        str(path.relative_to(ROOT)): {text for text in _constants(path) if reference.fullmatch(text)}
        for path in SOURCES
    }
    project = (ROOT / "pyproject.toml").read_text()
    found["pyproject.toml"] = {text for text in re.findall(r'"([^"\n]*)"', project) if reference.fullmatch(text)}
    assert {name for name, texts in found.items() if texts} == {
        "pyproject.toml",  # the command, and the apps that Flower loads
        "spatl/console/parser.py",  # the commands
        "spatl/console/deploying.py",  # those of deployments
        "spatl/config/engines.py",  # the engines, and the apps that they run
        "spatl/perf/parts.py",  # what is timed
    }  # fmt: skip
    for text in set().union(*found.values()):
        module, _, name = text.partition(":")
        assert hasattr(importlib.import_module(module), name), text


def test_the_modules_of_flower_that_are_not_public_are_imported_in_these_files():
    """What a new release of Flower may break. Public are `flwr.app`, `flwr.clientapp` and `flwr.serverapp`."""
    allowed = {
        "clients/app.py": {"clientapp.typing"},
        "clients/admission.py": {
            "common.constant", "proto.fleet_pb2", "supercore.interceptors.http.runtime_version",
            "supercore.primitives.asymmetric", "supercore.protobuf.client", "supernode.fleet_http_client",
            "supernode.node_auth_http_interceptor",
        },
        "clients/device/cold_start.py": {
            "supercore.cli.flower_superexec", "supernode.cli.flower_supernode", "supernode.main",
        },
        "clients/device/message_process.py": {"common.args", "supercore.tls", "supernode.runtime.run_clientapp"},
        "clients/device/refusals.py": {"supercore.error"},
        "clients/device/supernode.py": {
            "proto.fleet_pb2", "proto.heartbeat_pb2", "supercore", "supercore.heartbeat",
            "supercore.protobuf.constants", "supercore.retry", "supercore.retry.http_retry",
            "supernode.cli.flower_supernode", "supernode.fleet_http_client", "supernode.fleet_http_connection",
            "supernode.start_client_internal",
        },
        "server/deployment/keys.py": {"supercore.primitives.asymmetric"},
        "server/deployment/control.py": {
            "cli.build", "common.serde", "proto.control_pb2", "supercore.control", "supercore.fab",
            "supercore.interceptors.http.runtime_version", "supercore.protobuf.client",
        },
        "server/deployment/gate.py": {"proto.fleet_pb2", "proto.message_pb2"},
        "server/deployment/signatures.py": {
            "common.constant", "supercore.constant", "supercore.date", "supercore.primitives.asymmetric",
        },
        "server/deployment/superlink.py": {
            "proto.fleet_pb2", "server.superlink.linkstate", "supercore.error", "supercore.http_logging",
            "superlink.cli.flower_superlink", "superlink.main", "superlink.servicer.fleet",
        },
        "server/grids.py": {"common.constant", "supercore.run", "supercore.task_identity"},
        "server/inquiry.py": {"common.constant"},
        "server/over_grid.py": {"supercore.run"},
        "server/pulling.py": {
            "app.message", "app.metadata", "common.constant", "common.serde_utils", "proto.message_pb2",
            "proto.runtime_pb2",
            "supercore.inflatable.inflatable_utils", "superlink.grid.http_grid",
        },
        "server/questions.py": {"app.metadata", "common.constant"},
        "server/simulation/process.py": {
            "common.constant", "server.superlink.fleet.vce.backend", "server.superlink.fleet.vce.backend.backend",
            "simulation.app",
        },
        "server/simulation/superlink.py": {"superlink.cli"},
        "server/workers.py": {"common.constant", "common.serde", "proto.message_pb2"},
        "server/strategy.py": {"serverapp.strategy"},
        "server/traffic.py": {
            "app.message", "app.metadata", "common.serde", "proto.fleet_pb2", "proto.message_pb2", "proto.node_pb2",
            "supercore.inflatable.inflatable_object",
        },
        "server/simulation/plain_flower.py": {"serverapp.strategy", "simulation"},
        "spatl/deployment/superexec.py": {
            "supercore.cli.flower_superexec", "supercore.superexec.executor.subprocess_executor",
            "supercore.superexec.run_superexec",
        },
    }  # fmt: skip

    def modules(path):
        nodes = list(ast.walk(_tree(path)))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [name for text in _constants(path) for name in re.findall(r"(?<![\w.\"'\[])flwr(?:\.\w+)+", text)]
        public = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp"}
        return {name.removeprefix("flwr.") for name in names if re.match(r"flwr\b", name) and name not in public}

    found = {str(path.relative_to(ROOT)): modules(path) for path in SOURCES}
    assert {name: own for name, own in found.items() if own} == allowed


def test_the_package_and_its_config_load_neither_pytorch_nor_flower():
    """A device pays for what it imports with every message; a user of the config, when the shell asks for help."""
    code = (
        "import sys, spatl\n"
        "bad = {'flwr', 'torch', 'torch_pruning'} & set(sys.modules); assert not bad, bad\n"
        "names = [getattr(spatl, name) for name in spatl.__all__ if name not in ('resume', 'run')]\n"
        "names[0](); bad = {'flwr', 'torch', 'torch_pruning'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _public(node, name=""):
    """Every public module, class and function below a node of the syntax tree, itself included, with its name."""
    yield name, node
    for child in getattr(node, "body", []):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and (not child.name.startswith("_") or child.name.startswith("__")):
            yield from _public(child, f"{name}.{child.name}" if name else child.name)


def test_public_docstrings_begin_with_a_noun_or_a_verb():
    questions = {"What", "Who", "Where", "How", "Whether", "When", "Why", "Likewise"}
    found = {}
    for path in SOURCES:
        room = str(path.relative_to(ROOT).parent)
        for name, node in _public(_tree(path)):
            first = (ast.get_docstring(node) or "-").split()[0].strip(",:;")
            if first in questions:
                found.setdefault(room, []).append(f"{path.relative_to(ROOT)}: {name}: {first}")
    assert found == {}


def test_modules_classes_and_functions_have_a_size_that_can_be_read():
    most = {ast.Module: 400, ast.ClassDef: 200, ast.FunctionDef: 60}
    found = set()

    def look(node, name):
        lines = node.end_lineno - node.lineno + 1 if name[1:] else len(Path(ROOT, name[0]).read_text().splitlines())
        if lines > most[type(node)]:
            found.add(": ".join([name[0], *([".".join(name[1:])] if name[1:] else [])]))
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                look(child, (*name, child.name))

    for path in SOURCES:
        look(_tree(path), (str(path.relative_to(ROOT)),))
    assert found == set()
    assert len(list((ROOT / "spatl").glob("*.py"))) <= 8


def test_the_names_of_a_runs_files_stand_in_one_place():
    words = {files.ALONE, files.TENSORBOARD, files.FINDINGS}  # which are used for other things, too
    names = {value for name, value in vars(files).items() if name.isupper()} - words
    others = {
        "spatl/deployment/sites.py": {files.CONFIG},  # of a server's directory
        "spatl/bench/report.py": {files.CURVES, files.REPORT}, "spatl/console/bench.py": {files.CURVES, files.REPORT},
        "spatl/bench/run.py": {files.LOCK},
    }  # fmt: skip
    found = {str(path.relative_to(ROOT)): names & set(_constants(path)) for path in SOURCES}
    del found["spatl/runs/files.py"]
    assert {name: own for name, own in found.items() if own} == others


def test_nothing_refers_to_a_document_that_is_not_in_the_repository():
    outside = re.compile(r"\b(" + "|".join(["DESIGN", "HOUSE", "STYLE"]) + r")\b|\b[Ii]ssue #?\d")
    texts = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES, *(ROOT / "tests").rglob("*.py"))
    found = [str(path.relative_to(ROOT)) for path in texts if outside.search(path.read_text(encoding="utf-8"))]
    assert found == ["tests/test_house.py"]  # which names them


def test_whatever_a_config_names_by_reference_is_checked_against_the_owner_of_a_device():
    """A new door is one that a server could use: it stands among what permission looks at, or is the server's alone."""
    servers_alone = {"server.aggregation"}
    checked = Path(ROOT, "spatl/config/permission.py").read_text()
    doors = [
        door
        for path in SOURCES
        if re.search(r"^\w+_DOOR\b.*= Door\(", path.read_text(), re.MULTILINE)
        for door in vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))).values()
        if isinstance(door, Door)
    ]
    settings = {each for door in doors for each in re.findall(r"[a-z]+(?:\.[a-z_]+)?", door.setting)} - {"or", "and"}
    assert {"model.name", "method", "training.augmentation"} <= settings
    assert [each for each in sorted(settings - servers_alone) if f'"{each}"' not in checked] == []
