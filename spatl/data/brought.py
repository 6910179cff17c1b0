"""Examples as users bring them: arrays of any shape, data sets of PyTorch, or one of these for each client."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.arrays import dataset_of_arrays, misfit
from spatl.data.dataset import SPLITS, Dataset, misfits
from spatl.data.gathering import array_of, items_of, kind_of
from spatl.data.images import numbered
from spatl.data.labels import MAX_CLASSES, class_labels, listed, named_labels, names_given, united
from spatl.errors import DataError
from spatl.pixels.files import LARGEST_VALUE
from spatl.tasks.targets import IGNORED, TASKS, TaskName
from spatl.tensors.inputs import Inputs, NamedInputs, parts_of

_KEYS: Final = ("inputs", "targets", "groups", "splits", "class_names", "num_tokens")
EXPECTED: Final = (
    "a spatl.data.Dataset, a pair (inputs, targets), a mapping with inputs and targets, a torch Dataset of such pairs, "
    "or a list or mapping of one of these for each client"
)
"""What users may bring, in words."""


def dataset_of(found: object, *, name: str, where: str, task: TaskName = "classification") -> Dataset:
    """Return what a user brought as a data set.

    Args:
        found: One of `EXPECTED`. Of a pair, arrays `[N, H, W]` or `[N, C, H, W]` with the labels of a classification
            are read as images, as `npz` does; a mapping's are taken as they are. Of several clients, who has what is
            kept as groups, for the partitioner `natural`.
        name: What it is called.
        where: Where it is from, for messages.
        task: What the targets are for, as of `task.name`.

    Raises:
        DataError: It is something else, or its parts do not fit.
    """
    if isinstance(found, Dataset):
        return found
    if isinstance(found, Mapping) and "inputs" in found:
        return _of_mapping(found, name=name, where=where, task=task)
    if _is_pair(found):
        inputs, targets = found
        if task == "classification" and not isinstance(inputs, Mapping) and _are_images(array_of(inputs, where)):
            return dataset_of_arrays(name, array_of(inputs, where), array_of(targets, where), where=where)
        return examples_of(inputs, targets, name=name, where=where, task=task)
    if are_of_clients(found):
        return _of_clients(found, name=name, where=where, task=task)
    if _has_items(found):
        inputs, targets = items_of(found, where)
        return examples_of(inputs, targets, name=name, where=where, task=task)
    raise DataError(f"{where} must return {EXPECTED}, got {kind_of(found)}")


def _has_items(found: object) -> bool:
    """Return whether what a user brought may be a data set of PyTorch: it has items, and is nothing that has others."""
    is_one = hasattr(found, "__getitem__") and hasattr(found, "__len__")
    return is_one and not isinstance(found, str | bytes | Mapping | np.ndarray | Tensor)


def are_of_clients(found: object) -> TypeGuard[Mapping[Any, Any] | Sequence[Any]]:
    """Return whether what a user brought is one data set for each client, in a list or by name."""
    if isinstance(found, Mapping):
        return bool(found) and "inputs" not in found
    return isinstance(found, list | tuple) and bool(found) and not _is_pair(found)


def _is_pair(found: object) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(found, tuple) and len(found) == 2


def examples_of(
    inputs: object, targets: object, *, name: str, where: str, task: TaskName, groups: object = None,
    splits: object = None, class_names: Sequence[str] = (), num_tokens: int | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:  # fmt: skip
    """Return arrays of any shape as a data set.

    Args:
        inputs: Floating point `[N, ...]`; whole numbers, which are tokens unless they are 8-bit pixels of three
            dimensions or more; or a mapping of such, by name.
        targets: As the task has them; of a classification whole numbers or texts `[N]`.
        name: What it is called.
        where: Where it is from, for messages.
        task: What the targets are for.
        groups: Whole numbers or texts `[N]`: whose each example is.
        splits: `[N]`: `train`, `validation` or `test`, or their numbers from 0.
        class_names: Names of the outputs, in their order: of a classification's labels that are texts each is one of
            them, numbers count them from 0. Without any, names are the labels, sorted.
        num_tokens: How many tokens there are; the largest and one if it is not given.
        notes: What a user should know of how it was read.

    Raises:
        DataError: Something does not fit.
    """
    if isinstance(inputs, Mapping):
        if not inputs or not all(isinstance(key, str) and key.isidentifier() for key in inputs):
            raise DataError(
                f"{where}: several inputs must have names as of Python's variables, got {list(inputs)!r:.60}"
            )
        tensors = {
            str(key): _input(array_of(each, where), f"{where}: the input {key!r}") for key, each in inputs.items()
        }
        values: Inputs = NamedInputs(tensors)
        length, scale = len(next(iter(tensors.values()))), "none"
    else:
        values = _input(array_of(inputs, where), f"{where}: inputs")
        length = len(values)
        scale = "none" if not values.is_floating_point() else "feature" if values.dim() == 2 else "channel"
    num_tokens = None if num_tokens is None else _count(num_tokens, where)
    given, aims = names_given(class_names, where), array_of(targets, where)
    if given and TASKS[task].labels:
        labels = named_labels(name, aims, given)
        found, names, told = torch.from_numpy(labels.numbers), given, labels.notes
    else:
        found, names, told = targets_of(aims, task, name=name, where=where, inputs=values, num_tokens=num_tokens)
    if len(found) != length:
        raise DataError(f"{where}: targets must be {length}, one per example, got {len(found)}")
    if given and len(given) != len(names) and not TASKS[task].by_place:
        raise DataError(f"{where}: class_names must be {len(names)}, one for each output, got {len(given)}")
    names = given or names
    owned, owners = (None, ()) if groups is None else _groups(array_of(groups, where), length, where)
    return Dataset(
        name, values, found, num_classes=len(names), class_names=names, notes=(*notes, *told), scale=scale,  # type: ignore[arg-type]
        groups=owned, group_names=owners,
        splits=None if splits is None else _splits(array_of(splits, where), length, where),
        num_tokens=len(names) if TASKS[task].by_place else num_tokens, task=task,
    )  # fmt: skip


def targets_of(
    values: NDArray[Any], task: TaskName, *, name: str, where: str, inputs: Inputs, num_tokens: int | None = None
) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """Return targets as a task has them, the names of the outputs, and what to tell of them.

    Raises:
        DataError: They are of another kind.
    """
    if task == "classification":
        labels = class_labels(name, values)
        return torch.from_numpy(labels.numbers), labels.names, labels.notes
    if values.dtype.kind not in "biuf" or values.size == 0:
        raise misfit(where, f"the targets of {task} must be numbers", values)
    if task == "next-token":
        return _next_tokens(values, where, inputs, num_tokens)
    if values.ndim > 2:
        raise misfit(where, f"the targets of {task} must be numbers [N] or [N, K]", values)
    found = torch.from_numpy(values.astype(np.float32))
    found = found if found.dim() > 1 else found[:, None]
    return found, tuple(map(str, range(found.shape[1]))), ()


def _next_tokens(
    values: NDArray[Any], where: str, inputs: Inputs, num_tokens: int | None
) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """Return the next token at each place of sequences `[N, T]`, and the names of the tokens: their numbers."""
    if values.dtype.kind not in "iu" or values.ndim != 2:
        raise misfit(where, "the targets of next-token must be whole numbers [N, T], the token after each", values)
    tokens = _whole(values, where)
    seen = [each for _, each in parts_of(inputs) if not each.is_floating_point()]
    if isinstance(inputs, Tensor) and seen and inputs.shape[1:2] != tokens.shape[1:]:
        raise DataError(
            f"{where}: there must be a next token for each place of a sequence: {list(inputs.shape)} of inputs, got "
            f"targets {list(tokens.shape)}"
        )
    highest = max(int(tokens.max()), *(int(each.max()) for each in seen), 0)
    if highest >= MAX_CLASSES:
        raise DataError(f"{where}: tokens must be below {MAX_CLASSES:,}, got {highest:,} (are these ids?)")
    if (lowest := tokens[tokens != IGNORED]).numel() and int(lowest.min()) < 0:
        raise DataError(
            f"{where}: tokens are 0 or more, and {IGNORED} where a next token does not count, got {int(lowest.min())}"
        )
    if num_tokens is not None and highest >= num_tokens:
        raise DataError(f"{where}: tokens must lie in [0, {num_tokens}), got {highest}")
    return tokens, tuple(map(str, range(highest + 1 if num_tokens is None else num_tokens))), ()


def _input(array: NDArray[Any], what: str) -> Tensor:
    """Return an input as a tensor."""
    if array.ndim < 2 or array.size == 0 or array.dtype.kind not in "biuf":
        hint = "; of one number each give [N, 1]" if array.ndim == 1 else ""
        raise DataError(f"{what} must be numbers [N, ...], got {array.dtype} {list(array.shape)}{hint}")
    if array.dtype.kind in "iu" and not (array.dtype == np.uint8 and array.ndim >= 3):
        if (lowest := int(array.min())) < 0:
            raise DataError(
                f"{what} of whole numbers are tokens, which are 0 or more, got {lowest}; give other numbers as floats"
            )
        return _whole(array, what)
    values = array.astype(np.float32)
    fits = np.asarray((np.abs(values) <= LARGEST_VALUE).reshape(len(values), -1).all(axis=1))  # NaN does not, either
    if not fits.all():
        raise DataError(f"{what} must be finite and at most {LARGEST_VALUE:g} in size, got {misfits(fits)}")
    return torch.from_numpy(values)


def _count(num_tokens: object, where: str) -> int:
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int | np.integer) or num_tokens < 1:
        raise DataError(f"{where}: num_tokens must be a whole number from 1, got {num_tokens!r:.60}")
    return int(num_tokens)


def _whole(array: NDArray[Any], what: str) -> Tensor:
    """Return whole numbers as int64."""
    if int(array.max()) >= 1 << 63:
        raise DataError(f"{what}: tokens must be below {MAX_CLASSES:,}, got {int(array.max()):,} (are these ids?)")
    return torch.from_numpy(array.astype(np.int64))


def _are_images(array: NDArray[Any]) -> bool:
    return array.ndim in (3, 4) and (array.dtype == np.uint8 or array.dtype.kind == "f")


def _groups(values: NDArray[Any], length: int, where: str) -> tuple[Tensor, tuple[str, ...]]:
    if values.dtype.kind not in "iuU" or values.shape != (length,):
        raise misfit(where, f"groups must be whole numbers or texts [{length}], one per example", values)
    numbers, names = numbered(values)
    return torch.from_numpy(numbers), names if values.dtype.kind == "U" else ()


def _splits(values: NDArray[Any], length: int, where: str) -> Tensor:
    if values.shape == (length,) and values.dtype.kind == "U" and set(np.unique(values)) <= set(SPLITS):
        return torch.tensor([SPLITS.index(str(value)) for value in values])
    if values.shape == (length,) and values.dtype.kind in "iu":
        return torch.from_numpy(values.astype(np.int64))
    raise misfit(where, f"splits must be {', '.join(SPLITS)}, or 0, 1, 2, for each of {length} examples", values)


def _of_mapping(found: Mapping[Any, Any], *, name: str, where: str, task: TaskName) -> Dataset:
    if odd := [key for key in found if key not in _KEYS]:
        raise DataError(f"{where}: a mapping of examples may have {', '.join(_KEYS)}, got {odd[0]!r:.60}")
    if "targets" not in found and task == "next-token":  # sequences of one token more, which are shifted by one
        tokens = array_of(found["inputs"], where)
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise misfit(
                where, "inputs without targets must be tokens [N, T + 1], of which each predicts the next", tokens
            )
        found = {**found, "inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    if "targets" not in found:
        raise DataError(f"{where}: a mapping with inputs must have targets too")
    more = {key: found[key] for key in _KEYS[2:] if found.get(key) is not None}
    return examples_of(found["inputs"], found["targets"], name=name, where=where, task=task, **more)


def _of_clients(found: Mapping[Any, Any] | Sequence[Any], *, name: str, where: str, task: TaskName) -> Dataset:
    """Return the examples of several clients, with whose each is."""
    brought = dict(found.items() if isinstance(found, Mapping) else enumerate(found))
    told = {owner: each for owner, each in brought.items() if isinstance(each, Mapping) and "inputs" in each}
    if any(set(each) != {"inputs", "targets"} for each in told.values()):  # which say more, or leave it to their shift
        for owner, each in told.items():
            brought[owner] = _of_mapping(each, name=name, where=f"{where}: client {owner!r}", task=task)
    named = {str(owner): each for owner, each in brought.items()}
    if len(named) < len(found):
        raise DataError(f"{where}: two clients have the same name, of {listed([str(owner) for owner in found])}")
    own = {owner: each for owner, each in named.items() if isinstance(each, Dataset)}
    facts = _facts_of(own, len(named), where, task)
    pairs = {str(owner): _pair_of(each, f"{where}: client {owner!r}") for owner, each in brought.items()}
    inputs = _joined([each for each, _ in pairs.values()], list(pairs), where)
    targets = {owner: array_of(each, where) for owner, (_, each) in pairs.items()}
    for owner, (each, _) in pairs.items():
        first = next(iter(each.values())) if isinstance(each, Mapping) else each
        if targets[owner].ndim == 0 or len(first) != len(targets[owner]):
            raise DataError(
                f"{where}: client {owner!r} must have as many targets as inputs, got {len(first)} inputs and targets "
                f"{list(targets[owner].shape)}"
            )
        if not len(first):
            raise DataError(f"{where}: client {owner!r} has no example; leave it out, or give it some")
    if len({(each.shape[1:], each.dtype.kind) for each in targets.values()}) > 1:
        kinds = ", ".join(sorted({f"{each.dtype} {list(each.shape[1:])}" for each in targets.values()}))
        raise DataError(f"{where}: all clients must have targets of one kind, got {kinds}")
    owners = np.repeat(np.arange(len(pairs)), [len(each) for each in targets.values()])
    names = np.array(list(pairs)) if isinstance(found, Mapping) else np.arange(len(pairs))
    together = examples_of(
        inputs, np.concatenate(list(targets.values())), name=name, where=where, task=task, groups=names[owners],
        **facts,
    )  # fmt: skip
    return _as_told(together, list(own.values()), where)


def _facts_of(own: Mapping[str, Dataset], number: int, where: str, task: TaskName) -> dict[str, Any]:
    """Return what data sets of clients say beside their examples, where that is what clients brought.

    Raises:
        DataError: They do not go together.
    """
    if not own:
        return {}
    if len(own) < number:
        raise DataError(f"{where}: of {number} clients {len(own)} have a Dataset; give all of them one, or none")
    for owner, each in own.items():
        if each.task != task:
            raise DataError(f"{where}: client {owner!r} has targets for {each.task}, the task is {task} (task.name)")
    with_splits = [owner for owner, each in own.items() if each.splits is not None]
    if with_splits and len(with_splits) < number:
        without = listed([owner for owner in own if owner not in with_splits])
        raise DataError(f"{where}: some clients' examples have splits, those of {without} have none; give all or none")
    longest = max((each.class_names for each in own.values()), key=len)
    odd = {
        owner: each.class_names for owner, each in own.items() if each.class_names != longest[: len(each.class_names)]
    }
    same_number = TASKS[task].by_place or len({len(each.class_names) for each in own.values()}) == 1
    if not TASKS[task].labels and (odd or not same_number):
        told = "; ".join(f"client {owner!r}: {listed(each.class_names)}" for owner, each in own.items())
        raise DataError(f"{where}: all clients must have the same outputs by name, got {told:.300}")
    tokens = [each.num_tokens for each in own.values() if each.num_tokens is not None]
    return {
        "splits": np.concatenate([each.splits.numpy() for each in own.values()]) if with_splits else None,  # type: ignore[union-attr]
        "num_tokens": len(longest) if TASKS[task].by_place else max(tokens, default=None),
        "class_names": () if TASKS[task].labels else longest,
    }


def _as_told(dataset: Dataset, own: Sequence[Dataset], where: str) -> Dataset:
    """Return the examples of clients' data sets with the scale of these, and with classes that no example has, too."""
    if not own:
        return dataset
    scales = {(each.scale, each.normalisation, each.target_scale) for each in own}
    if len(scales) > 1:
        raise DataError(f"{where}: all clients' examples must have one scale and normalisation, got {len(scales)}")
    ((scale, normalisation, target_scale),) = scales
    told = replace(dataset, scale=scale, normalisation=normalisation, target_scale=target_scale)
    if not TASKS[dataset.task].labels:
        return told
    classes = tuple(united(each.class_names for each in own))
    order = torch.tensor([classes.index(name) for name in dataset.class_names])
    return replace(told, targets=order[dataset.targets], num_classes=len(classes), class_names=classes)


