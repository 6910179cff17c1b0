"""Model of a run that is not over: the encoder as its clients would hold it after the last round in its checkpoint.

A run that was stopped there, asked for so many rounds only, would have left the same model to the bit (its clients'
BatchNorm statistics apart, which are asked for after the last round alone). Everything is read: a checkpoint is
replaced whole, so that the run may go on meanwhile, and no lock is looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spatl.artifacts.description import ModelDescription, read_description
from spatl.artifacts.model_files import describe_model
from spatl.artifacts.names import BEST, MODEL, WEIGHTS
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.channels.vectors import parts_of
from spatl.deployment.sites import DEFAULT_RUN, ServerSite
from spatl.errors import SpatlError
from spatl.models.weights import read_weights
from spatl.rounds.blueprint import Blueprint, servers_blueprint
from spatl.rounds.evaluation import arrived_state
from spatl.rounds.federation import Federation
from spatl.rounds.server_model import server_tensors
from spatl.rounds.server_state import ServerState
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.directory import config_of
from spatl.runs.files import CONFIG, SUMMARY
from spatl.training.device import reproducible


@dataclass(frozen=True, eq=False)
class UnfinishedModel:
    """Model of a run that is not over.

    Attributes:
        description: What it is; `round` is the one after which it stands.
        tensors: The federation's, by the network's own names.
        rounds: How many rounds the run is to have.
    """

    description: ModelDescription
    tensors: Mapping[str, Tensor]
    rounds: int


def run_directory(directory: Path) -> Path:
    """Return the directory of a run: the one given, or that of the run of a deployed server's directory."""
    return directory / DEFAULT_RUN if (directory / ServerSite.FILE).is_file() else directory


def unfinished_model(run: Path, *, version: str) -> UnfinishedModel | None:
    """Return what the federation of a run has in common so far; None where the run is over, or there is none.

    Args:
        run: The run's directory.
        version: This program's.

    Raises:
        SpatlError: The run is in its first round, its checkpoint is damaged, or its config does not work out here.
    """
    if not (run / CONFIG).is_file() or (run / SUMMARY).is_file():
        return None
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise SpatlError(
            f"no round of the run in {run} is over, and it has no model yet: come back after its first (spatl status "
            f"{run})"
        )
    config, state = config_of(run), checkpoint.state
    blueprint = servers_blueprint(config.to_json())
    if len(state.encoder) != blueprint.layout.num_entries:
        raise SpatlError(
            f"the checkpoint in {run} has {len(state.encoder)} entries of an encoder, what config.yaml there describes "
            f"has {blueprint.layout.num_entries}: one of the two is of another run"
        )
    with reproducible(config.training.threads):
        encoder = _held_after(blueprint, state, checkpoint.server_round, where=run)
        description = describe_model(
            blueprint, statistics=state.statistics, encoder=encoder, accuracy=None, version=version
        ).named(round=checkpoint.server_round)
        tensors = server_tensors(blueprint, statistics=state.statistics, encoder=encoder)
    best = None if state.statistics is not None else _best_of(run, encoder=description.encoder)
    return UnfinishedModel(*(best or (description, tensors)), rounds=config.rounds)


def _held_after(blueprint: Blueprint, state: ServerState, server_round: int, *, where: Path) -> Tensor:
    """Return float32 [N], the encoder as the clients would hold it after a round.

    Raises:
        SpatlError: Nobody can tell it from the state, or it has left all bounds.
    """
    agreed = None
    if blueprint.config.row.static_mask:
        agreed = _trained(state.encoder, blueprint.layout)
        if len(state.versions.offsets) not in (0, len(blueprint.layout.places(agreed))):
            raise SpatlError(f"the channels that the clients in {where} agreed on do not follow from its checkpoint")
    federation = Federation(blueprint, frozenset(state.num_examples), agreed=agreed)
    return federation.reference(arrived_state(federation, state, server_round)).encoder


def _trained(encoder: Tensor, layout: EncoderLayout) -> Selection:
    """Return the channels of an encoder that are not zero throughout: all that a static mask keeps, and no others.

    Only its offsets can tell whether one that it keeps is zero by chance: there is one of each entry that travels.
    """
    mask = torch.zeros(layout.num_channels, dtype=torch.bool)
    for part in parts_of(layout.num_entries):
        mask[layout.owner_in(part)[encoder[part] != 0]] = True
    return Selection(mask, closed=True)


def _best_of(run: Path, *, encoder: str) -> tuple[ModelDescription, Mapping[str, Tensor]] | None:
    """Return the best model so far if it is the one with this encoder: it comes with statistics (`report.best`)."""
    place = run / MODEL / BEST
    if not place.is_dir():
        return None
    try:
        description = read_description(place)
        if description.encoder != encoder:
            return None
        return description, read_weights(place / WEIGHTS, sha256=description.sha256)
    except SpatlError:  # a better one is being put in its place; the checkpoint has all but the statistics
        return None
