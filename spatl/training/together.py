"""Local training of several clients as one program: the same steps, batches and hooks as each of them has alone.

Batches of one length go through the network together (`spatl.models.grouped`); losses, gradients, what a method adds
to them and the optimizer are each client's own. Numbers differ from those of each client alone in their last digits,
as sums are taken in another order, and are the same in every run of the same clients.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from spatl.data import Examples
from spatl.models.grouped import GroupedNetwork
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.tensors.inputs import Inputs
from spatl.training.contrast import Contrast
from spatl.training.hooks import GradientHook
from spatl.training.local import TrainingResult, added_up, autocast, stream, train_, wide
from spatl.training.optimizers import SGD, Optimizer, clip_gradients_, make_optimizer
from spatl.training.step_weight import StepWeight, TrainingSettings


@dataclass(frozen=True, eq=False)
class Training:
    """Local training of a client, as it is to be done; attributes as the arguments of `train_`.

    Attributes:
        model: What is trained, in place.
        structure: A network of its structure, without what a client adds to its own.
        offset: float32 [K], what a hook of the model adds to its logits; None for none.
    """

    model: nn.Module
    structure: nn.Module
    parameters: dict[str, nn.Parameter]
    examples: Examples
    settings: TrainingSettings
    generator: torch.Generator
    hooks: Sequence[GradientHook] = ()
    contrast: Contrast | None = None
    task: Task = CLASSIFICATION
    offset: Tensor | None = None

    def alone(self) -> TrainingResult:
        """Train it by itself."""
        return train_(
            self.model, self.parameters, self.examples, self.settings, generator=self.generator, hooks=self.hooks,
            contrast=self.contrast, task=self.task,
        )  # fmt: skip


class Networks:
    """Networks for groups of clients, made once for all groups of a number of members."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], GroupedNetwork] = {}

    def of(self, trainings: Sequence[Training]) -> GroupedNetwork:
        """Return a network with the weights of some clients' models, which are of one structure."""
        first = trainings[0]
        key = len(trainings), *first.parameters
        if key not in self._made:
            trained = list(first.parameters)
            self._made[key] = GroupedNetwork(first.structure, len(trainings), trained, like=first.model)
        network = self._made[key]
        for member, training in enumerate(trainings):
            network.load(member, training.model)
        return network


def train_together_(trainings: Sequence[Training], networks: Networks) -> list[tuple[TrainingResult, float]]:
    """Train the models of several clients of one federation in place, as one program.

    Args:
        trainings: What each is to do. Models are of one structure, and what they train has the same names.
        networks: What earlier calls have made.

    Returns:
        Each one's result, in the same order, and its share of the seconds that the call took.

    Raises:
        ModelError: The network cannot stand beside others.
    """
    started = time.perf_counter()
    # The longest first: those that have a whole batch left then stand side by side.
    order = sorted(range(len(trainings)), key=lambda place: -len(trainings[place].examples))
    runs = [_Run(trainings[place]) for place in order]
    group = _Group(networks.of([run.training for run in runs]), runs)
    while any(run.batch is not None for run in runs):
        for first, end in _next(runs):
            group.step(first, end)
    results = dict[int, tuple[TrainingResult, float]]()
    whole = max(1, sum(run.num_examples for run in runs))
    for member, (place, run) in enumerate(zip(order, runs, strict=True)):
        group.network.put_back_(member, run.training.model, num_steps=len(run.losses))
        results[place] = run.result(), run.num_examples / whole
    taken = time.perf_counter() - started
    return [(result, taken * share) for result, share in (results[place] for place in range(len(runs)))]


@dataclass(eq=False)
class _Run:
    """A client's training on its way: its next batch, and what it has done so far."""

    training: Training
    losses: list[Tensor] = field(default_factory=list)
    num_examples: int = 0
    batch: tuple[Inputs, Tensor] | None = None
    _stream: Iterator[tuple[Inputs, Tensor]] = field(init=False)
    optimizer: Optimizer = field(init=False)
    step_weight: StepWeight = field(init=False)

    def __post_init__(self) -> None:
        own = self.training
        epochs, steps = own.settings.local_epochs, own.settings.local_steps
        self._stream = stream(own.examples, own.settings, own.generator, epochs=epochs, steps=steps)
        self.optimizer, self.step_weight = make_optimizer(own.settings), StepWeight.of(own.settings)
        self.batch = next(self._stream, None)

    @property
    def length(self) -> int:
        """Examples of the next batch; 0 for none."""
        return 0 if self.batch is None else len(self.batch[1])

    @property
    def is_whole(self) -> bool:
        """Whether the next batch has as many examples as the settings say."""
        return self.length == self.training.settings.batch_size

    def go_on(self, loss: Tensor) -> None:
        """Go on to the batch after, once the step of the next one is done, whose mean loss is given."""
        number = self.length
        self.step_weight.step(self.training.settings.learning_rate)
        self.losses.append(loss * number)
        self.num_examples += number
        self.batch = next(self._stream, None)

    def result(self) -> TrainingResult:
        total, finite_steps = added_up(self.losses)
        mean = total / max(1, self.num_examples)
        return TrainingResult(mean, self.step_weight.value, len(self.losses), finite_steps)


