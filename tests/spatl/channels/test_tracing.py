"""Channel groups of networks the code knows nothing about."""

import copy

import pytest
import torch
from torch import nn

from spatl.channels.selection import Selection
from spatl.channels.tracing import trace_groups
from spatl.errors import ModelError
from spatl.models import make_split
from tests.support.networks import MixedNet, RecurrentNet, ShuffleNet, TiedNet
from tests.support.traces import built, traced


def parameters_of(layout, channel):
    """Which positions of which parameters a channel owns."""
    mask = torch.zeros(layout.num_channels, dtype=torch.bool)
    mask[channel] = True
    vector = torch.zeros(layout.num_entries)
    vector[Selection(mask).entries(layout)] = 1
    return {name: view.bool() for name, view in layout.unflatten(vector).items() if view.any()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet20", "vgg11", "mobilenet"])
def test_every_entry_has_exactly_one_owner_and_groups_tell_its_size(name):
    model, cut, (layout, _) = built(name)
    split = make_split(model, cut)
    names = list(split.encoder_parameters(model))
    assert list(layout.shapes) == names
    assert layout.num_entries == sum(p.numel() for p in split.encoder_parameters(model).values())
    for group in layout.groups:
        sizes = layout.channel_sizes[group.first : group.first + group.size]
        assert sizes.tolist() == [group.entries_per_channel] * group.size


@pytest.mark.slow
def test_a_convolution_owns_its_filter_and_its_batch_norm_entries():
    """The first block's inner convolution of ResNet-8 is tied to nothing: 16 x 3 x 3 weights and two of BatchNorm."""
    _, _, (layout, _) = built("resnet8")
    inner = next(group for group in layout.groups if group.size == 16 and group.entries_per_channel == 16 * 9 + 2)
    for channel in range(16):
        owned = parameters_of(layout, inner.first + channel)
        assert len(owned) == 3
        for view in owned.values():
            assert view[channel].all()
            assert view.sum() == view[channel].numel()


@pytest.mark.slow
def test_residual_additions_tie_the_stem_to_the_blocks():
    """ResNet-20: one residual stream per stage (16, 32, 64), and three inner groups in each."""
    _, _, (layout, _) = built("resnet20")
    assert sorted(group.size for group in layout.groups) == [16] * 4 + [32] * 4 + [64] * 4
    stem = layout.groups[0]
    # stem (9 weights), three block outputs (144 each), and the BatchNorm pairs of all four
    assert stem.entries_per_channel == 9 + 3 * 144 + 4 * 2


def test_a_users_module_with_residual_concatenation_depthwise_and_a_bare_parameter():
    layout, flops = traced(MixedNet(num_classes=10, in_channels=1), ("head",))
    by_size = {group.size: group for group in layout.groups}
    # stem 9 + 1, conv 72, norm 2, depthwise 9 + 1; left and right 8 + 1; join 90 + 1 and scale; hidden 48 + 1
    assert {size: group.entries_per_channel for size, group in by_size.items()} == {8: 94, 4: 9, 6: 9, 12: 92, 20: 49}
    joined = flops.macs.tolist().index(12 * 90 * 64)
    parts = {layout.groups[g].size: float(flops.inputs[joined, g]) for g in range(len(layout.groups))}
    assert (parts[4], parts[6], parts[8]) == (1, 1, 0)  # of ten


def test_layers_the_graph_does_not_know_are_rows_of_their_module():
    model = RecurrentNet(num_classes=3, in_channels=1)
    layout, _ = traced(model, ("head",))
    assert layout.num_entries == sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head"))
    rows = next(group for group in layout.groups if group.name == "rows")
    assert (rows.size, rows.entries_per_channel) == (15, 6 + 5 + 2)


@pytest.mark.slow
def test_statistics_follow_the_parameters_and_belong_to_their_channel():
    model, cut, _ = built("resnet8")
    plain, _ = traced(model, cut)
    layout, _ = traced(model, cut, statistics=True)
    assert layout.num_parameter_entries == plain.num_entries
    assert list(layout.shapes)[: len(plain.shapes)] == list(plain.shapes)
    owned = parameters_of(layout, layout.groups[0].first + 3)
    means = [name for name in owned if name.endswith("running_mean")]
    assert means
    for name in means:
        assert owned[name].nonzero().tolist() == [[3]]
        assert owned[name.replace("running_mean", "weight")].nonzero().tolist() == [[3]]


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_tracing_leaves_the_model_as_it_was(freeze):
    model = MixedNet(num_classes=10, in_channels=1).train()
    model.norm.eval()
    if freeze:
        model.stem.requires_grad_(False)
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    before = copy.deepcopy(model)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    layout, _ = traced(model, ("head",))
    assert {m: module.training for m, module in model.named_modules()} == {
        m: module.training for m, module in before.named_modules()
    }
    for (name, now), was in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, was), name
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(torch.equal(model.get_parameter(name).grad, g) for name, g in gradients.items())
    assert ("stem.weight" in layout.shapes) != freeze


