"""Subject of an explanation: a model of a run, and examples of which it has some wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from spatl.artifacts.description import ModelDescription, check_classifies
from spatl.artifacts.model_files import RunModel, read_model
from spatl.artifacts.names import MODEL
from spatl.artifacts.newcomers import newcomers_dataset, newcomers_splits, source_of
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import on_device, parse_config
from spatl.data import ClientData, Examples
from spatl.deployment.sites import is_deployment
from spatl.errors import ConfigError, SpatlError
from spatl.rounds.blueprint import Blueprint, cached_blueprint
from spatl.runs.directory import config_of, is_running
from spatl.runs.files import CONFIG
from spatl.saliency.filters import Filters, filters_of
from spatl.saliency.findings import check_examples
from spatl.training.calibration import calibrated
from spatl.training.device import choose_device
from spatl.training.evaluate import evaluate

MOST_EXAMPLES: Final = 2048
"""Examples of a split that are looked at, at most; drawn by the run's seed where there are more."""
_MOST_NUMBERS = 2**24  # of the profiles of a split: a network of many filters is looked at on fewer examples
SPLITS: Final = ("validation", "test")
"""Splits whose errors can be shown."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Model that is explained, with examples.

    Attributes:
        network: In eval mode on its device: the federation's, or a client's with its offset on the logits.
        filters: Its convolutions'.
        description: What it is.
        usual: The examples by which profiles are standardised: a validation split.
        shown: The examples of the split whose errors are shown; `usual` itself where that is the validation split.
        split: One of `SPLITS`.
        notes: What a reader has to know of them, a line each.
        blueprint: Of the run, where the data of all its clients are at hand; None on a device.
        run: The directory.
    """

    network: nn.Module
    filters: Filters
    description: ModelDescription
    usual: Examples
    shown: Examples
    split: str
    notes: tuple[str, ...]
    blueprint: Blueprint | None
    run: Path

    @property
    def device(self) -> torch.device:
        """Device of the examples, and of the network."""
        return self.shown.images.device

    @property
    def client(self) -> int | None:
        """Client whose model it is; None for the federation's."""
        return self.description.client


def read_subject(
    run: Path, *, client: int | None = None, split: str = "validation", device: str | None = None,
    data: str | None = None,
) -> Subject:  # fmt: skip
    """Read the model of a run with its clients' examples, or a device's model with its own.

    Args:
        run: The directory of a run, or that in which a device keeps its state of one.
        client: Whose model and data; the federation's model and the data of all clients if not given.
        split: One of `SPLITS`.
        device: In place of the config's `training.device`.
        data: Of a device, where its examples are: as `spatl onboard` takes them.

    Raises:
        SpatlError: There is no model, it lacks what each client has of its own, its network has no convolution, its
            data are not at hand, or there is no validation example.
    """
    if (run / CONFIG).is_file():
        if data is not None:
            raise ConfigError(f"{run} is a run, whose config says where its data are: leave out --data")
        return _of_run(run, client=client, split=split, device=device)
    model = _model(run, client)
    if model.description.client is None:
        raise ConfigError(f"{run} holds a model without the run's config and data: give the run's directory")
    if data is None:
        raise ConfigError(
            f"{run} holds the model of client {model.description.client} without its data: give --data, the examples "
            "of this device"
        )
    return _of_device(run, model, data=data, split=split, device=device)


def _of_run(run: Path, *, client: int | None, split: str, device: str | None) -> Subject:
    config = on_device(config_of(run), device=device)
    check_classifies(config.task.name, what="looking into a model")
    if is_deployment(run) or config.has_own_data:
        raise SpatlError(
            f"{run} is a deployment's run, whose data lie on the devices: there, explain the directory of the device's "
            "state, with --data"
        )
    number = config.partition.num_clients
    if client is not None and not 0 <= client < number:
        raise ConfigError(f"{run} has the clients 0 to {number - 1}, got client {client}")
    model = _model(run, client)
    blueprint = cached_blueprint(config_of(run).to_json())
    _check_alike(run, model.description, blueprint)
    if client is not None:
        data, notes = blueprint.client_data(client), list[str]()
        found = {name: getattr(data, name) for name in SPLITS}
    else:
        splits = [blueprint.client_data(each) for each in range(number)]
        found = {name: Examples.joined([getattr(each, name) for each in splits]) for name in SPLITS}
        notes = [f"The examples are those of all {number} clients."]
        if model.description.offset is not None:
            notes.append("What each client adds to the logits for its own class frequencies is left out.")
    return _subject(run, model, found, split, notes, config, blueprint)


def _of_device(run: Path, model: RunModel, *, data: str, split: str, device: str | None) -> Subject:
    description = model.description
    config = on_device(parse_config({"method": description.method, "seed": description.seed}), device=device)
    name, options = source_of(data, {}, description, config)
    dataset = newcomers_dataset(name, options, description, seed=description.seed)
    assert description.client is not None
    own = newcomers_splits(dataset, config, client=description.client, seed=description.seed)
    notes = [] if _are_the_runs_splits(model, own) else [
        "The model's accuracy on the test split drawn here is not the one it was left with: the splits may not be the "
        "run's, and examples may be among those it was trained on."
    ]  # fmt: skip
    return _subject(run, model, {name: getattr(own, name) for name in SPLITS}, split, notes, config, None)


def _subject(
    run: Path, model: RunModel, found: dict[str, Examples], split: str, notes: list[str], config: ExperimentConfig,
    blueprint: Blueprint | None,
) -> Subject:  # fmt: skip
    client = model.description.client
    check_examples(len(found["validation"]), "the run" if client is None else f"client {client}")
    if not len(found[split]):
        raise SpatlError(f"there is no example in the {split} split")
    filters = filters_of(model.network)
    most = min(MOST_EXAMPLES, max(1, _MOST_NUMBERS // filters.num_filters))
    for name in dict.fromkeys(("validation", split)):
        if len(found[name]) > most:
            notes.append(f"Of {len(found[name]):,} examples in the {name} split, {most:,} were drawn.")
    seed, target = config.seed, choose_device(config.training.device)
    if target.type == "mps":
        target = torch.device("cpu")  # z is float64, which Apple's devices do not have
    usual = found["validation"].drawn(most, seed, "explain/validation").to(target)
    shown = usual if split == "validation" else found[split].drawn(most, seed, f"explain/{split}").to(target)
    network = model.with_offset_().to(target).eval()
    return Subject(network, filters, model.description, usual, shown, split, tuple(notes), blueprint, run)


def _model(run: Path, client: int | None) -> RunModel:
    if (run / CONFIG).is_file() and not (run / MODEL).is_dir():
        what = "it is still running; wait for its end" if is_running(run) else "it did not reach its last round"
        raise ConfigError(f"{run} has no model yet: {what} (spatl status {run})")
    return read_model(run, client=client)


def _check_alike(run: Path, description: ModelDescription, blueprint: Blueprint) -> None:
    dataset, shape = blueprint.dataset, description.image_shape(what="looking into a model")
    if description.class_names != tuple(dataset.class_names) or shape != dataset.image_shape:
        raise SpatlError(
            f"the data are not those that {run} was trained on: they have other classes or shapes (its config.yaml "
            "says where they are read from)"
        )


def _are_the_runs_splits(model: RunModel, data: ClientData) -> bool:
    """Return whether the model has on the test split the accuracy that its description says."""
    with calibrated(model.network, model.offset):
        found = evaluate(model.network, data.test).accuracy
    return model.description.accuracy is not None and abs(found - model.description.accuracy) < 1e-9
