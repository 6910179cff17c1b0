"""FedDyn, Ditto and MOON compute what their papers say: by hand, and recomputed in plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spatl.channels.selection import select_all
from spatl.config.loading import parse_config
from spatl.config.training import TrainingConfig
from spatl.data import Examples, batches
from spatl.errors import ConfigError, ModelError
from spatl.methods import Method
from spatl.rounds.control import followed_gradient
from spatl.rounds.dynamic import DynamicAggregator
from spatl.seeding import generator
from spatl.training.contrast import Contrast
from spatl.training.device import reproducible
from spatl.training.hooks import linear_hook, proximal_hook
from spatl.training.local import train_
from spatl.wire.update import Update
from tests.support.federations import (
    COMPRESSED,
    DENSE,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blueprint_of,
    fingerprints,
    losing,
    run_tiny,
    state_of,
    tiny_config,
)
from tests.support.layouts import interleaved_layout

SCALAR = interleaved_layout([(1, 1)])
SOME_EXAMPLES = Examples(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
NAME = "layer0.p0"
MINIMA = (1.0, -3.0)


class Scalar(nn.Module):
    """One weight, whose gradient the tests replace by that of (w - minimum)^2 / 2."""

    def __init__(self, start):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))

    def forward(self, inputs):
        return inputs * self.weight + torch.zeros(len(inputs), 2)


def step(start, minimum, *hooks):
    """Where one plain step at 1/2 leads, and the update."""
    model = Scalar(start)

    def quadratic(parameters):
        parameters[NAME].grad = (parameters[NAME] - minimum).detach().clone()

    settings = TrainingConfig(local_steps=1, batch_size=2, learning_rate=0.5)
    result = train_(
        model, {NAME: model.weight}, SOME_EXAMPLES, settings, generator=torch.Generator(), hooks=[quadratic, *hooks]
    )
    moved = (model.weight - start).detach()
    return model.weight.item(), Update(1, 0, select_all(SCALAR), moved, result.step_weight, corrected=True)


def test_feddyn_on_two_clients_by_hand():
    """Minima 1 and -3, alpha 1, one step at 1/2, which is exact: y_i = (m_i + g_i + x) / 2.

    Round 1, x = h = g_i = 0: y = 0.5 and -1.5, D = 0.5 and -1.5, so g = -0.5 and 1.5, the gradients at y. h = 0.5,
    x = -0.5 - 0.5 = -1, the minimum of the sum already, where FedAvg would be at -0.5.
    Round 2: y = (1 - 0.5 - 1) / 2 = -0.25 and (-3 + 1.5 - 1) / 2 = -1.25, D = 0.75 and -0.25, g = -1.25 and 1.75,
    h = 0.5 - 0.25 = 0.25, x = -0.75 - 0.25 = -1: it stays.
    Round 3, of client 1 alone: y = (1 - 1.25 - 1) / 2 = -0.625, D = 0.375, g_1 = -1.625; h = 0.25 - 0.375 / 2 = 0.0625,
    x = -0.625 - 0.0625 = -0.6875.
    """
    x, h, own = torch.zeros(1), torch.zeros(1), [torch.zeros(1), torch.zeros(1)]
    expected = [(-1.0, 0.5, -0.5, 1.5), (-1.0, 0.25, -1.25, 1.75), (-0.6875, 0.0625, -1.625, 1.75)]
    for numbers, asked in zip(expected, ((0, 1), (0, 1), (0,)), strict=True):
        aggregator = DynamicAggregator(layout=SCALAR, encoder=x, control=h, total_examples=2, alpha=1.0)
        for client in asked:
            hooks = (proximal_hook({NAME: x}, 1.0), linear_hook({NAME: own[client]}))
            _, update = step(x.item(), MINIMA[client], *hooks)
            aggregator.add(update, 1)
            own[client] = followed_gradient(own[client], update, SCALAR, alpha=1.0)
        x, h = aggregator.encoder(), aggregator.control()
        assert (x.item(), h.item(), own[0].item(), own[1].item()) == pytest.approx(numbers)
        assert h.item() == pytest.approx((own[0].item() + own[1].item()) / 2)


def test_ditto_on_two_clients_by_hand():
    """Minima 1 and -3, lambda 1, one step at 1/2; the server's model is FedAvg's.

    Round 1, x = v_i = 0: y = v = 0.5 and -1.5, as nothing pulls yet; x = -0.5.
    Round 2: y = -0.5 + 1.5 / 2 = 0.25 and -0.5 - 2.5 / 2 = -1.75, x = -0.75. v_1 has the gradient
    (0.5 - 1) + (0.5 + 0.5) = 0.5 and goes to 0.25; v_2 has (-1.5 + 3) + (-1.5 + 0.5) = 0.5 and goes to -1.75.
    """
    x, own = 0.0, [0.0, 0.0]
    for expected in ((-0.5, 0.5, -1.5), (-0.75, 0.25, -1.75)):
        moved = [step(x, minimum)[0] for minimum in MINIMA]
        pull = proximal_hook({NAME: torch.tensor([x])}, 1.0)
        own = [step(v, minimum, pull)[0] for v, minimum in zip(own, MINIMA, strict=True)]
        x = sum(moved) / 2
        assert (x, *own) == pytest.approx(expected)


class Flat(nn.Module):
    """A representation of two numbers, the weights themselves for an input of one, and a predictor."""

    def __init__(self, first, second):
        super().__init__()
        self.encoder, self.head = nn.Linear(1, 2, bias=False), nn.Linear(2, 2)
        self.encoder.weight.data = torch.tensor([[first], [second]])

    def forward(self, inputs):
        return self.head(self.encoder(inputs))


@pytest.mark.parametrize(
    ("before", "loss", "slope"), [((0.0, 1.0), 0.263282, 0.092591), ((1.0, 0.0), 1.171101, -1.103957)]
)
def test_moon_on_two_clients_by_hand(before, loss, slope):
    """z = (1, 0), the server's (0.6, 0.8), tau = 1/2: a cosine of 0.6, and so a logit of 1.2.

    Client 1 had (0, 1) before, a cosine of 0: the loss is log(1 + exp(-1.2)) = 0.263282; with p = 1 / (1 + exp(-1.2)) =
    0.768525, its slope is (1 - p) / tau = 0.462950 times what the cosines differ in across z, 1 - 0.8 = 0.2: 0.092591.
    Client 2 had z itself, a cosine of 1 and a logit of 2: log(1 + exp(0.8)) = 1.171101; p = 0.310026, slope
    1.379948 times -0.8 = -1.103959, up towards the server's. Along z itself a cosine does not change. mu counts twice.
    """
    model = Flat(1.0, 0.0)
    contrast = Contrast(model, Flat(0.6, 0.8), Flat(*before), ("head",), weight=2.0, temperature=0.5)
    inputs = torch.ones(3, 1)
    with contrast.watching():
        model(inputs)
        found = contrast(inputs)
    found.backward()
    assert found.item() == pytest.approx(2 * loss, rel=1e-5)
    assert model.encoder.weight.grad.flatten().tolist() == pytest.approx([0.0, 2 * slope], abs=1e-5)
    assert model.head.weight.grad is None


def test_a_predictor_that_is_not_called_is_one_clear_line():
    model = Flat(1.0, 0.0)
    model.forward = lambda inputs: model.encoder(inputs)
    contrast = Contrast(model, Flat(0.6, 0.8), Flat(0.0, 1.0), ("head",), weight=1.0, temperature=0.5)
    with contrast.watching():
        model(torch.ones(1, 1))
        with pytest.raises(ModelError, match=r"the predictor \['head'\] is given, .*model\.cut"):
            contrast(torch.ones(1, 1))


def recomputed(config, loss_of, *, purpose="batches", start=None):
    """One client's round in plain PyTorch: its parameters after steps on `loss_of(model, inputs, targets, client)`."""
    blueprint = blueprint_of(config)

    def run(client, server_round, weights):
        model = copy.deepcopy(blueprint.model).train()
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.training.learning_rate)
        order = generator(config.seed, purpose, server_round=server_round, client=client)
        examples = blueprint.client_data(client).train
        for _ in range(config.training.local_epochs):
            for inputs, targets in batches(examples, batch_size=config.training.batch_size, generator=order):
                optimizer.zero_grad()
                loss_of(model, inputs, targets, client).backward()
                optimizer.step()
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    return run


