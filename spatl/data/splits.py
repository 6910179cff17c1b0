"""Splits of a client's examples: for training, for choosing, for reporting."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.data.dataset import SPLITS, Dataset
from spatl.errors import DataError
from spatl.seeding import generator, numpy_generator
from spatl.tensors.inputs import Inputs, NamedInputs, joined_inputs, one_tensor, shapes_of

_ENOUGH_TO_TRAIN: Final = 2  # BatchNorm needs two


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs with their targets.

    Attributes:
        inputs: `[N, ...]`, float32, or whole numbers such as tokens; or several of these with names. Images are
            `[N, C, H, W]`.
        targets: `[N]`, int64.
    """

    inputs: Inputs
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Examples":
        """Return the same examples on the device."""
        return Examples(self.inputs.to(device), self.targets.to(device))

    def at(self, places: Tensor | slice) -> "Examples":
        """Return some of the examples, by their places."""
        return Examples(self.inputs[places], self.targets[places])

    @staticmethod
    def joined(parts: "Sequence[Examples]") -> "Examples":
        """Return the examples of all parts, which are at least one, one after the other."""
        return Examples(joined_inputs([each.inputs for each in parts]), torch.cat([each.targets for each in parts]))

    @property
    def images(self) -> Tensor:
        """Return the inputs where they are one tensor, as images are."""
        return one_tensor(self.inputs)

    def drawn(self, most: int, seed: int, purpose: str) -> "Examples":
        """Return at most so many of the examples, in an order without meaning that follows from a seed."""
        return self.at(torch.randperm(len(self), generator=generator(seed, purpose))[:most])


@dataclass(frozen=True, eq=False)
class ClientData:
    """Examples of one client, in three disjoint splits.

    Attributes:
        train: What gradients, normalisation statistics and fine-tuning come from; at least one example.
        validation: What choices are made on: keep ratios, masks, the agent's reward; it may be empty.
        test: What is reported. It is never trained on nor used to choose anything; it may be empty.
    """

    train: Examples
    validation: Examples
    test: Examples

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of training, validation and test examples."""
        return len(self.train), len(self.validation), len(self.test)

    @property
    def nbytes(self) -> int:
        """Bytes of all its examples."""
        return sum(each.inputs.nbytes + each.targets.nbytes for each in (self.train, self.validation, self.test))


def client_data(
    dataset: Dataset,
    indices: Tensor,
    *,
    client: int,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    noise_variance: float = 0.0,
    apart: Sequence[str] = (),
) -> ClientData:
    """Split a client's share of the data set.

    The split is a random permutation, without stratification, and depends on the seed, the client and its indices
    only: it is the same in every round and in every process. The test split is never trained on nor used to choose
    anything. Noise, if there is any, is part of the client's images and depends on the same.

    Of a data set that came with a validation or a test split, a client's is what of that it was given, and nothing else
    is; the fractions then say nothing.

    Args:
        dataset: The whole data set.
        indices: `[n]`, int64, distinct, in `[0, len(dataset))`: what `partition` gave the client.
        client: The client's partition id.
        seed: The run's seed.
        validation_fraction: Share of the validation split, in (0, 1); rounded, but at least one example where there
            are four or more.
        test_fraction: Share of the test split, in (0, 1); likewise where there are three or more.
        noise_variance: Variance of the Gaussian noise on all of the client's pixels, which have variance 1 themselves
            over the whole data set; 0 changes no bit.
        apart: Splits that the data set was published with and that are no client's; clients draw such of their own.

    Returns:
        The three splits, copied out of the data set.

    Raises:
        DataError: A fraction or the variance is out of range, the indices are not the data set's, or there is no
            training example.
    """
    places = split_places(
        dataset, indices, client=client, seed=seed, validation_fraction=validation_fraction,
        test_fraction=test_fraction, apart=apart,
    )  # fmt: skip
    return taken(dataset, indices, places, client=client, seed=seed, noise_variance=noise_variance)


def taken(
    dataset: Dataset, indices: Tensor, places: Iterable[Tensor], *, client: int, seed: int, noise_variance: float
) -> ClientData:
    """Copy a client's splits out of the data set, given their places, as `split_places` returns them.

    Raises:
        DataError: The variance is out of range.
    """
    if not 0 <= noise_variance < math.inf:
        raise DataError(f"noise_variance must be at least 0 and finite, got {noise_variance}")
    inputs, labels = dataset.inputs[indices], dataset.targets[indices]
    if noise_variance > 0:
        inputs = _with_noise(inputs, noise_variance, seed=seed, client=client)
    train, validation, test = (Examples(inputs[each], labels[each]) for each in places)
    return ClientData(train, validation, test)


def split_places(
    dataset: Dataset,
    indices: Tensor,
    *,
    client: int,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    apart: Sequence[str] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of the training, validation and test examples of a client among its own (`client_data`).

    Raises:
        DataError: A fraction is out of range, the indices are not the data set's, or fewer than two examples are left
            for training.
    """
    _check_shares(validation_fraction, test_fraction)
    if not _are_distinct_positions(indices, len(dataset)):
        raise DataError(f"client {client}: indices must be int64, distinct and in [0, {len(dataset)})")
    order = torch.randperm(len(indices), generator=generator(seed, "splits", client=client))
    return _places(
        dataset, indices, order, client=client, validation_fraction=validation_fraction, test_fraction=test_fraction,
        apart=apart,
    )  # fmt: skip


