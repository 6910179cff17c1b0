#!/usr/bin/env bash
# Flower 1.41.0: FedAdam and FedYogi step BatchNorm's running variance as if it were a weight, FedAdam past zero.
#
# The strategies treat every array of a state dict alike. A running variance is no parameter: it follows the data, and here
# all clients agree on it: 0.02, 0.2 and 2 for three channels, in every round; the server's begins at PyTorch's 1. FedAvg has
# the clients' after one round. With their own rates FedYogi is at 0.48 for the first of them after thirty rounds, and
# FedAdam, whose momentum carries it on, is below zero for two of the three from round 12 to past round 20, though no
# client ever sent less than 0.02: a network in eval mode takes the root of that. A fleet with these server optimizers wants
# BatchNorm's statistics averaged beside them, or kept by each client.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0 FLWR_HOME="$work/flwr"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.0 flwr==1.41.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import logging

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi

logging.disable(logging.INFO)
EXACT = np.array([0.02, 0.2, 2.0], dtype=np.float32)  # what a client's BatchNorm has gathered by the end of its epoch


def reply(client):
    content = RecordDict({
        "arrays": ArrayRecord({"norm.running_var": Array(EXACT)}),
        "metrics": MetricRecord({"num-examples": 100}),
    })
    return Message(content, metadata=Metadata(1, f"reply-{client}", client, 1, "question", "1", 1.0, 3600.0, "train"))


first_below = {}
for strategy in (FedAvg(), FedAdam(), FedYogi()):
    name, variance = type(strategy).__name__, np.ones(3, dtype=np.float32)
    for server_round in range(1, 31):
        strategy.current_arrays = {"norm.running_var": variance}
        arrays, _ = strategy.aggregate_train(server_round, [reply(1), reply(2)])
        variance = arrays["norm.running_var"].numpy()
        if name not in first_below and variance.min() < 0:
            first_below[name] = server_round
        if server_round in (1, 5, 10, 15, 20, 30):
            print(f"{name}, round {server_round}: {np.round(variance, 3)}")
    if name == "FedAvg":
        assert np.allclose(variance, EXACT)
    if name == "FedYogi":
        assert 0.4 < variance[0] < 0.6, variance
print("first round below zero:", first_below)
assert first_below == {"FedAdam": 12}, first_below
print("as described")
PYTHON
