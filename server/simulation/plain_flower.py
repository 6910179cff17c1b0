"""Plain Flower: FedAvg on its simulation runtime, as its documentation has one write it.

The clients have the same examples, network, batches and optimizer as those of the engine, which they are measured
beside, and each trains and evaluates once a round. Weights travel whole, as float32; nothing is counted or kept.
"""

import functools
import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from spatl.models.copies import duplicate
from spatl.perf.bare import evaluate, train
from spatl.perf.cases import Case
from spatl.rounds.blueprint import Blueprint, make_blueprint


@functools.cache
def _blueprint(model: str, num_clients: int) -> Blueprint:
    """Data, splits and network, once in each process."""
    torch.set_num_threads(1)
    return make_blueprint(Case(model, "fedavg", num_clients=num_clients).config(1))


def _client_app(model: str, num_clients: int) -> ClientApp:
    app = ClientApp()

    @app.train()
    def trained(message: Message, context: Context) -> Message:
        blueprint = _blueprint(model, num_clients)
        network = duplicate(blueprint.model)
        network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        examples = blueprint.client_data(int(context.node_config["partition-id"])).train
        train(network, examples, blueprint.config.training)
        metrics = MetricRecord({"num-examples": len(examples)})
        return Message(
            content=RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluated(message: Message, context: Context) -> Message:
        blueprint = _blueprint(model, num_clients)
        network = duplicate(blueprint.model)
        network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        examples = blueprint.client_data(int(context.node_config["partition-id"])).test
        loss, right = evaluate(network, examples)
        metrics = MetricRecord({
            "loss": loss / len(examples), "accuracy": right / len(examples), "num-examples": len(examples),
        })  # fmt: skip
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _server_app(model: str, num_clients: int, rounds: int) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(_blueprint(model, num_clients).model.state_dict())
        result = FedAvg().start(grid, arrays, num_rounds=rounds)
        last = result.evaluate_metrics_clientapp[rounds]
        print(f"accuracy {last['accuracy']:.4f} after round {rounds}")

    return app


def main() -> None:
    """Run MODEL with so many CLIENTS for so many ROUNDS, on one core."""
    model, num_clients, rounds = sys.argv[-3:]
    run_simulation(
        _server_app(model, int(num_clients), int(rounds)),
        _client_app(model, int(num_clients)),
        num_supernodes=int(num_clients),
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1}},
    )
