"""Whose BatchNorm statistics the final encoder does best with: a client's own, or all clients' together.

`python -m tests.studies.statistics [SEED ...]` runs SPATL with a ResNet-8 on two data sets and evaluates the encoders
that the clients held, each under statistics of four kinds: `local`, re-estimated by each client on its own training
split; `aggregated`, the weighted mean of the clients' means, and of their variances plus the variance of their means;
`last round's`, those that were aggregated of the encoder one round before, which would spare each arrival its forward
pass; and `no offset`, which is `aggregated` for a client that knows nothing of its own class frequencies. Printed for
each seed: the mean accuracy over clients and that of the worst one, on their validation and test splits; for the lag
also the mean over all rounds from the second.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import spatl
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import ClientData
from spatl.models.copies import duplicate
from spatl.rounds.blueprint import Blueprint, cached_blueprint, load_encoder_
from spatl.rounds.statistics import aggregate_statistics, gathered, load_statistics_, statistics_names
from spatl.training.calibration import calibrated, class_offset
from spatl.training.device import reproducible
from spatl.training.evaluate import evaluate, recalibrate_
from spatl.wire.statistics import Statistics

KINDS = ("local", "aggregated", "last round's", "no offset")
_RESNET = {"name": "resnet8", "options": {"width": 0.5}}
SETTINGS: dict[str, dict[str, Any]] = {
    "synthetic": {
        "data": {"name": "synthetic", "options": {"num_examples": 3000, "difficulty": 0.3, "image_size": 16}},
        "partition": {"num_clients": 10, "min_examples": 30},
        "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.16},
    },
    "digits": {
        "data": {"name": "digits"},
        "partition": {"num_clients": 20},
        "training": {"local_epochs": 2, "batch_size": 8},
    },
}


def config_of(data: str, *, seed: int, rounds: int, alpha: float) -> ExperimentConfig:
    """The config of a run."""
    values = SETTINGS[data]
    return parse_config(
        {
            "seed": seed,
            "rounds": rounds,
            "model": _RESNET,
            **values,
            "partition": {**values["partition"], "alpha": alpha},
            "training": {**values["training"], "device": "cpu", "batch_norm": "local"},
        }
    )


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """Collect the encoders that clients hold, float32 [N] each, in the order of the rounds."""
    encoders: list[Tensor] = []

    def load(model: nn.Module, layout: Any, vector: Tensor) -> None:
        if not encoders or not torch.equal(encoders[-1], vector):
            encoders.append(vector.clone())
        load_encoder_(model, layout, vector)

    with mock.patch("spatl.rounds.workplace.load_encoder_", load):
        yield encoders


class Clients:
    """All clients of a run, who evaluate encoders that they held."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._model = duplicate(blueprint.model).eval()
        self._names = statistics_names(self._model, blueprint.split)
        self.data: list[ClientData] = [
            blueprint.client_data(client) for client in range(blueprint.config.partition.num_clients)
        ]

    def load_(self, encoder: Tensor) -> None:
        """Take an encoder, float32 [N]."""
        load_encoder_(self._model, self._blueprint.layout, encoder)

    def own_statistics(self) -> list[Statistics]:
        """Each client's, of the encoder, re-estimated on its training split."""
        found = []
        for data in self.data:
            recalibrate_(self._model, data.train, batch_size=self._blueprint.config.training.batch_size)
            found.append(gathered(self._model, self._names))
        return found

    def together(self, statistics: Sequence[Statistics]) -> Statistics:
        """Those of all clients, of each one's."""
        return aggregate_statistics(
            dict(enumerate(statistics)), {client: len(data.train) for client, data in enumerate(self.data)}
        )

    def accuracies(self, statistics: Sequence[Statistics], *, offsets: bool = True) -> np.ndarray[Any, Any]:
        """float64 [2, clients]: on the validation and the test split, under some statistics for each client."""
        rows = []
        predictor = self._blueprint.config.predictor
        for data, own in zip(self.data, statistics, strict=True):
            load_statistics_(self._model, own, self._names)
            offset = class_offset(
                data.train.targets, num_classes=self._blueprint.dataset.num_classes,
                strength=predictor.strength if offsets else 0.0, smoothing=predictor.smoothing,
            )  # fmt: skip
            with calibrated(self._model, offset):
                rows.append([evaluate(self._model, split).accuracy for split in (data.validation, data.test)])
        return np.array(rows).T