def two_clients(method, **training):
    training = {"local_steps": None, "local_epochs": 1, "learning_rate": 0.1, "batch_size": 128, **training}
    return tiny_config(method=method, partition={"num_clients": 2}, training=training, rounds=3)


def shares_of(config):
    numbers = blueprint_of(config).num_training
    return [number / sum(numbers) for number in numbers]


def mean_of(shares, models):
    return {name: sum(p * each[name] for p, each in zip(shares, models, strict=True)) for name in models[0]}


def squares(model, reference):
    return sum((p - reference[name]).square().sum() for name, p in model.named_parameters())


def assert_is(encoder, config, expected):
    for name, values in blueprint_of(config).layout.unflatten(encoder).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_feddyn_is_its_algorithm_in_plain_pytorch(tmp_path, strategies):
    """Acar et al. 2021, algorithm 1: losses L_i(y) - <g_i, y> + alpha / 2 |y - x|^2, weighted by examples."""
    config = two_clients("feddyn", dynamic_alpha=0.2)
    run_tiny(config, tmp_path)
    with reproducible(threads=1):
        x = {name: p.detach().clone() for name, p in blueprint_of(config).model.named_parameters()}
        own = [{name: torch.zeros_like(p) for name, p in x.items()} for _ in range(2)]
        h, shares = {name: torch.zeros_like(p) for name, p in x.items()}, shares_of(config)

        def loss_of(model, inputs, targets, client):
            linear = sum((own[client][name] * p).sum() for name, p in model.named_parameters())
            return F.cross_entropy(model(inputs), targets) - linear + 0.1 * squares(model, x)

        for server_round in (1, 2, 3):
            models = [recomputed(config, loss_of)(client, server_round, x) for client in (0, 1)]
            for client, y in enumerate(models):
                own[client] = {name: g - 0.2 * (y[name] - x[name]) for name, g in own[client].items()}
            mean = mean_of(shares, models)
            h = {name: h[name] - 0.2 * (mean[name] - x[name]) for name in h}
            x = {name: mean[name] - h[name] / 0.2 for name in x}
    assert_is(strategies[-1].state.encoder, config, x)


