"""Clients of one, two and three examples take part, and count only where something of theirs was measured."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatl import run
from spatl.errors import UpdateRejected
from spatl.runs.records import read_lines
from spatl.training.evaluate import evaluate, forward_with_batch_statistics, recalibrate_
from spatl.wire.reports import EvaluateReport
from tests.support.federations import blueprint_of, tiny_config

SIZES = (1, 2, 3, 4, 40, 60)
NORMALISED = {"name": "resnet8", "options": {"width": 0.25}}


@pytest.fixture(scope="module")
def small_shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8 x 8, on which the last blocks of ResNet-8 see one pixel or few, and the owners of the sizes."""
    directory: Path = tmp_path_factory.mktemp("few")
    number = sum(SIZES)
    images = np.random.default_rng(1).integers(0, 256, (number, 8, 8), dtype=np.uint8)
    np.savez(directory / "few.npz", images=images, labels=np.arange(number) % 4)
    (directory / "owners.json").write_text(json.dumps(np.repeat(np.arange(len(SIZES)), SIZES).tolist()))
    return directory


def config_of(files: Path, **sections: Any) -> Any:
    partition = {"name": "file", "path": str(files / "owners.json"), "num_clients": len(SIZES), "min_examples": 1}
    data = {"name": "npz", "options": {"path": str(files / "few.npz")}}
    return tiny_config(**{"rounds": 2, "data": data, "partition": partition, **sections})


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"model": NORMALISED, "selection": {"keep_ratio": 0.5}, "report": {"best": True, "findings": "end"}},
        {"model": NORMALISED, "selection": {"keep_ratio": 0.5, "selector": "signal"}},
        {"method": "ssfl", "model": NORMALISED},
        {"method": "fedavg-finetune", "model": NORMALISED},
        {"method": "fedrep"},
    ],
    ids=["agent", "signal", "ssfl", "finetune", "fedrep"],
)
def test_they_train_and_means_are_over_those_who_have_test_examples(
    small_shares: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    result = run(config_of(small_shares, **sections), tmp_path / "run", progress=False)
    rows = read_lines(tmp_path / "run" / "clients.jsonl")
    trained = [row for row in rows if row["participated"]]
    assert {row["client"] for row in trained} == set(range(len(SIZES)))
    for row in trained:
        tested = SIZES[row["client"]] >= 3
        assert (row["accuracy"] is not None) == (row["loss"] is not None) == tested
        assert math.isfinite(row["train_loss"])
    for history in result.history:
        accuracies = [
            row["accuracy"] for row in trained if row["round"] == history["round"] and row["accuracy"] is not None
        ]
        assert history["accuracy"] == pytest.approx(sum(accuracies) / 4)
        assert history["rejected"] == 0
    assert result.summary["clients"].keys() == {"2", "3", "4", "5"}
    assert result.summary["not_evaluated"] == 2
    assert result.summary["accuracy"] == pytest.approx(sum(result.summary["clients"].values()) / 4)


@pytest.mark.slow
def test_whom_it_concerns_is_told_when_a_run_starts(small_shares: Path, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        run(config_of(small_shares, rounds=1), tmp_path / "run", pictures=False)
    told = [record.getMessage() for record in caplog.records]
    assert "2 of 6 clients have no test examples and count in no accuracy: 0, 1" in told
    assert any(line.startswith("3 of 6 clients have no validation examples") for line in told)


@pytest.mark.slow
def test_a_single_example_has_the_statistics_of_itself_twice(small_shares: Path) -> None:
    """And a network with BatchNorm on one pixel answers for it."""
    blueprint = blueprint_of(config_of(small_shares, model=NORMALISED))
    train, model = blueprint.client_data(0).train, blueprint.model
    assert len(train) == 1
    logits = forward_with_batch_statistics(model, train.inputs)
    twice = forward_with_batch_statistics(model, train.inputs.repeat(2, 1, 1, 1))
    assert logits.equal(twice[:1])
    recalibrate_(model, train, batch_size=16)
    assert all(bool(buffer.isfinite().all()) for _, buffer in model.named_buffers())


def test_what_is_not_measured_is_not_a_number_and_travels_as_such(small_shares: Path) -> None:
    blueprint = blueprint_of(config_of(small_shares))
    found = evaluate(blueprint.model, blueprint.client_data(0).test)
    assert not found.is_known
    report = EvaluateReport(num_examples=1, accuracy=found.accuracy, loss=found.loss)
    read = EvaluateReport.from_bytes(report.to_bytes())
    assert math.isnan(read.accuracy)
    assert math.isnan(read.loss)
    for accuracy, loss in ((math.nan, 0.5), (0.5, math.nan)):
        with pytest.raises(UpdateRejected, match="must lie in"):
            EvaluateReport.from_bytes(EvaluateReport(num_examples=1, accuracy=accuracy, loss=loss).to_bytes())


def test_the_gradient_of_one_example_is_that_of_the_batch_of_itself_twice() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    image, label = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([2])
    found = []
    for times in (1, 2):
        loss = torch.nn.functional.cross_entropy(network(image.repeat(times, 1, 1, 1)), label.repeat(times))
        found.append(torch.autograd.grad(loss, list(network.parameters())))
    assert all(torch.allclose(one, two) for one, two in zip(*found, strict=True))
