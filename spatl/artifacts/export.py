"""Export of a run's model: as it is, or cut to a budget on the data of the client whose it is.

Without a client, a bounded share of all clients' data stands for them. Training splits choose channels, gather
statistics, train, and give the ranges of 8-bit numbers; validation splits choose between epochs; test splits are
reported on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from spatl.artifacts.bundle import Export, check_room, write_export
from spatl.artifacts.card import Card
from spatl.artifacts.cutting import CutNetwork, cut_network
from spatl.artifacts.graphs import check_packages
from spatl.artifacts.model_files import RunModel, read_model
from spatl.artifacts.names import MODEL
from spatl.artifacts.widths import CutBudget
from spatl.config.experiment import ExperimentConfig
from spatl.data import ClientData, Examples
from spatl.errors import ConfigError, SpatlError
from spatl.rounds.blueprint import cached_blueprint
from spatl.runs.directory import config_of, is_running
from spatl.runs.files import CONFIG
from spatl.seeding import generator
from spatl.tensors.inputs import one_tensor

MOST_POOLED: Final = 4096
"""Examples of each split that stand for all clients, at most."""
MOST_CALIBRATION: Final = 256
"""Training images on which the ranges of 8-bit numbers are chosen, at most."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Request for an export.

    Attributes:
        run: The run's directory.
        client: Whose model; None for the federation's.
        budget: What is left of the network; None to export it as it is.
        exact: Cut to any number of channels instead of multiples of eight.
        selector: What chooses the channels.
        finetune_epochs: Passes over the training split after the cut.
        int8: Whether to write a model in 8 bits, too.
        directory: Where to; None for a directory in the run's.
        seconds: How long latencies are measured for each batch size.

    Raises:
        ConfigError: Something is asked for that goes with a budget alone.
    """

    run: Path
    client: int | None = None
    budget: CutBudget | None = None
    exact: bool = False
    selector: str = "signal"
    finetune_epochs: int = 0
    int8: bool = False
    directory: Path | None = None
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.finetune_epochs < 0:
            raise ConfigError(f"epochs to fine-tune must be 0 or more, got {self.finetune_epochs} (--finetune)")
        if self.budget is None and (self.exact or self.finetune_epochs):
            given = "--exact" if self.exact else "--finetune"
            raise ConfigError(f"{given} goes with a cut: give --flops, --parameters or --latency-ms as well")

    @property
    def target(self) -> Path:
        """The directory to write."""
        if self.directory is not None:
            return self.directory
        return self.run / ("export" if self.client is None else f"export-client-{self.client}")


def export_run(request: ExportRequest, *, progress: Callable[[str], None]) -> Card:
    """Export the model of a run; its files lie in the request's `target` afterwards.

    Args:
        request: What is asked for.
        progress: Told what is being done, one line at a time.

    Returns:
        What its card says.

    Raises:
        SpatlError: The directory holds no run, or one that has not ended; its data are needed and not there; a budget
            cannot be met; the network cannot be cut or exported; or the target is not empty.
    """
    check_room(request.target)
    check_packages()
    config = _config_of(request.run)
    model = _model_of(request)
    model.description.image_shape(what="spatl export")
    progress("reading the data")
    data, notes = _data_of(config, request, model)
    if data is None:
        export = Export(model.network, model.description, model.offset, notes=notes, seconds=request.seconds)
        return write_export(request.target, export, progress=progress)
    cut = None if request.budget is None else _cut(model, data, request, config, progress)
    is_cut = cut is not None and cut.is_cut
    notes = (*notes, *_latency_notes(cut))
    export = Export(
        network=cut.network if cut is not None else model.network,
        description=model.description,
        offset=model.offset,
        dense=model.network if is_cut else None,
        cut=None if cut is None or not is_cut else _plain(cut, request),
        calibration=_calibration(data.train, config.seed) if request.int8 else None,
        test=data.test if len(data.test) else None,
        notes=notes if is_cut or request.budget is None else (*notes, "The budget asked for no cut."),
        seconds=request.seconds,
    )
    return write_export(request.target, export, progress=progress)


def _config_of(run: Path) -> ExperimentConfig:
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run} holds no run: {CONFIG} is not there; give a directory that `spatl run` wrote")
    return config_of(run)


def _model_of(request: ExportRequest) -> RunModel:
    run = request.run
    if not (run / MODEL).is_dir():
        what = (
            "it is still running; wait for its end"
            if is_running(run)
            else f"it did not reach its last round; go on with it (spatl run --resume {run})"
        )
        raise ConfigError(f"{run} has no model yet: {what}")
    return read_model(run, client=request.client)


def _data_of(
    config: ExperimentConfig, request: ExportRequest, model: RunModel
) -> tuple[ClientData | None, tuple[str, ...]]:
    """Return the splits to work on, and lines for the card; None for the data where none are there and none needed."""
    try:
        blueprint = cached_blueprint(config.located(Path.cwd()).to_json())
        if request.client is not None:
            return blueprint.client_data(request.client), ()
        splits = [blueprint.client_data(client) for client in range(config.partition.num_clients)]
    except SpatlError as error:
        if request.budget is not None or request.int8:
            raise
        return None, (f"No accuracy: the run's data are not here ({error}).",)
    pooled = ClientData(*(_pooled([getattr(each, name) for each in splits], config.seed, name) for name in _SPLITS))
    note = f"Data: at most {MOST_POOLED:,} examples of each split, from all {len(splits)} clients."
    if model.description.offset is not None:
        note += " What each client adds to the logits for its own class frequencies is left out."
    return pooled, (note,)


_SPLITS = ("train", "validation", "test")


def _pooled(parts: list[Examples], seed: int, name: str) -> Examples:
    """Return examples of all clients, drawn alike from all, in an order without meaning."""
    return Examples.joined(parts).drawn(MOST_POOLED, seed, f"export/{name}")


def _calibration(train: Examples, seed: int) -> torch.Tensor:
    chosen = torch.randperm(len(train), generator=generator(seed, "export/calibration"))[:MOST_CALIBRATION]
    return train.images[chosen]


def _cut(
    model: RunModel, data: ClientData, request: ExportRequest, config: ExperimentConfig,
    progress: Callable[[str], None],
) -> CutNetwork:  # fmt: skip
    assert request.budget is not None
    return cut_network(
        model.network, one_tensor(model.description.example()), budget=request.budget, train=data.train,
        validation=data.validation, selector=request.selector, exact=request.exact, training=config.training,
        finetune_epochs=request.finetune_epochs, offset=model.offset, batch_size=config.training.batch_size,
        seed=config.seed, progress=progress,
    )  # fmt: skip


def _plain(cut: CutNetwork, request: ExportRequest) -> dict[str, Any]:
    """Return what was cut, as JSON values."""
    assert request.budget is not None
    return {
        "budget": {request.budget.kind: request.budget.limit},
        "selector": request.selector,
        "flops_ratio": cut.flops_ratio,
        "parameters_ratio": cut.parameters_ratio,
        **_latencies(cut),
        "difference_from_masked": cut.difference,
        "finetuned_epochs": cut.refined.epochs,
        "counts": cut.counts,
        "sizes": dict(cut.sizes),
        "kept": {name: list(channels) for name, channels in cut.kept.items()},
        "whole": dict(cut.doubtful),
        "layers": cut.cut,
    }


def _latencies(cut: CutNetwork) -> dict[str, Any]:
    """Return what a budget of latency was met by, as JSON values; nothing for other budgets."""
    if cut.latency_ms is None:
        return {}
    dense, small = cut.latency_ms
    return {"latency": {"runtime": cut.latency_runtime, "batch": 1, "dense_ms": dense, "cut_ms": small}}


def _latency_notes(cut: CutNetwork | None) -> tuple[str, ...]:
    """Return the line of the card on the latency that a budget was met by; none for other budgets."""
    if cut is None or cut.latency_ms is None:
        return ()
    dense, small = cut.latency_ms
    return (
        f"The budget of latency was measured in {cut.latency_runtime}, one image on one thread: {dense:.3g} ms for the "
        f"dense network, {small:.3g} ms for the one in these files; the table is of later turns.",
    )