def _next(runs: Sequence[_Run]) -> list[tuple[int, int]]:
    """Return who steps next, as ranges [first, end): first those with a short batch alone, then the others together."""
    short = [place for place, run in enumerate(runs) if run.batch is not None and not run.is_whole]
    if short:
        return [(place, place + 1) for place in short]
    ranges: list[tuple[int, int]] = []
    for place, run in enumerate(runs):
        if run.batch is None:
            continue
        if ranges and ranges[-1][1] == place and runs[ranges[-1][0]].length == run.length:
            ranges[-1] = ranges[-1][0], place + 1
        else:
            ranges.append((place, place + 1))
    return ranges


class _Group:
    """Clients on their way side by side, and what takes their steps.

    Args:
        network: With their weights.
        runs: Of each member of it.
    """

    def __init__(self, network: GroupedNetwork, runs: Sequence[_Run]) -> None:
        self.network, self._runs = network, runs
        self._settings, self._task = runs[0].training.settings, runs[0].training.task
        trainings = [run.training for run in runs]
        # Nothing is each client's own but numbers: one step along all gradients is a step of each.
        self._is_one_step = (
            all(each.settings == self._settings for each in trainings)
            and self._settings.optimizer == "sgd"
            and self._settings.clip_gradients is None
        )
        self._has_hooks = any(each.hooks for each in trainings)
        self._velocities = network.zeros() if self._is_one_step and self._settings.momentum else {}
        self._optimizers: dict[tuple[int, int], Optimizer] = {}
        self._offsets = None
        if (offset := trainings[0].offset) is not None:
            self._offsets = torch.stack([offset if each.offset is None else each.offset for each in trainings])

    def step(self, first: int, end: int) -> None:
        """Take the next step of some clients, which follow one another and have batches of one length."""
        these = self._runs[first:end]
        inputs, targets = list[Tensor](), list[Tensor]()
        for run in these:
            assert run.batch is not None
            assert isinstance(run.batch[0], Tensor)
            inputs.append(run.batch[0])
            targets.append(run.batch[1])
        with autocast(inputs[0].device, self._settings.precision):
            outputs = self.network.outputs(first, inputs)
            if self._offsets is not None:
                outputs = outputs + self._offsets[first:end]
            losses = self._losses(wide(outputs, self._settings.precision), targets)
        parameters = self.network.backward(losses.sum(), first, end - first)
        if self._has_hooks or not self._is_one_step:
            self.network.hand_out_gradients(first, end - first)
            self._change(first, end)
        if self._is_one_step:
            self._optimizer(first, end).step_(_as_parameters(parameters))
        for run, loss in zip(these, losses.detach().float().unbind(), strict=True):
            run.go_on(loss)

    def _losses(self, outputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return each client's mean loss [members], of outputs [B, members, K]."""
        loss = self._task.loss
        if loss.is_users:
            return torch.stack([loss.mean(own, each) for own, each in zip(outputs.unbind(1), targets, strict=True)])
        terms = loss.each(outputs.transpose(0, 1).flatten(0, 1), torch.cat(list(targets)))
        return terms.view(len(targets), -1).mean(1)

    def _change(self, first: int, end: int) -> None:
        """Do what is each client's own between the gradients and the step, and its step where that is its own too."""
        for member, run in enumerate(self._runs[first:end], start=first):
            # Parts of larger tensors, of which hooks and optimizers read what they read of a parameter.
            own = _as_parameters({name: self.network.members[member][name] for name in run.training.parameters})
            clip_gradients_(own, run.training.settings.clip_gradients)
            for hook in run.training.hooks:
                hook(own)
            if not self._is_one_step:
                run.optimizer.step_(own)

    def _optimizer(self, first: int, end: int) -> Optimizer:
        if (first, end) not in self._optimizers:
            velocities = self.network.between(self._velocities, first, end)
            self._optimizers[first, end] = SGD(self._settings, velocities)
        return self._optimizers[first, end]


def _as_parameters(tensors: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return cast("dict[str, nn.Parameter]", tensors)
