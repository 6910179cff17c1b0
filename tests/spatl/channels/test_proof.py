"""Every reading that is claimed is right, and every doubtful one is named: families of networks against autograd."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from spatl.channels import tracing as tracing
from spatl.channels.masking import masked_weights
from spatl.channels.perturbation import Claims, is_layer
from spatl.channels.proof import refuted
from spatl.channels.selection import Selection, select_all
from spatl.models import build_model
from tests.support.families import FAMILIES
from tests.support.families.base import Family
from tests.support.families.rearranged import Flip, LinearViewedTransposed
from tests.support.networks import CountingNet, GroupedNet, MixedNet, RecurrentNet, ShuffleNet, TiedNet
from tests.support.traces import trace_of

NETWORKS = {each.__name__: each for each in (CountingNet, GroupedNet, MixedNet, RecurrentNet, ShuffleNet, TiedNet)}
ALL = {**FAMILIES, **{f"tests.support.networks {name}": make for name, make in NETWORKS.items()}}
_FAST = ("C2fByChunk", "ChannelShuffle", "GatedByHalves", "LinearViewedTransposed", "PixelShuffle", "VisionTransformer")
NAMES = [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
FEWER = [name if name in _FAST[:2] else pytest.param(name, marks=pytest.mark.slow) for name in ALL]


def made(name):
    torch.manual_seed(1)
    return ALL[name](num_classes=5, in_channels=1)


def believed(model, monkeypatch):
    """The trace if the dependency graph were taken at its word."""
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "refuted", lambda *_: {})
        return trace_of(model)


def sources(model, layout):
    """By layer, the channels (bool [I, C]) whose entries the input at each place has a gradient for; the same of the
    output under "". Each layer goes on with numbers of its own. The encoder's values are random, so that nothing is
    multiplied by zero, and ReLU and its like give way to a smooth function, so that nothing is cut off."""
    model = copy.deepcopy(model).double().eval()
    draw = torch.Generator().manual_seed(2)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.GELU):
                setattr(module, name, nn.Softplus())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 2)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in layout.shapes}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    arrived = []

    def arrive(name):
        def hook(layer, inputs):
            spatial = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
            arrived.append((name, inputs[0].movedim(inputs[0].dim() - 1 - spatial, 0).flatten(1)))
            return (torch.randn(inputs[0].shape, generator=draw, dtype=torch.float64),)

        return hook

    for name, module in model.named_modules():
        if is_layer(module):
            module.register_forward_pre_hook(arrive(name))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        output = model(torch.randn(6, 1, 8, 8, generator=draw, dtype=torch.float64))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    found = {}
    for name, values in [*arrived, ("", output.reshape(1, -1))]:
        table = torch.zeros(len(values), layout.num_channels, dtype=torch.bool)
        for place, value in enumerate(values):
            if value.requires_grad:
                weights = torch.rand(value.shape, generator=draw, dtype=torch.float64)
                gradients = torch.autograd.grad(
                    (value * weights).sum(), list(parameters.values()), allow_unused=True, retain_graph=True
                )
                for (parameter, _), gradient in zip(parameters.items(), gradients, strict=True):
                    if gradient is not None:
                        owners = layout.unflatten(layout.owner)[parameter]
                        table[place, owners[gradient.abs() > 1e-12]] = True
        found.setdefault(name, []).append(table)
    return found


def wrong_groups(trace, found, known):
    """The groups of which a claim is not what autograd says, among the channels of groups that are read (bool [C])."""
    layout, read = trace.layout, read_channels(trace)
    wrong = torch.zeros_like(read)
    for name, claimed in trace.readers.items():
        if name not in found:  # never called
            wrong[claimed[claimed >= 0]] = True
    for name, tables in found.items():
        for table in tables:
            claimed = trace.readers.get(name, torch.full((len(table),), -1))
            for place, channel in enumerate(claimed.tolist()):
                others = table[place] & known
                if name == "":
                    wrong |= others & read
                    continue
                if channel >= 0:
                    others[channel] = False
                    wrong[channel] |= bool(others.any()) or not bool(table[place, channel])
                wrong |= others
    return {layout.groups[group].name for group in layout.group_of[wrong & read].tolist()}


def read_channels(trace):
    read = torch.zeros(trace.layout.num_channels, dtype=torch.bool)
    for channels in trace.readers.values():
        read[channels[channels >= 0]] = True
    return read


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reading_is_claimed_only_where_autograd_confirms_it_and_each_other_is_named(name, monkeypatch, caplog):
    model = made(name)
    graph = believed(model, monkeypatch)
    caplog.clear()
    trace = trace_of(model)
    assert trace.layout.fingerprint == graph.layout.fingerprint
    found = sources(model, trace.layout)
    read = read_channels(graph)
    known = torch.isin(graph.layout.group_of, graph.layout.group_of[read])
    assert wrong_groups(trace, found, known) == set()
    wrong = wrong_groups(graph, found, known)
    lost = {trace.layout.groups[g].name for g in trace.layout.group_of[read & ~read_channels(trace)].tolist()}
    assert lost == wrong  # nothing is lost that was right
    assert wrong <= trace.doubtful.keys()
    for group, reason in trace.doubtful.items():
        assert f"those of {group} ({reason})" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWER)
def test_what_a_dropped_channel_consists_of_does_not_matter_to_the_masked_network(name):
    """So that a network cut physically gives the same: nothing but the masked weights reads what would be cut."""
    model, draw = made(name).eval(), torch.Generator().manual_seed(3)
    trace = trace_of(model)
    dropped = read_channels(trace) & (torch.rand(trace.layout.num_channels, generator=draw) < 0.5)
    masked = masked_weights(model, trace.readers, Selection(~dropped))
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter, owners in trace.layout.unflatten(trace.layout.owner).items():
        noise = torch.randn(owners.shape, generator=draw)
        tensors[parameter] = torch.where(dropped[owners], noise, tensors[parameter])
    # A layer's own masked inputs stay masked, whatever its outputs consist of.
    zero = {parameter: masked[parameter] == 0 for parameter in masked}
    other = {
        n: t.masked_fill(zero[n] & (model.get_parameter(n) != 0), 0) if n in zero else t for n, t in tensors.items()
    }
    images = torch.randn(4, 1, 8, 8, generator=draw)
    with torch.no_grad():
        expected = functional_call(model, masked, (images,))
        torch.testing.assert_close(functional_call(model, other, (images,)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWER)
def test_multiply_accumulates_become_fewer_with_proved_channels_only(name):
    trace = trace_of(made(name))
    layout, flops = trace.layout, trace.flops
    counts = select_all(layout).counts(layout)
    for row, group in enumerate(layout.groups):
        if group.name in trace.doubtful:
            fewer = counts.clone()
            fewer[row] = 1
            assert flops.ratio(fewer) == flops.ratio(counts)
            assert not flops.outputs[:, row].any()
            assert not flops.inputs[:, row].any()


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("cnn", 28, "ae43e91eb927745a 3 3"),
        ("resnet8", 28, "99547d81d956b3b0 6 9"),
        pytest.param("resnet20", 32, "14968cb64c71ef74 12 21", marks=pytest.mark.slow),
        pytest.param("resnet32", 32, "ebe7f2bdc5d682bc 18 33", marks=pytest.mark.slow),
        pytest.param("vgg11", 32, "1633dfe0ac524612 8 8", marks=pytest.mark.slow),
        pytest.param("mobilenet", 32, "708a1e68f5e1a5c9 7 7", marks=pytest.mark.slow),
    ],
)
def test_built_in_networks_keep_their_layout_and_all_readers(name, size, expected, monkeypatch):
    """Fingerprint, groups and reading layers as before readings were proved: messages and histories rest on them."""
    channels = 3 if size == 32 else 1
    model, cut = build_model(name, num_classes=10, in_channels=channels, image_size=size, seed=1)
    trace = trace_of(model, cut, shape=(1, channels, size, size))
    found = trace.layout.fingerprint.hex(), len(trace.layout.groups), len(trace.readers)
    assert " ".join(str(each) for each in found) == expected
    assert not trace.doubtful
    assert bool(read_channels(trace).all())


@pytest.mark.slow
def test_a_transposed_convolution_behind_a_viewed_linear_layer_by_hand(caplog):
    """Output 16 c + k of `project` is pixel k of map c, which `up` reads; the graph says that it reads output c."""
    trace = trace_of(LinearViewedTransposed())
    assert set(trace.readers) == {"project", "after.0", "head"}
    assert "those of project (other channels reach layer up than the graph says)" in caplog.text
    layout = trace.layout
    projected = next(group for group in layout.groups if group.name == "project")
    assert projected.size == 128
    assert set(trace.readers["after.0"].tolist()) == set(range(projected.first + 128, projected.first + 134))


def test_the_proof_draws_from_no_global_generator_and_leaves_the_model_alone():
    model = Flip()
    before, state, threads = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    trace_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Moody(Family):
    """Computes something else each time."""

    def body(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return x * self.calls


class Picky(Family):
    """Refuses what is far from a picture."""

    def body(self, x):
        if x.abs().max() > 1e-6:
            raise ValueError("too\nlarge")
        return x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Moody, "the model cannot be tried on random numbers: it does not compute the same thing twice"),
        (Picky, "the model cannot be tried on random numbers: too large"),
    ],
)
def test_a_network_that_cannot_be_tried_has_no_readers_and_says_why(make, reason, caplog):
    model = make()
    nn.init.zeros_(model.stem[1].weight)
    trace = trace_of(model)
    assert trace.readers == {}
    assert trace.doubtful == {"stem.0": reason}
    assert reason in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_any_one_wrong_place_among_many_is_found(seed):
    """Two linear layers with a random order in between; claims that are right but for two places exchanged."""
    draw = torch.Generator().manual_seed(seed)
    width = int(torch.randint(2, 40, (), generator=draw))
    order = torch.randperm(width, generator=draw)

    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, width), nn.Linear(width, 2)

        def forward(self, x):
            return self.second(self.first(x).relu()[:, order])

    def reasons(read):
        model = Ordered().eval()
        written = {"first.weight": (0, torch.arange(width)), "first.bias": (0, torch.arange(width))}
        claims = Claims(torch.zeros(width, dtype=torch.int64), written, {"second": read})
        return refuted(copy.deepcopy(model), dict(model.named_parameters()), torch.zeros(1, 3), claims)

    assert reasons(order) == {}
    one, other = torch.randperm(width, generator=draw)[:2].tolist()
    exchanged = order.clone()
    exchanged[[one, other]] = order[[other, one]]
    assert reasons(exchanged) == {0: "other channels reach layer second than the graph says"}
    missing = order.clone()
    missing[one] = -1
    assert reasons(missing) == {0: "they reach layer second otherwise than the graph says"}
