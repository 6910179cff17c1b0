"""The command line: what it prints, writes and returns."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spatl.console.main import main
from spatl.console.run import print_seeds
from spatl.report.result import RunResult
from spatl.runs.records import read_lines
from spatl.terminal.result import print_result
from tests.support.terminals import pipe, shown, terminal, widest_line, words_of


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_the_paths_of_what_it_wrote(config_path, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", config_path, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("accuracy, mean over clients", "accuracy, worst client", "bytes up", "keep ratio", "training alone"):
        assert text in printed
    for name in ("config.yaml", "history.jsonl", "clients.jsonl", "summary.json", "curves.png", "report.html"):
        assert (out / name).stat().st_size > 0
    assert str(out / "curves.png") in printed
    alone = json.loads((out / "alone" / "summary.json").read_text())
    assert alone["method"] == "local"
    assert f"{100 * alone['accuracy']:.1f} %" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_training_alone_trains_for_as_many_epochs_on_the_same_splits(config_path, tmp_path):
    out = tmp_path / "out"
    assert main(["run", config_path, "--out", str(out)]) == 0
    rows = [[json.loads(line) for line in (directory / "clients.jsonl").read_text().splitlines()]
            for directory in (out, out / "alone")]  # fmt: skip
    together, alone = ([(r["round"], r["client"], r["participated"], r["num_examples"]) for r in part] for part in rows)
    assert together == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.learning_rte=1"], "training.learning_rte: unknown key (did you mean 'learning_rate'?)"),
        (["method=fedsgd"], "method: unknown name 'fedsgd'"),
        (["selection.keep_ratio=0.001"], "selection.keep_ratio is 0.001, but one channel of each"),
        (["selection.uplink_bytes=100"], "selection.uplink_bytes is 100, but one channel of each"),
        (["model.name=nowhere.at.all:Net", "model.cut=[head]", "model.options={}"], "nowhere"),
        (["model.name=tests.support.networks:Nothing", "model.cut=[head]", "model.options={}"], "Nothing"),
        (["model.name=tests.support.networks:MixedNet", "model.options={}"], "model.cut"),
        (["model.cut=[nose]", "predictor.mode=local"], "nose"),
        (["model.cut=[nose]"], "the cut names 'nose', which is not a submodule of"),
        (["model.cut=[clasifier]", "method=fedavg"], "(did you mean 'classifier'?)"),
        (["model.cut=[nose]", "method=local"], "its top-level submodules are"),
        (["model.options={depth: 3}"], "depth"),
        (
            ["model.name=tests.support.networks:wrong_classes", "model.cut=[head]", "model.options={}"],
            "logits of shape (1, 10)",
        ),
        (["partition.num_clients=2000"], "2000"),
        (["partition={name: dirichlet, alpha: 0.001, num_clients: 100}"], "min_examples"),
        (["training.device=cuda:99"], "training.device is cuda:99, but this machine has"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_anything_runs(config_path, tmp_path, capsys, overrides, message):
    out = tmp_path / "out"
    arguments = [part for override in overrides for part in ("--set", override)]
    assert main(["run", config_path, "--out", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("spatl: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (out / "history.jsonl").exists()


@pytest.mark.slow
def test_code_of_the_users_that_ends_the_program_is_one_line_and_status_2(config_path, tmp_path, capsys):
    """A rule that calls sys.exit() in a round, with the status of success."""
    rule = "server.aggregation=tests.support.users_parts:leaves_later"
    assert main(["run", config_path, "--out", str(tmp_path / "out"), "--set", rule]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("spatl: code that was called ended the program: SystemExit: 0 (users_parts.py:")
    assert "leaves_later" in (tmp_path / "out" / "error.json").read_text()


def test_a_run_never_overwrites_another(config_path, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("precious")
    assert main(["run", config_path, "--out", str(tmp_path)]) == 2
    assert "already there and not empty" in capsys.readouterr().err
    assert (tmp_path / "keep.txt").read_text() == "precious"


def a_result(directory, *, alone):
    summary = {"method": "spatl", "title": "SPATL without gradient control", "data": "synthetic", "num_clients": 20,
               "rounds": 40, "seed": 1, "accuracy": 0.981, "accuracy_min": 0.8333, "uplink_bytes": 33_000_000,
               "downlink_bytes": 34_000_000, "keep_ratio": 0.795, "uplink_share": 0.04, "epsilon": 3.21, "delta": 1e-5,
               "rejected": 3, "missing": 2}  # fmt: skip
    return RunResult(directory, summary, [], [], {"accuracy": 0.887, "accuracy_min": 0.5} if alone else None)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_table_of_a_run_is_whole_at_every_width(width, alone, tmp_path):
    console = pipe() if width is None else terminal(width)
    result = a_result(tmp_path, alone=alone)
    print_result(console, result)
    print_seeds(console, [result, result], tmp_path)
    text = "\n".join(line for line in shown(console).splitlines() if str(tmp_path) not in line)
    assert "…" not in text
    words = " ".join(words_of(text))
    for expected in ("98.1 %", "33.0 MB", "34.0 MB", "keep ratio", "epsilon 3.21", "3 / 2", "std. dev."):
        assert expected in words
    assert ("88.7 %" in words) == alone
    if width is not None:
        assert widest_line(text) <= width


def test_the_version_is_one_line_with_what_it_runs_on(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"spatl 0\.1\.0 \(flwr 1\.41\.\S+, torch \S+, Python 3\.\S+\)\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_package_can_be_run_as_a_module(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "spatl", "show", "partitioners", "iid"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("iid ")


def test_an_unknown_command_is_status_2():
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])


@pytest.mark.slow
@pytest.mark.parametrize(("wire", "rounds"), [("float32", 2), ("adaptive", 2), ("adaptive", 1)])
@pytest.mark.parametrize("rate", ["1e6", "1e38"])
def test_a_run_whose_average_is_not_finite_or_out_of_all_bounds_fails(
    config_path, tmp_path, capsys, wire, rounds, rate
):
    """The rounds up to then are written, the last one too."""
    settings = [f"server.learning_rate={rate}", f"wire.uplink={wire}", f"wire.downlink={wire}", f"rounds={rounds}"]
    out = tmp_path / "out"
    assert main(["run", config_path, "--out", str(out), *(word for s in settings for word in ("--set", s))]) == 2
    assert "diverged" in capsys.readouterr().err
    assert len(read_lines(out / "history.jsonl")) == rounds


def test_a_name_the_file_system_refuses_is_one_line(config_path, capsys):
    assert main(["run", config_path, "--out", "x" * 300]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_several_seeds_end_with_means_and_spread(config_path, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", config_path, "--seeds", "4,5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "std. dev." in printed
    assert "difference" in printed
    table = json.loads((out / "seeds.json").read_text())
    summaries = [json.loads((out / f"seed-{seed}" / "summary.json").read_text()) for seed in (4, 5)]
    assert table["seeds"] == [4, 5]
    assert table["SPATL, mean"] == [summary["accuracy"] for summary in summaries]
