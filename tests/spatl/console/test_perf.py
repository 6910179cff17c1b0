"""`spatl perf` writes what it measured, by its parts; how long anything took is nobody's to test."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from spatl.console.main import main
from spatl.perf.cases import METHODS, MODELS, Case, many_clients
from spatl.perf.parts import LOCAL_PARTS, OTHER, PARTS
from spatl.perf.sizes import FULL_SIZES, config_of_size


@pytest.mark.slow
def test_tables_a_picture_and_all_numbers(tmp_path, capsys):
    out = tmp_path / "out"
    few = [
        "--models",
        "cnn",
        "--methods",
        "fedavg",
        "--clients",
        "10",
        "--turns",
        "1",
        "--rounds",
        "1",
        "--workers",
        "2",
        "--sizes",
        "1",
    ]
    assert main(["perf", *few, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "cnn, fedavg: turn 1 of 1" in printed.err
    assert "bare / engine" in printed.out
    assert str(out / "perf.json") in printed.out
    with Image.open(out / "perf.png") as picture:
        assert picture.width == 1400
    found = json.loads((out / "perf.json").read_text())
    assert (
        found["command"]
        == "spatl perf --models cnn --methods fedavg --workers 2 --clients 10 --sizes 1 --turns 1 --rounds 1"
    )
    (update,) = found["updates"]
    assert update["parts_ms"].keys() == {*PARTS, OTHER}
    assert update["ratio"].keys() == {"median", "least", "greatest"}
    assert update["ratio"]["median"] == pytest.approx(update["bare_ms"]["median"] / update["engine_ms"]["median"])
    assert update["parts_ms"]["selection"] < update["parts_ms"]["training"]  # FedAvg selects nothing
    (workers,) = found["workers"]
    assert (workers["workers"], workers["same"]) == (2, True)
    assert workers["ratio"]["median"] > 0
    (clients,) = found["clients"]
    assert (clients["num_clients"], clients["participants"]) == (10, 10)
    assert clients["files"] > 0
    assert clients["peak_bytes"] > clients["bytes"] > 0
    (size,) = found["sizes"]
    assert size["num_parameters"] == pytest.approx(1e6, rel=0.01)
    assert size["parts_ns"].keys() == {*PARTS, OTHER}
    around = [taken for part, taken in size["parts_ns"].items() if part not in LOCAL_PARTS]
    assert size["around_ns"] == pytest.approx(sum(around))
    assert 0 < size["parts_ns"]["encode"] < size["around_ns"]
    assert size["peak_models"] == pytest.approx(
        (size["peak_bytes"] - size["before_bytes"]) / 4 / size["num_parameters"]
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--models", "cn"], "--models: there is no 'cn'; did you mean 'cnn'? known are cnn, resnet8, resnet20, vgg11"),
        (["--methods", "fedprox"], "--methods: there is no 'fedprox'"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
        (["--workers", "0,2"], "--workers must be at least 1, got 0"),
        (["--beside", "rya"], "--beside: there is no 'rya'"),
        (["--beside", "flower"], "--beside flower: plain Flower does FedAvg, not spatl-update; give --methods fedavg"),
        (["--sizes", "10,87"], "--sizes are millions of parameters from 1 to 86, or 0 for none, got [10, 87]"),
        (["--group-size", "0"], "--group-size must be 1 to 20, got 0"),
        (["--group-size", "4", "--workers", "2"], "--group-size is of clients in the process of the server, --workers"),
        (["--clients", "5"], "--clients must be at least 10, or 0 for none, got 5"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(given, said, tmp_path, capsys):
    assert main(["perf", *given, "--out", str(tmp_path / "out")]) == 2
    assert said.split("; did")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_case_is_a_config_in_which_all_clients_take_part():
    for model in MODELS:
        for method in METHODS:
            config = Case(model, method).config(3)
            assert (config.rounds, config.num_participants, config.training.threads) == (3, 20, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of file sizes that children have, too")
@pytest.mark.parametrize("given", [["--models", "cnn", "--methods", "fedavg", "--clients", "0"], ["--clients", "10"]])
@pytest.mark.slow
def test_a_run_that_the_machine_refuses_is_none_to_go_on_with(given, tmp_path):
    """It lay in a directory that is gone by then, in this process as in another one."""
    few = ["--turns", "1", "--rounds", "1", "--out", str(tmp_path / "out")]
    code = (
        "import resource, sys; from spatl.console import perf, main; perf.QUICK = ()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "perf", *given, *few], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "raise the limit of file sizes (ulimit -f); then measure again: nothing is kept of a run that is measured"
    )


def test_networks_by_size_have_so_many_parameters():
    """Twelve layers of equal width on 192 features, and ten classes: weights and biases, counted by hand."""
    for millions in FULL_SIZES:
        widths = config_of_size(millions, "fedavg").model.options["hidden"]
        (width,) = set(widths)
        assert len(widths) == 12
        number = 193 * width + 11 * (width + 1) * width + 10 * (width + 1)
        assert number == pytest.approx(millions * 1e6, rel=0.005)


def test_of_many_clients_one_in_a_hundred_takes_part():
    found = [many_clients(number, rounds=2).num_participants for number in (10, 100, 1_000, 10_000)]
    assert found == [10, 10, 10, 100]
