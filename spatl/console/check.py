"""Command `spatl check CONFIG`: the run that a config describes, built but not run, and nothing written.

Data are read, shared out and split, the model is built, cut and traced, and the budgets are compared with what its
channels cost: everything that `spatl run` does before its first round.
"""

import argparse
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatl.bench.plan import make_plan
from spatl.config.engines import ENGINES
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config
from spatl.config.training import TrainingConfig
from spatl.config.unread import settings_without_effect
from spatl.console.partition import partition_name
from spatl.extensions.late import LateModule
from spatl.runs.tensorboard import check_tensorboard
from spatl.runs.text import human_bytes
from spatl.tasks.rows import TASKS
from spatl.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from spatl import runner
    from spatl.data import Dataset
    from spatl.rounds.blueprint import Blueprint
    from spatl.tasks.task import Task
    from spatl.tensors import inputs
    from spatl.training import device as devices
else:  # with which PyTorch comes, once the config is read
    runner, inputs, devices = map(LateModule, ("spatl.runner", "spatl.tensors.inputs", "spatl.training.device"))


def check(options: argparse.Namespace, console: Console) -> None:
    """Print the run that a config describes.

    Raises:
        SpatlError: It would not run.
    """
    with _collected_warnings() as warnings:
        config = load_config(options.config, options.overrides)
        blueprint = runner.check(config)
        device = config.training.device
        if ENGINES[config.engine].in_process:
            device = str(devices.choose_device(device))
        if config.report.tensorboard:
            check_tensorboard()
        rows = describe(blueprint, device=device)
        if config.bench.methods:
            plan = make_plan([options.config], overrides=options.overrides)
            rows.append(("benchmark", f"{len(plan.rows)} rows, {len(plan.bench.seeds)} seeds each (spatl bench)"))
    warnings += settings_without_effect(config, model=blueprint.model, dataset=blueprint.dataset).values()
    warnings += blueprint.dataset.remarks()
    table = Table(title=Text(f"{options.config}: {config.row.title} on {config.data.name}"), show_header=False)
    table.add_column()
    table.add_column()
    for row in rows:
        table.add_row(*map(Text, row))
    print_table(console, table)
    for warning in dict.fromkeys(warnings):
        print_line(console, f"warning: {warning}")


def describe(blueprint: "Blueprint", *, device: str) -> list[tuple[str, str]]:
    """Return the facts of the run that a config describes, as names and values.

    Args:
        blueprint: The run's.
        device: Where its clients would train.
    """
    config, layout = blueprint.config, blueprint.layout
    training = config.training
    passes = f"{training.local_epochs} epochs" if training.local_steps is None else f"{training.local_steps} steps"
    dataset, sides = blueprint.dataset, inputs.sides_of(blueprint.dataset.inputs)
    alone = ", then each client alone" if config.report.compare_alone and config.method != "local" else ""
    rows = [
        ("method", f"{config.method}: {config.row.title} ({config.row.source})"),
        ("rounds", f"{config.rounds}, with {config.num_participants} of {config.partition.num_clients} clients{alone}"),
        ("engine", f"{config.engine}, on {device}, seed {config.seed}"),
        ("data", f"{config.data.name}: {len(dataset):,} examples of {sides}, {_outputs(dataset)}"),
        *_task(blueprint.task),
        ("clients", _clients(blueprint)),
        ("model", _model(blueprint)),
        ("encoder", f"{layout.num_entries:,} entries are shared, {human_bytes(4 * layout.num_entries)} in float32"),
        ("channels", _channels(blueprint)),
        ("budget", _budget(config)),
        ("training", f"{passes} of batches of {training.batch_size}, {_optimizer(training)}"),
        ("wire", _wire(blueprint)),
    ]  # fmt: skip
    if blueprint.message_bytes is not None:
        rows.append(("messages", f"at most {human_bytes(blueprint.message_bytes)} in either direction"))
    return rows


