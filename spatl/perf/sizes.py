"""Measurement of an update by the size of the network, each in a process of its own (`python -m spatl.perf.sizes`).

The network is a multilayer perceptron of twelve equal layers, so that at 86 million parameters its matrices are as
large as a ViT-Base's. Each client takes one step on a few examples: what is measured is all around the training.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.json_files import to_json
from spatl.perf.cases import METHODS, many_clients
from spatl.perf.measure import peak_bytes
from spatl.perf.own_process import found_by, whole_number
from spatl.perf.parts import LOCAL_PARTS, OTHER, PARTS, PartsClock
from spatl.rounds.blueprint import servers_blueprint
from spatl.runner import run

FULL_SIZES: Final = (1, 10, 86)
"""Millions of parameters."""

SIZE_METHODS: Final = ("fedavg", "spatl-update")
"""Methods that are measured by size where nothing is said."""

_LAYERS: Final = 12
_CLIENTS: Final = 2
_FEATURES: Final = 3 * 8 * 8
_CLASSES: Final = 10
_ROUNDS: Final = 3  # the first makes what is kept, and the last is followed by the evaluation of all


class _Rounds(PartsClock):
    """Clock that notes, at the end of each round, what the parts have taken so far, and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, Mapping[str, float]]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        counted = super().timed(part, function)
        if function.__name__ != "finish_round":
            return counted

        def noted(*arguments: Any, **named: Any) -> Any:
            found = counted(*arguments, **named)
            self.ends.append((self._now(), dict(self.seconds)))
            return found

        return noted


def config_of_size(millions: int, method: str, *, rounds: int = _ROUNDS) -> ExperimentConfig:
    """Return the config of a network of about so many million parameters, whose clients take one step a round."""
    # (layers - 1) w^2 + (features + classes) w = parameters, but for the biases
    outer = (_FEATURES + _CLASSES) / (2 * (_LAYERS - 1))
    width = round(math.sqrt(outer**2 + 1e6 * millions / (_LAYERS - 1)) - outer)
    return parse_config({
        "seed": 1, "rounds": rounds, **METHODS[method],
        "data": {"name": "synthetic", "options": {"num_examples": 20 * _CLIENTS, "image_size": 8}},
        "partition": {"name": "iid", "num_clients": _CLIENTS},
        "model": {"name": "mlp", "options": {"hidden": [width] * _LAYERS}},
        "training": {
            "local_epochs": 1, "batch_size": 16, "learning_rate": 0.001, "device": "cpu", "threads": 1,
        },
    })  # fmt: skip


def measure_size(millions: int, method: str) -> dict[str, Any]:
    """Measure a network of about so many million parameters in another process.

    Returns:
        CPU nanoseconds of an update for each parameter, by part, of the second of three rounds; those of all but what
        a client's examples take; the most memory, what a small network had taken before, and their difference by the
        bytes of the network.

    Raises:
        SpatlError: The process failed.
    """
    return found_by("spatl.perf.sizes", str(millions), method, told=f"the run of {millions} million parameters")


def measured_here(millions: int, method: str) -> dict[str, Any]:
    """Do what `measure_size` does in this process, whose peak memory counts."""
    torch.set_num_threads(1)
    config, clock = config_of_size(millions, method), _Rounds()
    _run(many_clients(10, rounds=1, method=method))  # so that all modules are loaded
    with clock.watching():
        before, started = peak_bytes(), time.process_time()
        _run(config)
        seconds = time.process_time() - started
    number = sum(each.numel() for each in servers_blueprint(config.to_json()).model.parameters())
    (began, first), (ended, second) = clock.ends[:2]
    scale = 1e9 / number / config.num_participants
    parts = {part: scale * (second.get(part, 0.0) - first.get(part, 0.0)) for part in PARTS}
    parts[OTHER] = scale * (ended - began) - sum(parts.values())
    peak = peak_bytes()
    return {
        "method": method, "num_parameters": number, "participants": config.num_participants, "rounds": _ROUNDS,
        "parts_ns": parts, "around_ns": sum(taken for part, taken in parts.items() if part not in LOCAL_PARTS),
        "run_seconds": seconds, "peak_bytes": peak, "before_bytes": before,
        "peak_models": (peak - before) / (4 * number),
    }  # fmt: skip


def _run(config: ExperimentConfig) -> None:
    with tempfile.TemporaryDirectory() as place:
        run(config, Path(place) / "run", pictures=False, progress=False, warn=False)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m spatl.perf.sizes", description="Measure one row, as JSON.")
    _parser.add_argument("millions", type=whole_number(1, 100), help="of parameters, 1 to 100")
    _parser.add_argument("method", choices=list(METHODS))
    _asked = _parser.parse_args()
    print(to_json(measured_here(_asked.millions, _asked.method)))
