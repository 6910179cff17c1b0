"""Commands that train nothing load nothing of what trains, and none but the drawing ones what draws."""

import subprocess
import sys
from pathlib import Path

import pytest

from spatl.config.loading import load_config

ROOT = Path(__file__).parents[3]
PROGRAM = """
import contextlib, io, sys
from spatl.console.main import main

def ended(words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    return status, told.getvalue()

for line in sys.stdin.read().splitlines():
    expected, *words = line.split("\\t")
    status, told = ended(words)
    heavy = {heavy} & set(sys.modules)
    assert status == int(expected) and not heavy and "Traceback" not in told, (words, status, heavy, told)
    print(*words)
"""
"""Run commands one after the other; each line is the status that it should end with, and its words."""
TRAINING = {"torch", "torch_pruning", "safetensors", "ray", "matplotlib", "sklearn", "datasets"}


def run_all(heavy: set[str], commands: list[tuple[int, list[str]]], directory: Path) -> None:
    lines = ["\t".join([str(status), *words]) for status, words in commands]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{heavy}", repr(heavy))],
        input="\n".join(lines), cwd=directory, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(words) for _, words in commands]


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.yaml").write_text("roundss: 3\n")
    return tmp_path


@pytest.mark.slow
def test_the_parser_alone_loads_neither_numpy_nor_pydantic(tmp_path):
    helped = [
        ["--help"], ["--version"], *([name, "--help"] for name in ("run", "check", "bench", "status", "predict")),
        ["deploy", "init", "--help"], ["deploy", "server", "--help"], ["deploy", "client", "--help"],
        ["show", "--help"], ["completion", "--help"], ["agent", "pretrain", "--help"],
    ]  # fmt: skip
    commands = [(0, words) for words in helped] + [(2, ["runn"]), (2, ["run"]), (2, ["show", "nothing"])]
    run_all(TRAINING | {"flwr", "numpy"}, [each for each in commands if each[1] != ["run"]], tmp_path)


@pytest.mark.slow
def test_what_reads_settings_alone_loads_neither_pytorch_nor_flower(broken):
    """A config with a mistake, a run's status, the tables, and the keys of devices that have data of their own."""
    run = broken / "run"
    run.mkdir()
    (run / "config.yaml").write_text(load_config("quickstart").to_yaml())
    shown = ["methods", "models", "datasets", "partitioners", "losses", "metrics", "selectors", "configs", "settings",
             "device"]  # fmt: skip
    commands = [
        (2, ["run"]), *((2, [name, "broken.yaml"]) for name in ("run", "check", "bench", "partition")),
        (2, ["run", "nowhere.yaml"]), (2, ["run", "quickstart", "--rounds", "5"]),
        (2, ["run", "quickstart", "--set", "model.name=resnet21"]), (2, ["run", "--resume", "nowhere"]),
        (0, ["status", "run"]), (0, ["status", "run", "--json"]), (2, ["status", "nowhere"]), (2, ["report", "run"]),
        *((0, ["show", what]) for what in shown), (0, ["completion", "bash"]),
        (0, ["deploy", "init", "site", "quickstart", "--set", "data.name=folder", "--set", "partition.name=own",
             "--set", "partition.num_clients=2"]),
        (0, ["deploy", "add-client", "site"]), (0, ["deploy", "retire", "site", "1"]),
        (2, ["deploy", "init", "other", "broken.yaml"]),
    ]  # fmt: skip
    run_all(TRAINING | {"flwr"}, commands, broken)


@pytest.mark.slow
def test_what_starts_on_a_device_loads_no_pytorch_before_it_trains(broken):
    """The command up to where it becomes the supervisor, and the SuperNode that this keeps running."""
    init = ["deploy", "init", "site", "quickstart", "--set", "data.name=folder", "--set", "partition.name=own"]
    commands = [
        (0, [*init, "--set", "partition.num_clients=1"]), (2, ["deploy", "client", "nowhere"]),
        (2, ["deploy", "client", "site/client-0", "--budget", "keep_ratio=2"]),
        (2, ["deploy", "client", "site/client-0", "--device", "tpu"]),
    ]  # fmt: skip
    run_all(TRAINING, commands, broken)
    code = f"import sys, clients.deploy, clients.device.supernode; print(*{TRAINING!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
