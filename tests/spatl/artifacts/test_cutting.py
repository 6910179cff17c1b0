"""A trained network is cut to a budget, checked, re-estimated and trained a little."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from spatl.artifacts.cutting import LARGEST_DIFFERENCE, cut_network, cut_to
from spatl.artifacts.latency import measure_latency
from spatl.artifacts.runtimes import LatencyMeter
from spatl.artifacts.widths import CutBudget
from spatl.channels.masking import masked_weights
from spatl.channels.narrowing import rebuild
from spatl.channels.prunable import find_prunable
from spatl.channels.selection import Selection
from spatl.config.training import TrainingConfig
from spatl.data import Examples
from spatl.errors import BudgetError, ConfigError, DivergedError, ModelError
from spatl.models.copies import duplicate
from spatl.training.evaluate import evaluate, recalibrate_
from tests.support.cuts import EXAMPLE, chosen, dense, examples, images, settled

HALF = CutBudget("flops", 0.5)


def plain(learning_rate=0.05):
    """One epoch of SGD."""
    return TrainingConfig(local_epochs=1, batch_size=16, momentum=0.9, learning_rate=learning_rate)


def cut(name="resnet8", **options):
    network, _ = dense(name)
    given = {"budget": HALF, "train": examples(), "validation": examples(seed=5)} | options
    return network, cut_network(network, EXAMPLE, **given)


def striped(number, seed):
    """Images whose label shows: row c of class c is bright."""
    found = examples(number, seed)
    shown = 0.1 * found.inputs
    labels = found.targets % 8
    shown[torch.arange(number), 0, labels] += 2.0
    return Examples(shown, labels)


@pytest.mark.slow
def test_what_is_kept_and_what_it_costs_is_told():
    network, found = cut()
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network, found.network)]
    assert found.num_parameters == tuple(sizes)
    assert found.parameters_ratio == sizes[1] / sizes[0] < 1
    assert found.flops_ratio == found.macs[1] / found.macs[0] <= 0.5
    assert found.counts == {name: len(kept) for name, kept in found.kept.items()}
    assert found.is_cut
    assert found.counts["fc"] == found.sizes["fc"] == 10
    inner = "stage1.0.conv1"
    assert found.kept[inner] == found.cut["layers"][inner]["outputs"]
    assert found.network.get_submodule(inner).out_channels == found.counts[inner] < 16
    assert not any(module.training for module in found.network.modules())
    assert 0 <= found.difference <= LARGEST_DIFFERENCE


@pytest.mark.slow
def test_the_dense_network_is_left_as_it_was():
    network, _ = dense("resnet8")
    before, hooks = copy.deepcopy(network.state_dict()), len(network._forward_hooks)
    cut(finetune_epochs=1, training=plain(), offset=torch.arange(10.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(network._forward_hooks) == hooks


@pytest.mark.slow
def test_the_cut_network_is_the_masked_one_with_statistics_of_its_own():
    """Re-estimated on the same examples, both compute the same."""
    network, found = cut()
    prunable = find_prunable(network, EXAMPLE)
    mask = torch.zeros(prunable.layout.num_channels, dtype=torch.bool)
    for name, group in zip(prunable.names, prunable.layout.groups, strict=True):
        mask[group.first + torch.tensor(found.kept[name])] = True
    masked = duplicate(network)
    masked.load_state_dict(masked_weights(network, prunable.trace.readers, Selection(mask)), strict=False)
    recalibrate_(masked, examples(), batch_size=64)
    with torch.no_grad():
        expected, got = masked(images()), found.network(images())
        old = functional_call(network, masked_weights(network, prunable.trace.readers, Selection(mask)), (images(),))
    assert (got - expected).abs().max() <= LARGEST_DIFFERENCE * expected.abs().max()
    assert (got - old).abs().max() > 0.01 * old.abs().max()


@pytest.mark.slow
def test_the_file_of_a_cut_makes_it_again():
    network, found = cut(finetune_epochs=1, training=plain())
    again = rebuild(network, found.cut)
    again.load_state_dict(found.network.state_dict())
    assert torch.equal(again(images()), found.network(images()))


@pytest.mark.slow
def test_a_network_that_is_not_cut_keeps_its_statistics():
    network, found = cut(budget=CutBudget("flops", 1.0))
    assert not found.is_cut
    assert found.cut == {"layers": {}, "parameters": {}}
    for name, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert found.dense == found.refined.evaluation


class ByWidth(nn.Module):
    """A network whose numbers depend on how many channels it has."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 3)
        self.fails = fails

    def forward(self, images):
        features = self.stem(images).relu()
        features = features.view(-1, 16, 36).view(-1, 16, 6, 6) if self.fails else features / features.shape[1]
        return self.head(self.conv(features).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (False, r"differ from those of the masked one by .* where 1e-05 is allowed; export the model as it is"),
        (True, r"the cut network fails, perhaps because its forward depends .*; export the model as it is"),
    ],
)
def test_a_network_that_computes_something_else_when_cut_is_refused(fails, message):
    network = settled(ByWidth(fails=fails))
    prunable = find_prunable(network, EXAMPLE)
    with pytest.raises(ModelError, match=message) as error:
        cut_to(network, prunable, chosen(prunable, 1), images())
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_statistics_written_wrongly_are_refused(monkeypatch):
    """As if a BatchNorm kept the numbers of other channels than its convolution."""
    network, prunable = dense("resnet8")
    selection = chosen(prunable, 1)

    def shifted(*arguments):
        small = rebuild(*arguments)
        small.norm.running_mean.copy_(small.norm.running_mean.roll(1))
        return small

    monkeypatch.setattr("spatl.artifacts.cutting.rebuild", shifted)
    with pytest.raises(ModelError, match="of the largest logit, where 1e-05 is allowed"):
        cut_to(network, prunable, selection, images())