@pytest.mark.slow
def test_ditto_keeps_models_of_its_own_beside_those_of_fedavg(tmp_path, strategies):
    """Li et al. 2021, algorithm 1, in plain PyTorch; the server's model is FedAvg's to the bit."""
    config = two_clients("ditto", personal_pull=0.5)
    run_tiny(config, tmp_path / "ditto")
    encoder = strategies[-1].state.encoder
    run_tiny(two_clients("fedavg"), tmp_path / "fedavg")
    assert fingerprints(tmp_path / "ditto") == fingerprints(tmp_path / "fedavg")
    with reproducible(threads=1):
        x = {name: p.detach().clone() for name, p in blueprint_of(config).model.named_parameters()}
        own, shares = [x, x], shares_of(config)
        plain = recomputed(config, lambda model, inputs, targets, _: F.cross_entropy(model(inputs), targets))

        def pulled(model, inputs, targets, client):
            return F.cross_entropy(model(inputs), targets) + 0.25 * squares(model, x)

        for server_round in (1, 2, 3):
            private = recomputed(config, pulled, purpose="own-model")
            own = [private(client, server_round, v) for client, v in enumerate(own)]
            x = mean_of(shares, [plain(client, server_round, x) for client in (0, 1)])
    assert_is(encoder, config, x)
    for client, v in enumerate(own):
        kept = state_of(tmp_path / "ditto", client).own_model
        for name, values in v.items():
            torch.testing.assert_close(kept[name], values, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_moon_is_its_loss_in_plain_pytorch_from_the_second_round_on(tmp_path, strategies):
    """Li, He, Song 2021, algorithm 1: z is what the last layer is given. In the first round the loss is a constant."""
    config = two_clients("moon", contrast_weight=2.0, contrast_temperature=0.3)
    run_tiny(config, tmp_path / "moon")
    encoder = strategies[-1].state.encoder
    run_tiny(two_clients("fedavg"), tmp_path / "fedavg")
    ours, plain = (fingerprints(tmp_path / name) for name in ("moon", "fedavg"))
    assert ours[0] == plain[0]
    assert ours[1] != plain[1]
    blueprint = blueprint_of(config)

    def representation(weights, inputs):
        seen, model = [], copy.deepcopy(blueprint.model).eval()
        model.load_state_dict(weights)
        model.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        model(inputs)
        return seen[0].detach()

    with reproducible(threads=1):
        x = {name: p.detach().clone() for name, p in blueprint.model.named_parameters()}
        before, shares = [x, x], shares_of(config)

        def loss_of(model, inputs, targets, client):
            seen = []
            with model.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0])):
                loss = F.cross_entropy(model(inputs), targets)
            near, far = (
                torch.exp(F.cosine_similarity(seen[0], representation(weights, inputs)) / 0.3)
                for weights in (x, before[client])
            )
            return loss - 2.0 * torch.log(near / (near + far)).mean()

        for server_round in (1, 2, 3):
            before = [recomputed(config, loss_of)(client, server_round, x) for client in (0, 1)]
            x = mean_of(shares, before)
    assert_is(encoder, config, x)


