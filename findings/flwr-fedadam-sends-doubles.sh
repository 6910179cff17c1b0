#!/usr/bin/env bash
# Flower 1.41.0 beside NumPy 2: FedAdam answers float32 clients in float64, so every download is twice as long.
#
# `FedAdam.aggregate_train` multiplies its float32 step by a learning rate corrected for bias, which is a NumPy scalar of
# float64. NumPy 1 let the array's dtype decide; since NumPy 2 the scalar's wins, and the new weights are float64. Clients
# notice nothing, as PyTorch's `load_state_dict` turns them back: what they send up stays float32. With the same replies
# FedAvg, FedAdagrad and FedYogi answer in float32: their rates are plain Python numbers. Who compares the bytes
# of server optimizers finds FedAdam's downlink twice the others', and half of that by installing NumPy 1.26.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0 FLWR_HOME="$work/flwr"
python3 -m venv "$work/venv"
cat >"$work/answers.py" <<'PYTHON'
import logging

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedYogi

logging.disable(logging.INFO)
WEIGHTS = 100_000
random = np.random.default_rng(0)


def reply(client):
    weights = random.standard_normal(WEIGHTS).astype(np.float32)
    content = RecordDict({
        "arrays": ArrayRecord({"weights": Array(weights)}),
        "metrics": MetricRecord({"num-examples": 100 * client}),
    })
    return Message(content, metadata=Metadata(1, f"reply-{client}", client, 1, "question", "1", 1.0, 3600.0, "train"))


replies, found = [reply(client) for client in (1, 2)], {}
for strategy in (FedAvg(), FedAdagrad(), FedYogi(), FedAdam()):
    strategy.current_arrays = {"weights": np.zeros(WEIGHTS, dtype=np.float32)}  # what the clients were sent
    arrays, _ = strategy.aggregate_train(1, replies)
    found[type(strategy).__name__] = arrays["weights"].dtype
    print(f"NumPy {np.__version__}: {type(strategy).__name__} answers {found[type(strategy).__name__]}, "
          f"{len(arrays['weights'].data):,} bytes")
others = {dtype for name, dtype in found.items() if name != "FedAdam"}
assert others == {"float32"}, found
assert found["FedAdam"] == ("float64" if np.__version__.startswith("2.") else "float32"), found
PYTHON
for numpy in 2.4.0 1.26.4; do
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==$numpy" flwr==1.41.0 2>/dev/null
    "$work/venv/bin/python" "$work/answers.py"
done
echo "as described"