@pytest.mark.slow
def test_training_is_chosen_by_validation_and_the_test_split_only_reported():
    train, validation, test = striped(96, 1), striped(64, 2), striped(64, 3)
    _, found = cut(train=train, validation=validation, test=test, finetune_epochs=3, training=plain(0.1))
    history = found.refined.history
    assert len(history) == 4
    assert found.refined.epochs > 0
    assert found.refined.evaluation.accuracy == max(each.accuracy for each in history) > history[0].accuracy
    assert evaluate(found.network, validation) == found.refined.evaluation
    assert evaluate(found.network, test) == found.test
    assert evaluate(dense("resnet8")[0], test) == found.dense_test
    _, other = cut(train=train, validation=validation, finetune_epochs=3, training=plain(0.1))
    assert other.test is other.dense_test is None
    assert all(
        torch.equal(tensor, other.network.state_dict()[name]) for name, tensor in found.network.state_dict().items()
    )


@pytest.mark.slow
def test_training_that_helps_nothing_is_not_kept():
    _, found = cut(finetune_epochs=2, training=plain(1e-12), train=striped(32, 1))
    worse = [each.accuracy <= found.refined.history[0].accuracy for each in found.refined.history]
    assert all(worse)
    assert found.refined.evaluation.accuracy == found.refined.history[0].accuracy


@pytest.mark.slow
def test_an_offset_counts_in_evaluation_and_is_no_part_of_the_network():
    """So large an offset makes every prediction class 3."""
    offset = torch.zeros(10).index_fill(0, torch.tensor([3]), 1e6)
    _, found = cut(offset=offset)
    _, plain = cut()
    share = float((examples(seed=5).targets == 3).float().mean())
    assert found.dense.accuracy == found.refined.evaluation.accuracy == pytest.approx(share)
    assert torch.equal(found.network(images()), plain.network(images()))


@pytest.mark.parametrize("epochs", [-1, 2])
def test_epochs_that_cannot_be_are_one_clear_error(epochs):
    with pytest.raises(ConfigError, match="at least 0, got -1" if epochs < 0 else "need training settings"):
        cut(finetune_epochs=epochs)


@pytest.mark.slow
def test_training_that_diverges_is_one_clear_error():
    with pytest.raises(DivergedError, match="left the finite numbers in epoch 1; lower the learning rate"):
        cut(name="cnn", finetune_epochs=1, training=plain(1e20))


@pytest.mark.slow
def test_a_latency_is_measured_on_the_cut_networks():
    """As if a millisecond were what a thousand multiply-accumulates take."""
    measured = []

    def measure(network, example):
        assert example.shape == EXAMPLE.shape
        measured.append(sum(p.numel() for p in network.parameters()) / 1000)
        return measured[-1]

    meter = LatencyMeter("a stop-watch", measure)
    network, found = cut(budget=CutBudget("latency_ms", 50.0), meter=meter)
    assert found.latency_runtime == "a stop-watch"
    size = sum(p.numel() for p in network.parameters())
    assert found.latency_ms == (size / 1000, found.num_parameters[1] / 1000)
    assert found.latency_ms[1] == max(each for each in measured if each <= 50.0)
    assert len(measured) <= 10
    with pytest.raises(BudgetError, match=r"latency_ms is 0\.1, but"):
        cut(budget=CutBudget("latency_ms", 0.1), meter=meter)


def test_a_latency_is_a_time_and_threads_are_put_back():
    network, _ = dense("cnn")
    threads = torch.get_num_threads()
    assert measure_latency(network, EXAMPLE, repeats=3) > 0
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_progress_is_told():
    lines = []
    cut(progress=lines.append)
    assert lines == [
        "finding the channels that may be cut", "choosing channels by signal for flops 0.5",
        "re-estimating BatchNorm statistics",
    ]  # fmt: skip
