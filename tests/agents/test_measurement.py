"""Trials measure what they say, and leave the network as it was."""

import copy

import pytest
import torch
from torch import nn

from agents.measurement import pruned_trial, sent_trial
from spatl.channels.selection import Selection, select_all
from spatl.channels.tracing import trace_groups
from spatl.data import Examples
from spatl.rounds.blueprint import encoder_tensors, load_encoder_
from spatl.training.evaluate import forward_with_batch_statistics
from tests.support.networks import GroupedNet, MixedNet, TiedNet
from tests.support.problems import blueprint_for, candidate_for

BLUEPRINT = blueprint_for("resnet8")
LAYOUT = BLUEPRINT.layout
EXAMPLES = BLUEPRINT.client_data(0).validation


def half(seed):
    return Selection(torch.rand(LAYOUT.num_channels, generator=torch.Generator().manual_seed(seed)) < 0.5)


def accuracy(model):
    logits = forward_with_batch_statistics(model, EXAMPLES.inputs)
    return float((logits.argmax(1) == EXAMPLES.targets).double().mean())


def test_what_is_sent_is_measured_as_the_server_would_apply_it():
    made = candidate_for("resnet8")
    received = made.weights - made.update
    trial = sent_trial(made.model, LAYOUT, trained=made.weights, update=made.update, examples=EXAMPLES)
    for seed in range(3):
        applied = received.clone()
        entries = half(seed).entries(LAYOUT)
        applied[entries] = (received + made.update)[entries]
        model = copy.deepcopy(made.model)
        load_encoder_(model, LAYOUT, applied)
        assert trial(half(seed)).accuracy == accuracy(model)


def test_sending_all_is_the_trained_network_and_pruning_nothing_too():
    made = candidate_for("resnet8")
    sent = sent_trial(made.model, LAYOUT, trained=made.weights, update=made.update, examples=EXAMPLES)
    pruned = pruned_trial(made.model, BLUEPRINT.costs.trace, EXAMPLES)
    everything = select_all(LAYOUT)
    assert sent(everything).accuracy == pruned(everything).accuracy == accuracy(made.model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["sent", "pruned"])
def test_a_trial_leaves_weights_buffers_modes_and_gradients_alone(kind, training):
    made = candidate_for("resnet8")
    model = copy.deepcopy(made.model).train(training)
    model.stage1.eval()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model)
    if kind == "sent":
        trial = sent_trial(model, LAYOUT, trained=made.weights, update=made.update, examples=EXAMPLES)
    else:
        trial = pruned_trial(model, BLUEPRINT.costs.trace, EXAMPLES)
    trial(half(1))
    old, new = before.state_dict(), model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert [m.training for m in before.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in before.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_dropout_is_off_and_batch_norm_uses_the_batch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.dropout = nn.Dropout(0.9)
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            return self.head(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))

    model = Net()
    images = 100 + 10 * torch.randn(8, 1, 6, 6)
    logits = forward_with_batch_statistics(model, images)
    assert torch.equal(logits, forward_with_batch_statistics(model, images))
    torch.testing.assert_close(logits, forward_with_batch_statistics(model, images - 100), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [GroupedNet, TiedNet, MixedNet])
def test_networks_with_grouped_tied_and_computed_weights_are_measured_and_left_alone(make):
    model = make(num_classes=10, in_channels=1)
    parameters = [name for name, _ in model.named_parameters() if not name.startswith("head")]
    trace = trace_groups(model, torch.zeros(1, 1, 8, 8), parameters=parameters)
    before = copy.deepcopy(model.state_dict())
    dropped = Selection(torch.arange(trace.layout.num_channels) % 2 == 0)
    assert 0 <= pruned_trial(model, trace, EXAMPLES)(dropped).accuracy <= 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_examples_may_be_as_few_as_two():
    two = Examples(EXAMPLES.inputs[:2], EXAMPLES.targets[:2])
    made = candidate_for("resnet8")
    assert pruned_trial(made.model, BLUEPRINT.costs.trace, two)(half(0)).accuracy in (0.0, 0.5, 1.0)


def test_the_trained_encoder_is_what_the_candidate_holds():
    made = candidate_for("resnet8")
    assert torch.equal(LAYOUT.flatten(encoder_tensors(made.model, BLUEPRINT.split)), made.weights)
