"""Model of the server: what of the network it has, and how good that is on the official test set of its data.

What clients report is how well each one's model does on data like the client's own. Published numbers are of one model
on one test set, the one that the data were published with: the server measures it itself, after so many rounds and at
the end (`report.global_accuracy`). Nothing is trained on these examples, and nothing chosen by them. A calibrated
predictor is told the class frequencies of that set, as a client's is told the client's (`spatl.training.calibration`).
"""

from functools import lru_cache

from torch import Tensor

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_json
from spatl.data import Dataset, Examples
from spatl.data.dataset import SPLITS
from spatl.data.own import fit
from spatl.errors import DataError
from spatl.models.copies import duplicate
from spatl.models.weights import load_weights_, state_of
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.client_data import load_as_found
from spatl.rounds.statistics import named_statistics
from spatl.training.calibration import calibrated, target_offset
from spatl.training.device import choose_device
from spatl.training.evaluate import Evaluation, evaluate
from spatl.wire.statistics import Statistics


def server_tensors(blueprint: Blueprint, *, statistics: Statistics | None, encoder: Tensor) -> dict[str, Tensor]:
    """Return the tensors of the server's model by the network's own names, without those of each client's own.

    Args:
        blueprint: The federation.
        statistics: The aggregated BatchNorm statistics, if there are any.
        encoder: float32 [N], as the clients hold it.
    """
    tensors = state_of(blueprint.model)
    for name, values in blueprint.layout.unflatten(encoder).items():
        tensors[name] = values.to(tensors[name].dtype)
    if statistics is not None:
        tensors |= named_statistics(statistics, blueprint.model, blueprint.statistics)
    lacks = set(names_of_clients(blueprint, statistics))
    return {name: tensor for name, tensor in tensors.items() if name not in lacks}


def names_of_clients(blueprint: Blueprint, statistics: Statistics | None) -> tuple[str, ...]:
    """Return the names of the tensors that are each client's own, in the model's order."""
    model, split = blueprint.model, blueprint.split
    if not blueprint.layout.num_entries:
        return tuple(state_of(model))
    own = set[str]()
    if not blueprint.config.predictor_row.residual:  # whose private part adds nothing at first
        own |= {name for name in state_of(model) if split.in_predictor(name)}
    if statistics is None and blueprint.config.training.batch_norm != "shared":
        own |= split.encoder_statistics(model).keys()
    return tuple(name for name in state_of(model) if name in own)


def official_test(blueprint: Blueprint) -> Examples | None:
    """Return the test examples that the data set was published with; None where the server may not or cannot see any.

    Devices with data of their own leave the server with those of `report.test_data`, if any, and a run that is tuned
    leaves all test splits unread.

    Raises:
        DataError: Those of `report.test_data` cannot be read, or fit in with nothing that devices have agreed on.
    """
    if blueprint.config.report.split != "test" or not _has_test(blueprint):
        return None
    dataset = _with_test(blueprint)
    if dataset.splits is None or not dataset.has_split("test"):
        return Examples(dataset.inputs, dataset.targets)
    rows = dataset.splits == SPLITS.index("test")
    return Examples(dataset.inputs[rows], dataset.targets[rows])


def _has_test(blueprint: Blueprint) -> bool:
    """Return whether the server has test examples, of a data set with a split of them or of its own."""
    if blueprint.config.has_own_data:
        return blueprint.config.report.test_data is not None
    return blueprint.dataset.has_split("test")


def _with_test(blueprint: Blueprint) -> Dataset:
    """Return the data set whose test split they are, or which they are all of where it has none."""
    config = blueprint.config
    return _servers_data(config.to_json()) if config.has_own_data else blueprint.dataset


def check_test_data(config: ExperimentConfig) -> None:
    """Raise where the test examples of `report.test_data` cannot be read, before anybody waits for devices.

    Once these have agreed on their data, it is looked at whether the server's fit in.

    Raises:
        DataError: That is so.
    """
    if config.has_own_data and config.report.test_data is not None:
        _servers_data(config.to_json())


@lru_cache(maxsize=1)
def _servers_data(config_json: str) -> Dataset:
    """Return the examples of `report.test_data`, as devices have agreed that theirs are, or as found until then."""
    config = config_from_json(config_json)
    agreed = config.data.agreed
    try:
        dataset = load_as_found(config, path=config.report.test_data)
        return dataset if agreed is None else fit(dataset, agreed.agreement())
    except DataError as error:
        raise DataError(f"report.test_data: {error}") from error


def measure_server(blueprint: Blueprint, *, statistics: Statistics | None, encoder: Tensor) -> Evaluation | None:
    """Evaluate the server's model on all of the official test set (`why_not_measured` says whether that can be).

    Args:
        blueprint: The federation.
        statistics: As of `server_tensors`.
        encoder: Likewise.

    Returns:
        None where it cannot be.
    """
    examples = official_test(blueprint)
    if examples is None or why_not_measured(blueprint, statistics) is not None:
        return None
    config, device = blueprint.config, choose_device(blueprint.config.training.device)
    model = duplicate(blueprint.model)
    load_weights_(model, server_tensors(blueprint, statistics=statistics, encoder=encoder), where="the server's model")
    examples, model = examples.to(device), model.to(device)
    offset = None
    if config.predictor_row.offset and config.predictor.strength > 0:
        offset = target_offset(
            blueprint.task.name, examples.targets, num_classes=blueprint.dataset.num_classes,
            strength=config.predictor.strength, smoothing=config.predictor.smoothing,
        )  # fmt: skip
    with calibrated(model, offset):
        return evaluate(model, examples, task=blueprint.task, precision=config.training.precision)


def why_not_measured(blueprint: Blueprint, statistics: Statistics | None) -> str | None:
    """Return why `measure_server` has no result, as the rest of a sentence; None where it has one."""
    config, title = blueprint.config, blueprint.config.row.title
    if config.has_own_data and config.report.test_data is None:
        return "each device has data of its own, and the server none (report.test_data)"
    if config.report.split != "test":
        return "report.split leaves the test splits unread"
    if not _has_test(blueprint):
        return "the data set came without a test set of its own"
    if not blueprint.layout.num_entries:
        return f"{title} has no model of all clients"
    lacks = names_of_clients(blueprint, statistics)
    if any(blueprint.split.in_predictor(name) for name in lacks):
        return f"each client of {title} has a predictor of its own, and the server none"
    if lacks:
        return "each client has BatchNorm statistics of its own, and the server none"
    return None


def summarised(blueprint: Blueprint, statistics: Statistics | None, final: Evaluation | None) -> dict[str, object]:
    """Return what a run's summary says of the server's model: how good it is, or why nobody knows.

    Nothing where the data set came without a test set, of which nobody expects it.
    """
    if not _has_test(blueprint):
        return {}
    if final is not None:
        dataset = _with_test(blueprint)
        number = dataset.size_of("test") or len(dataset)
        of_task = {} if blueprint.task.counts_hits else {"global_accuracy": None, "global_score": final.accuracy}
        return {
            "global_accuracy": final.accuracy, "global_loss": final.loss, "global_examples": number, **of_task
        }  # fmt: skip
    off = "report.global_accuracy is off" if blueprint.config.report.global_accuracy is None else None
    return {"global_accuracy": None, "no_global_accuracy": why_not_measured(blueprint, statistics) or off}
