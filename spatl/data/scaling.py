"""Scale of inputs: counts, means and squares of clients' training examples, merged exactly, and what they make.

Nobody's test or validation examples are in it, and no server needs to see an example: counts, means and sums of squared
deviations add up (Chan, Golub and LeVeque 1979), so that the scale is that of all training examples together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatl.data.normalisation import Normalisation, Scale
from spatl.errors import DataError
from spatl.tasks.targets import TASKS
from spatl.tensors.inputs import NamedInputs

if TYPE_CHECKING:
    from spatl.data.dataset import Dataset

_VALUES_AT_ONCE = 1 << 22  # bounds the memory of values in float64
_FEW_VALUES = 1 << 16  # which stay in a processor's cache; for what does not depend on how many are taken at once
_LARGEST_WHOLE = 1 << 20  # whose squares add up exactly in 64 bits, 2^23 of them at a time and far beyond


@dataclass(frozen=True)
class Moments:
    """Moments of some examples' values, for each channel or feature.

    Attributes:
        count: Number of examples times the values that each has of a channel; of a feature it has one.
        means: Their means.
        squares: Sums of squared deviations from these (M2).
    """

    count: int
    means: tuple[float, ...]
    squares: tuple[float, ...]


def moments_of(inputs: Tensor, scale: Scale) -> Moments:
    """Return the moments of inputs `[n, ...]`, n at least 1, float32; none for the scale `none`."""
    if scale == "none":
        return Moments(0, (), ())
    values = _by_entry(inputs, scale)
    count = len(values) * values.shape[2]
    if all(bool(_are_small_whole_numbers(part).all()) for part in _parts(values)):
        sums = _summed(part.long().sum((0, 2)) for part in _parts(values))
        sums_of_squares = _summed(part.long().square().sum((0, 2)) for part in _parts(values))
        return _exact(count, sums.tolist(), sums_of_squares.tolist())
    means = [math.fsum(each) / count for each in _by_part(part.sum((0, 2)) for part in _doubles(values))]
    centre = torch.tensor(means, dtype=torch.float64)[:, None]
    deviating = _by_part((part - centre).square().sum((0, 2)) for part in _doubles(values))
    return Moments(count, tuple(means), tuple(map(math.fsum, deviating)))


def moments_of_each(inputs: Tensor, parts: Sequence[Tensor], scale: Scale) -> list[Moments]:
    """Return what `moments_of` returns of each part of the inputs: in a few passes where they are whole numbers.

    Args:
        inputs: `[N, ...]`, float32.
        parts: Indices of each, at least one.
        scale: Over what.
    """
    if scale == "none" or not parts:
        return [moments_of(inputs[part], scale) for part in parts]
    values, together = _by_entry(inputs, scale), torch.cat(list(parts))
    owners = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    sums = torch.zeros(len(parts), values.shape[1], dtype=torch.int64)
    sums_of_squares, are_whole = torch.zeros_like(sums), torch.ones(len(parts), dtype=torch.bool)
    at_once = max(1, _FEW_VALUES // values[0].numel())
    for indices, whose in zip(torch.split(together, at_once), torch.split(owners, at_once), strict=True):
        part = values[indices]
        whole = _are_small_whole_numbers(part).flatten(1).all(1)
        are_whole[whose[~whole]] = False
        if bool(are_whole[whose].any()):
            exact = part.long()
            sums.index_add_(0, whose, exact.sum(2))
            sums_of_squares.index_add_(0, whose, exact.square().sum(2))
    return [
        _exact(len(part) * values.shape[2], sums[place].tolist(), sums_of_squares[place].tolist())
        if is_whole
        else moments_of(inputs[part], scale)
        for place, (part, is_whole) in enumerate(zip(parts, are_whole.tolist(), strict=True))
    ]


def _exact(count: int, sums: Sequence[int], sums_of_squares: Sequence[int]) -> Moments:
    """Moments of whole numbers, the same bits on every machine where the values are, as those of pixels."""
    pairs = zip(sums, sums_of_squares, strict=True)
    squares = tuple((count * each - total**2) / count for total, each in pairs)  # whole numbers, rounded once
    return Moments(count, tuple(total / count for total in sums), squares)


def merged(moments: Sequence[Moments]) -> Moments:
    """Return the moments of all examples together, of at least one of which there are any."""
    count, means, squares = sum(each.count for each in moments), [], []
    for entry in range(len(moments[0].means)):
        mean = math.fsum(each.count * each.means[entry] for each in moments) / count
        spread = (each.count * (each.means[entry] - mean) ** 2 for each in moments)
        means.append(mean)
        squares.append(math.fsum((*spread, *(each.squares[entry] for each in moments))))
    return Moments(count, tuple(means), tuple(squares))


def deviations_of(moments: Moments) -> tuple[float, ...]:
    """Return the standard deviations; 1 for values that are all the same."""
    return tuple(math.sqrt(each / moments.count) or 1.0 for each in moments.squares)


def scaled(inputs: Tensor, normalisation: Normalisation) -> Tensor:
    """Return inputs `[N, ...]`, float32, less the means and divided by the deviations, in float64; a new tensor."""
    means, deviations = (
        torch.tensor(each, dtype=torch.float64)[:, None] for each in (normalisation.means, normalisation.deviations)
    )
    result = torch.empty(inputs.shape)
    read, written = (_by_entry(each, normalisation.scale) for each in (inputs, result))
    for values, part in zip(_parts(read, _FEW_VALUES), _parts(written, _FEW_VALUES), strict=True):
        part.copy_((values.double() - means) / deviations)
    return result


def scaled_by_training(dataset: "Dataset", training: Sequence[Tensor], scale: Scale | None) -> "Dataset":
    """Return a data set, read as found, in the scale of the clients' training examples.

    Args:
        dataset: All examples.
        training: Indices of each client's training examples; a client may have none.
        scale: Over what; None for what suits the data.

    Raises:
        DataError: There are several inputs or tokens, which have no such scale, or nobody has a training example.
    """
    scale = dataset.scale if scale is None else scale
    if scale == "none":
        return dataset
    inputs = dataset.inputs
    if isinstance(inputs, NamedInputs) or not inputs.is_floating_point():
        raise DataError(
            f"data set {dataset.name!r}: data.normalisation {scale} is for inputs of one tensor of numbers; scale "
            "these where they are loaded, and set data.normalisation: none"
        )
    parts = moments_of_each(inputs, [part for part in training if len(part)], scale)
    if not parts:
        raise DataError(f"data set {dataset.name!r}: no client has a training example to take a scale from")
    together = merged(parts)
    normalisation = Normalisation(together.means, deviations_of(together), scale)
    return replace(dataset, inputs=scaled(inputs, normalisation), normalisation=normalisation)


def targets_scaled_by_training(dataset: "Dataset", training: Sequence[Tensor]) -> "Dataset":
    """Return a data set with its targets in the scale of the clients' training examples, where its task has that.

    Each output's targets have mean 0 and variance 1 there, so that losses and learning rates do not depend on their
    units. The statistics are merged as those of inputs are.

    Args:
        dataset: All examples.
        training: Indices of each client's training examples; a client may have none.

    Raises:
        DataError: Nobody has a training example.
    """
    if not TASKS[dataset.task].is_scaled:
        return dataset
    parts = moments_of_each(dataset.targets, [part for part in training if len(part)], "feature")
    if not parts:
        raise DataError(f"data set {dataset.name!r}: no client has a training example to take a scale from")
    together = merged(parts)
    return with_target_scale(dataset, Normalisation(together.means, deviations_of(together), "feature"))


def with_target_scale(dataset: "Dataset", scale: Normalisation) -> "Dataset":
    """Return a data set, its targets as found, with them in a scale."""
    return replace(dataset, targets=scaled(dataset.targets, scale), target_scale=scale)


def _by_entry(inputs: Tensor, scale: Scale) -> Tensor:
    """Return inputs as `[N, entries, values]`: a view of those that lie in their order, as those made here do."""
    return inputs.reshape(len(inputs), -1, 1) if scale == "feature" else inputs.reshape(*inputs.shape[:2], -1)


def _are_small_whole_numbers(values: Tensor) -> Tensor:
    return (values.abs() <= _LARGEST_WHOLE) & (values == values.round())


def _summed(parts: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _by_part(parts: Iterator[Tensor]) -> list[list[float]]:
    """Return for each entry what each part of the examples gives."""
    found: list[list[float]] = torch.stack(list(parts)).T.tolist()
    return found


def _doubles(values: Tensor) -> Iterator[Tensor]:
    """Yield the parts in float64, laid out in their order, in which sums have the same bits."""
    return (part.to(torch.float64, memory_format=torch.contiguous_format) for part in _parts(values))


def _parts(values: Tensor, most: int = _VALUES_AT_ONCE) -> Iterator[Tensor]:
    """Views of some examples at a time, of at most so many values where one has no more."""
    at_once = max(1, most // values[0].numel())
    return (values[start : start + at_once] for start in range(0, len(values), at_once))
