"""Networks that others wrote: what they froze stays frozen, and what they hold stays with one client."""

import copy
import dataclasses

import pytest
import torch

from spatl.config.training import TrainingConfig
from spatl.errors import ModelError
from spatl.models.copies import duplicate, restore_
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.workplace import Workplace
from spatl.training.evaluate import forward_with_batch_statistics
from spatl.training.local import train_
from tests.support.clients import evaluate, received, settle, train
from tests.support.federations import blueprint_of, of_users, opened, parted, run_tiny
from tests.support.users_nets import FROZEN


def two_rounds(workplace, client, others=()):
    """What a client sends and keeps in two rounds, during which others train on the same instance."""
    blueprint = workplace.blueprint
    state, sent = None, []
    for server_round in (1, 2):
        for other in others:
            train(workplace, other, received(blueprint, server_round=server_round), None, acknowledged_round=0)
            evaluate(workplace, other, received(blueprint, server_round=server_round), None, acknowledged_round=0)
        model = received(blueprint, server_round=server_round)
        blob, state = train(workplace, client, model, state, acknowledged_round=server_round - 1)
        body, report = parted(blob, blueprint.layout)
        sent += [body, (report.accuracy, report.loss, report.train_loss)]
    return sent, state.to_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("Forgetful", "spatl"), ("Forgetful", "fedavg-finetune"), ("Forgetful", "ssfl"), ("DrawsElsewhere", "fedavg")],
)
def test_a_client_does_the_same_whoever_trained_on_the_instance_before(name, method):
    """Counters, moving averages in lists, tensors that are no buffers, other generators: alone or after others."""
    config = of_users(name, method=method)
    blueprint = blueprint_of(config)
    if config.row.static_mask:
        shared = Workplace(blueprint)
        shared.saliency(1)
        assert torch.equal(shared.saliency(0), Workplace(blueprint).saliency(0))
        return
    shared = Workplace(blueprint)
    alone = two_rounds(Workplace(blueprint), 0)
    assert two_rounds(shared, 0, others=(1, 2)) == alone
    assert two_rounds(shared, 1, others=(0,)) == two_rounds(Workplace(blueprint), 1)


def test_what_a_client_gathers_in_a_private_buffer_is_there_in_its_next_round():
    config = of_users("Forgetful", predictor={"mode": "local"})
    workplace = Workplace(blueprint_of(config))
    _, state = train(workplace, 0, received(workplace.blueprint), None, acknowledged_round=0)
    assert float(state.private["moving"]) != 0
    train(workplace, 1, received(workplace.blueprint), None, acknowledged_round=0)
    model = received(workplace.blueprint, server_round=2)
    with workplace.prepared(0, model, settle(workplace, model, state, 0)) as own:
        assert torch.equal(own.model.moving, state.private["moving"])
        assert (own.model.steps, own.model.average, hasattr(own.model, "later")) == (0, [0.0], False)
        assert own.model.blocks[0] is own.model.conv


@pytest.mark.slow
def test_a_part_that_comes_late_costs_that_client_and_nobody_after_it():
    config = of_users("GrowingLate", training={"local_steps": 4})
    blueprint, fewer = blueprint_of(config), of_users("GrowingLate", training={"local_steps": 3})
    shared = Workplace(blueprint)
    with pytest.raises(ModelError, match="parts in training: module 'late' was not there and is there"):
        train(shared, 1, received(blueprint), None, acknowledged_round=0)
    shared.blueprint = blueprint_of(fewer)
    after = train(shared, 0, received(blueprint), None, acknowledged_round=0)
    alone = train(Workplace(blueprint_of(fewer)), 0, received(blueprint), None, acknowledged_round=0)
    assert parted(after[0], blueprint.layout)[0] == parted(alone[0], blueprint.layout)[0]


