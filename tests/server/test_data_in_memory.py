"""Data in a program's memory, for all clients or for each, and examples of any shape on the way through a run."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spatl.config.loading import parse_config
from spatl.data import Dataset, load_dataset
from spatl.data.memory import forget_data
from spatl.errors import ConfigError, DataError
from spatl.json_files import read_json
from spatl.report.result import read_run
from spatl.rounds.blueprint import make_blueprint
from spatl.runner import resume, run
from spatl.runs.directory import config_of
from spatl.runs.findings import read_findings
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

DRAW = np.random.default_rng(1)
SERIES = DRAW.normal(size=(60, 2, 8)).astype(np.float32)
LABELS = (SERIES[:, 0].mean(1) > SERIES[:, 1].mean(1)).astype(np.int64)


class OfTokens(nn.Module):
    """Mean of embeddings, and a classifier; it takes the tokens' lengths too where there are two inputs."""

    def __init__(self, *, num_classes: int, num_tokens: int = 9) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, 6)
        self.hidden = nn.Linear(6, 5)
        self.classifier = nn.Linear(5, num_classes)

    def forward(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        mean = self.embedding(words).mean(1)
        outputs: Tensor = self.classifier(self.hidden(mean if scale is None else mean * scale).relu())
        return outputs


class OfSeries(nn.Module):
    """A convolution along time."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(input_shape[0], 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.classifier = nn.Linear(6, num_classes)

    def forward(self, series: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(series).mean(2))
        return outputs


def config(name: str, **more: Any) -> dict[str, Any]:
    model = {"name": f"tests.server.test_data_in_memory:{name}" if ":" not in name and name != "mlp" else name}
    if name != "mlp":
        model["cut"] = ["classifier"]  # type: ignore[assignment]
    return {
        "rounds": 2, "model": model, "partition": {"name": "iid", "num_clients": 3, "min_examples": 5},
        "training": {"local_epochs": 1, "device": "cpu", "batch_size": 8}, "report": {"compare_alone": False}, **more,
    }  # fmt: skip


TOKENS = DRAW.integers(0, 9, size=(60, 4))
ON_WORDS = {"inputs": {"words": TOKENS, "scale": np.ones((60, 1))}, "targets": LABELS}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "spatl-paper", "fedavg", "ssfl"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mlp", (SERIES[:, 0], LABELS)),
        ("OfSeries", {"inputs": SERIES, "targets": LABELS}),
        ("OfTokens", (TOKENS, LABELS)),
        ("OfTokens", ON_WORDS),
    ],
    ids=["table", "series", "tokens", "two inputs"],
)
def test_examples_of_any_shape_pass_through_a_run(tmp_path, method, name, data):
    """And the model that it leaves gives what the run says it gives."""
    wanted = config(name, method=method, selection={"keep_ratio": 0.8})
    result = run(wanted, tmp_path / "run", data=data, pictures=False)
    assert len(read_lines(tmp_path / "run" / "history.jsonl")) == 2
    network = read_run(tmp_path / "run").model(0)
    inputs = data["inputs"] if isinstance(data, dict) else data[0]
    batch = {key: torch.tensor(each)[:5].float() if key == "scale" else torch.tensor(each)[:5]
             for key, each in inputs.items()} if isinstance(inputs, dict) else torch.tensor(inputs)[:5]  # fmt: skip
    outputs = network(**batch) if isinstance(batch, dict) else network(batch)
    assert outputs.shape == (5, 2)
    assert 0 <= result.summary["accuracy"] <= 1


def test_one_data_set_for_each_client_makes_the_partition(tmp_path):
    parts = {f"site {n}": (SERIES[rows, 0], LABELS[rows]) for n, rows in enumerate([range(8), range(8, 60)])}
    wanted = config("mlp", rounds=1)
    del wanted["partition"]
    result = run(wanted, tmp_path / "run", data=parts, pictures=False)
    rows = read_lines(tmp_path / "run" / "clients.jsonl")
    assert {row["client"]: row["num_examples"] for row in rows} == {0: 5, 1: 31}
    assert {row["client"]: row["owner"] for row in rows} == {0: "site 0", 1: "site 1"}
    assert result.summary["rounds"] == 1


@pytest.mark.slow
def test_a_run_of_data_in_memory_goes_on_with_the_same_ones_alone(tmp_path):
    data = (SERIES[:, 0], LABELS)
    whole = run(config("mlp", rounds=3), tmp_path / "whole", data=data, pictures=False)
    run(config("mlp", rounds=2), tmp_path / "run", data=data, pictures=False)
    forget_data()  # as in another process
    with pytest.raises(ConfigError, match="the run began with other examples than these"):
        resume(tmp_path / "run", rounds=3, data=(SERIES[:, 1], LABELS))
    with pytest.raises(DataError, match="were in the memory of the program that started the run and are not here"):
        load_dataset("in-memory", seed=1, options={"key": "0" * 32})
    again = resume(tmp_path / "run", rounds=3, data=data, pictures=False)
    assert again.summary["accuracy"] == whole.summary["accuracy"]


@pytest.mark.slow
def test_other_processes_have_no_data_in_memory(tmp_path):
    data = (SERIES[:, 0], LABELS)
    with pytest.raises(ConfigError, match="data in memory are in this process alone; take engine: inline"):
        run(config("mlp", engine="ray"), tmp_path / "run", data=data)
    run(tiny_config(rounds=1), tmp_path / "own", pictures=False)
    with pytest.raises(ConfigError, match=r"the run reads its data itself \(digits\); leave data out"):
        resume(tmp_path / "own", rounds=2, data=data)
    assert not (tmp_path / "run").exists()


def test_a_model_for_images_is_refused_for_a_table_before_anything_is_written(tmp_path):
    wanted = config("mlp")
    wanted["model"] = {"name": "resnet8"}
    with pytest.raises(Exception, match=r"'resnet8' takes images \[N, C, H, W\], got examples of \(8,\)"):
        run(wanted, tmp_path / "run", data=(SERIES[:, 0], LABELS))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_client_whose_score_is_not_defined_is_evaluated_all_the_same(tmp_path):
    """AUROC of one class is no number; its loss is, and counts."""
    parts = [(SERIES[:30], LABELS[:30]), (SERIES[30:], LABELS[30:]), (SERIES[LABELS == 1], LABELS[LABELS == 1])]
    config = tiny_config(
        partition={"name": "natural", "num_clients": 3}, task={"metrics": ["auroc"]}, method="fedavg", rounds=1,
        model={"name": f"{__name__}:OfSeries", "options": {}, "cut": ["classifier"]},
    )  # fmt: skip
    summary = run(config, tmp_path / "run", data=parts, pictures=False, progress=False).summary
    (row,) = read_lines(tmp_path / "run" / "history.jsonl")
    assert summary["clients"].keys() == {"0", "1"}
    assert summary["not_evaluated"] == 0
    assert summary["loss"] == pytest.approx(row["final_loss"])


@pytest.mark.slow
def test_a_partition_that_has_no_name_leaves_each_client_its_own_data(tmp_path):
    parts = {"ann": (SERIES[:3], LABELS[:3]), "bob": (SERIES[3:30], LABELS[3:30]), "cem": (SERIES[30:], LABELS[30:])}
    config = parse_config({
        "partition": {"min_examples": 1}, "rounds": 1, "training": {"local_steps": 1, "device": "cpu"},
        "model": {"name": f"{__name__}:OfSeries", "cut": ["classifier"]},
    })  # fmt: skip
    run(config, tmp_path / "run", data=parts, pictures=False, progress=False)
    ran = config_of(tmp_path / "run").partition
    assert (ran.name, ran.num_clients) == ("natural", 3)
    owners = {row["client"]: row["owner"] for row in read_lines(tmp_path / "run" / "clients.jsonl")}
    assert owners == {0: "ann", 1: "bob", 2: "cem"}


def graded(*names: str) -> Dataset:
    """Twenty examples of each class, whose value says which it is, whatever the order of the names."""
    places = torch.arange(20 * len(names)) % len(names)
    height = torch.tensor([{"low": -1.0, "middle": 0.0, "high": 1.0}[name] for name in names])[places]
    values = torch.stack([height, height.square()], 1) + 0.01 * torch.randn(len(places), 2)
    return Dataset("graded", values, places, num_classes=len(names), class_names=names)


@pytest.mark.slow
def test_classes_are_in_the_order_that_they_were_named_in_from_the_predictor_to_the_models_file(tmp_path):
    """Neither client has all of them, and by the alphabet `high` is first."""
    values = config("mlp") | {"rounds": 4, "predictor": {"mode": "calibrated"}, "report": {"findings": "end"}}
    del values["partition"]
    values["training"] = {"local_epochs": 4, "device": "cpu", "batch_size": 8, "learning_rate": 0.1}
    clients = {"north": graded("low", "middle"), "south": graded("middle", "high")}
    run(values, directory=tmp_path / "run", data=clients, pictures=False)
    names = read_json(tmp_path / "run" / "model" / "model.json")["class_names"]
    assert names == ["low", "middle", "high"]
    assert list(read_findings(tmp_path / "run").class_names) == names
    blueprint = make_blueprint(config_of(tmp_path / "run"))
    assert [blueprint.client_data(client).train.targets.unique().tolist() for client in (0, 1)] == [[0, 1], [1, 2]]
    model = read_run(tmp_path / "run").model()
    found = model(torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])).argmax(1)
    assert [names[place] for place in found] == ["low", "middle", "high"]
