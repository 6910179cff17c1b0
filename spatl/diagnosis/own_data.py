"""Findings of a simulated run's clients, computed from its model and their data, which are at hand."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from spatl.artifacts.model_files import read_model
from spatl.deployment.sites import is_deployment
from spatl.diagnosis.places import check_number
from spatl.errors import SpatlError
from spatl.models.copies import duplicate
from spatl.rounds.blueprint import cached_blueprint
from spatl.rounds.statistics import gathered, statistics_names
from spatl.runs.directory import config_of
from spatl.runs.files import CONFIG, SUMMARY
from spatl.saliency.filters import main_filters
from spatl.saliency.findings import Findings, findings_of
from spatl.training.calibration import calibrated
from spatl.training.evaluate import recalibrate_
from spatl.wire.statistics import Statistics

_EPSILON = 1e-5  # BatchNorm's own: variances below it are the same to the network


@dataclass(frozen=True, eq=False)
class Computed:
    """Findings that were computed here.

    Attributes:
        findings: Of each client.
        batch_norm: Distance of each client's BatchNorm statistics from the federation's; empty without such layers.
        class_names: Of the K classes.
    """

    findings: dict[int, Findings]
    batch_norm: dict[int, float | None]
    class_names: tuple[str, ...]


def compute_findings(
    run: Path, *, offset: bool = False, progress: Callable[[int, int], None] = lambda done, all_of_them: None
) -> Computed:
    """Take the findings of a run's last model on the validation split of each of its clients.

    Args:
        run: The directory of a finished run, in a simulation.
        offset: Whether the model has each client's own label offset. That of a client with wrong labels is of these.
        progress: Called with the number of clients that are done, and that of all.

    Raises:
        SpatlError: There is no finished run of enough clients, its data are others, or lie on devices.
    """
    if is_deployment(run):
        raise SpatlError(
            f"{run} is a deployment's run: its data lie on the devices, and it has recorded no findings of theirs"
        )
    if not (run / CONFIG).is_file():
        raise SpatlError(f"{run} holds no run: {CONFIG} is not there")
    config = config_of(run)
    check_number(config.partition.num_clients)
    if not (run / SUMMARY).is_file():
        raise SpatlError(f"the run in {run} has not come to its end, and has no model yet (spatl status {run})")
    blueprint = cached_blueprint(config.to_json())
    if not blueprint.layout.num_entries:
        raise SpatlError(f"the clients of {run} have no model in common to be compared by (method {config.method})")
    findings, distances = dict[int, Findings](), dict[int, float | None]()
    for client in range(config.partition.num_clients):
        model, data = read_model(run, client=client), blueprint.client_data(client)
        if model.description.class_names != blueprint.dataset.class_names:
            raise SpatlError(f"the data are not those that {run} was trained on: they have other classes")
        if not len(data.validation):  # of whom nothing can be told
            continue
        with calibrated(model.network, model.offset) if offset else nullcontext():
            found = findings_of(
                model.network, data.validation, main_filters(model.network), data.train.targets,
                num_classes=blueprint.dataset.num_classes,
            )  # fmt: skip
        findings[client] = found.without_small_classes(config.report.prototype_examples)
        names = statistics_names(model.network, blueprint.split)
        if names:
            own = duplicate(model.network)
            recalibrate_(own, data.train, batch_size=config.training.batch_size)
            distances[client] = statistics_distance(gathered(own, names), gathered(model.network, names))
        progress(client + 1, config.partition.num_clients)
    return Computed(findings, distances, tuple(blueprint.dataset.class_names))


def statistics_distance(own: Statistics, others: Statistics) -> float:
    """Return how far BatchNorm statistics are from others, in standard deviations of a channel: root mean square.

    Of each channel it is the distance of two normal distributions (Wasserstein's), in deviations of the other one.
    """
    deviations = (others.variances.double() + _EPSILON).sqrt()
    shift = (own.means.double() - others.means.double()) / deviations
    stretch = (own.variances.double() + _EPSILON).sqrt() / deviations - 1
    return math.sqrt(float(torch.mean(shift.square() + stretch.square())))
