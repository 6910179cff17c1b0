"""Command `spatl onboard RUN --data DATA`: a client that was not in a run starts with the run's model."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from spatl import __version__
from spatl.artifacts.newcomers import newcomers_config, newcomers_dataset, newcomers_splits, source_of
from spatl.artifacts.onboarding import OFFERED_FROM, Onboarding, federations_model, write_onboarding
from spatl.artifacts.onboarding import onboard as onboard_newcomer
from spatl.artifacts.unfinished import UnfinishedModel, run_directory, unfinished_model
from spatl.config.loading import on_device
from spatl.config.yaml_text import load_yaml
from spatl.data import ClientData
from spatl.deployment.sites import add_client_command, is_deployment
from spatl.errors import ConfigError
from spatl.runs.directory import fresh_directory
from spatl.terminal.tables import print_line, print_table
from spatl.training.device import choose_device, reproducible

logger = logging.getLogger(__name__)


def onboard(options: argparse.Namespace, console: Console) -> None:
    """Onboard a newcomer, print how each way to start does, and write the model that it takes.

    Raises:
        SpatlError: There is no model in the run's directory, or the data do not fit it.
    """
    directory = run_directory(Path(options.run))
    if options.out is not None:
        fresh_directory(options.out, name="onboarded")  # before anything is computed
    unfinished = unfinished_model(directory, version=__version__)
    model = federations_model(directory, unfinished)
    config = on_device(newcomers_config(directory, model.description), device=options.device)
    seed = config.seed if options.seed is None else options.seed
    name, own_options = source_of(options.data, _options(options.data_options), model.description, config)
    dataset = newcomers_dataset(name, own_options, model.description, seed=seed)
    for note in dataset.notes:
        logger.warning("%s", note)
    client = config.partition.num_clients  # the first number that none of the run's has
    data = newcomers_splits(dataset, config, client=client, seed=seed)
    device = choose_device(config.training.device)
    model.network.to(device)
    finetune = len(dataset) >= OFFERED_FROM and not options.no_finetune
    with reproducible(config.training.threads), console.status("") as status:
        outcome = onboard_newcomer(
            model, ClientData(data.train.to(device), data.validation.to(device), data.test.to(device)),
            config.training, seed=seed, finetune=finetune, compare=options.compare, progress=status.update,
        )  # fmt: skip
    out = fresh_directory(options.out, name=f"onboarded-{config.run_name}")
    about = {
        "run": str(directory), "run_is_over": unfinished is None, "round": model.description.round, "data": name,
        "options": own_options, "seed": seed,
    }  # fmt: skip
    write_onboarding(out, outcome, about, client=client)
    _print_outcome(console, outcome, finetune=finetune)
    if unfinished is not None:
        print_line(console, _standing(unfinished))
    print_line(console, "sent to anyone: 0 bytes")
    print_line(console, str(out))
    if is_deployment(directory):
        print_line(
            console,
            f"to take part in further rounds: {add_client_command(directory)} on the server (docs/newcomers.md)",
        )


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of a data set from `KEY=VALUE` texts, values as YAML has them.

    Raises:
        ConfigError: A text is none.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--data-option must be KEY=VALUE, e.g. image_size=32, got {text!r}")
        try:
            found[key] = load_yaml(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--data-option {text!r}: the value is no YAML") from error
    return found


def _print_outcome(console: Console, outcome: Onboarding, *, finetune: bool) -> None:
    training, validation, test = outcome.sizes
    table = Table(
        title=f"a newcomer with {training} training, {validation} validation and {test} test examples, after round "
        f"{outcome.model.description.round}"
    )
    table.add_column("")
    for column in ("test accuracy", "standard error", "validation accuracy", "taken"):
        table.add_column(column, justify="right")
    for row in outcome.rows:
        numbers = (f"{100 * value:.1f} %" for value in (row.accuracy, row.standard_error, row.validation))
        table.add_row(row.name, *numbers, "yes" if row.name == outcome.taken else "")
    print_table(console, table)
    if not finetune and sum(outcome.sizes) < OFFERED_FROM:
        print_line(console, f"fine-tuning is tried from {OFFERED_FROM} examples on")


def _standing(unfinished: UnfinishedModel) -> str:
    """Return how far the run had come, and what comes with its end only."""
    about = unfinished.description
    line = f"the run is not over: this is its model after round {about.round} of {unfinished.rounds}"
    if about.statistics == "client":
        line += "; BatchNorm statistics are the newcomer's own, those of all clients' data come after the last round"
    return line
