"""Permission of a device's owner: a run's config held against `device.yaml`, before anything that it names is touched.

What follows from the config alone is judged here. What depends on data or on the network that it describes is judged
where these are known (`spatl.rounds.demands`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spatl.config.device import DeviceConfig
from spatl.config.experiment import ExperimentConfig
from spatl.data.datasets import DATASETS, IN_MEMORY, is_read_from_path
from spatl.errors import NotAllowed
from spatl.extensions.listed import ListedFiles
from spatl.extensions.references import is_reference
from spatl.models.table import MODELS
from spatl.tasks.metrics import DEFAULT_METRICS

_STATISTICS: Final = ("nothing", "aggregated", "shared")


def permitted(
    config: ExperimentConfig, device: DeviceConfig, listed: ListedFiles, directory: Path, *, client: int, has_data: bool
) -> ExperimentConfig:
    """Return the config as a device may run it: a policy of its own leads to the file that the owner has listed.

    Args:
        config: What the server sent.
        device: What the owner allows.
        listed: The files that the owner has listed.
        directory: Where these lie.
        client: The client's partition id.
        has_data: Whether the owner has named a place of data.

    Raises:
        NotAllowed: The run asks for more than the owner allows; nothing was opened or imported.
    """
    _check_names(config, device, listed)
    _check_data(config, device, has_data=has_data)
    _check_leaving(config, device, client)
    _check_limits(config, device, client)
    policy = config.agent.policy
    if policy is None:
        return config
    listed.read(policy, "agent.policy")
    return config.model_copy(update={"agent": config.agent.model_copy(update={"policy": str(directory / policy)})})


def _check_names(config: ExperimentConfig, device: DeviceConfig, listed: ListedFiles) -> None:
    """Raise unless all names are built in and allowed, or references to listed files.

    A rule of aggregation is none of a device's: the server alone looks it up.
    """
    references = {
        "method": config.method,
        "model.name": config.model.name,
        "data.name": config.data.name,
        "partition.name": config.partition.name,
        "selection.selector": config.selection.selector,
        "wire.uplink": config.wire.uplink,
        "wire.downlink": config.wire.downlink,
    }
    several = [("training.augmentation", name) for name in config.training.augmentation]
    several += [("task.metrics", name) for name in config.task.metrics]
    several += [("task.loss", config.task.loss)] if config.task.loss is not None else []
    for setting, name in [*references.items(), *several]:
        if is_reference(name):
            listed.check_module(name.partition(":")[0], setting)
    for rule, setting, allowed in (("methods", "method", device.methods), ("models", "model.name", device.models)):
        name = references[setting]
        if allowed != "all" and not is_reference(name) and name not in allowed:
            raise NotAllowed.of(f"{rule} ({setting})", name, ", ".join(allowed) or "none")


def _check_data(config: ExperimentConfig, device: DeviceConfig, *, has_data: bool) -> None:
    """Raise unless the data are made here, or lie where the owner says."""
    if config.partition.name == "file":
        raise NotAllowed.of("data.dir (partition.path)", "a file of the run's", "data of its own")
    name, options = config.data.name, config.data.options
    if has_data or not is_read_from_path(name):  # the owner's place goes before the run's
        return
    if is_reference(name):
        if "path" in options:
            raise NotAllowed.of("data.dir (data.options.path)", "a path of its own", "none")
        return
    if options.get("hub"):
        named = str(options.get("name", name))
        allowed = device.data.hub
        if allowed is True or (isinstance(allowed, list) and named in allowed):
            return
        told = ", ".join(allowed) if isinstance(allowed, list) and allowed else "nothing from there"
        raise NotAllowed.of("data.hub (data.options.hub)", f"{named} from the hub", told)
    own = ", ".join(row for row in DATASETS if row != IN_MEMORY and not is_read_from_path(row))
    raise NotAllowed.of("data.dir (data.name)", f"{name}, read from a path of the run's",
                        f"{own}, or a place of its own (--data-dir)")  # fmt: skip


def _check_leaving(config: ExperimentConfig, device: DeviceConfig, client: int) -> None:
    """Raise where more would leave the device than its owner lets go."""
    leaves, row = device.leaves, config.row
    if not leaves.predictor and config.shares != "nothing":
        _check_cut(config, leaves.cut)
    if not leaves.predictor and config.shares != "nothing" and not _keeps_predictor(config):
        asked = f"a predictor that is {config.predictor_mode}" if config.shares == "all" else "a part of the predictor"
        raise NotAllowed.of("leaves.predictor (predictor.mode)", asked, "none that leaves the device")
    level = _statistics_level(config)
    if _STATISTICS.index(level) > _STATISTICS.index(leaves.statistics):
        setting = "report.best" if config.keeps_best and config.training.batch_norm != level else "training.batch_norm"
        raise NotAllowed.of(f"leaves.statistics ({setting})", level, leaves.statistics)
    if not leaves.whole_updates and config.shares != "nothing":
        budget = config.budget(client)
        whole = budget.kind != "uplink_bytes" and budget.limit >= 1
        if not row.budgeted or whole or (row.selects and not config.chooses_channels):
            name = "selection.selector" if row.budgeted and not whole else "selection" if row.budgeted else "method"
            raise NotAllowed.of(f"leaves.whole_updates ({name})", "updates of the whole encoder", "chosen channels")
    if not leaves.saliency and row.static_mask:
        raise NotAllowed.of("leaves.saliency (method)", f"the saliency that {row.title} goes by", "none")
    for metric in () if leaves.metrics == "all" else config.task.metrics or DEFAULT_METRICS[config.task.name]:
        if metric not in leaves.metrics:
            raise NotAllowed.of("leaves.metrics (task.metrics)", metric, ", ".join(leaves.metrics) or "none")
    noise = config.privacy.noise_multiplier
    if leaves.least_noise is not None and (noise is None or noise < leaves.least_noise):
        asked, least = "none" if noise is None else f"{noise:g}", f"at least {leaves.least_noise:g}"
        raise NotAllowed.of("leaves.least_noise (privacy.noise_multiplier)", asked, least)


def _check_cut(config: ExperimentConfig, pinned: Sequence[str] | None) -> None:
    """Raise unless a run's cut of a listed network keeps all that its owner counts to the predictor."""
    cut = config.model.cut or ()
    if pinned is None or not is_reference(config.model.name):
        return
    if any(not any(name == kept or name.startswith(f"{kept}.") for kept in cut) for name in pinned):
        asked = ", ".join(cut) or "nothing"
        raise NotAllowed.of("leaves.cut (model.cut)", f"a predictor of {asked}", f"one with {', '.join(pinned)}")


