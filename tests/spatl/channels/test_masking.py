"""A masked network computes what a physically smaller one does."""

import copy
import warnings

import pytest
import torch
import torch_pruning as tp
from torch.func import functional_call

from spatl.channels.masking import masked_weights
from spatl.channels.selection import Selection, select_all
from spatl.channels.tracing import trace_groups
from spatl.models import build_model, make_split
from tests.support.networks import MixedNet


def network(name):
    if name == "mixed":
        torch.manual_seed(0)
        return MixedNet(num_classes=10, in_channels=1), ("head",)
    return build_model(name, num_classes=10, in_channels=1, image_size=8, seed=1)


def prepared(name):
    """A network in eval mode whose BatchNorm statistics and biases are not those of the start."""
    model, cut = network(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    model.train()
    model(torch.randn(16, 1, 8, 8))
    trace = trace_groups(
        model, torch.zeros(1, 1, 8, 8), parameters=list(make_split(model, cut).encoder_parameters(model))
    )
    return model.eval(), trace


def random_selection(layout, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(layout.num_channels, generator=draw) < 0.5
    for group in layout.groups:
        mask[group.first + int(torch.randint(group.size, (), generator=draw))] = True
    return Selection(mask)


def physically_pruned(model, layout, selection):
    """Torch-pruning's own removal of the dropped channels, group by group, through each group's first layer."""
    small = copy.deepcopy(model)
    todo = {}
    for group in layout.groups:
        dropped = (~selection.mask[group.first : group.first + group.size]).nonzero().squeeze(1)
        owner = torch.arange(group.first, group.first + group.size)
        for name, shape in layout.shapes.items():
            layer = small.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and name.endswith("weight"):
                rows = layout.unflatten(layout.owner.float())[name].reshape(shape[0], -1)[:, 0].long()
                if torch.equal(rows.sort().values, owner):
                    todo[name.rpartition(".")[0]] = [
                        int((rows == group.first + channel).nonzero()) for channel in dropped.tolist()
                    ]
                    break
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        for name, rows in todo.items():
            if rows:
                graph = tp.DependencyGraph().build_dependency(
                    small.requires_grad_(True), example_inputs=torch.zeros(1, 1, 8, 8)
                )
                layer = small.get_submodule(name)
                pruner = graph.get_pruner_of_module(layer)
                graph.get_pruning_group(layer, pruner.prune_out_channels, rows).prune()
    assert len(todo) == len(layout.groups)
    return small.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet20", "vgg11", "mobilenet", "mixed"])
def test_masked_and_physically_pruned_networks_agree_in_eval_mode(name):
    model, trace = prepared(name)
    selection = random_selection(trace.layout, 1)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        masked = functional_call(model, masked_weights(model, trace.readers, selection), (images,))
        smaller = physically_pruned(model, trace.layout, selection)
        small, whole = smaller(images), model(images)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(masked, small, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(masked, whole, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_full_selection_masks_nothing_and_masking_changes_no_model():
    model, trace = prepared("resnet8")
    before = copy.deepcopy(model.state_dict())
    assert masked_weights(model, trace.readers, select_all(trace.layout)) == {}
    masked_weights(model, trace.readers, random_selection(trace.layout, 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