def _outputs(dataset: "Dataset") -> str:
    """Return what targets are of, in words."""
    return f"{dataset.num_classes:,} {TASKS[dataset.task].noun[dataset.num_classes != 1]}"


def _task(task: "Task") -> list[tuple[str, str]]:
    """Return what is trained and by what it is judged, where that is no classification by accuracy."""
    if not task.tells_more and task.loss.name == "cross-entropy":
        return []
    judged = ", ".join(metric.name for metric in task.metrics)
    return [("task", f"{task.name}, trained on {task.loss.name}, judged by {judged}")]


def _optimizer(training: TrainingConfig) -> str:
    """Return what takes the steps, and how long they are, in words."""
    momentum = f", momentum {training.momentum:g}" if training.optimizer == "sgd" else ""
    words = f"{training.optimizer}, learning rate {training.learning_rate:g}{momentum}"
    words += f", weight decay {training.weight_decay:g}"
    if training.schedule != "constant" or training.warmup_rounds:
        words += f", schedule {training.schedule}, {training.warmup_rounds} rounds of warm-up"
    if training.clip_gradients is not None:
        words += f", gradients of {training.clip_gradients:g} at the most"
    return words + (f"; {len(training.clients)} clients have their own" if training.clients else "")


def _clients(blueprint: "Blueprint") -> str:
    config = blueprint.config
    sizes = [len(part) for part in blueprint.partition]
    train = [len(blueprint.client_data(client).train) for client in range(len(sizes))]
    text = (
        f"{len(sizes)}, {partition_name(config)}: {_spread(sizes)} examples each, {_spread(train)} of them for training"
    )
    left_out = len(blueprint.dataset) - sum(sizes)
    return f"{text}; {left_out:,} belong to nobody" if left_out else text


def _spread(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {statistics.median(numbers):,.0f})"


def _model(blueprint: "Blueprint") -> str:
    config = blueprint.config
    total = sum(parameter.numel() for parameter in blueprint.model.parameters())
    private = sum(parameter.numel() for parameter in blueprint.split.predictor_parameters(blueprint.model).values())
    options = "".join(f" {key}={value}" for key, value in config.model.options.items())
    own = f"; {private:,} in {', '.join(blueprint.split.cut)} are each client's own" if private else ""
    return f"{config.model.name}{options}: {total:,} parameters{own}"


def _channels(blueprint: "Blueprint") -> str:
    layout = blueprint.layout
    if not layout.groups:
        return "none: nothing is shared"
    sizes = [group.size for group in layout.groups]
    chosen = "the clients choose among them" if blueprint.config.row.budgeted else "all are sent"
    return f"{sum(sizes):,} in {len(sizes)} groups; {chosen}"


def _wire(blueprint: "Blueprint") -> str:
    wire, codecs = blueprint.config.wire, blueprint.codecs
    dithered = " under dither" if codecs.uplink.name != wire.uplink and codecs.uplink.name == "dithered" else ""
    coarse = " with coarse changes" if codecs.downlink.coarse and wire.target_ratio is None else ""
    return f"up {wire.uplink}{dithered}, down {wire.downlink}{coarse}"


def _budget(config: ExperimentConfig) -> str:
    if not config.row.budgeted:
        return "none: clients send everything" if config.shares != "nothing" else "none: clients send nothing"
    budget = config.budget()
    whose = "" if config.selection.budget() is not None else ", the method's"
    own = f"; {len(config.selection.clients)} clients have their own" if config.selection.clients else ""
    chooses = f", chosen by {config.selection.selector}" if config.row.selects else ", one choice for all"
    return f"{budget.kind} {budget.limit:g}{whose}{chooses}{own}"


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged meanwhile, for the end of what is printed."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    root = logging.getLogger()
    before, root.handlers = root.handlers, [Collector(logging.WARNING)]
    try:
        yield collected
    finally:
        root.handlers = before
