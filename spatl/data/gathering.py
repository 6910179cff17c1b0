"""Arrays of what users bring: of tensors, lists, and the items of a data set of PyTorch, one by one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.arrays import misfit
from spatl.errors import DataError, SpatlError, told

_MOST_ITEMS: Final = 100_000_000


def array_of(values: object, where: str) -> NDArray[Any]:
    """Return values as an array.

    Raises:
        DataError: They are of unequal lengths, or objects, or some are masked, or they are no array's.
    """
    if np.ma.is_masked(values):
        raise DataError(f"{where}: some values are masked, as missing ones: fill them in, or leave the examples out")
    try:
        array = _of_tensor(values) if isinstance(values, Tensor) else np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"{where}: examples must all have one shape; pad or cut what has unequal lengths ({error})"
        ) from error
    except (TypeError, RuntimeError) as error:  # sparse, quantised and nested tensors, and those of no device
        raise DataError(f"{where}: numbers must be an array or a dense tensor: {told(error)}") from error
    if array.dtype.kind not in "biufU":
        raise misfit(where, "expected numbers or texts", array)
    return array


def _of_tensor(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    found: NDArray[Any] = values.float().numpy() if values.dtype in (torch.bfloat16, torch.float16) else values.numpy()
    return found


def items_of(found: Any, where: str) -> tuple[Any, Any]:
    """Return the inputs and targets of a data set of PyTorch, whose items are pairs.

    Raises:
        DataError: It fails, has no item, or one that is no pair or unlike the first.
    """
    try:
        length = len(found)
    except SpatlError:
        raise
    except Exception as error:
        raise DataError(f"{where}: its length cannot be had: {told(error)}") from error
    if not 1 <= length <= _MOST_ITEMS:
        raise DataError(f"{where}: a data set must have an example, got {length}")
    inputs, targets = [], []
    for place in range(length):
        item = _item(found, place, where)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where}: each example must be a pair of input and target, got {kind_of(item)} at {place}")
        inputs.append(item[0])
        targets.append(item[1])
    if not isinstance(inputs[0], Mapping):
        return _stacked(inputs, where), _stacked(targets, where)
    for place, each in enumerate(inputs):
        if not isinstance(each, Mapping) or each.keys() != inputs[0].keys():
            came = ", ".join(map(str, each)) if isinstance(each, Mapping) else kind_of(each)
            names = ", ".join(map(str, inputs[0]))
            raise DataError(f"{where}: all examples must have the inputs {names}, got {came:.60} at {place}")
    return {key: _stacked([each[key] for each in inputs], where) for key in inputs[0]}, _stacked(targets, where)


def _item(found: Any, place: int, where: str) -> object:
    try:
        return found[place]
    except SpatlError:
        raise
    except Exception as error:
        raise DataError(f"{where}: example {place} cannot be had: {told(error)}") from error


def _stacked(items: Sequence[Any], where: str) -> NDArray[Any]:
    arrays = [array_of(item, where) for item in items]
    for place, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{where}: all examples must have one shape, got {list(arrays[0].shape)} and {list(array.shape)} at "
                f"{place}; pad or cut what has unequal lengths"
            )
    return np.stack(arrays)


def kind_of(found: object) -> str:
    """Return what a thing is, in words."""
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)} values"
    if isinstance(found, np.ndarray | Tensor):
        return f"an array {list(found.shape)}"
    return type(found).__name__
