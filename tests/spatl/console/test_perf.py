"""`spatl perf` writes what it measured, by its parts; how long anything took is nobody's to test."""

import json

import pytest
from PIL import Image

from spatl.console.main import main
from spatl.perf.cases import METHODS, MODELS, Case, many_clients
from spatl.perf.parts import OTHER, PARTS


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
    ]
    assert main(["perf", *few, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "cnn, fedavg: turn 1 of 1" in printed.err
    assert "bare / engine" in printed.out
    assert str(out / "perf.json") in printed.out
    with Image.open(out / "perf.png") as picture:
        assert picture.width == 1400
    found = json.loads((out / "perf.json").read_text())
    assert found["command"] == "spatl perf --models cnn --methods fedavg --workers 2 --clients 10 --turns 1 --rounds 1"
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--models", "cn"], "--models: there is no 'cn'; did you mean 'cnn'? known are cnn, resnet8, resnet20, vgg11"),
        (["--methods", "fedprox"], "--methods: there is no 'fedprox'"),
        (["--turns", "0"], "--turns must be at least 1, got 0"),
        (["--workers", "0,2"], "--workers must be at least 1, got 0"),
        (["--beside", "rya"], "--beside: there is no 'rya'"),
        (["--beside", "flower"], "--beside flower: plain Flower does FedAvg, not spatl-update; give --methods fedavg"),
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


def test_of_many_clients_one_in_a_hundred_takes_part():
    found = [many_clients(number, rounds=2).num_participants for number in (10, 100, 1_000, 10_000)]
    assert found == [10, 10, 10, 100]
