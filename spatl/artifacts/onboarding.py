"""Onboarding of a newcomer: a client that was in no round takes what a run has left, and sends nothing to anyone.

By default nothing is trained either. Encoder, shared predictor and the BatchNorm statistics of the federation's data
come with the model; all that is the newcomer's own is an offset on the logits, its class frequencies, which it counts
(`spatl.training.calibration`). From `OFFERED_FROM` examples on, the network is also fine-tuned on the newcomer's
training split, and taken if that wins on its validation split by more than the standard error of the gain. The paper's
way, a new predictor on the frozen encoder (SPATL, arXiv 2111.14345, eq. 4), is measured beside it: where the predictor
is shared there is nothing for it to win, and where it is private it is the only way to start.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from spatl.artifacts.description import check_classifies, read_description
from spatl.artifacts.model_files import RunModel, network_of, write_model
from spatl.artifacts.names import LABEL_OFFSET, MODEL, WEIGHTS
from spatl.artifacts.unfinished import UnfinishedModel
from spatl.config.training import TrainingConfig
from spatl.data import ClientData, Examples
from spatl.errors import SpatlError
from spatl.json_files import write_json
from spatl.models.copies import duplicate
from spatl.models.frozen import NORMALISATION
from spatl.models.split import Split
from spatl.models.weights import load_weights_, read_weights, state_of
from spatl.seeding import generator, seeded_globals
from spatl.training.calibration import calibrated, class_offset
from spatl.training.evaluate import recalibrate_
from spatl.training.local import train_

TRAINS_NOTHING: Final = "trains nothing"
OWN_STATISTICS: Final = "own statistics"
FINE_TUNED: Final = "fine-tuned"
NEW_HEAD: Final = "new head on the frozen encoder"
FROM_SCRATCH: Final = "from scratch"
ONBOARD: Final = "onboard.json"
"""Name of the file that says how a newcomer started."""
OFFERED_FROM: Final = 100
"""Examples of a newcomer, all splits together, from which on fine-tuning is offered."""
_FINETUNE_EPOCHS = 10
_FINETUNE_SHARE = 0.03  # of the run's learning rate: the network is nearly where it should be
_HEAD_EPOCHS = 20
_SCRATCH_EPOCHS = 60
_IMAGES_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """Row of the table: a way to start, and how it does on the newcomer's own examples.

    Attributes:
        name: The way.
        trains: Whether weights are trained.
        accuracy: On the test split.
        standard_error: Of that, as of a share of n examples; with one right and one wrong more, so that it is not 0.
        validation: Accuracy on the validation split, by which is chosen.
    """

    name: str
    trains: bool
    accuracy: float
    standard_error: float
    validation: float


@dataclass(frozen=True, eq=False)
class Onboarding:
    """Outcome of an onboarding.

    Attributes:
        model: What the newcomer uses from now on.
        taken: The row that it is.
        rows: All that were measured.
        counts: Examples of each class in the newcomer's training split, by class name.
        sizes: Training, validation and test examples.
    """

    model: RunModel
    taken: str
    rows: tuple[Row, ...]
    counts: dict[str, int]
    sizes: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _Way:
    name: str
    network: nn.Module
    offset: Tensor | None
    statistics: str
    trains: bool = False


def federations_model(directory: str | Path, unfinished: UnfinishedModel | None = None) -> RunModel:
    """Return what a run's federation has in common, for a client that has no part of its own yet.

    Where a part is each client's own (`ModelDescription.lacks`), the network has it as it was at first.

    Args:
        directory: The run's, or that of its model, from which it is read.
        unfinished: The model to take instead, of a run that is not over.

    Raises:
        SpatlError: There is no model, it is damaged, one client's, or nothing of it is shared.
    """
    place = Path(directory) / MODEL if (Path(directory) / MODEL).is_dir() else Path(directory)
    if unfinished is None:
        description = read_description(place)
        if description.client is not None:
            raise SpatlError(f"{place} holds the model of client {description.client}; name the run's directory")
        tensors: Mapping[str, Tensor] = read_weights(place / WEIGHTS, sha256=description.sha256)
    else:
        description, tensors = unfinished.description, unfinished.tensors
    check_classifies(description.task, what="spatl onboard")
    if not tensors:
        raise SpatlError(
            f"{place} holds no weights that all clients share (method {description.method}), and none for a newcomer"
        )
    network = network_of(description)
    load_weights_(network, {**state_of(network), **tensors}, where=str(place))
    return RunModel(network.eval(), description)


def onboard(
    model: RunModel,
    data: ClientData,
    settings: TrainingConfig,
    *,
    seed: int,
    finetune: bool = False,
    compare: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> Onboarding:
    """Start a newcomer with a federation's model, on its own examples alone.

    Args:
        model: As `federations_model` returns it; it is not changed.
        data: The newcomer's splits, with the federation's labels and on its scale, on the network's device.
        settings: Of the run's local training; epochs are this module's own.
        seed: Draws the order of batches and new weights.
        finetune: Whether to fine-tune, and take that where it wins; from `OFFERED_FROM` examples on it may.
        compare: Whether to train, as yardsticks, a new predictor without fine-tuning too, and a network from scratch.
        progress: Called with the name of each way before it is tried.
    """
    newcomer = _Newcomer(model, data, settings, seed)
    ways = []
    for name in newcomer.names(finetune=finetune, compare=compare):
        progress(name)
        ways.append(newcomer.start(name))
    taken, rows = ways[0], tuple(_measured(way, data) for way in ways)
    for way in ways:
        if way.name == FINE_TUNED and wins(_correct(way, data.validation), _correct(taken, data.validation)):
            taken = way
    return Onboarding(
        RunModel(taken.network, replace(model.description, statistics=taken.statistics), taken.offset),
        taken.name,
        rows,
        dict(zip(model.description.class_names, newcomer.counts, strict=True)),
        (len(data.train), len(data.validation), len(data.test)),
    )


def write_onboarding(directory: Path, outcome: Onboarding, about: Mapping[str, Any], *, client: int) -> None:
    """Write what a newcomer uses from now on, as a client's model, and `onboard.json`.

    Args:
        directory: Where to; it is made.
        outcome: As of `onboard`.
        about: What else `onboard.json` says, e.g. of the run and the data.
        client: The newcomer's number.
    """
    row = next(each for each in outcome.rows if each.name == outcome.taken)
    model = outcome.model
    description = model.description.named(client=client, lacks=(), accuracy=row.accuracy)
    private = {} if model.offset is None else {LABEL_OFFSET: model.offset}
    write_model(directory, description, state_of(model.network), private=private)
    training, validation, test = outcome.sizes
    write_json(
        directory / ONBOARD,
        {
            **about,
            "taken": outcome.taken,
            "rows": [asdict(each) for each in outcome.rows],
            "examples": {"train": training, "validation": validation, "test": test},
            "training_examples_by_class": outcome.counts,
            "uplink_bytes": 0,  # nothing below this module has a connection
        },
    )


def wins(found: Tensor, before: Tensor) -> bool:
    """Return whether one way is better than another by more than the standard error of the gain.

    With w examples that only the first has right and l that only the second has, the gain is (w - l) / n, and its
    standard error, of n paired differences, the smaller of the two exactly if (w - l)^2 > w + l.

    Args:
        found: bool [n], which of some examples the first has right.
        before: bool [n], likewise the second.
    """
    won, lost = int((found & ~before).sum()), int((before & ~found).sum())
    return won > lost and (won - lost) ** 2 > won + lost


class _Newcomer:
    """A newcomer with a federation's model: its offset, and each way to start."""

    def __init__(self, model: RunModel, data: ClientData, settings: TrainingConfig, seed: int) -> None:
        self._model, self._data, self._settings, self._seed = model, data, settings, seed
        about = model.description
        self.counts: list[int] = data.train.targets.bincount(minlength=len(about.class_names)).tolist()
        self._offset = None
        if about.offset is not None and about.offset.strength:
            self._offset = class_offset(
                data.train.targets, num_classes=len(about.class_names),
                strength=about.offset.strength, smoothing=about.offset.smoothing,
            )  # fmt: skip
        self._ways = {
            TRAINS_NOTHING: self._as_it_is,
            OWN_STATISTICS: self._with_own_statistics,
            FINE_TUNED: self._fine_tuned,
            NEW_HEAD: self._with_new_head,
            FROM_SCRATCH: self._from_scratch,
        }

    def names(self, *, finetune: bool, compare: bool) -> Sequence[str]:
        """The ways that are tried; the first is taken unless another one wins."""
        if not self._shares_predictor:
            return [NEW_HEAD, *([FROM_SCRATCH] if compare else [])]
        names = [TRAINS_NOTHING, OWN_STATISTICS]
        names += [FINE_TUNED] if finetune else []
        names += [NEW_HEAD] if (finetune or compare) and self._model.description.cut else []
        return [*names, *([FROM_SCRATCH] if compare else [])]

    def start(self, name: str) -> _Way:
        """Make the network of a way; what its layers draw follows from the seed."""
        with seeded_globals(self._seed, "onboarding"):
            return self._ways[name]()

    @property
    def _shares_predictor(self) -> bool:
        about = self._model.description
        return not any(Split(about.cut).in_predictor(name) for name in about.lacks)

    def _as_it_is(self) -> _Way:
        about = self._model.description
        if about.statistics == "client":  # there are none of all clients
            return replace(self._with_own_statistics(), name=TRAINS_NOTHING)
        return _Way(TRAINS_NOTHING, self._model.network, self._offset, about.statistics)

    def _with_own_statistics(self) -> _Way:
        network = duplicate(self._model.network)
        recalibrate_(network, self._data.train, batch_size=self._settings.batch_size)
        return _Way(OWN_STATISTICS, network, self._offset, "client")

    def _fine_tuned(self) -> _Way:
        """All weights, under the statistics as they came: few examples of one client tell less than those."""
        start = self._as_it_is()
        network = duplicate(start.network)
        parameters = dict(network.named_parameters())
        rate = self._settings.learning_rate * _FINETUNE_SHARE
        settings = self._settings.model_copy(update={"learning_rate": rate})
        self._train_(network, parameters, _FINETUNE_EPOCHS, self._offset, settings)
        return _Way(FINE_TUNED, network, self._offset, start.statistics, trains=True)

    def _with_new_head(self) -> _Way:
        """Eq. 4 of the paper: argmin over the predictor alone of the loss on the newcomer's examples."""
        start, split = self._as_it_is(), Split(self._model.description.cut)
        network = duplicate(start.network)
        for name, module in network.named_modules():
            if split.in_predictor(name) and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        parameters = {name: each for name, each in network.named_parameters() if split.in_predictor(name)}
        self._train_(network, parameters, _HEAD_EPOCHS, None, self._settings)
        return _Way(NEW_HEAD, network, None, start.statistics, trains=True)

    def _from_scratch(self) -> _Way:
        network = network_of(self._model.description.named(seed=self._seed, residual=False))
        network.to(self._data.train.images.device)
        order = generator(self._seed, "batches")
        train_(network, dict(network.named_parameters()), self._data.train, self._settings, generator=order,
               epochs=_SCRATCH_EPOCHS)  # fmt: skip
        recalibrate_(network, self._data.train, batch_size=self._settings.batch_size)
        return _Way(FROM_SCRATCH, network.eval(), None, "client", trains=True)

    def _train_(
        self, network: nn.Module, parameters: dict[str, nn.Parameter], epochs: int, offset: Tensor | None,
        settings: TrainingConfig,
    ) -> None:  # fmt: skip
        """Train some parameters; normalisation layers stay in eval mode, with the statistics that they have."""
        parameters = {name: each for name, each in parameters.items() if each.requires_grad}
        network.train()
        for layer in network.modules():
            if isinstance(layer, NORMALISATION):
                layer.eval()
        with calibrated(network, offset):
            train_(network, parameters, self._data.train, settings, generator=generator(self._seed, "batches"),
                   epochs=epochs)  # fmt: skip
        network.eval()


def _correct(way: _Way, examples: Examples) -> Tensor:
    """Bool [n]: which examples a way has right."""
    found = []
    with torch.no_grad(), calibrated(way.network, way.offset):
        way.network.eval()
        for start in range(0, len(examples), _IMAGES_AT_ONCE):
            logits = way.network(examples.images[start : start + _IMAGES_AT_ONCE])
            found.append(logits.argmax(1) == examples.targets[start : start + _IMAGES_AT_ONCE])
    return torch.cat(found)


def _measured(way: _Way, data: ClientData) -> Row:
    correct, number = int(_correct(way, data.test).sum()), len(data.test)
    share = (correct + 1) / (number + 2)
    error = math.sqrt(share * (1 - share) / number)
    validation = float(_correct(way, data.validation).double().mean())
    return Row(way.name, way.trains, correct / number, error, validation)