def _check_shares(validation_fraction: float, test_fraction: float) -> None:
    if not (validation_fraction > 0 and test_fraction > 0 and validation_fraction + test_fraction < 1):
        raise DataError(
            "validation_fraction and test_fraction must be positive and add up to less than 1, "
            f"got {validation_fraction} and {test_fraction}"
        )


def _places(
    dataset: Dataset,
    indices: Tensor,
    order: Tensor,
    *,
    client: int,
    validation_fraction: float,
    test_fraction: float,
    apart: Sequence[str],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of the training, validation and test examples among a client's own, which are in an order.

    Of few examples, training has two before there is one for testing, and the test split one before validation has any.

    Raises:
        DataError: There is none to train on.
    """
    published = {split: None if split in apart else _published(dataset, indices, order, split) for split in SPLITS}
    own = order if published["train"] is None else published["train"]  # what the client divides itself
    number = len(own)
    if not number:
        raise DataError(f"client {client} has no training example: a client needs one at least")
    spare = max(0, number - _ENOUGH_TO_TRAIN)
    num_test = min(spare, max(1, round(number * test_fraction))) if published["test"] is None else 0
    num_validation = (
        min(spare - num_test, max(1, round(number * validation_fraction))) if published["validation"] is None else 0
    )
    num_train = number - num_validation - num_test
    before_test = num_train + num_validation
    return (
        own[:num_train],
        own[num_train:before_test] if published["validation"] is None else published["validation"],
        own[before_test:] if published["test"] is None else published["test"],
    )


def _with_noise(inputs: Inputs, variance: float, *, seed: int, client: int) -> Tensor:
    """Return a client's inputs with Gaussian noise.

    Raises:
        DataError: They are no single tensor of numbers.
    """
    if isinstance(inputs, NamedInputs) or not inputs.is_floating_point():
        raise DataError(f"partition.feature_noise is for inputs of one tensor of numbers, got {shapes_of(inputs)}")
    rng = numpy_generator(seed, "feature-noise", client=client)
    noise = torch.from_numpy(rng.standard_normal(tuple(inputs.shape), dtype=np.float32))
    return inputs + math.sqrt(variance) * noise


def _published(dataset: Dataset, indices: Tensor, order: Tensor, split: str) -> Tensor | None:
    """Return the places, in their order, of a client's examples of a split the data set came with; None without."""
    if dataset.splits is None or not dataset.has_split(split):
        return None
    return order[dataset.splits[indices[order]] == SPLITS.index(split)]


def _are_distinct_positions(indices: Tensor, length: int) -> bool:
    if indices.dtype != torch.int64:
        return False
    found = indices.numpy()  # whose functions take a fraction of PyTorch's time on few values, once for each client
    if not (found[1:] > found[:-1]).all():
        found = np.sort(found)
    return not len(found) or bool(found[0] >= 0 and found[-1] < length and (found[1:] > found[:-1]).all())


def batches(examples: Examples, *, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
    """Return one epoch of training batches in a random order.

    The last batch may be short; a single example left over joins the batch before it, because BatchNorm in training
    needs two values per channel. Where there is a single example at all, the batch is that example twice, whose loss
    and gradient are its own. (With `batch_size` 1 every batch is a single example, as asked.)

    Args:
        examples: On any device.
        batch_size: At least 1.
        generator: A CPU generator; the order is drawn from it at the call, not at the first batch.

    Returns:
        Pairs of inputs and targets, every example exactly once, or a single one twice.

    Raises:
        DataError: The batch size is below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    order = torch.randperm(len(examples), generator=generator).to(examples.targets.device)
    rows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if batch_size > 1 and len(order) == 1:
        rows = [order.repeat(2)]
    if batch_size > 1 and len(rows) > 1 and len(rows[-1]) == 1:
        rows[-2:] = [torch.cat(rows[-2:])]
    return ((examples.inputs[each], examples.targets[each]) for each in rows)
