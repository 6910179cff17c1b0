"""A client's three splits, and the batches of an epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatl.data import Dataset, Examples, batches, client_data
from spatl.data.splits import ClientData
from spatl.errors import DataError


def noisy(variance: float, *, client: int = 0, indices: Tensor | None = None) -> ClientData:
    dataset = Dataset("blank", torch.zeros(300, 1, 8, 8), torch.arange(300) % 3, num_classes=3)
    return client_data(
        dataset,
        torch.arange(300) if indices is None else indices,
        client=client,
        seed=1,
        validation_fraction=0.2,
        test_fraction=0.2,
        noise_variance=variance,
    )


def numbered(num_examples: int) -> Dataset:
    """Every image holds its own index, so that it can be recognised."""
    images = torch.arange(num_examples, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return Dataset("numbered", images, torch.arange(num_examples) % 3, num_classes=3)


def split(indices: Tensor, *, client: int = 0, seed: int = 1, validation: float = 0.1, test: float = 0.2) -> ClientData:
    return client_data(
        numbered(500), indices, client=client, seed=seed, validation_fraction=validation, test_fraction=test
    )


def rows(examples: Examples) -> list[int]:
    return [int(value) for value in examples.inputs.flatten()]


@pytest.mark.slow
@given(
    indices=st.sets(st.integers(0, 499), min_size=10, max_size=60).map(lambda found: torch.tensor(sorted(found))),
    validation=st.floats(0.01, 0.3),
    test=st.floats(0.01, 0.4),
    client=st.integers(0, 100),
)
def test_the_splits_are_disjoint_and_hold_exactly_the_clients_examples(
    indices: Tensor, validation: float, test: float, client: int
) -> None:
    data = split(indices, client=client, validation=validation, test=test)
    assert sorted(rows(data.train) + rows(data.validation) + rows(data.test)) == indices.tolist()
    assert len(data.train) >= 2
    assert len(data.validation) == max(1, round(len(indices) * validation))
    assert len(data.test) == max(1, round(len(indices) * test))


def test_labels_stay_with_their_images() -> None:
    data = split(torch.arange(100, 200))
    for examples in (data.train, data.validation, data.test):
        assert [row % 3 for row in rows(examples)] == examples.targets.tolist()


def test_seed_and_client_decide_the_split() -> None:
    first, again = split(torch.arange(100)), split(torch.arange(100))
    assert rows(first.train) == rows(again.train)
    assert rows(first.test) == rows(again.test)
    assert rows(first.test) != rows(split(torch.arange(100), client=1).test)
    assert rows(first.test) != rows(split(torch.arange(100), seed=2).test)


@pytest.mark.parametrize(
    ("number", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 0, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))]
)
def test_of_few_examples_training_has_two_before_the_others_have_any(number: int, sizes: tuple[int, int, int]) -> None:
    assert split(torch.arange(number)).sizes == sizes


@given(
    number=st.integers(1, 40), shares=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), seed=st.integers(0, 99)
)
def test_every_example_is_in_one_split_and_some_are_trained_on(
    number: int, shares: tuple[float, float], seed: int
) -> None:
    validation, test = (each / (0.01 + sum(shares)) for each in shares)
    data = split(torch.arange(number), seed=seed, validation=validation, test=test)
    assert sorted([*rows(data.train), *rows(data.validation), *rows(data.test)]) == list(range(number))
    assert len(data.train) >= min(2, number)
    assert number < 3 or len(data.test) > 0


def test_a_client_without_a_training_example_is_none() -> None:
    with pytest.raises(DataError, match="client 7 has no training example: a client needs one at least"):
        split(torch.arange(0), client=7)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.1, 0.0), (0.5, 0.5), (float("nan"), 0.1)])
def test_fractions_that_leave_a_split_empty_are_refused(validation: float, test: float) -> None:
    with pytest.raises(DataError, match=f"add up to less than 1, got {validation} and {test}"):
        split(torch.arange(100), validation=validation, test=test)


@pytest.mark.parametrize("indices", [[1, 2, 3, 3, 4], [-1, 1, 2, 3, 4], [1, 2, 3, 4, 500], [1.0, 2.0, 3.0, 4.0]])
def test_an_example_cannot_be_in_two_splits_through_a_repeated_or_foreign_index(indices: list[float]) -> None:
    with pytest.raises(DataError, match=r"client 0: indices must be int64, distinct and in \[0, 500\)"):
        split(torch.tensor(indices))


def epoch(num_examples: int, batch_size: int, seed: int = 0) -> list[list[int]]:
    dataset = numbered(num_examples)
    found = []
    for images, labels in batches(
        Examples(dataset.inputs, dataset.targets), batch_size=batch_size, generator=torch.Generator().manual_seed(seed)
    ):
        found.append([int(value) for value in images.flatten()])
        assert [row % 3 for row in found[-1]] == labels.tolist()
    return found


@given(num_examples=st.integers(2, 70), batch_size=st.integers(1, 80), seed=st.integers(0, 2**32))
def test_an_epoch_visits_every_example_once(num_examples: int, batch_size: int, seed: int) -> None:
    visited = [row for batch in epoch(num_examples, batch_size, seed) for row in batch]
    assert sorted(visited) == list(range(num_examples))


@given(num_examples=st.integers(2, 70), batch_size=st.integers(2, 80))
def test_no_batch_is_a_single_example_when_there_are_two(num_examples: int, batch_size: int) -> None:
    sizes = [len(batch) for batch in epoch(num_examples, batch_size)]
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1
    assert all(size == batch_size for size in sizes[:-1])


def test_a_short_last_batch_is_kept_and_a_single_example_joins_the_batch_before() -> None:
    assert [len(batch) for batch in epoch(11, 4)] == [4, 4, 3]
    assert [len(batch) for batch in epoch(9, 4)] == [4, 5]
    assert [len(batch) for batch in epoch(1, 1)] == [1]
    assert [len(batch) for batch in epoch(3, 1)] == [1, 1, 1]


def test_a_single_example_is_a_batch_of_itself_twice() -> None:
    """BatchNorm then has two values to a channel; the mean loss and its gradient are those of the one."""
    assert epoch(1, 4) == [[0, 0]]


def test_the_generator_decides_the_order() -> None:
    assert epoch(30, 8, seed=1) == epoch(30, 8, seed=1)
    assert epoch(30, 8, seed=1) != epoch(30, 8, seed=2)


def test_a_batch_size_below_one_is_refused_before_the_first_batch() -> None:
    examples = Examples(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        batches(examples, batch_size=0, generator=torch.Generator())


def test_moved_examples_are_on_the_device() -> None:
    moved = Examples(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)).to("meta")
    assert moved.inputs.device == moved.targets.device == torch.device("meta")


def test_noise_has_the_variance_in_every_split() -> None:
    data = noisy(0.25)
    for part in (data.train, data.validation, data.test):
        assert float(part.inputs.mean()) == pytest.approx(0, abs=0.02)
        assert float(part.inputs.var()) == pytest.approx(0.25, rel=0.05)


def test_noise_is_the_clients_own_and_the_same_whenever_it_is_asked_for() -> None:
    assert noisy(0.25).test.inputs.equal(noisy(0.25).test.inputs)
    assert not noisy(0.25).test.inputs.equal(noisy(0.25, client=1).test.inputs)
    torch.testing.assert_close(noisy(1.0).train.inputs, 2 * noisy(0.25).train.inputs)


def test_noise_of_variance_zero_is_none_and_the_data_set_stays_clean() -> None:
    assert not noisy(0.0).train.inputs.any()
    dataset = numbered(20)
    before = dataset.inputs.clone()
    noisy_data = client_data(
        dataset, torch.arange(20), client=0, seed=1, validation_fraction=0.2, test_fraction=0.2, noise_variance=1.0
    )
    assert dataset.inputs.equal(before)
    assert noisy_data.train.targets.equal(split(torch.arange(20), validation=0.2, test=0.2).train.targets)


@pytest.mark.parametrize("variance", [-0.1, float("nan"), float("inf")])
def test_a_variance_that_is_none_is_refused(variance: float) -> None:
    with pytest.raises(DataError, match=f"noise_variance must be at least 0 and finite, got {variance}"):
        noisy(variance)
