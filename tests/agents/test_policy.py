"""One set of weights for any encoder, whatever the order of its nodes and the padding of its batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from agents.graph import NUM_FEATURES, Graph, make_graph
from agents.lab.environment import padded
from agents.policy import GraphPolicy, load_policy, save_policy, ship_policy
from agents.selection_problem import Problem
from spatl.channels.costs import Budget, Costs
from spatl.channels.tracing import trace_groups
from spatl.errors import SpatlError
from spatl.selection.signal import channel_signal
from tests.support.networks import deep_net
from tests.support.problems import drawn_policy, problem_for

HALF = Budget("flops_ratio", 0.5)


def random_graph(num_nodes, seed):
    draws = torch.Generator().manual_seed(seed)
    edges = torch.rand(num_nodes, num_nodes, generator=draws) * (
        torch.rand(num_nodes, num_nodes, generator=draws) < 0.2
    )
    return Graph(torch.randn(num_nodes, NUM_FEATURES, generator=draws), edges / edges.sum(1, keepdim=True).clamp(min=1))


@pytest.mark.slow
@given(num_nodes=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_the_order_of_the_nodes_only_orders_the_action(num_nodes, seed):
    graph, policy = random_graph(num_nodes, seed), drawn_policy(seed % 7)
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    shuffled = Graph(graph.nodes[order], graph.edges[order][:, order])
    torch.testing.assert_close(policy.act(shuffled), policy.act(graph)[order], rtol=0, atol=1e-6)


@pytest.mark.slow
@given(num_nodes=st.integers(1, 40), padding=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_padding_changes_nothing(num_nodes, padding, seed):
    graph, policy = random_graph(num_nodes, seed), drawn_policy(seed % 7)
    laid_out = {key: torch.from_numpy(value).unsqueeze(0) for key, value in padded(graph, num_nodes + padding).items()}
    with torch.no_grad():
        means, value = policy(laid_out["nodes"], laid_out["edges"], laid_out["mask"])
        alone, alone_value = policy(graph.nodes.unsqueeze(0), graph.edges.unsqueeze(0), torch.ones(1, num_nodes))
    torch.testing.assert_close(means[:, :num_nodes], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(value, alone_value, rtol=0, atol=1e-6)
    assert not means[:, num_nodes:].any()


@pytest.mark.slow
def test_a_batch_of_different_graphs_is_each_graph_by_itself():
    """The research code scored every action with the batch's first state."""
    graphs, policy = [random_graph(n, n) for n in (5, 60, 12)], drawn_policy()
    batch = [padded(graph, 60) for graph in graphs]
    nodes, edges, mask = (
        torch.stack([torch.from_numpy(each[key]) for each in batch]) for key in ("nodes", "edges", "mask")
    )
    with torch.no_grad():
        means, _ = policy(nodes, edges, mask)
    for row, graph in zip(means, graphs, strict=True):
        torch.testing.assert_close(row[: len(graph.nodes)].clamp(-1, 1), policy.act(graph), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "groups"), [("cnn", 3), ("vgg11", 8), ("resnet8", 6), ("mobilenet", 7), ("resnet56", 30)]
)
def test_the_same_weights_drive_small_and_large_encoders(model, groups):
    options = {} if model == "cnn" else {"width": 0.25}
    problem = problem_for(model, HALF, **options)
    assert len(problem.costs.layout.groups) == groups
    action = drawn_policy().act(make_graph(problem))
    assert action.shape == (groups,)
    assert action.any()
    assert problem.costs.of(problem.counts(action), "flops_ratio") <= 0.5


@pytest.mark.slow
def test_the_shipped_weights_drive_an_encoder_of_sixty_groups():
    model = deep_net(num_classes=10, in_channels=1)
    parameters = [name for name, _ in model.named_parameters() if not name.startswith("fc")]
    trace = trace_groups(model, torch.zeros(1, 1, 8, 8), parameters=parameters)
    assert len(trace.layout.groups) == 60
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(4, 1, 8, 8))
    problem = Problem(Costs(trace, lambda values, channels: 4 * values), HALF, signal, "pruned")
    action = load_policy().act(make_graph(problem))
    assert action.shape == (60,)
    counts = problem.counts(action)
    assert bool((counts >= 1).all())
    assert 0.4 < trace.flops.ratio(counts) <= 0.5


def test_an_untrained_policy_is_the_prior():
    problem = problem_for("resnet8", HALF)
    assert torch.equal(problem.selection(GraphPolicy().act(make_graph(problem))).mask, problem.prior().mask)


def test_the_shipped_policy_is_small_and_is_not_the_prior():
    policy = load_policy()
    assert sum(parameter.numel() for parameter in policy.parameters()) < 10_000
    problem = problem_for("resnet8", HALF)
    assert policy.act(make_graph(problem)).abs().max() > 0.05


def test_weights_survive_the_file(tmp_path):
    save_policy(drawn_policy(), tmp_path / "policy.safetensors")
    graph = random_graph(9, 1)
    assert torch.equal(load_policy(tmp_path / "policy.safetensors").act(graph), drawn_policy().act(graph))


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_is_no_policy_is_one_line(tmp_path, content):
    path = tmp_path / "policy.safetensors"
    if content is None:
        save_file({"embed.weight": torch.zeros(2, 2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SpatlError, match="holds no policy of this version") as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_a_policy_with_a_weight_that_is_no_number_is_refused(tmp_path):
    policy = drawn_policy()
    with torch.no_grad():
        policy.head.bias.fill_(float("nan"))
    save_policy(policy, tmp_path / "policy.safetensors")
    with pytest.raises(SpatlError, match="a weight is NaN or infinite"):
        load_policy(tmp_path / "policy.safetensors")


def test_the_form_that_ships_can_be_given_as_a_file_too(tmp_path):
    ship_policy(drawn_policy(), tmp_path / "policy.json")
    save_policy(drawn_policy(), tmp_path / "policy.safetensors")
    graph = random_graph(7, 2)
    first, again = (load_policy(tmp_path / name) for name in ("policy.json", "policy.safetensors"))
    assert torch.equal(first.act(graph), again.act(graph))
    (tmp_path / "policy.json").write_text('{"weights": 1}')
    with pytest.raises(SpatlError, match="holds no policy"):
        load_policy(tmp_path / "policy.json")


def test_a_policy_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SpatlError, match="policy file not found"):
        load_policy(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_features_are_finite_and_bounded_for_every_family_and_budget():
    for model in ("cnn", "vgg11", "resnet8", "mobilenet"):
        options = {} if model == "cnn" else {"width": 0.25}
        for budget in (Budget("flops_ratio", 0.1), Budget("keep_ratio", 0.9), Budget("uplink_bytes", 30_000.0)):
            graph = make_graph(problem_for(model, budget, **options))
            assert bool(graph.nodes.isfinite().all())
            assert float(graph.nodes.abs().max()) <= 5
            sums = graph.edges.sum(1)
            assert bool(((sums - 1).abs().lt(1e-6) | sums.eq(0)).all())
