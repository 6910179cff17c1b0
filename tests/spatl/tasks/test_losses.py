"""Losses worked by hand, and in all three forms."""

import math

import pytest
import torch
from torch import Tensor

from spatl.errors import ConfigError, ModelError
from spatl.tasks.losses import LOSSES, make_loss
from spatl.tasks.targets import IGNORED, TaskName

CASES: dict[tuple[TaskName, str], tuple[Tensor, Tensor, list[float]]] = {
    # Two classes of equal logits: log 2; of logits 0 and log 3 the second has 3/4.
    ("classification", "cross-entropy"): (
        torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 1]), [math.log(2), math.log(4 / 3)],
    ),
    # A logit of 0 is a half: log 2 whatever the label; log 3 is 3/4.
    ("multi-label", "binary-cross-entropy"): (
        torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        [math.log(2), (math.log(4 / 3) + math.log(4)) / 2],
    ),
    ("regression", "mse"): (torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]]), [1.0, 9.0]),
    ("regression", "mae"): (torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]]), [1.0, 3.0]),
    # Half the square up to 1, and from there the size less a half.
    ("regression", "huber"): (torch.tensor([[0.5], [5.0]]), torch.tensor([[0.0], [2.0]]), [0.125, 2.5]),
    # Four tokens of equal logits: log 4 each; the first sequence has one that counts, the second two.
    ("next-token", "cross-entropy"): (
        torch.zeros(2, 2, 4), torch.tensor([[1, IGNORED], [0, 3]]), [math.log(4), math.log(4)],
    ),
}  # fmt: skip


def test_each_loss_has_a_case() -> None:
    assert set(CASES) == {(task, name) for task, table in LOSSES.items() for name in table}


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_loss_worked_by_hand(task: TaskName, name: str) -> None:
    outputs, targets, each = CASES[task, name]
    loss = make_loss(name, task)
    assert loss.each(outputs, targets).tolist() == pytest.approx(each)
    assert float(loss.mean(outputs, targets)) == pytest.approx(sum(each) / 2)
    mean = float(loss.total(outputs, targets)) / loss.num_terms(targets)
    assert mean == pytest.approx(float(loss.mean(outputs, targets)))


def test_the_mean_of_sequences_is_that_of_the_tokens_that_count() -> None:
    """One token of log 2 and two of log 4: log 2 / 3 + 2 log 4 / 3."""
    outputs = torch.zeros(2, 2, 4)
    outputs[0, 0, 2:] = -100
    targets = torch.tensor([[1, IGNORED], [0, 3]])
    loss = make_loss(None, "next-token")
    assert float(loss.mean(outputs, targets)) == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert loss.num_terms(targets) == 3
    assert float(loss.mean(outputs, torch.full_like(targets, IGNORED))) == 0


def test_a_loss_of_ones_own() -> None:
    """The pinball loss of errors 1 and -2: 0.9 and 0.2."""
    loss = make_loss("tests.support.users_tasks:quantile_loss", "regression")
    outputs, targets = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]])
    assert loss.each(outputs, targets).tolist() == pytest.approx([0.9, 0.2])
    assert float(loss.mean(outputs, targets)) == pytest.approx(0.55)
    assert float(loss.total(outputs, targets)) == pytest.approx(1.1)
    of_a_class = make_loss("tests.support.users_tasks:OfLabels", "multi-label")
    assert float(of_a_class.mean(torch.zeros(1, 2), torch.ones(1, 2))) == pytest.approx(math.log(2))


def test_a_total_over_nothing_is_0_whatever_the_mean_of_nothing_is() -> None:
    """So that sequences of padding alone do not spoil the sum of all."""
    loss = make_loss("tests.support.users_tasks:token_loss", "next-token")
    outputs, padding = torch.zeros(1, 2, 4), torch.full((1, 2), IGNORED)
    assert loss.mean(outputs, padding).isnan()
    assert float(loss.total(outputs, padding)) == 0.0
    assert float(loss.total(outputs, torch.tensor([[1, IGNORED]]))) == pytest.approx(math.log(4))


def test_a_loss_that_is_none_is_told() -> None:
    loss = make_loss("tests.support.users_tasks:a_list", "regression")
    with pytest.raises(ModelError, match="must return the mean over a batch, a single number, got list"):
        loss.mean(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="unknown loss 'mse'; known: cross-entropy"):
        make_loss("mse", "classification")