def compare(config: ExperimentConfig, directory: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Run a federation and return float64 [2, clients] by kind, of the final encoder, and of all rounds by mean.

    The last number is of bytes that aggregated statistics take.

    Raises:
        AssertionError: What the clients reported themselves is not found again.
    """
    with recorded() as encoders:
        result = spatl.run(config, directory, pictures=False, warn=False, progress=False)
    clients = Clients(cached_blueprint(config.to_json()))
    by_round = []
    before: Statistics | None = None
    with reproducible(config.training.threads):
        for encoder in encoders:
            clients.load_(encoder)
            own = clients.own_statistics()
            together = clients.together(own)
            everywhere = [together] * len(own)
            found = {
                "local": clients.accuracies(own),
                "aggregated": clients.accuracies(everywhere),
                "no offset": clients.accuracies(everywhere, offsets=False),
            }
            if before is not None:
                found["last round's"] = clients.accuracies([before] * len(own))
            before = together
            by_round.append(found)
    assert before is not None
    assert abs(by_round[-1]["local"][1].mean() - result.summary["accuracy"]) < 1e-9, result.summary
    later = by_round[1:]
    means = {kind: np.mean([found[kind] for found in later], axis=0) for kind in KINDS}
    return by_round[-1], means, len(before.to_bytes())


def main() -> None:
    """Print the final accuracies seed by seed, and what aggregated statistics gain."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.statistics")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--data", choices=SETTINGS, action="append", help="one of the data sets; may be repeated")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--alpha", type=float, default=0.5)
    options = parser.parse_args()
    for data in options.data or SETTINGS:
        print(f"{data}, {options.rounds} rounds, Dirichlet {options.alpha:g}; validation / test, %", flush=True)
        gains: dict[str, list[list[float]]] = {kind: [] for kind in KINDS[1:]}
        for seed in options.seeds:
            config = config_of(data, seed=seed, rounds=options.rounds, alpha=options.alpha)
            with tempfile.TemporaryDirectory() as scratch:
                final, rounds, size = compare(config, Path(scratch) / "run")
            for kind in KINDS:
                mean, worst, all_rounds = final[kind].mean(1), final[kind].min(1), rounds[kind].mean(1)
                print(
                    f"  seed {seed} {kind:13s} mean {100 * mean[0]:5.1f} / {100 * mean[1]:5.1f}   worst client "
                    f"{100 * worst[0]:5.1f} / {100 * worst[1]:5.1f}   mean of arrivals {100 * all_rounds[0]:5.1f} / "
                    f"{100 * all_rounds[1]:5.1f}",
                    flush=True,
                )
                if kind in gains:
                    local = final["local"]
                    difference = (mean - local.mean(1), worst - local.min(1), all_rounds - rounds["local"].mean(1))
                    gains[kind].append(np.concatenate(difference).tolist())
        print(f"  {size} bytes of statistics a message; gain over local, points, mean of seeds (least, most):")
        for kind, rows in gains.items():
            for number, name in enumerate(("mean client", "worst client", "mean of arrivals")):
                parts = [
                    f"{split} {100 * np.mean(column):+.2f} ({100 * min(column):+.2f}, {100 * max(column):+.2f})"
                    for split, column in (
                        ("validation", [row[2 * number] for row in rows]),
                        ("test", [row[2 * number + 1] for row in rows]),
                    )
                ]
                print(f"    {kind:13s} {name:17s} {'   '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
