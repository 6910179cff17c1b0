#!/usr/bin/env bash
# Flower 1.41.0: the distances of its Krum are rounding once updates are small, and counters once there is BatchNorm.
#
# MultiKrum (and Bulyan, by its default rule) measures distances between whole models, not updates, as
# |x|^2 + |y|^2 - 2 x.y in the arrays' own float32. Ten models of 200,000 weights around a common one, twenty draws:
# where the updates are a hundredth of the weights all is well. At a thousandth, an ordinary round of training, squared
# distances are 20 % off and 9 of 20 times another model is chosen than by exact distances; at a ten-thousandth nearly
# half of the squared distances are negative and 18 of 20 choices differ, which is what chance would give. With one
# BatchNorm layer its int64 counter of batches is one more coordinate: everything is then computed in float64, so that
# the rounding is gone, but some dozens of batches more or less outweigh all weights a thousand times over, and in 20 of
# 20 draws the choice is the one that the counters alone would give: the client with the most usual number of local
# batches. Distances of the updates, without counters, have neither fault.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0 FLWR_HOME="$work/flwr"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.0 flwr==1.41.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

CLIENTS, WEIGHTS, BAD, DRAWS, SPREAD = 10, 200_000, 2, 20, 0.05
random = np.random.default_rng(0)
apart = ~np.eye(CLIENTS, dtype=bool)


def trained(share):
    """Ten models around a common one, by updates of about a share of the weights."""
    start = random.standard_normal(WEIGHTS)
    lengths = random.uniform(0.5, 1.5, CLIENTS)
    return [(SPREAD * (start + share * s * random.standard_normal(WEIGHTS))).astype(np.float32) for s in lengths]


def chosen(records):
    (found,) = select_multikrum([RecordDict({"arrays": record}) for record in records], BAD, 1)
    return next(number for number, record in enumerate(records) if found["arrays"] is record)


def krum(squares):
    return int(np.sort(squares, axis=1)[:, 1 : CLIENTS - BAD - 1].sum(1).argmin())


def exact(models):
    matrix = np.stack(models).astype(np.float64)
    return ((matrix[:, None] - matrix[None]) ** 2).sum(-1)


others, wrong, negative = {}, {}, {}
for share in (1e-2, 1e-3, 1e-4):
    others[share], off, below = 0, [], 0.0
    for _ in range(DRAWS):
        models = trained(share)
        records = [ArrayRecord({"weight": Array(model)}) for model in models]
        told, true = compute_distances(records), exact(models)
        assert told.dtype == np.float32
        others[share] += chosen(records) != krum(true)
        off.append(np.median(np.abs(told - true)[apart] / true[apart]))
        below += float((told[apart] < 0).mean()) / DRAWS
    wrong[share], negative[share] = float(np.median(off)), below
    print(f"updates of {share:g} of the weights: squared distances {wrong[share]:.2g} off, {below:.0%} negative, "
          f"{others[share]} of {DRAWS} choices differ")
assert wrong[1e-2] < 0.02 and others[1e-2] <= 1
assert 0.05 < wrong[1e-3] < 1 and 3 <= others[1e-3] <= 15
assert wrong[1e-4] > 5 and negative[1e-4] > 0.2 and others[1e-4] >= 14

alike = 0
for _ in range(DRAWS):
    models, batches = trained(1e-2), random.integers(20, 200, CLIENTS)
    records = [ArrayRecord({"weight": Array(model), "norm.num_batches_tracked": Array(np.array(number, np.int64))})
               for model, number in zip(models, batches, strict=True)]
    told, weights = compute_distances(records), exact(models)
    assert told.dtype == np.float64 and np.median(told[apart] / weights[apart]) > 1000
    alike += chosen(records) == krum(np.square(batches[:, None].astype(float) - batches[None]))
print(f"with a counter of batches: {alike} of {DRAWS} choices are those of the counters alone")
assert alike >= DRAWS - 1
print("as described")
PYTHON
