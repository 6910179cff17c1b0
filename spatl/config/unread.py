"""Settings without effect: which ones a run reads, so that one that it does not read is told instead of believed.

One table says for every setting that not all runs read when it is read, and why not otherwise; all others stand in
`spatl.config.always_read`. A setting that is in neither fails a test, so that none is forgotten.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from spatl.channels.budgets import BUDGET_KINDS
from spatl.config.engines import ENGINES
from spatl.config.experiment import ExperimentConfig
from spatl.config.given import given_settings, setting_names
from spatl.config.sections import TRIMMING
from spatl.config.server_optimizer import ADAPTIVE
from spatl.data.partitioners import PARTITIONERS, partition_settings
from spatl.extensions.references import is_reference
from spatl.methods import METHODS, Method
from spatl.tasks.rows import TASKS
from spatl.training.step_weight import ADAPTIVE_OPTIMIZERS

if TYPE_CHECKING:
    from torch import nn

    from spatl.data import Dataset

Engine = Literal["inline", "ray", "deployment"]

_OF_STATISTICS = "training.batch_norm", "training.calibration_examples"


@dataclass(frozen=True, eq=False)
class _Run:
    """Facts that decide which settings are read; of a run that is not built yet, model and data set are None."""

    config: ExperimentConfig
    engine: Engine
    model: "nn.Module | None"
    dataset: "Dataset | None"

    @property
    def row(self) -> Method:
        return self.config.row

    @property
    def chooses(self) -> bool:
        """Return whether its clients choose channels by a budget."""
        return self.config.chooses_channels

    @property
    def leaves_out(self) -> bool:
        """Return whether clients do not train whose budget does not pay for everything."""
        return self.row.selects and self.config.selection.selector == "able"

    @property
    def in_process(self) -> bool:
        """Return whether the clients are run by the process that runs the server."""
        return self.engine in ENGINES and ENGINES[self.engine].in_process

    @property
    def shares_resources(self) -> bool:
        """Return whether the section `resources` says what a client may use of the machine."""
        return self.engine in ENGINES and ENGINES[self.engine].shares_resources

    @property
    def has_chosen_steps(self) -> bool:
        """Return whether the server's changes are rounded as a setting says, and not as bytes allow."""
        return self.config.wire.downlink == "adaptive" and self.config.wire.target_ratio is None

    @property
    def private(self) -> bool:
        """Return whether some submodules are a client's own while others are shared."""
        return self.config.shares == "encoder"


@dataclass(frozen=True, eq=False)
class _Rule:
    """Condition under which some settings are read, and the message otherwise."""

    settings: tuple[str, ...]
    read: Callable[[_Run], bool]
    otherwise: Callable[[_Run], str]


def settings_without_effect(
    config: ExperimentConfig,
    *,
    engine: Engine | None = None,
    model: "nn.Module | None" = None,
    dataset: "Dataset | None" = None,
    given: Collection[str] | None = None,
) -> dict[str, str]:
    """Return a line for each setting that was given and that nothing in this run reads.

    Args:
        config: The run.
        engine: What runs it; the config's engine if not given.
        model: Its network, for settings that depend on what there is in it; they are taken for read if not given.
        dataset: Likewise its data.
        given: Dotted names of the settings that the user gave; those that `given_settings` finds, if not given.

    Returns:
        The lines by dotted name, in the order of the config.
    """
    run = _Run(config, engine or config.engine, model, dataset)
    named = given_settings(config) if given is None else given
    lines = {}
    for setting in setting_names():
        unmet = [rule for rule in RULES if setting in named and setting in rule.settings and not rule.read(run)]
        if unmet:
            lines[setting] = f"{setting} has no effect: {unmet[0].otherwise(run)}"
    return lines


def _methods(fact: Callable[[Method], bool]) -> str:
    do, do_not = ([name for name, row in METHODS.items() if fact(row) is holds] for holds in (True, False))
    return f"(methods that do: {', '.join(do) if len(do) <= len(do_not) else 'all but ' + ', '.join(do_not)})"


