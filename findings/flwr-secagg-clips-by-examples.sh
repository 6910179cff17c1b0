#!/usr/bin/env bash
# Flower 1.41.0: the range to which SecAgg+ clips a model's weights depends on how many examples a client has.
#
# A client of SecAggPlusWorkflow multiplies its weights by num_examples / max_weight, and then clips them to clipping_range (8)
# before they become integers. So the range that counts is 8000 / num_examples with the workflow's own settings (max_weight 1000).
# Five clients that send the same four weights get them back with 1,000 examples each, but for the one above 8. With
# 2,000 nothing beyond 4 comes back, with 5,000 nothing beyond 1.6, with 32,000 nothing beyond 0.25: BatchNorm's variances and
# scales first. With 100 examples 40 comes back whole, though it is five times the range. The log speaks of a possible overflow
# of an integer, which there is none of; max_weight as large as the largest client's number makes the range what it says, and with
# fewer examples the step of the integers grows in its place: ten examples a client get 0.25 back to some parts in ten thousand.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0 FLWR_HOME="$work/flwr"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.0 flwr==1.41.0 2>/dev/null
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import logging

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
logging.getLogger("flwr").setLevel(logging.ERROR)
NUM_CLIENTS = 5
WEIGHTS = np.array([0.25, 1.0, 3.0, 40.0])


class Client(NumPyClient):
    """Has trained to the same weights as all others."""

    def __init__(self, num_examples):
        self.num_examples = num_examples

    def fit(self, parameters, config):
        return [WEIGHTS], self.num_examples, {}


class InProcess(Grid):
    """Calls the clients' app at once."""

    def __init__(self, app):
        self.app = app
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in range(2, 2 + NUM_CLIENTS)
        }

    def set_run(self, run):
        pass

    @property
    def run(self):
        return Run.create_empty(1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        raise NotImplementedError

    pull_messages = push_messages

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            arrived = message_from_proto(message_to_proto(message))
            replies.append(self.app(arrived, self.contexts[message.metadata.dst_node_id]))
        return replies


def averaged(num_examples, **settings):
    app = ClientApp(client_fn=lambda context: Client(num_examples).to_client(), mods=[secaggplus_mod])
    grid = InProcess(app)
    strategy = FedAvg(
        fraction_evaluate=0.0, min_available_clients=NUM_CLIENTS, min_fit_clients=NUM_CLIENTS,
        initial_parameters=ndarrays_to_parameters([np.zeros(4)]),
    )
    context = LegacyContext(
        Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}),
        config=ServerConfig(num_rounds=1), strategy=strategy,
    )
    workflow = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, **settings)
    DefaultWorkflow(fit_workflow=workflow)(grid, context)
    (array,) = context.state.array_records["parameters"].to_numpy_ndarrays()
    return array


for num_examples, kept in ((100, 40.0), (1000, 8.0), (2000, 4.0), (5000, 1.6), (32000, 0.25)):
    found = averaged(num_examples)
    print(f"{num_examples} examples a client: {WEIGHTS} come back as {found.round(3)}")
    assert np.allclose(found, np.minimum(WEIGHTS, kept), atol=1e-3)
found = averaged(5000, max_weight=5000.0)
print(f"5000, with max_weight 5000: {found.round(3)}")
assert np.allclose(found, np.minimum(WEIGHTS, 8.0), atol=1e-3)
errors = [abs(averaged(number)[0] / 0.25 - 1) for number in (10, 1000) for _ in range(5)]
print(f"0.25 comes back to {max(errors[:5]):.1e} with 10 examples, to {max(errors[5:]):.1e} with 1000")
assert max(errors[:5]) > 3e-5 > 1e-6 > max(errors[5:])
PYTHON