def test_a_restored_network_is_a_new_one_in_everything():
    blueprint = make_blueprint(of_users("Forgetful"))
    model = duplicate(blueprint.model)
    weight = model.conv.weight
    images = blueprint.dataset.inputs[:16]
    model.train()
    before = copy.deepcopy(model.state_dict())
    first = [model(images).sum() for _ in range(3)]
    first[-1].backward()
    model.conv.weight.requires_grad_(False)
    model.norm.eval()
    restore_(model, blueprint.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.conv.weight is weight
    assert weight.requires_grad
    assert weight.grad is None
    assert model.norm.training
    assert (model.steps, model.seen, model.last) == (0, {}, None)
    torch.manual_seed(0)
    again = model(images)
    torch.manual_seed(0)
    assert torch.equal(again, duplicate(blueprint.model)(images))


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["local", "shared"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_statistics_are_neither_gathered_nor_estimated_nor_sent(name, batch_norm):
    """A running mean of 1/4 and variance of 4, which no data of ours have, are there after a round as before it."""
    config = of_users(name, training={"batch_norm": batch_norm, "learning_rate": 0.05})
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    evaluate(workplace, 1, received(blueprint), None, acknowledged_round=0)
    _, state = train(workplace, 0, received(blueprint), None, acknowledged_round=0)
    statistics = workplace.model.norm
    assert torch.equal(statistics.running_mean, torch.full((6,), 0.25))
    assert torch.equal(statistics.running_var, torch.full((6,), 4.0))
    assert not any("running" in entry for entry in blueprint.layout.shapes)
    for entry, tensor in state.private.items():
        if entry.endswith("norm.running_mean"):
            assert torch.equal(tensor, torch.full((6,), 0.25))


@pytest.mark.slow
def test_a_frozen_layer_normalises_by_its_statistics_in_training_and_in_trials_too():
    """By hand: with a mean of 1/4 and a variance of 4, the layer's output is (x - 1/4) / sqrt(4 + eps)."""
    blueprint = make_blueprint(of_users("norm_in_eval_mode"))
    model = duplicate(blueprint.model)
    seen = []
    model.norm.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    examples = blueprint.client_data(0).train
    settings = TrainingConfig(local_epochs=1, local_steps=2, batch_size=16, learning_rate=0.01)
    train_(model, dict(model.named_parameters()), examples, settings, generator=torch.Generator())
    forward_with_batch_statistics(model, examples.inputs[:8])
    assert len(seen) == 3
    for inputs, output in seen[:1]:  # before the affine parameters moved
        torch.testing.assert_close(output, (inputs - 0.25) / (4 + 1e-5) ** 0.5)
    assert model.training
    assert not model.norm.training


def test_a_dropout_in_eval_mode_drops_nothing_in_training():
    blueprint = make_blueprint(of_users("dropout_in_eval_mode"))
    workplace = Workplace(blueprint)
    seen = []
    workplace.model.drop.register_forward_hook(lambda layer, inputs, output: seen.append(output is inputs[0]))
    train(workplace, 0, received(blueprint), None, acknowledged_round=0)
    assert seen
    assert all(seen)


def test_a_network_all_in_eval_mode_stays_there_and_is_said_to(caplog):
    config = of_users("all_but_the_head_in_eval_mode")
    make_blueprint(config)
    assert "returns it in eval mode, and there it stays" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "spatl-paper", "fedavg", "fedprox", "ssfl", "spatl-residual"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_networks_of_other_dtypes_run(tmp_path, dtype, method):
    sections = {"method": method, "rounds": 1}
    if method == "spatl-residual":
        sections |= {"method": "spatl", "predictor": {"mode": "residual"}, "agent": {"reward": "pruned"}}
    config = of_users("of_dtype", options={"dtype": dtype}, **sections)
    assert run_tiny(config, tmp_path)["rejected"] == 0
    assert blueprint_of(config).initial_encoder().dtype == torch.float32


@pytest.mark.slow
def test_a_float64_network_trains_as_its_float32_twin_does_but_for_rounding():
    one, other = (
        Workplace(blueprint_of(of_users("of_dtype", options={"dtype": dtype}, method="fedavg")))
        for dtype in ("float32", "float64")
    )
    twin = dataclasses.replace(received(one.blueprint), encoder=received(other.blueprint).encoder)
    reports = [
        parted(train(each, 0, twin, None, acknowledged_round=0)[0], each.blueprint.layout)[1] for each in (one, other)
    ]
    assert reports[0].train_loss == pytest.approx(reports[1].train_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["sent", "pruned"])
def test_a_network_of_several_dtypes_runs_under_the_default_selector(tmp_path, reward):
    assert run_tiny(of_users("MixedDtypes", rounds=1, agent={"reward": reward}), tmp_path)["rejected"] == 0


def test_a_round_in_half_precision_that_learns_nothing_sends_nothing():
    """What the client holds is the encoder rounded to bfloat16; the rounding is no part of its update."""
    config = of_users(
        "of_dtype", options={"dtype": "bfloat16"}, method="fedavg",
        training={"learning_rate": 1e-30}, wire={"uplink": "float32"},
    )  # fmt: skip
    blueprint = blueprint_of(config)
    model = dataclasses.replace(received(blueprint), encoder=received(blueprint).encoder + 1e-5)
    blob, _ = train(Workplace(blueprint), 0, model, None, acknowledged_round=0)
    assert not bool(opened(blob, blueprint.layout).values.any())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in_data_parallel", "compiled", "wrapped_inside"])
@pytest.mark.parametrize("cut", ["head", "module.head", "_orig_mod.head"])
def test_wrappers_are_taken_off(name, cut, caplog):
    blueprint = make_blueprint(of_users(name, cut=[cut], method="fedper"))
    plain = make_blueprint(of_users("PlainNet", method="fedper"))
    assert "taken out of" in caplog.text
    assert blueprint.layout.shapes == plain.layout.shapes
    assert torch.equal(blueprint.initial_encoder(), plain.initial_encoder())