@pytest.mark.slow
@pytest.mark.parametrize("wire", [DENSE, COMPRESSED], ids=["float32", "adaptive"])
def test_h_is_the_weighted_sum_of_the_linear_terms_whatever_is_lost(tmp_path, strategies, wire):
    """Half of the clients a round, a third of the replies lost after the client did its work."""
    config = tiny_config(
        method="feddyn", rounds=8, partition={"name": "dirichlet", "num_clients": 6, "alpha": 0.5},
        server={"fraction_train": 0.5, "clip": 1.2}, training={"dynamic_alpha": 0.1}, wire=wire,
    )  # fmt: skip
    loses, losses = losing(1 / 3)
    summary = run_tiny(config, tmp_path, loses=loses)
    assert (summary["missing"], summary["rejected"]) == (sum(losses), 0)
    assert sum(losses) >= 4
    assert strategies[-1].state.held_control is None  # nothing of it travels
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)


def test_what_does_not_go_with_them_is_one_clear_line():
    with pytest.raises(
        ConfigError, match=r"server\.aggregation: FedDyn goes on from the clients' mean, which median is"
    ):
        parse_config({"method": "feddyn", "server": {"aggregation": "median"}})
    with pytest.raises(ConfigError, match="privacy: FedDyn releases more than one sum"):
        parse_config({"method": "feddyn", "privacy": {"noise_multiplier": 1.0}})
    for facts, found in (
        ({"dynamic": True, "controls": True}, "dynamic has its own correction"),
        ({"personal": True, "fine_tunes": True}, "personal excludes fine_tunes"),
        ({"contrasts": True, "shares": "nothing"}, "what shares nothing"),
    ):
        with pytest.raises(ConfigError, match=found):
            Method(title="Mine", source="here", **{"shares": "all", **facts})
