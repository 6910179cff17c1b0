"""A training step before the run, on a copy: what a network of the user's does in training shows here, in one line.

One image in eval mode says little of a network: in training it may return its auxiliary heads as well, make parts when
it first needs them, let a buffer grow, or fail on the last, shorter batch. So it takes a step on the shortest batch
that a client has, then one on the longest, and the first once more from the same start, to see that what a client
leaves behind can be put back for the next one.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spatl.data import Examples
from spatl.errors import ModelError, SpatlError, told
from spatl.models.copies import check_parts, duplicate, restore_
from spatl.models.frozen import modes_kept
from spatl.models.grouped import check_grouped
from spatl.seeding import seeded_globals
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.tensors.inputs import Inputs
from spatl.training.device import check_memory_format
from spatl.training.local import train_
from spatl.training.step_weight import TrainingSettings

logger = logging.getLogger(__name__)


class ProgramSettings(Protocol):
    """Settings of how clients' networks run, as the section `training` of a config has them."""

    @property
    def memory_format(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def group_size(self) -> int: ...  # noqa: D102


def check_program(model: nn.Module, inputs: Inputs, settings: ProgramSettings, *, here: bool) -> None:
    """Raise where clients would refuse to train a network as the settings say.

    Args:
        model: The network.
        inputs: `[N, ...]`, at least one.
        settings: How it is to run.
        here: Whether the clients are of this process.

    Raises:
        ModelError: Its layers cannot be trained in the memory format, or in a group (`spatl.models.grouped`).
        ConfigError: The device is not there.
    """
    check_memory_format(model, settings.memory_format, settings.device, here=here)
    if settings.group_size > 1 and here:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kind = str(inputs.dtype) if isinstance(inputs, Tensor) else "inputs of several names"
            raise ModelError(
                "training.group_size: clients train as one program on inputs that are one tensor of floating-point "
                f"numbers, got {kind}; set it to 1"
            )
        check_grouped(model, inputs)


def rehearse(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    num_classes: int,
    client_sizes: Iterable[int],
    seed: int,
    task: Task = CLASSIFICATION,
) -> None:
    """Raise unless a network trains as a client needs it to; it stays as it was, and no generator moves.

    Args:
        model: The network as it was built.
        inputs: `[N, ...]`, at least one; they are taken again where a batch is longer.
        labels: The targets of the task, of each one.
        settings: How clients train.
        num_classes: K, so that logits are [B, K].
        client_sizes: How many training examples the clients have.
        seed: The run's seed.
        task: What the targets are for.

    Raises:
        ModelError: It fails, returns something else than logits, returns NaN, or changes its own parts.
    """
    if lazy := [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]:
        raise ModelError(f"{lazy[0]!r} of the model has no shape yet: give its lazy layers their sizes")
    found = {length for size in client_sizes for length in batch_lengths(size, settings)}
    lengths = [min(found), max(found)]
    probe = duplicate(model)
    parameters = dict(probe.named_parameters())

    def step(length: int, *, first: bool) -> Tensor:
        rows = torch.arange(length) % len(labels)
        batch = Examples(inputs[rows], labels[rows])
        shape = task.row.output_shape(batch.targets, num_classes)
        logits = _step_(probe, batch, settings, shape, task, model=model, first=first, longest=lengths[1])
        check_parts(probe, model)
        for name, parameter in probe.named_parameters():
            if parameters[name] is not parameter:
                raise ModelError(f"the model replaces its parameter {name!r} in training; change its values in place")
        return logits

    with seeded_globals(seed, "rehearsal"):
        before = step(lengths[0], first=True)
        step(lengths[1], first=False)
    _check_afterwards(probe, inputs[:1], task.row.output_shape(labels[:1], num_classes), task)
    restore_(probe, model)
    with seeded_globals(seed, "rehearsal"):
        again = step(lengths[0], first=True)
    if not torch.allclose(again.float(), before.float(), rtol=1e-3, atol=1e-4, equal_nan=True):
        logger.warning(
            "the model returns something else for the same batch, weights and seed: it draws from a generator of its "
            "own, or keeps something outside of its modules. What one client leaves there the next one finds, and the "
            "run cannot be repeated exactly"
        )


def batch_lengths(num_examples: int, settings: TrainingSettings) -> set[int]:
    """Return the lengths of the batches that a client with so many training examples sees (`spatl.data.batches`)."""
    length = settings.batch_size
    if num_examples == 1 and length > 1:
        return {2}
    whole, rest = divmod(num_examples, length)
    if rest == 1 and whole:
        whole, rest = whole - 1, length + 1
    if settings.local_steps is not None and whole >= settings.local_steps:  # the other one comes last
        return {length}
    return ({length} if whole else set()) | ({rest} if rest else set())


def _step_(
    probe: nn.Module,
    batch: Examples,
    settings: TrainingSettings,
    expected: tuple[int, ...],
    task: Task,
    *,
    model: nn.Module,
    first: bool,
    longest: int,
) -> Tensor:
    """Take one step, and return the logits it was taken on; `model` is the network as it was built."""
    seen: list[Any] = []
    handle = probe.register_forward_hook(lambda module, inputs, output: _keep_logits(seen, output, expected, task))
    parameters = {name: parameter for name, parameter in probe.named_parameters() if parameter.requires_grad}
    length = len(batch)
    try:
        result = train_(
            probe, parameters, batch, settings, generator=torch.Generator().manual_seed(0), steps=1, task=task
        )  # fmt: skip
    except SpatlError:
        raise
    except Exception as error:
        raise ModelError(_failure(error, length, longest, seen)) from error
    finally:
        handle.remove()
    logits: Tensor = seen[0]
    if first and task.tells_more:
        _rehearse_metrics(task, logits.float(), batch.targets)
    if first and not math.isfinite(result.loss):
        raise ModelError(_blame(model, batch, logits, result.loss, task))
    return logits


def _rehearse_metrics(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Raise where a metric of the user's fails on a batch, or tells other sums than it says."""
    for metric, place in zip(task.metrics, range(len(task.metrics)), strict=True):
        try:
            measure = replace(task, metrics=(metric,)).measures([(outputs, targets)])[0]
            size = 0 if metric.sums is None else metric.size(outputs.shape[-1])
        except SpatlError:
            raise
        except Exception as error:
            raise ModelError(
                f"metric {metric.name!r} failed on outputs {list(outputs.shape)}: {told(error)}"
            ) from error
        if len(measure.sums) != size:
            raise ModelError(
                f"metric {metric.name!r}, number {place + 1} of task.metrics, must tell {size} sums, as its size says, "
                f"got {len(measure.sums)}"
            )


def _blame(model: nn.Module, batch: Examples, logits: Tensor, loss: float, task: Task) -> str:
    """Return what to say of a network that has no finite loss before it was trained."""
    with torch.no_grad():
        at_rest = task.loss.mean(duplicate(model).eval()(batch.inputs).float(), batch.targets)
    where = "in training mode, though not in eval mode: its normalisation may divide by a variance of 0"
    if not bool(at_rest.isfinite()):
        where = "both in training mode and in eval mode"
    what = "returns NaN" if bool(logits.isnan().any()) else f"has a loss of {loss:g}"
    return (
        f"the model {what} on the first batch of {len(batch)}, before any step, {where}; inputs and weights are "
        "finite, so that it is the forward pass that makes it so, and no learning rate helps"
    )


def _keep_logits(seen: list[Any], output: Any, expected: tuple[int, ...], task: Task) -> None:
    what = f"{task.row.outputs} of shape {expected} for a batch of {expected[0]}"
    if not isinstance(output, Tensor):
        names = ", ".join(type(each).__name__ for each in output) if isinstance(output, tuple | list) else ""
        raise ModelError(
            f"in training the model must return {what}, got "
            f"{type(output).__name__}{f' of {names}' if names else ''}: leave out what comes beside them, such as "
            "auxiliary heads"
        )
    if tuple(output.shape) != expected or not output.is_floating_point():
        raise ModelError(f"in training the model must return {what}, got {tuple(output.shape)} of {output.dtype}")
    seen.append(output.detach().clone())


def _failure(error: Exception, length: int, longest: int, seen: list[Any]) -> str:
    where = f"the model fails in training on a batch of {length}"
    if length < longest:
        where += f", the shortest that a client has (the longest: {longest})"
    if seen and "does not require grad" in str(error):
        return f"{where}: its logits depend on no parameter that is trained ({told(error)})"
    hint = ""
    if "more than 1 value per channel" in str(error):
        hint = "; BatchNorm needs two: raise training.batch_size" if length == 1 else ""
    return f"{where}: {told(error)}{hint}"


def _check_afterwards(probe: nn.Module, example: Inputs, expected: tuple[int, ...], task: Task) -> None:
    """Raise if a network that has trained cannot be evaluated any more."""
    try:
        with modes_kept(probe), torch.no_grad():
            output = probe.eval()(example)
    except Exception as error:
        raise ModelError(f"the model fails on one example in eval mode once it has trained: {told(error)}") from error
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        raise ModelError(
            f"for one example the model must return {task.row.outputs} of shape {expected}, got {found} once it has "
            "trained"
        )