def _of_the_partitioner(setting: str) -> _Rule:
    readers = [name for name, entry in PARTITIONERS.items() if setting in entry.settings]

    def read(run: _Run) -> bool:
        name = run.config.partition.name
        if is_reference(name) and run.dataset is None:  # not imported yet
            return True
        return setting in partition_settings(name)

    def otherwise(run: _Run) -> str:
        return f"the partition {run.config.partition.name} does not read it ({', '.join(readers)} do)"

    return _Rule((f"partition.{setting}",), read, otherwise)


def _only_where(*settings: str, fact: Callable[[Method], bool], lacks: str) -> _Rule:
    """Return the rules of settings that only some methods read."""
    return _Rule(settings, lambda run: fact(run.row), lambda run: f"{run.row.title} {lacks} {_methods(fact)}")


def _budget_is_read(run: _Run) -> bool:
    all_have_their_own = len(run.config.selection.clients) == run.config.partition.num_clients
    return run.row.static_mask or ((run.chooses or run.leaves_out) and not all_have_their_own)


def _no_budget(run: _Run) -> str:
    if not run.row.selects:
        return f"{run.row.title} sends every channel {_methods(lambda row: row.budgeted)}"
    return "selection.selector all sends every channel" if not run.chooses else "every client has a budget of its own"


def _no_agent(run: _Run) -> str:
    if not run.row.selects:
        return f"clients of {run.row.title} do not choose channels {_methods(lambda row: row.selects)}"
    return f"selection.selector is {run.config.selection.selector}, not agent"


def _has_statistics(run: _Run) -> bool:
    return run.model is None or any(getattr(each, "track_running_stats", False) for each in run.model.modules())


def _calibrated(run: _Run) -> bool:
    return run.config.predictor_row.offset


def _has_no(split: str) -> Callable[[_Run], bool]:
    return lambda run: run.dataset is None or not run.dataset.has_split(split)


