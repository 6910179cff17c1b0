"""The best model so far, by the clients' validation splits: the one that was best, whole, and of no test split."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import server.strategy
from spatl import read_run, run
from spatl.artifacts.description import read_description
from spatl.errors import ConfigError, SpatlError
from spatl.models.weights import read_weights
from spatl.runner import resume
from spatl.runs.records import read_lines
from spatl.training.evaluate import evaluate, recalibrate_
from tests.support.federations import DENSE, blueprint_of, tiny_config

RESNET = {"name": "resnet8", "options": {"width": 0.25}}


def mean_on_validation(network: torch.nn.Module, config: Any) -> float:
    """Mean over the clients with their own statistics, as each finds when the model arrives; without their offsets."""
    found = []
    for client in range(config.partition.num_clients):
        data = blueprint_of(config).client_data(client)
        recalibrate_(network, data.train, batch_size=config.training.batch_size)
        found.append(evaluate(network, data.validation).accuracy)
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "spatl"])
def test_the_best_model_is_the_one_that_clients_found_best(tmp_path: Path, monkeypatch: Any, method: str) -> None:
    """A learning rate that is too high, so that the last is not always the best."""
    told: list[tuple[int, float]] = []
    keep = server.strategy.keep_best

    def noted(directory, federation, state, server_round, arrivals):  # type: ignore[no-untyped-def]
        told.append((server_round, sum(each.accuracy for each in arrivals.values()) / len(arrivals)))
        keep(directory, federation, state, server_round, arrivals)

    monkeypatch.setattr(server.strategy, "keep_best", noted)
    config = tiny_config(
        method=method, rounds=5, model=RESNET, report={"best": True}, predictor={"mode": "shared"},
        training={"learning_rate": 0.6, "momentum": 0.0},
    )  # fmt: skip
    run(config, tmp_path / "run", pictures=False, progress=False)
    assert [server_round for server_round, _ in told] == [0, 1, 2, 3, 4, 5]
    highest = max(accuracy for server_round, accuracy in told if server_round)
    best = read_description(tmp_path / "run" / "model" / "best")
    assert best.accuracy == highest
    assert best.round == max(server_round for server_round, accuracy in told if accuracy == highest and server_round)
    assert (best.statistics, best.lacks) == ("aggregated", ())
    network = read_run(tmp_path / "run").model(best=True)
    assert mean_on_validation(network, config) == pytest.approx(highest, abs=1e-6)


@pytest.mark.slow
def test_its_statistics_are_those_of_all_clients_under_it(tmp_path: Path) -> None:
    config = tiny_config(rounds=1, model=RESNET, report={"best": True})
    run(config, tmp_path / "run", pictures=False, progress=False)
    last, best = (read_weights(tmp_path / "run" / each / "model.safetensors") for each in ("model", "model/best"))
    assert read_description(tmp_path / "run" / "model" / "best").round == 1  # there is no other
    assert last.keys() == best.keys()
    assert all(torch.equal(last[name], best[name]) for name in last)
    clients = json.loads((tmp_path / "run" / "summary.json").read_text())["clients"]
    examples = blueprint_of(config).client_data(2).test
    assert evaluate(read_run(tmp_path / "run").model(2, best=True), examples).accuracy == clients["2"]


@pytest.mark.slow
def test_what_is_told_for_it_is_counted_and_bounded_by_the_budget(tmp_path: Path) -> None:
    """4 bytes of accuracy, 8 for each of 84 channels, and 9 for the section's line in the table."""
    bounded = {"selector": "update", "uplink_bytes": 12000}
    for best in (False, True):
        config = tiny_config(rounds=2, model=RESNET, selection=bounded, wire=DENSE, report={"best": best})
        run(config, tmp_path / str(best), pictures=False, progress=False)
    sent = {
        best: [row["bytes"] for row in read_lines(tmp_path / str(best) / "ledger.jsonl")
               if (row["phase"], row["direction"]) == ("train", "uplink")]
        for best in (False, True)
    }  # fmt: skip
    assert max(sent[True]) - max(sent[False]) < 300  # and not 685: fewer channels are sent instead
    ratios = [read_lines(tmp_path / str(best) / "history.jsonl")[-1]["keep_ratio"] for best in (False, True)]
    assert ratios[1] < ratios[0]


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_best_of_all(tmp_path: Path) -> None:
    config = tiny_config(rounds=2, model=RESNET, report={"best": True})
    run(config, tmp_path / "longer", pictures=False, progress=False)
    resume(tmp_path / "longer", rounds=4, pictures=False, progress=False)
    run(config.model_copy(update={"rounds": 4}), tmp_path / "whole", pictures=False, progress=False)
    models = [(tmp_path / each / "model" / "best" / "model.safetensors").read_bytes() for each in ("longer", "whole")]
    assert models[0] == models[1]


@pytest.mark.slow
def test_none_is_kept_where_none_was_asked_for_or_can_be(tmp_path: Path) -> None:
    run(tiny_config(rounds=1), tmp_path / "run", pictures=False, progress=False)
    with pytest.raises(SpatlError, match=r"has kept no best model: .* is not there \(report.best, before the run\)"):
        read_run(tmp_path / "run").model(best=True)
    with pytest.raises(ConfigError, match=r"what report\.best sends of each client would be free of noise"):
        tiny_config(method="fedavg", privacy={"noise_multiplier": 1.0}, report={"best": True})
