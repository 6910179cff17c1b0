"""`spatl saliency experiment`: what it prints, writes and returns."""

import json
from pathlib import Path

import pytest
from PIL import Image

from spatl.config.saliency import CLAIMS
from spatl.console.main import main

SMALL = """\
data: {name: digits, test_fraction: 0.5}
model: {name: cnn}
saliency:
  epochs: 1
  seeds: [1, 2]
  top_k: [1, 3]
  most_errors: 20
  most_repaired: 3
  repair_lengths: [0.01]
  masked: [0.1]
  draws: 1
"""


@pytest.fixture
def small_experiment(tmp_path: Path) -> str:
    """The file of experiments that take seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


@pytest.mark.slow
def test_a_table_for_each_claim_a_picture_and_all_numbers(small_experiment, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["saliency", "experiment", small_experiment, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    for claim in CLAIMS:
        assert f"\n{claim}: " in f"\n{printed.out}"
        assert f"seed 2: {claim}" in printed.err
    assert "2 networks" in printed.out
    assert str(out / "saliency.json") in printed.out
    with Image.open(out / "saliency.png") as picture:
        assert picture.width == 1400
    found = json.loads((out / "saliency.json").read_text())
    assert {row["claim"] for row in found["rows"]} == set(CLAIMS)
    assert [each["seed"] for each in found["networks"]] == [1, 2]
    assert found["command"].startswith("spatl saliency experiment")
    assert found["saliency"]["top_k"] == [1, 3]


@pytest.mark.slow
def test_claims_and_seeds_can_be_given_and_the_same_ones_give_the_same_numbers(small_experiment, tmp_path, capsys):
    numbers = []
    for name in ("a", "b"):
        command = ["saliency", "experiment", small_experiment, "--claims", "depth,neighbours", "--seeds", "5"]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        numbers.append(json.loads((tmp_path / name / "saliency.json").read_text())["rows"])
    assert numbers[0] == numbers[1]
    assert {row["claim"] for row in numbers[0]} == {"depth", "neighbours"}
    assert "switching-off" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--claims", "repairs"], "saliency.claims.0: input should be 'switching-off', 'repair', 'neighbours'"),
        (["--set", "saliency.top_k=[]"], "saliency.top_k: is empty; give at least one value"),
        (["--set", "saliency.epoch=3"], "saliency.epoch: unknown key (did you mean 'epochs'?)"),
        (["--set", "model.name=tests.support.users_nets:no_convolution"],
         "expected a network with a layer of the kind convolution, got Sequential without any"),
        (["--set", "saliency.epochs=12", "--set", "data.test_fraction=0.01"],
         "test examples wrong, and the experiments need two errors at least"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(more, line, small_experiment, capsys):
    assert main(["saliency", "experiment", small_experiment, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error
