"""BatchNorm statistics of many clients are those of all their data, and no client can put in what it likes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.models import make_split
from spatl.rounds.statistics import (
    aggregate_statistics,
    gathered,
    load_statistics_,
    statistics_names,
    without_outliers,
)
from spatl.wire.statistics import Statistics


def of_values(values: torch.Tensor) -> Statistics:
    """Mean and variance (of the whole, not of a sample) of each column."""
    return Statistics(values.mean(0).float(), values.var(0, correction=0).float())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 1000), st.permutations(range(6)))
def test_statistics_put_together_are_those_of_the_pooled_data(sizes: list[int], seed: int, order: list[int]) -> None:
    rng = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 4, generator=rng, dtype=torch.float64) * (i + 1) + 3 * i for i, n in enumerate(sizes)]
    own = {client: of_values(part) for client, part in enumerate(parts)}
    shuffled = {client: own[client] for client in order if client in own}
    found = aggregate_statistics(shuffled, dict(enumerate(sizes)))
    pooled = of_values(torch.cat(parts))
    torch.testing.assert_close(found.means, pooled.means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variances, pooled.variances, rtol=1e-4, atol=1e-5)
    again = aggregate_statistics(own, dict(enumerate(sizes)))
    assert torch.equal(found.means, again.means)  # in whatever order they came, to the bit
    assert torch.equal(found.variances, again.variances)


def test_the_weights_are_the_numbers_of_examples() -> None:
    """Means 0 and 4, of 3 and 1 examples: (0 * 3 + 4 * 1) / 4 = 1; variances 2 and 6, and (1 * 3 + 9 * 1) / 4 = 3."""
    own = {
        3: Statistics(torch.tensor([0.0]), torch.tensor([2.0])),
        5: Statistics(torch.tensor([4.0]), torch.tensor([6.0])),
    }
    found = aggregate_statistics(own, {3: 3, 5: 1, 9: 100})
    assert (found.means.item(), found.variances.item()) == (1.0, 3.0 + 3.0)


def test_medians_stay_where_the_majority_is_whatever_one_client_says() -> None:
    honest = {client: Statistics(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])) for client in range(4)}
    liar = {4: Statistics(torch.tensor([9.0, 9.0]), torch.tensor([50.0, 0.0]))}
    found = aggregate_statistics({**honest, **liar}, dict.fromkeys(range(5), 10), medians=True)
    assert found.means.tolist() == [1.0, -2.0]
    assert found.variances.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("means", "variances", "refused"),
    [
        ([0.0, 0.0], [1.0, 1.0], False),
        ([3.0, -3.0], [0.2, 4.0], False),  # a client with images of its own kind
        ([0.0, 0.0], [1.0, 0.0], False),  # a channel that is dead on its data
        ([100.0, 100.0], [1.0, 1.0], True),
        ([0.0, 0.0], [1e9, 1e9], True),
        ([1e6, 0.0], [1e6, 1e6], True),
    ],
)
def test_only_what_no_data_can_be_like_is_refused(means: list[float], variances: list[float], refused: bool) -> None:
    usual = {client: Statistics(torch.zeros(2) + client / 10, torch.ones(2)) for client in range(4)}
    other = Statistics(torch.tensor(means), torch.tensor(variances))
    fitting, reasons = without_outliers({**usual, 9: other})
    assert (9 in reasons, 9 in fitting, len(fitting)) == (refused, not refused, 4 + (not refused))


def test_of_two_clients_neither_is_the_odd_one() -> None:
    both = {0: Statistics(torch.zeros(1), torch.ones(1)), 1: Statistics(torch.full((1,), 1e6), torch.ones(1))}
    assert without_outliers(both) == (both, {})


def test_where_a_model_has_no_statistics_nobody_is_odd() -> None:
    nothing = Statistics(torch.zeros(0), torch.zeros(0))
    assert without_outliers(dict.fromkeys(range(3), nothing)) == (dict.fromkeys(range(3), nothing), {})


def test_statistics_are_loaded_where_they_were_gathered_and_frozen_layers_keep_theirs() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2).half(),
            nn.BatchNorm2d(2, momentum=0), nn.Flatten(), nn.Linear(2, 2),
        )  # fmt: skip

    one, other = network(), network()
    for layer in one.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    names = statistics_names(one, make_split(one, ["6"]))
    assert list(names) == ["1", "3"]
    statistics = gathered(one, names)
    assert len(statistics.means) == 5
    load_statistics_(other, statistics, names)
    before, after = one.state_dict(), other.state_dict()
    for name in ("1.running_mean", "1.running_var", "3.running_mean", "3.running_var"):
        assert torch.equal(before[name], after[name])
    assert not after["4.running_mean"].any()
