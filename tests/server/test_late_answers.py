"""Answers that come again, with those to the next question: a slow device answers each copy of what it was asked."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from server.grids import InProcessGrid
from spatl.config.experiment import ExperimentConfig
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.runs.records import read_lines
from tests.support.own_data import own_config, serve_devices


class Repeating(InProcessGrid):
    """Every answer comes again, among those to the question after it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.answered = []

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if not messages:
            return
        again, self.answered = self.answered, []
        for reply in super().send_and_receive(messages, timeout=timeout):
            self.answered.append(reply)
            yield reply
            yield from again
            again = []


def outcome(config: ExperimentConfig, base: Path, grid: type[InProcessGrid]):
    run = base / grid.__name__
    states = [run / "devices" / str(client) for client in range(3)]
    run.mkdir()
    serve_devices(config, base, run=run / "run", grid_type=grid, states=states)
    return run / "run"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["cnn", "resnet8"])  # of the second, statistics are asked for, too
def test_a_run_whose_answers_come_twice_ends_as_one_whose_answers_come_once(devices, network):
    """The first of them is a description of data; taken for a registration it would be of another model."""
    options = {"channels": [4, 6], "hidden": 12} if network == "cnn" else {"width": 0.25}
    config = own_config(method="spatl", model={"name": network, "options": options})
    once, twice = (outcome(config, devices, grid) for grid in (InProcessGrid, Repeating))
    told = [read_json(run / "summary.json") for run in (once, twice)]
    assert told[1]["clients"] == told[0]["clients"]
    assert "absent" not in told[1]
    weights = [read_weights(run / "model" / "model.safetensors") for run in (once, twice)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    sizes = [Counter((row["phase"], row["bytes"]) for row in of_uplink(run)) for run in (once, twice)]
    last = Counter((row["phase"], row["bytes"]) for row in of_uplink(once) if row["phase"] == "evaluate")
    assert sizes[1] == sizes[0] + (sizes[0] - last)  # each is counted as often as it came


def of_uplink(run: Path):
    return [row for row in read_lines(run / "ledger.jsonl") if row["direction"] == "uplink"]
