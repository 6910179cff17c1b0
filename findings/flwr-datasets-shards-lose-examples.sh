#!/usr/bin/env bash
# flwr-datasets 0.6.1: shards by number lose up to almost half of the examples, and hold more classes than shards.
#
# `ShardPartitioner` with `num_shards_per_partition` alone cuts the sorted data into pieces of floor(examples / shards
# asked for), draws as many of them as were asked for, and leaves the others out, without a warning and although
# `keep_incomplete_shard` is true unless one says otherwise. Of 1,000 examples 100 partitions of 6 shards use 600, 40 of 7 use
# 840, 30 of 17 use 510. A curve of accuracy over the number of clients made with it is one over the number of examples
# as well. Shards also straddle the borders of classes: of nine partitions with two shards each, over ten balanced classes,
# some hold three or four, where the partition of McMahan et al. that it follows is meant to give two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.0 datasets==4.8.5 flwr-datasets==0.6.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import datasets
import numpy as np
from flwr_datasets.partitioner import ShardPartitioner

EXAMPLES, CLASSES = 1000, 10
labels = np.arange(EXAMPLES) % CLASSES
data = datasets.Dataset.from_dict({"place": list(range(EXAMPLES)), "label": labels.tolist()})


def parts(partitions, shards):
    partitioner = ShardPartitioner(
        num_partitions=partitions, partition_by="label", num_shards_per_partition=shards, seed=1
    )
    partitioner.dataset = data
    return [np.array(partitioner.load_partition(number)["place"]) for number in range(partitions)]


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for partitions, shards, expected in ((100, 6, 600), (40, 7, 840), (30, 17, 510), (10, 10, 1000)):
        used = np.concatenate(parts(partitions, shards))
        print(f"{partitions} partitions x {shards} shards: {len(used)} of {EXAMPLES} examples are used")
        assert len(used) == len(np.unique(used)) == expected
    seen = [len(np.unique(labels[part])) for part in parts(9, 2)]
    print("classes of nine partitions with two shards each:", seen)
    assert max(seen) > 2
own = [str(each.message) for each in caught if "flwr_datasets" in str(each.filename)]
assert own == [], own
print("as described, and nothing was said")
PYTHON
