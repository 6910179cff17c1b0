"""Limits of what a client may send: nothing that an honest one sends comes near them, whatever its values are."""

import numpy as np
import pytest
import torch
from flwr.proto.message_pb2 import PushObjectRequest

from server.limits import most_bytes
from server.replies import blob_content
from spatl.channels.selection import select_all
from spatl.config.experiment import ExperimentConfig
from spatl.rounds.findings import findings_shape
from spatl.wire.codecs import CODECS
from spatl.wire.findings import pack_findings
from spatl.wire.reports import TrainReport
from spatl.wire.update import Update, pack_update
from tests.support.federations import blueprint_of, tiny_config
from tests.support.findings import drawn_findings
from tests.support.messages import REPORT


def body_bytes(blob: bytes) -> int:
    """The length of the request that brings the largest object of a message."""
    record = blob_content(blob)["spatl"]
    return PushObjectRequest(object_id="0" * 64, object_content=record.deflate()).ByteSize()


def update_bytes(config: ExperimentConfig, values: torch.Tensor, report: TrainReport | None = REPORT) -> int:
    blueprint = blueprint_of(config)
    update = Update(1, 0, select_all(blueprint.layout), values, 0.5, report=report)
    draw = torch.Generator().manual_seed(1)
    return body_bytes(pack_update(update, blueprint.layout, blueprint.codecs.uplink, generator=draw))


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", ["even", "wide"])
def test_an_update_of_any_values_in_any_codec_fits(codec, size):
    """Values over sixty octaves make integers that are mostly escapes."""
    config = tiny_config(
        model={"name": "cnn", "options": {"channels": [32, 64], "hidden": 256}}, wire={"uplink": codec}
    )
    number = blueprint_of(config).layout.num_entries
    rng = np.random.default_rng(1)
    values = rng.standard_normal(number) * (1.0 if size == "even" else np.exp2(rng.uniform(-30, 30, number)))
    length = update_bytes(config, torch.from_numpy(values.astype(np.float32)))
    assert length < most_bytes(blueprint_of(config))
    assert number > 100_000  # so that what is around it does not count


def test_findings_fit_however_many_classes_there_are():
    config = tiny_config(report={"findings": "end"})
    blueprint = blueprint_of(config)
    shape = findings_shape(blueprint)
    found = drawn_findings(
        1, num_filters=shape.num_filters, num_classes=shape.num_classes, num_features=shape.num_features
    )
    blob = pack_findings(found, blueprint.layout, blueprint.codecs.uplink, server_round=1, version=1)
    assert body_bytes(blob) < most_bytes(blueprint)


def test_the_limit_is_eight_bytes_a_value():
    """Of a network without statistics to tell of."""
    blueprint = blueprint_of(tiny_config())
    layout = blueprint.layout
    assert most_bytes(blueprint) == 8 * layout.num_entries + layout.num_channels + (64 << 10)
