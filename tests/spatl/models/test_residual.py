"""A residual predictor starts as the network it is added to, for any network it fits."""

import pytest
import torch
from torch import nn

from spatl.channels.tracing import trace_groups
from spatl.errors import ModelError
from spatl.models import add_residual_, build_model, make_split
from tests.support.networks import MixedNet

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def built(name):
    return build_model(name, num_classes=10, in_channels=1, image_size=8, seed=1)


class Headed(nn.Module):
    """Whatever head is asked for, on four pixels."""

    def __init__(self, head):
        super().__init__()
        self.body = nn.ModuleDict({"stem": nn.Linear(4, 4), "head": head})

    def forward(self, images):
        return self.body["head"](self.body["stem"](images.flatten(1)[:, :4]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11", "mobilenet"])
def test_it_starts_as_the_shared_network_and_only_it_is_private(name):
    model, cut = built(name)
    before = model.eval()(IMAGES)
    names = [each for each, _ in model.named_parameters()]
    split = make_split(model, add_residual_(model, cut, IMAGES[:1]))
    assert torch.equal(model(IMAGES), before)
    assert split.cut == (f"{cut[0]}.private",)
    assert split.predictor_parameters(model).keys() == {f"{cut[0]}.private.{kind}" for kind in ("weight", "bias")}
    assert [each.replace(".shared", "") for each in split.encoder_parameters(model)] == names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11", "mobilenet"])
def test_its_channels_are_those_of_a_shared_predictor(name):
    """The private part owns nothing, but reads the same channels as the shared one: both lose what is pruned."""
    model, cut = built(name)
    shared = trace_groups(model, IMAGES[:1], parameters=[each for each, _ in model.named_parameters()])
    split = make_split(model, add_residual_(model, cut, IMAGES[:1]))
    trace = trace_groups(model, IMAGES[:1], parameters=list(split.encoder_parameters(model)))
    assert [(group.first, group.size) for group in trace.layout.groups] == [
        (group.first, group.size) for group in shared.layout.groups
    ]
    assert torch.equal(trace.layout.owner, shared.layout.owner)
    assert torch.equal(trace.flops.macs, shared.flops.macs)
    assert torch.equal(trace.flops.inputs, shared.flops.inputs)
    assert torch.equal(trace.flops.outputs, shared.flops.outputs)
    readers = {each.replace(".shared", ""): channels for each, channels in trace.readers.items()}
    private = readers.pop(f"{cut[0]}.private")
    assert torch.equal(private, readers[cut[0]])
    assert readers.keys() == shared.readers.keys()


def test_the_last_linear_layer_of_a_head_is_zero_and_the_others_are_copies():
    model = Headed(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    before = model(IMAGES)
    assert add_residual_(model, ["body.head"], IMAGES) == ("body.head.private",)
    assert torch.equal(model(IMAGES), before)
    shared, private = model.body["head"].shared, model.body["head"].private
    assert torch.equal(shared[0].weight, private[0].weight)
    assert shared[0].weight is not private[0].weight
    assert not any(bool(parameter.any()) for parameter in private[2].parameters())


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), "it does not return 0 when its last layer's parameters are 0"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "it does not return 0 when"),
    ],
)
def test_a_predictor_that_cannot_start_at_zero_is_one_clear_line(head, reason):
    with pytest.raises(ModelError, match=f"residual does not fit the submodule 'body.head': {reason}") as caught:
        add_residual_(Headed(head), ["body.head"], IMAGES)
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_added_to_is_one_clear_line():
    """An LSTM returns a tuple."""

    class Recurrent(Headed):
        def forward(self, images):
            return super().forward(images)[0]

    with pytest.raises(ModelError, match=r"residual does not fit the submodule 'body\.head'"):
        add_residual_(Recurrent(nn.LSTM(4, 3)), ["body.head"], IMAGES)


@pytest.mark.parametrize("cut", [["hidden", "head"], []])
def test_a_cut_of_more_or_less_than_one_submodule_is_one_clear_line(cut):
    with pytest.raises(ModelError, match=r"residual needs a cut of one submodule.*\(configs: model\.cut\)"):
        add_residual_(MixedNet(num_classes=10, in_channels=1), cut, IMAGES)
