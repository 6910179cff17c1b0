"""Global accuracy: the server's model on the official test set, which no client need see any of."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spatl import read_run, run
from spatl.artifacts.model_files import AddOffset
from spatl.config.experiment import ExperimentConfig
from spatl.rounds.server_model import official_test, why_not_measured
from spatl.runs.status import read_status
from spatl.training.calibration import class_offset
from spatl.training.evaluate import evaluate
from tests.support.federations import DENSE, blueprint_of, tiny_config
from tests.support.formats import write_idx

RESNET = {"name": "resnet8", "options": {"width": 0.25}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 8 x 8 pixels with 40 test examples, more of them of the low classes."""
    directory: Path = tmp_path_factory.mktemp("files")
    write_idx(directory, num_train=100, num_test=37)
    return directory


def measured_config(files: Path, *, official_test: str = "apart", **sections: Any) -> ExperimentConfig:
    data = {"name": "idx", "options": {"path": str(files)}, "official_test": official_test}
    return tiny_config(**{"data": data, "report": {"global_accuracy": 1}, "wire": DENSE, **sections})


@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), [("spatl", None), ("fedavg", None), ("spatl", RESNET)])
def test_it_is_that_of_the_model_which_the_run_leaves(
    files: Path, tmp_path: Path, method: str, model: dict[str, Any] | None
) -> None:
    """A calibrated predictor with the class frequencies of the test set, as an exported one with a client's."""
    config = measured_config(files, method=method, **({} if model is None else {"model": model}))
    result = run(config, tmp_path / "run", pictures=False, progress=False)
    network, examples = read_run(tmp_path / "run").model(), official_test(blueprint_of(config))
    assert examples is not None
    if config.predictor_row.offset:
        offset = class_offset(examples.targets, num_classes=10, strength=1.0, smoothing=config.predictor.smoothing)
        assert float(offset.abs().max()) > 0.1
        network.register_forward_hook(AddOffset(offset))
    expected = evaluate(network, examples)
    assert result.summary["global_accuracy"] == result.history[-1]["final_global_accuracy"] == expected.accuracy
    assert result.summary["global_loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert result.summary["global_examples"] == 37
    assert read_status(tmp_path / "run").global_accuracy == expected.accuracy
    assert "server's model on the official test set" in repr(result)


@pytest.mark.slow
def test_a_round_tells_of_the_model_as_it_arrived(files: Path, tmp_path: Path) -> None:
    """What arrives in the second round is what a run of one round ends with."""
    one, two = (
        run(measured_config(files, rounds=rounds, method="fedavg"), tmp_path / str(rounds), pictures=False)
        for rounds in (1, 2)
    )
    assert two.history[1]["global_loss"] == one.summary["global_loss"]
    assert two.history[0]["global_loss"] == one.history[0]["global_loss"]
    assert two.history[0]["final_global_loss"] is None


@pytest.mark.slow
def test_statistics_that_come_after_the_last_round_leave_the_rounds_without_it(files: Path, tmp_path: Path) -> None:
    """But where clients tell of theirs in every round, or share them."""
    found = {}
    for name, sections in {
        "aggregated": {},
        "told": {"report": {"global_accuracy": 2, "best": True}},
        "shared": {"training": {"batch_norm": "shared"}},
    }.items():
        config = measured_config(files, model=RESNET, rounds=2, **sections)
        history = run(config, tmp_path / name, pictures=False).history
        found[name] = [row["global_accuracy"] is not None for row in history]
        assert history[-1]["final_global_accuracy"] is not None
    assert found == {"aggregated": [False] * 2, "told": [False, True], "shared": [True] * 2}


@pytest.mark.parametrize("apart", [True, False])
def test_a_test_set_apart_is_no_clients(files: Path, apart: bool) -> None:
    blueprint = blueprint_of(measured_config(files, official_test="apart" if apart else "dealt"))
    splits = blueprint.dataset.splits
    assert splits is not None
    for client, part in enumerate(blueprint.partition):
        assert bool((splits[part] == 2).any()) is not apart
        assert len(blueprint.client_data(client).test) > 0
    dealt = torch.cat(blueprint.partition)
    assert len(dealt) == (100 if apart else 137)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"method": "fedper"}, "each client of FedPer has a predictor of its own, and the server none"),
        ({"method": "local"}, "Training alone has no model of all clients"),
        ({"report": {"split": "validation"}}, "report.split leaves the test splits unread"),
        ({"model": RESNET, "training": {"batch_norm": "local"}}, "each client has BatchNorm statistics of its own"),
        ({"data": {"name": "digits"}}, "the data set came without a test set of its own"),
        ({"method": "fedavg"}, None),
    ],
)
def test_where_there_is_none_the_reason_is_told(files: Path, sections: dict[str, Any], reason: str | None) -> None:
    told = why_not_measured(blueprint_of(measured_config(files, **sections)), None)
    assert (told is None) is (reason is None)
    assert told is None or told.startswith(reason or "")


@pytest.mark.slow
def test_a_run_without_it_says_why(files: Path, tmp_path: Path) -> None:
    result = run(measured_config(files, method="fedper", rounds=1), tmp_path / "run", progress=False)
    assert result.summary["global_accuracy"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "none on the official test set: each client of FedPer has a predictor of its own" in page
