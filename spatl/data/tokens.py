"""Tokens: whole numbers that stand for words or pieces of them, of which a config may say how many there are."""

from dataclasses import replace

from spatl.data.bounds import numbers
from spatl.data.dataset import Dataset
from spatl.data.labels import MAX_CLASSES
from spatl.errors import DataError
from spatl.tasks.targets import TASKS
from spatl.tensors.inputs import parts_of, shapes_of


def with_vocabulary(dataset: Dataset, num_tokens: int) -> Dataset:
    """Return a data set of so many tokens; next tokens that have no names but numbers get an output for each.

    Args:
        dataset: Inputs of whole numbers, or next tokens.
        num_tokens: How many tokens there are.

    Raises:
        DataError: There are others among the examples, or no tokens at all, or names for another number of them.
    """
    by_place = TASKS[dataset.task].by_place
    tokens = [each for _, each in parts_of(dataset.inputs) if not each.is_floating_point()]
    what = f"data.num_tokens is {num_tokens}"
    if not tokens and not by_place:
        raise DataError(
            f"{what}, but the inputs of {dataset.name!r} are no tokens, which are whole numbers: "
            f"{shapes_of(dataset.inputs)}; leave it out"
        )
    highest = max(int(each.max()) for each in (*tokens, *((dataset.targets,) if by_place else ())))
    if highest >= num_tokens:
        raise DataError(f"{what}, so that tokens must lie in [0, {num_tokens}), but {dataset.name!r} has {highest}")
    if not by_place:
        return replace(dataset, num_tokens=num_tokens)
    if num_tokens > MAX_CLASSES:
        raise DataError(f"{what}, but a network has at most {MAX_CLASSES} next tokens to choose among")
    if len(dataset.class_names) != num_tokens and dataset.class_names != numbers(len(dataset.class_names)):
        raise DataError(f"{what}, but {dataset.name!r} has names for {len(dataset.class_names)} tokens")
    named = dataset.class_names if len(dataset.class_names) == num_tokens else numbers(num_tokens)
    return replace(dataset, num_tokens=num_tokens, num_classes=num_tokens, class_names=named)
