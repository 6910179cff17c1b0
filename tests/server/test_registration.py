"""Who takes part: the run starts with all, with the right ones, or not at all."""

import json

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import server.app
from clients.app import app as client_app
from server.grids import InProcessGrid
from spatl.errors import ConfigError, SpatlError
from spatl.wire.blob import RECORD
from tests.support.federations import registered, run_tiny, tiny_config


def test_too_few_nodes_is_one_clear_line(tmp_path):
    config = tiny_config(server={"connect_timeout_seconds": 0.1})
    grid = InProcessGrid(client_app, num_clients=2, run_config={"config": config.to_json(), "out": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"num_clients is 5, but 2 nodes.*num-supernodes=5"):
        server.app.serve(grid, config, tmp_path)


@pytest.mark.slow
def test_a_node_that_builds_another_model_is_refused_at_registration(tmp_path):
    config, other = tiny_config(), tiny_config(model={"options": {"channels": [4, 7], "hidden": 12}})
    grid = InProcessGrid(client_app, num_clients=5, run_config={"config": other.to_json(), "out": str(tmp_path)})
    with pytest.raises(SpatlError, match="client 0 built another model"):
        server.app.serve(grid, config, tmp_path)


def test_a_malformed_registration_is_one_clear_line(tmp_path):
    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(SpatlError, match="registration lacks 'spatl'"):
        run_tiny(tiny_config(), tmp_path, app=app)


@pytest.mark.parametrize("liar", [0, 3])
def test_a_client_with_the_key_of_another_is_named_and_the_run_does_not_start(tmp_path, liar):
    config = tiny_config()
    values = {"config": config.to_json(), "out": str(tmp_path)}
    grid = InProcessGrid(client_app, num_clients=5, run_config=values)
    nodes = dict(enumerate(sorted(grid.get_node_ids())))
    keys = server.app.keys_of({"nodes": json.dumps(nodes)})
    assert keys == {node: client for client, node in nodes.items()}
    keys[nodes[liar]] = 2
    with pytest.raises(ConfigError, match=f"the key of client 2 says that it holds partition {liar}"):
        server.app.serve(grid, config, tmp_path, keys=keys)
    assert not (tmp_path / "history.jsonl").exists()


@pytest.mark.parametrize("factor", [0.5, 2.0, 1e6])
def test_a_client_that_claims_other_numbers_of_examples_than_its_share_has_is_refused(factor, tmp_path):
    """The server shares the data out itself, and need not believe a weight."""
    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        numbers = reply.content.config_records[RECORD]
        if numbers["partition-id"] != 3:
            return reply
        lie = registered(reply.content, num_examples=int(numbers["num-examples"] * factor))
        return Message(lie, reply_to=message)

    with pytest.raises(
        SpatlError, match=r"client 3 says that it trains on \d+ examples, and its share of the data has"
    ):
        run_tiny(tiny_config(), tmp_path, app=app)
