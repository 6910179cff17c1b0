"""Whether control variates help clients that train with Adam, where c_i is the mean raw gradient of the local run.

`python -m tests.studies.adaptive_control [SEED ...]` trains the digits' CNN on ten clients by plain averages of whole
networks, with the calibrated predictor and no coding: once with Adam alone, once with g + c - c_i in each gradient that
Adam sees (SCAFFOLD's first option for c_i, Karimireddy et al. 2020, arXiv 1910.06378, in its second form: the mean of
the local run's own gradients). Both take the best of the same rates, by the mean validation accuracy over the rounds.
Printed: that mean and the last round's, each as a mean over the seeds, and the difference within a seed. No test split
is read.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spatl.config.loading import parse_config
from spatl.models.copies import duplicate
from spatl.rounds.blueprint import Blueprint, cached_blueprint
from spatl.seeding import generator
from spatl.training.calibration import calibrated, class_offset
from spatl.training.device import reproducible
from spatl.training.evaluate import evaluate
from spatl.training.hooks import GradientHook, correction_hook
from spatl.training.local import train_

ROUNDS = 15
RATES = (0.001, 0.003, 0.01)


def blueprint_of(seed: int, alpha: float, rate: float) -> Blueprint:
    """What a federation is made of."""
    return cached_blueprint(
        parse_config(
            {
                "seed": seed, "rounds": ROUNDS, "method": "fedavg-calibrated", "data": {"name": "digits"},
                "partition": {"num_clients": 10, "alpha": alpha},
                "model": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
                "training": {"optimizer": "adam", "learning_rate": rate, "local_epochs": 2, "batch_size": 16},
            }
        ).to_json()
    )  # fmt: skip


class _Mean:
    """Mean of the raw gradients of a local run."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.sums = {name: torch.zeros_like(each) for name, each in parameters.items()}
        self.steps = 0

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.steps += 1
        for name, each in parameters.items():
            assert each.grad is not None
            self.sums[name] += each.grad

    def mean(self) -> dict[str, Tensor]:
        """The mean, by name."""
        return {name: each / self.steps for name, each in self.sums.items()}


def accuracies(blueprint: Blueprint, *, controls: bool) -> list[float]:
    """Mean validation accuracy over the clients after each round."""
    config = blueprint.config
    data = [blueprint.client_data(client) for client in range(10)]
    offsets = [
        class_offset(each.train.targets, num_classes=10, strength=1.0, smoothing=config.predictor.smoothing)
        for each in data
    ]
    shares = [len(each.train) / sum(len(other.train) for other in data) for each in data]
    model = duplicate(blueprint.model)
    names = [name for name, _ in model.named_parameters()]
    zero = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    control, own = dict(zero), [dict(zero) for _ in data]
    found = []
    for server_round in range(1, ROUNDS + 1):
        total = {name: torch.zeros_like(each) for name, each in zero.items()}
        gradients = []
        for client, (each, offset) in enumerate(zip(data, offsets, strict=True)):
            local = duplicate(model)
            parameters = dict(local.named_parameters())
            mean = _Mean(parameters)
            hooks: list[GradientHook] = [mean, *([correction_hook(control, own[client])] if controls else [])]
            with calibrated(local, offset):
                train_(
                    local, parameters, each.train, config.training_of(client),
                    generator=generator(config.seed, "study", server_round=server_round, client=client), hooks=hooks,
                )  # fmt: skip
            for name in names:
                total[name] += shares[client] * parameters[name].detach()
            gradients.append(mean.mean())
        own = gradients
        control = {name: sum(p * g[name] for p, g in zip(shares, own, strict=True)) for name in names}  # type: ignore[misc]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(total[name])
        scores = []
        for each, offset in zip(data, offsets, strict=True):
            if len(each.validation):
                with calibrated(model, offset):
                    scores.append(evaluate(model, each.validation).accuracy)
        found.append(statistics.fmean(scores))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    seeds = parser.parse_args(arguments).seeds
    with reproducible(1):
        for alpha in (0.5, 0.1):
            best: dict[bool, list[list[float]]] = {}
            for controls in (False, True):
                runs = {
                    rate: [accuracies(blueprint_of(seed, alpha, rate), controls=controls) for seed in seeds]
                    for rate in RATES
                }
                rate = max(RATES, key=lambda rate: statistics.fmean(statistics.fmean(run) for run in runs[rate]))
                best[controls] = runs[rate]
                area = [statistics.fmean(run) for run in runs[rate]]
                last = [run[-1] for run in runs[rate]]
                told = (
                    f"{100 * statistics.fmean(area):.2f} over the rounds, {100 * statistics.fmean(last):.2f} at the end"
                )
                how = "with" if controls else "without"
                print(f"Dirichlet {alpha:g}, Adam {how} control variates, rate {rate:g}: {told}", flush=True)
            for words, pick in (("over the rounds", statistics.fmean), ("at the end", lambda run: run[-1])):
                gains = [100 * (pick(a) - pick(b)) for a, b in zip(best[True], best[False], strict=True)]
                told = ", ".join(f"{gain:+.2f}" for gain in gains)
                print(f"Dirichlet {alpha:g}: with less without {words}: {told}", flush=True)


if __name__ == "__main__":
    main()
