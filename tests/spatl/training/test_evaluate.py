"""Evaluation leaves no trace, and statistics are measured anew without one."""

import copy

import pytest
import torch
from torch import nn

from spatl.data import Examples
from spatl.training.evaluate import evaluate, recalibrate_
from tests.support.training import examples, network


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_modes_weights_and_statistics_alone(training):
    model = network().train(training)
    model[3].eval()
    before = copy.deepcopy(model)
    one = evaluate(model, examples())
    assert one == evaluate(model, examples())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for now, was in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(now, was)


def test_accuracy_and_loss_by_hand():
    """Logits [2, 0] for both; labels 0 and 1: half right, losses log(1 + e^-2) and log(1 + e^2)."""

    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([[2.0, 0.0]]).repeat(len(images), 1)

    result = evaluate(Constant(), Examples(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])))
    expected = torch.log1p(torch.exp(torch.tensor([-2.0, 2.0]))).mean()
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(float(expected))


def test_recalibration_gives_the_statistics_of_the_data_and_touches_nothing_else():
    """One batch of everything: the running mean is the mean of the layer's input, the variance the unbiased one."""
    model = network().train()
    model[1].running_mean.fill_(99)
    before = copy.deepcopy(model)
    data = examples()
    recalibrate_(model, data, batch_size=1000)
    inputs = model[0](data.inputs).detach()
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, inputs.var((0, 2, 3)))
    assert model[1].momentum == before[1].momentum
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_recalibration_takes_the_first_of_more_examples_than_it_may():
    """The statistics of so many are those of a split that has no more."""
    data, few, first = examples(), network(), network()
    recalibrate_(few, data, batch_size=1000, most=7)
    recalibrate_(first, Examples(data.inputs[:7], data.targets[:7]), batch_size=1000)
    inputs = few[0](data.inputs[:7]).detach()
    torch.testing.assert_close(few[1].running_mean, inputs.mean((0, 2, 3)))
    assert torch.equal(few[1].running_var, first[1].running_var)
    recalibrate_(few, data, batch_size=1000, most=len(data))
    recalibrate_(first, data, batch_size=1000)
    assert torch.equal(few[1].running_mean, first[1].running_mean)


def test_a_model_without_batch_norm_is_not_run_to_recalibrate_it():
    class Refuses(nn.Module):
        def forward(self, images):
            raise AssertionError("was run")

    recalibrate_(Refuses(), examples(), batch_size=10)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 49, 50])
def test_recalibration_never_sees_a_batch_of_one(batch_size):
    """Statistics of tiny batches are noisy, but they are never those of the start."""
    model = network()
    model[1].running_mean.fill_(99)
    recalibrate_(model, examples(), batch_size=batch_size)
    inputs = model[0](examples().inputs).detach()
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 2, 3)), rtol=0.1, atol=0.05)
    assert float(model[1].running_var.min()) > 0