def _keeps_predictor(config: ExperimentConfig) -> bool:
    """Return whether the predictor stays with the client: that of a built-in network whole, whatever the cut says."""
    if config.shares == "all" or config.predictor_row.residual:
        return False
    cut = config.model.cut
    if is_reference(config.model.name):
        return bool(cut)
    return cut is None or set(cut) >= set(MODELS[config.model.name].cut)


def _statistics_level(config: ExperimentConfig) -> str:
    """Return how much of BatchNorm's statistics leaves a client."""
    if config.shares == "nothing":
        return "nothing"
    if config.training.batch_norm == "shared" or config.keeps_best:
        return "shared"
    return "aggregated" if config.aggregates_statistics else "nothing"


def _check_limits(config: ExperimentConfig, device: DeviceConfig, client: int) -> None:
    """Raise where the settings of a run are beyond the limits, whatever its data."""
    limits, training = device.limits, config.training_of(client)
    if training.threads > limits.threads:
        raise NotAllowed.of("limits.threads (training.threads)", f"{training.threads:,}", f"{limits.threads:,}")
    for name, asked in (
        ("local_steps", 0 if training.local_steps is None else training.local_steps),
        ("local_epochs", training.local_epochs if training.local_steps is None else 0),
        ("head_epochs", training.head_epochs if config.row.head_first else 0),
        ("finetune_epochs", training.finetune_epochs if config.row.fine_tunes else 0),
    ):
        if asked > limits.steps:  # an epoch is a step or more
            unit = "steps" if name == "local_steps" else "epochs"
            raise NotAllowed.of(f"limits.steps (training.{name})", f"{asked:,} {unit}", f"{limits.steps:,} steps")
    name, options = config.data.name, config.data.options
    made = 0 if is_reference(name) else _bytes_made(name, options)
    examples = options.get("num_examples", DATASETS[name].options.get("num_examples")) if made else 0
    if isinstance(examples, int) and examples > limits.examples:
        raise NotAllowed.of("limits.examples (data.options.num_examples)", f"{examples:,}", f"{limits.examples:,}")
    needed = made + 64 * config.partition.num_clients  # a list of clients is made on the way
    if needed > limits.memory_megabytes * 1e6:
        setting = "data.options" if made > 64 * config.partition.num_clients else "partition.num_clients"
        raise NotAllowed.of(f"limits.memory_megabytes ({setting})", f"{needed / 1e6:,.0f}", limits.memory_megabytes)


def _bytes_made(name: str, options: Mapping[str, Any]) -> int:
    """Return how much memory the images of a data set take that is made here; 0 for all others, or where not known."""
    size = DATASETS[name].num_bytes
    return 0 if size is None else size(options)