RULES: Final[tuple[_Rule, ...]] = (
    _Rule(
        ("data.agreed",),
        lambda run: run.config.has_own_data or run.config.data.agreed is None,
        lambda run: "only devices with data of their own (partition.name: own) go by it",
    ),
    _Rule(
        ("data.validation_fraction",), _has_no("validation"),
        lambda run: "the data set came with a validation split, which is kept",
    ),
    _Rule(
        ("data.test_fraction",), lambda run: run.config.data.official_test == "apart" or _has_no("test")(run),
        lambda run: "the data set came with a test split, which is kept",
    ),
    _Rule(
        ("data.official_test", "report.global_accuracy"),
        lambda run: run.dataset is None or run.dataset.has_split("test") or run.config.report.test_data is not None,
        lambda run: "the data set came without a test set of its own",
    ),
    _Rule(
        ("data.official_test",), lambda run: not run.config.has_own_data,
        lambda run: "each device has data of its own, and the server none",
    ),
    _Rule(
        ("report.global_accuracy",), lambda run: not run.config.has_own_data or run.config.report.test_data is not None,
        lambda run: "each device has data of its own, and the server none (report.test_data)",
    ),
    _Rule(
        ("report.test_data",), lambda run: run.config.has_own_data,
        lambda run: "it is the server's where devices have data of their own (partition.name: own)",
    ),
    _Rule(
        ("report.global_accuracy",), lambda run: not run.private or run.config.predictor_row.residual,
        lambda run: f"each client of {run.row.title} has a predictor of its own, and the server no whole model",
    ),
    _Rule(
        ("report.global_accuracy",), lambda run: run.config.shares != "nothing",
        lambda run: f"{run.row.title} has no model of all clients",
    ),
    _Rule(
        ("report.global_accuracy",), lambda run: run.config.report.split == "test",
        lambda run: "report.split leaves the test splits unread",
    ),
    *(_of_the_partitioner(setting) for setting in ("alpha", "labels_per_client", "min_examples", "path")),
    _Rule(
        ("model.cut",),
        # A factory of the user's must be given one, whether it is used or not.
        lambda run: run.private or run.row.contrasts or is_reference(run.config.model.name),
        lambda run: f"under {run.row.title} a client shares nothing" if run.row.shares == "nothing"
        else f"no part of the model is a client's own with a predictor that is {run.config.predictor_mode}",
    ),
    _Rule(
        ("predictor.mode", "predictor.strength", "predictor.smoothing"),
        lambda run: TASKS[run.config.task.name].frequencies or run.config.predictor.mode in ("local", "shared"),
        lambda run: f"the targets of {run.config.task.name} have no frequencies that a client could add: its predictor "
        f"is {run.config.predictor_mode}, without an offset",
    ),
    _Rule(
        ("predictor.mode",),
        lambda run: run.row.predictor_mode is None or run.config.predictor.mode == run.config.predictor_mode,
        lambda run: f"{run.row.title} always has its predictor {run.config.predictor_mode} "
        f"{_methods(lambda row: row.predictor_mode is None)}",
    ),
    _Rule(
        ("predictor.strength", "predictor.smoothing"),
        _calibrated,
        lambda run: f"a predictor that is {run.config.predictor_mode} has no offset (predictor.mode calibrated or "
        "residual has)",
    ),
    _Rule(
        ("predictor.smoothing",), lambda run: run.config.predictor.strength > 0,
        lambda run: "predictor.strength is 0",
    ),
    _Rule(
        ("predictor.shrinkage",),
        lambda run: run.config.predictor_row.residual,
        lambda run: f"the predictor is {run.config.predictor_mode}, not residual",
    ),
    _Rule(
        ("training.local_epochs",),
        lambda run: run.config.training.local_steps is None,
        lambda run: "training.local_steps says how long a client trains",
    ),
    _Rule(
        ("training.momentum", "training.nesterov"),
        lambda run: run.config.training.optimizer == "sgd",
        lambda run: f"training.optimizer is {run.config.training.optimizer}, not sgd",
    ),
    _Rule(
        ("training.beta_1", "training.beta_2", "training.epsilon"),
        lambda run: run.config.training.optimizer in ADAPTIVE_OPTIMIZERS,
        lambda run: f"training.optimizer is {run.config.training.optimizer}, not adam or adamw",
    ),
    _Rule(
        ("training.step_rounds", "training.step_factor"),
        lambda run: run.config.training.schedule == "step",
        lambda run: f"training.schedule is {run.config.training.schedule}, not step",
    ),
    _only_where("training.proximal_mu", fact=lambda row: row.proximal, lacks="has no proximal pull"),
    _only_where("training.dynamic_alpha", fact=lambda row: row.dynamic, lacks="has no linear term in its loss"),
    _only_where("training.personal_pull", fact=lambda row: row.personal, lacks="has no models of its clients' own"),
    _only_where(
        "training.contrast_weight", "training.contrast_temperature",
        fact=lambda row: row.contrasts, lacks="has no loss on representations",
    ),
    _only_where("training.head_epochs", fact=lambda row: row.head_first, lacks="does not train the predictor first"),
    _only_where("training.finetune_epochs", fact=lambda row: row.fine_tunes, lacks="does not fine-tune"),
    _Rule(_OF_STATISTICS, _has_statistics, lambda run: "the model has no BatchNorm with running statistics"),
    _Rule(_OF_STATISTICS[1:], lambda run: run.config.training.batch_norm != "shared", lambda run: "all have the same"),
    _Rule(tuple(f"selection.{kind}" for kind in BUDGET_KINDS), _budget_is_read, _no_budget),
    _Rule(
        ("selection.clients",),
        lambda run: run.chooses or run.leaves_out,
        lambda run: "all clients send one set of channels" if run.row.static_mask else _no_budget(run),
    ),
    _Rule(
        ("report.best", "server.stop_after"),
        lambda run: run.row.shares != "nothing" and not run.row.evaluates_own,
        lambda run: f"{run.row.title} has no model of all clients that could be the best",
    ),
    _Rule(
        ("report.prototype_examples",),
        lambda run: run.config.report.findings is not None,
        lambda run: "there are no findings without report.findings",
    ),
    _only_where("selection.selector", fact=lambda row: row.selects, lacks="has clients that do not choose channels"),
    _Rule(
        tuple(f"agent.{key}" for key in ("reward", "samples", "tuning", "tuning_rounds", "max_share", "policy")),
        lambda run: run.row.selects and run.config.selection.selector == "agent",
        _no_agent,
    ),
    _Rule(
        ("selection.when",),
        lambda run: run.chooses or not run.row.selects,  # of which `before` is an error
        lambda run: f"selection.selector {run.config.selection.selector} chooses no part of the network",
    ),
    _Rule(
        ("agent.reward",),
        lambda run: not run.config.trains_parts,
        lambda run: "before training nothing is sent yet, and networks are measured that are cut (selection.when)",
    ),
    _Rule(
        ("agent.tuning", "agent.tuning_rounds"), lambda run: run.config.agent.samples > 0,
        lambda run: "agent.samples is 0",
    ),
    _only_where(
        "control.damping", "control.half_life", "control.downlink", "control.catch_up",
        fact=lambda row: row.controls, lacks="has no control variates",
    ),
    _only_where(
        "server_optimizer.name", "server.learning_rate", "server.norm_bound", "server.aggregation",
        "server.trim_fraction", "server.clip", "server.max_weight",
        "privacy.noise_multiplier", "privacy.clip", "privacy.delta",
        "wire.target_ratio", "wire.uplink", "wire.downlink", "wire.rounding", "wire.downlink_steps",
        fact=lambda row: row.shares != "nothing", lacks="shares nothing",
    ),
    _Rule(
        ("wire.downlink_steps",),
        lambda run: run.has_chosen_steps,
        lambda run: "the choice is for wire.downlink: adaptive without wire.target_ratio",
    ),
    _Rule(
        ("wire.rounding",),
        lambda run: run.config.wire.uplink == "adaptive"
        or (run.has_chosen_steps and not run.config.wire.downlink_steps),
        lambda run: f"wire.uplink is {run.config.wire.uplink}, not adaptive, nor does it choose wire.downlink_steps",
    ),
    _Rule(
        ("server_optimizer.momentum",),
        lambda run: run.config.server_optimizer.name == "momentum",
        lambda run: f"server_optimizer.name is {run.config.server_optimizer.name}, not momentum",
    ),
    _Rule(
        ("server_optimizer.beta_1", "server_optimizer.beta_2", "server_optimizer.tau"),
        lambda run: run.config.server_optimizer.name in ADAPTIVE,
        lambda run: f"server_optimizer.name is {run.config.server_optimizer.name}, not {' or '.join(sorted(ADAPTIVE))}",
    ),
    _Rule(
        ("server.norm_bound",),
        lambda run: run.config.privacy.noise_multiplier is None,
        lambda run: "with privacy, what becomes of an update does not depend on others; privacy.clip bounds it",
    ),
    _Rule(
        ("server.trim_fraction",),
        lambda run: run.config.server.aggregation in TRIMMING or is_reference(run.config.server.aggregation),
        lambda run: f"server.aggregation is {run.config.server.aggregation}, none of {', '.join(TRIMMING)}",
    ),
    _Rule(
        ("server.max_weight",),
        lambda run: run.config.has_own_data,
        lambda run: "the server knows how many examples each client has (partition own is where it does not)",
    ),
    _Rule(
        ("server.connect_timeout_seconds", "server.round_timeout_seconds", "server.patience"),
        lambda run: not run.in_process,
        lambda run: "clients in one process neither connect nor are waited for (engine inline)",
    ),
    _Rule(
        ("server.ask_again_after",),
        lambda run: not run.in_process and not run.shares_resources,
        lambda run: "no message of a simulation is lost on its way",
    ),
    _Rule(
        ("server.give_up_seconds",),
        lambda run: not run.in_process and not run.shares_resources,
        lambda run: "clients of a simulation that have gone do not come back",
    ),
    _Rule(
        ("privacy.clip", "privacy.delta"),
        lambda run: run.config.privacy.noise_multiplier is not None,
        lambda run: "there is no privacy without privacy.noise_multiplier",
    ),
    _Rule(
        ("resources.cpus_per_client", "resources.gpus_per_client", "resources.ray_address"),
        lambda run: run.shares_resources,
        lambda run: "only engine ray shares out a machine's resources",
    ),
    _Rule(
        ("training.group_size",),
        lambda run: run.in_process and not run.config.trains_parts and not run.row.contrasts,
        lambda run: "only engine inline trains clients as one program" if not run.in_process
        else "clients of this method train by themselves",
    ),
    _Rule(("resources.workers",), lambda run: run.in_process, lambda run: "only engine inline forks processes"),
    _Rule(
        ("report.compare_alone",),
        lambda run: run.config.method != "local",
        lambda run: "these clients train alone already",
    ),
)  # fmt: skip
