"""Every client spends within its own budget, and the run says what it was."""

import pytest

from clients.app import app as client_app
from server.app import serve
from server.grids import InProcessGrid
from spatl.errors import BudgetError, ConfigError, SpatlError
from spatl.rounds.blueprint import make_blueprint
from spatl.runs.records import read_lines
from tests.support.federations import run_tiny, tiny_config

OWN = {0: {"keep_ratio": 0.2}, 3: {"uplink_bytes": 2500}, 4: {"flops_ratio": 0.4}}


def client_rows(directory):
    return [row for row in read_lines(directory / "clients.jsonl") if row["participated"]]


def run_with_node_config(config, directory, client, **values):
    grid = InProcessGrid(
        client_app,
        num_clients=config.partition.num_clients,
        run_config={"config": config.to_json(), "out": str(directory)},
        loses=lambda client, message: False,
    )
    for context in grid.contexts.values():
        if context.node_config["partition-id"] == client:
            context.node_config.update(values)
    serve(grid, config, directory)


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["agent", "update", "signal", "magnitude", "random"])
def test_each_client_meets_the_budget_of_its_own(tmp_path, selector):
    run_tiny(tiny_config(selection={"selector": selector, "keep_ratio": 0.5, "clients": OWN}), tmp_path)
    rows = client_rows(tmp_path)
    assert {row["client"] for row in rows} == set(range(5))
    for row in rows:
        own = OWN.get(row["client"], {"keep_ratio": 0.5})
        assert {row["budget_kind"]: row["budget_limit"]} == own
    ledger = [row for row in read_lines(tmp_path / "ledger.jsonl") if row["phase"] == "train"]
    blobs = {(r["round"], r["client"]): r for r in ledger if r["direction"] == "uplink"}
    for row in rows:
        limit = row["budget_limit"]
        if row["budget_kind"] == "uplink_bytes":
            sent = blobs[row["round"], row["client"]]
            assert sent["values"] + sent["indices"] < limit
        else:
            assert 0 < row[row["budget_kind"]] <= limit


@pytest.mark.slow
def test_a_device_sets_its_own_budget_in_its_nodes_config(tmp_path):
    config = tiny_config(selection={"keep_ratio": 0.5, "clients": {1: {"keep_ratio": 0.4}}})
    run_with_node_config(config, tmp_path, 1, **{"keep-ratio": 0.2})
    rows = {row["client"]: row for row in client_rows(tmp_path)}
    assert (rows[1]["budget_kind"], rows[1]["budget_limit"]) == ("keep_ratio", 0.2)
    assert rows[1]["keep_ratio"] <= 0.2 < rows[2]["keep_ratio"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep-ratio": 0.0001}, r"client 1: the node's.keep_ratio is 0.0001, but one channel .* at least 0\.\d+"),
        ({"keep-ratio": 3}, r"the node's config: keep_ratio: input should be less than or equal to 1, got 3"),
        ({"keep-ratio": 0.2, "flops-ratio": 0.2}, "set one of keep_ratio, flops_ratio, uplink_bytes"),
    ],
)
def test_an_impossible_budget_of_a_device_stops_the_run_before_any_work(tmp_path, values, message):
    with pytest.raises(SpatlError, match=message):
        run_with_node_config(tiny_config(), tmp_path, 1, **values)
    assert not (tmp_path / "history.jsonl").exists()


def test_an_impossible_budget_in_the_config_names_the_client_and_the_smallest(tmp_path):
    config = tiny_config(selection={"clients": {2: {"uplink_bytes": 10}}})
    with pytest.raises(BudgetError, match=r"selection\.clients\.2\.uplink_bytes is 10, .* raise it to at least \d+"):
        make_blueprint(config)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({9: {"keep_ratio": 0.1}}, "selection.clients names client 9, but there are 5"),
        ({1: {}}, "client 1: set one of keep_ratio, flops_ratio, uplink_bytes"),
        ({1: {"keep_ratio": 0.1, "flops_ratio": 0.1}}, "got keep_ratio and flops_ratio"),
        ({1: {"bytes": 1}}, r"unknown key; selection.clients.1 takes keep_ratio, flops_ratio, uplink_bytes"),
        ({"first": {"keep_ratio": 0.1}}, "selection.clients.first"),
    ],
)
def test_a_mistake_in_the_clients_budgets_is_one_line(clients, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(selection={"clients": clients})


@pytest.mark.slow
def test_where_the_time_went_is_told_per_client(tmp_path):
    run_tiny(tiny_config(rounds=2), tmp_path)
    rows = client_rows(tmp_path)
    assert {row["participated"] for row in rows} == {True}
    timings = read_lines(tmp_path / "timings.jsonl")
    assert [(row["round"], row["client"]) for row in timings] == [(row["round"], row["client"]) for row in rows]
    for row in timings:
        assert 0 < row["decision_seconds"] < row["selection_seconds"]
        assert row["training_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("selection", [{"selector": "all"}, {}])
def test_a_device_whose_budget_cannot_be_kept_is_warned(tmp_path, caplog, selection):
    method = "spatl" if selection else "fedavg"
    config = tiny_config(method=method, rounds=1, selection=selection)
    run_with_node_config(config, tmp_path, 1, **{"keep-ratio": 0.2})
    assert "client 1: this run sends whole updates" in caplog.text


@pytest.mark.slow
def test_no_limit_to_speak_of_is_a_budget_too(tmp_path):
    run_tiny(tiny_config(rounds=1, selection={"uplink_bytes": 10**12}), tmp_path)
    assert {row["budget_limit"] for row in client_rows(tmp_path)} == {1e12}


@pytest.mark.slow
def test_a_policy_file_is_read_only_where_it_is_used(tmp_path):
    run_tiny(tiny_config(method="fedavg", rounds=1, agent={"policy": "nowhere.safetensors"}), tmp_path / "a")
    with pytest.raises(SpatlError, match="policy file not found: nowhere"):
        run_tiny(tiny_config(rounds=1, agent={"policy": "nowhere.safetensors"}), tmp_path / "b")


@pytest.mark.slow
def test_a_method_that_sends_everything_has_no_budget(tmp_path):
    run_tiny(tiny_config(method="fedavg", rounds=1), tmp_path)
    assert {(row["budget_kind"], row["budget_limit"]) for row in client_rows(tmp_path)} == {(None, None)}