def test_a_wholly_frozen_encoder_layer_still_ties_its_group():
    model = MixedNet(num_classes=10, in_channels=1)
    model.conv.requires_grad_(False)
    layout, _ = traced(model, ("head",))
    assert next(group for group in layout.groups if group.size == 8).entries_per_channel == 94 - 72


@pytest.mark.slow
def test_flattening_and_unflattening_round_trips():
    model, cut, (layout, _) = built("resnet8")
    tensors = make_split(model, cut).encoder_parameters(model)
    views = layout.unflatten(layout.flatten(tensors))
    assert all(torch.equal(views[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_the_same_model_gives_the_same_fingerprint():
    assert built("resnet8")[2][0].fingerprint == built("resnet8")[2][0].fingerprint


def test_a_model_that_fails_on_its_input_is_one_clear_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.head = nn.Linear(2, 2)

        def forward(self, images):
            return self.head(self.layer(images.flatten(1)))

    with pytest.raises(ModelError, match=r"fails on an input of float32 \[1, 1, 8, 8\]"):
        traced(Broken(), ("head",))


def test_a_layer_whose_inputs_cannot_be_told_is_left_out_of_the_readers(caplog):
    model = ShuffleNet(num_classes=3, in_channels=1)
    split = make_split(model, ("head",))
    trace = trace_groups(model, torch.zeros(1, 1, 8, 8), parameters=list(split.encoder_parameters(model)))
    assert "conv" not in trace.readers
    assert "head" in trace.readers
    assert "layer conv" in caplog.text


@pytest.mark.parametrize(
    ("parameter", "message"),
    [(torch.zeros(0, 3), "is empty or not real"), (torch.zeros(2, dtype=torch.complex64), "is empty or not real")],
)
def test_a_parameter_that_cannot_be_shared_is_one_clear_error(parameter, message):
    model = MixedNet(num_classes=3, in_channels=1)
    model.odd = nn.Parameter(parameter)
    with pytest.raises(ModelError, match=message):
        traced(model, ("head",))


def test_layers_that_share_or_compute_their_weights_are_never_masked(caplog):
    model = TiedNet(num_classes=3, in_channels=1)
    parameters = [name for name, _ in model.named_parameters() if not name.startswith("head")]
    trace = trace_groups(model, torch.zeros(1, 1, 8, 8), parameters=parameters)
    assert set(trace.readers) == {"head"}
    for name in ("first", "second", "normed"):
        assert f"layer {name} shares or computes its weight" in caplog.text


@pytest.mark.parametrize("step", ["build_dependency", "get_pruning_group"])
def test_channels_that_there_was_no_memory_to_follow_are_not_taken_for_uncoupled(step, monkeypatch):
    """The same network would have other groups, and another fingerprint, on a machine that is short of memory."""

    def lacks(*arguments, **keywords):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(f"torch_pruning.DependencyGraph.{step}", lacks)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        traced(MixedNet(num_classes=3, in_channels=1), ("head",))
