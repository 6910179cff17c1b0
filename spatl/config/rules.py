"""Rules that hold across the sections of a config: what does not go with what, and what to take instead."""

from typing import Final

from spatl.config.report import ReportConfig
from spatl.config.sections import ControlConfig, PrivacyConfig, ServerConfig, WireConfig
from spatl.config.selection import SelectionConfig
from spatl.config.server_optimizer import ServerOptimizerConfig
from spatl.config.training import TrainingConfig
from spatl.methods import Method
from spatl.selection.table import SELECTORS
from spatl.tasks.rows import TASKS, TaskName
from spatl.training.step_weight import ADAPTIVE_OPTIMIZERS
from spatl.wire.codecs import CODECS

_MEANS: Final = ("mean", "agreement")  # of all updates, or of those that are trusted


def check_replies(server: ServerConfig, num_participants: int) -> None:
    """Raise where a round needs more replies than it has clients.

    Raises:
        ValueError: That is so.
    """
    if server.min_replies > num_participants:
        raise ValueError(f"server.min_replies is {server.min_replies}, but a round has {num_participants} clients")


def check_training(training: TrainingConfig, row: Method, num_rounds: int) -> None:
    """Raise unless clients can train so under a method, in so many rounds.

    Raises:
        ValueError: They cannot.
    """
    if row.controls and training.optimizer in ADAPTIVE_OPTIMIZERS:
        raise ValueError(
            f"training.optimizer: the control variates of {row.title} follow from updates that are sums of gradients, "
            f"which those of {training.optimizer} are not; take sgd, or a method without gradient control "
            "(spatl-no-control)"
        )
    if training.warmup_rounds >= num_rounds:
        raise ValueError(
            f"training.warmup_rounds is {training.warmup_rounds}, but the run has {num_rounds} rounds: give fewer, so "
            "that the full learning rate is reached"
        )


def check_control(
    control: ControlConfig, row: Method, wire: WireConfig, server_optimizer: ServerOptimizerConfig
) -> None:
    """Raise unless clients can come to know c as a config says.

    Raises:
        ValueError: They cannot.
    """
    if not row.controls or control.downlink != "derived":
        return
    codec = CODECS.get(wire.downlink)  # one of the user's is not imported yet: the blueprint looks at it
    if codec is not None and not codec.relative:
        raise ValueError(
            f"control.downlink: derived needs a wire.downlink that sends changes; {wire.downlink} does not"
        )
    if server_optimizer.name != "sgd":
        raise ValueError(
            "control.downlink: derived needs server_optimizer.name: sgd, whose steps tell the clients how c moved; "
            f"with {server_optimizer.name} set control.downlink: sent"
        )


def check_stopping(server: ServerConfig, report: ReportConfig, *, has_one_model: bool, keeps_best: bool) -> None:
    """Raise where a run is to stop, or to keep its best model, by validation scores that nobody tells.

    Raises:
        ValueError: That is so; not of a method that has no model of all clients, whose rounds are not watched.
    """
    if keeps_best and report.every > 1:
        raise ValueError(
            f"report.every is {report.every}, but report.best goes by the clients' accuracies in every round; leave "
            "one of them out"
        )
    if server.stop_after is not None and has_one_model and not keeps_best:
        raise ValueError(
            "server.stop_after goes by the clients' accuracies on their validation splits, which report.best: true has "
            "them tell; set it, too"
        )


def check_corrections(row: Method, server: ServerConfig) -> None:
    """Raise where the server's part of FedDyn does not follow from what it makes of the updates.

    Raises:
        ValueError: That is so.
    """
    if row.dynamic and server.aggregation not in _MEANS:
        raise ValueError(
            f"server.aggregation: {row.title} goes on from the clients' mean, which {server.aggregation} is not; take "
            f"{' or '.join(_MEANS)}"
        )


def check_parts_trained(
    selection: SelectionConfig, row: Method, server: ServerConfig, server_optimizer: ServerOptimizerConfig,
    privacy: PrivacyConfig,
) -> None:  # fmt: skip
    """Raise where clients are to train parts of the network that they cannot choose, or that do not add up.

    Raises:
        ValueError: That is so.
    """
    if selection.when != "before":
        return
    setting, entry = "selection.when: before:", SELECTORS.get(selection.selector)  # one of the user's is asked later
    if row.static_mask:
        raise ValueError(f"{setting} all clients of {row.title} train one set of channels, agreed on; leave it out")
    if not row.selects:
        raise ValueError(f"{setting} clients of {row.title} do not choose channels; take a method whose clients do")
    if entry is not None and entry.of_update:
        able = ", ".join(name for name, each in SELECTORS.items() if not each.of_update)
        raise ValueError(
            f"{setting} selection.selector {selection.selector} goes by what moved in training, which is not known "
            f"before; take one of {able}"
        )
    for fact in ("dynamic", "personal", "contrasts", "head_first", "fine_tunes"):
        if getattr(row, fact):
            raise ValueError(f"{setting} {row.title} trains whole models besides ({fact}); take another method")
    if privacy.noise_multiplier is not None:
        raise ValueError(f"{setting} what noise covers of parts that differ was not worked out; leave privacy out")
    if server.aggregation not in _MEANS:
        raise ValueError(
            f"{setting} server.aggregation {server.aggregation} does not count who sent an entry; take "
            f"{' or '.join(_MEANS)}"
        )
    if server_optimizer.name != "sgd":
        raise ValueError(
            f"{setting} server_optimizer.name {server_optimizer.name} moves entries that nobody trained; take sgd"
        )


def check_findings(report: ReportConfig, row: Method, task: TaskName, *, has_one_model: bool) -> None:
    """Raise where clients are to tell of a model that there is not, or of classes that examples have not.

    Raises:
        ValueError: That is so.
    """
    if report.findings is not None and not has_one_model:
        raise ValueError(f"report.findings: {row.title} has no model of all clients; leave it out")
    if report.findings is not None and not TASKS[task].labels:
        raise ValueError(f"report.findings: profiles are by classes, which {task} has not; leave it out")


def check_privacy(
    privacy: PrivacyConfig, row: Method, server: ServerConfig, report: ReportConfig, training: TrainingConfig
) -> None:
    """Raise unless nothing but noisy sums of updates would leave the server, where there is to be privacy.

    Raises:
        ValueError: Something else would.
    """
    if privacy.noise_multiplier is None:
        return
    if row.corrects or row.normalizes or row.static_mask:
        raise ValueError(
            f"privacy: {row.title} releases more than one sum of updates; take a method such as spatl-no-control"
        )
    if server.aggregation != "mean" or server.clip is not None:
        raise ValueError("privacy: has its own aggregation; leave server.aggregation and server.clip out")
    if report.best or report.findings is not None:
        name = "report.best" if report.best else "report.findings"
        raise ValueError(f"privacy: what {name} sends of each client would be free of noise; leave it out")
    if training.batch_norm == "shared":
        raise ValueError("privacy: noise on shared variances could make them negative; set training.batch_norm: local")
