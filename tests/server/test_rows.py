"""Every method, network and predictor runs by config alone, and shares what its row says."""

import pytest

from spatl.methods import METHODS
from spatl.runs.records import read_lines
from tests.support.federations import blueprint_of, run_tiny, state_of, tiny_config


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"name": "resnet20", "options": {}}, id="resnet20"),
        pytest.param({"name": "vgg11", "options": {"width": 0.25}}, id="vgg11"),
        pytest.param({"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["head"]}, id="mixed"),
        pytest.param(
            {"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["hidden", "head"]}, id="earlier-cut"
        ),
        pytest.param({"name": "tests.support.networks:RecurrentNet", "options": {}, "cut": ["head"]}, id="recurrent"),
    ],
)
@pytest.mark.parametrize("batch_norm", ["local", "shared"])
@pytest.mark.parametrize("method", ["spatl", "spatl-paper"])
def test_the_same_federation_with_other_networks_by_config_alone(tmp_path, model, batch_norm, method):
    config = tiny_config(
        rounds=2,
        partition={"num_clients": 2},
        training={"batch_norm": batch_norm, "local_steps": 2},
        model=model,
        method=method,
    )
    summary = run_tiny(config, tmp_path)
    assert 0 < summary["keep_ratio"] <= config.row.keep_ratio
    values = sum(row["uplink"]["values"] for row in read_lines(tmp_path / "history.jsonl"))
    most = 4 * blueprint_of(config).layout.num_entries * 4  # two clients, two rounds, four bytes each
    assert values <= config.row.keep_ratio * most
    assert summary["rejected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    METHODS,
)
def test_every_method_is_a_row_that_runs_and_shares_what_it_says(tmp_path, strategies, method):
    config = tiny_config(method=method, rounds=2)
    summary = run_tiny(config, tmp_path)
    layout = blueprint_of(config).layout
    everything = sum(p.numel() for p in blueprint_of(config).model.parameters())
    head = 12 * 10 + 10
    shared = {"encoder": everything - head, "all": everything, "nothing": 0}[config.shares]
    assert layout.num_entries == shared
    assert (strategies[-1].state.control is not None) == config.row.corrects
    if config.shares != "nothing":
        assert (summary["keep_ratio"] == 1.0) == (not (config.chooses_channels or config.row.static_mask))
    else:
        values = [row["uplink"]["values"] for row in read_lines(tmp_path / "history.jsonl")]
        assert values == [0, 0]
        assert summary["uplink_share"] is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "calibrated", "residual", "shared"])
def test_every_predictor_runs_under_the_agent(tmp_path, mode):
    config = tiny_config(
        rounds=2, partition={"num_clients": 2}, predictor={"mode": mode}, agent={"reward": "pruned"},
        model={"name": "resnet8", "options": {"width": 0.25}},
    )  # fmt: skip
    summary = run_tiny(config, tmp_path)
    assert 0 < summary["keep_ratio"] <= config.row.keep_ratio
    assert (summary["rejected"], summary["missing"]) == (0, 0)
    private = {name for name in state_of(tmp_path, 0).private if "fc" in name}
    assert private == {
        "local": {"fc.weight", "fc.bias"}, "residual": {"fc.private.weight", "fc.private.bias"},
    }.get(mode, set())  # fmt: skip


@pytest.mark.slow
def test_training_alone_trains(tmp_path):
    run_tiny(tiny_config(method="local", rounds=4, training={"local_steps": 40}), tmp_path)
    rows = read_lines(tmp_path / "history.jsonl")
    assert rows[-1]["final_accuracy"] > 0.5 > rows[0]["accuracy"]