def _joined(parts: Sequence[Any], owners: Sequence[str], where: str) -> Any:
    """Return the inputs of all clients, one after the other."""
    if all(isinstance(part, Mapping) for part in parts):
        if len({frozenset(part) for part in parts}) > 1:
            raise DataError(f"{where}: all clients must have inputs of the same names")
        return {key: _joined([part[key] for part in parts], owners, f"{where}: the input {key!r}") for key in parts[0]}
    arrays = [array_of(part, where) for part in parts]
    for owner, array in zip(owners, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:] or array.dtype.kind != arrays[0].dtype.kind:
            raise DataError(
                f"{where}: all clients must have inputs of one shape and kind, got {arrays[0].dtype} "
                f"{list(arrays[0].shape[1:])} of client {owners[0]!r} and {array.dtype} {list(array.shape[1:])} of "
                f"client {owner!r}"
            )
    return np.concatenate(arrays)


def _pair_of(found: object, where: str) -> tuple[Any, Any]:
    """Return inputs and targets of one client."""
    if isinstance(found, Mapping) and set(found) == {"inputs", "targets"}:
        return found["inputs"], found["targets"]
    if isinstance(found, Dataset):
        named = TASKS[found.task].labels
        return found.inputs, np.array(found.class_names)[found.targets.numpy()] if named else found.targets
    if _is_pair(found):
        return found
    if _has_items(found):
        return items_of(found, where)
    raise DataError(
        f"{where}: expected inputs and targets, got {kind_of(found)}; those of all clients together are a pair, or a "
        "mapping with the keys inputs and targets"
    )
