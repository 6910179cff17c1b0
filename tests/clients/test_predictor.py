"""What of the predictor is a client's own, as `predictor.mode` says."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from agents.measurement import sent_trial
from spatl.channels.selection import select_all
from spatl.config.unread import settings_without_effect
from spatl.errors import ModelError
from spatl.rounds.blueprint import load_encoder_, make_blueprint
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.selection.protocol import Choice
from spatl.training.calibration import class_offset
from tests.support.clients import evaluate, received, train
from tests.support.federations import blueprint_of, parted, tiny_config

SKEWED = {"name": "dirichlet", "num_clients": 5, "alpha": 0.1}


def skewed_config(mode, **sections):
    return tiny_config(partition=SKEWED, **{**sections, "predictor": {"mode": mode, **sections.get("predictor", {})}})


def one_round(config, client=0):
    """The bytes of a first update but for its report, the report and the state."""
    blueprint = blueprint_of(config)
    blob, state = train(Workplace(blueprint), client, received(blueprint), None, acknowledged_round=0)
    return *parted(blob, blueprint.layout), state


def offset_of(config, client):
    labels = blueprint_of(config).client_data(client).train.targets
    return class_offset(
        labels, num_classes=10, strength=config.predictor.strength, smoothing=config.predictor.smoothing
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "spatl-no-selection", "spatl-no-control"])
def test_calibration_of_no_strength_is_a_shared_predictor_bit_for_bit(method):
    blob, report, state = one_round(skewed_config("calibrated", method=method, predictor={"strength": 0}))
    shared_blob, shared_report, shared_state = one_round(skewed_config("shared", method=method))
    assert blob == shared_blob
    assert (report.loss, report.accuracy, report.train_loss) == (
        shared_report.loss, shared_report.accuracy, shared_report.train_loss,
    )  # fmt: skip
    assert state.to_bytes() == shared_state.to_bytes()
    assert one_round(skewed_config("calibrated", method=method))[0] != blob


@pytest.mark.slow
def test_what_travels_is_the_models_parameters_and_nothing_else():
    config = skewed_config("calibrated", model={"name": "resnet8", "options": {"width": 0.25}})
    blueprint = blueprint_of(config)
    assert list(blueprint.layout.shapes) == [name for name, _ in blueprint.model.named_parameters()]
    state = one_round(config)[2]
    assert state.private.keys() == {name for name, _ in blueprint.model.named_buffers()}


def test_a_client_is_evaluated_with_the_offset_of_its_training_labels():
    config = skewed_config("calibrated")
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    for client in (0, 1):
        test = blueprint.client_data(client).test
        report, _ = evaluate(workplace, client, received(blueprint), None, acknowledged_round=0)
        logits = blueprint.model(test.inputs).detach() + offset_of(config, client)
        assert report.loss == pytest.approx(float(F.cross_entropy(logits, test.targets)), rel=1e-5)
    assert not torch.equal(offset_of(config, 0), offset_of(config, 1))


def test_nothing_of_the_offset_is_left_on_the_model():
    config = skewed_config("calibrated")
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    train(workplace, 1, received(blueprint), None, acknowledged_round=0)
    evaluate(workplace, 2, received(blueprint), None, acknowledged_round=0)
    assert not workplace.model._forward_hooks
    after_others = train(workplace, 0, received(blueprint), None, acknowledged_round=0)
    assert parted(after_others[0], blueprint.layout)[0] == one_round(config)[0]
    assert not blueprint.model._forward_hooks


@pytest.mark.parametrize("mode", ["calibrated", "shared"])
def test_the_agents_trials_see_what_the_client_sees(mode):
    """The trial of sending everything has the loss of the trained network under the client's own offset."""
    config = skewed_config(mode, selection={"selector": "random"})
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    measured = []

    def selector(request):
        trial = sent_trial(
            request.model,
            blueprint.layout,
            trained=request.weights,
            update=request.update,
            examples=request.validation,
        )
        measured.append((request.weights, trial(select_all(blueprint.layout)).loss))
        return Choice(select_all(blueprint.layout))

    workplace.selector = selector
    train(workplace, 0, received(blueprint), None, acknowledged_round=0)
    ((weights, loss),) = measured
    model = copy.deepcopy(blueprint.model)
    load_encoder_(model, blueprint.layout, weights)
    validation = blueprint.client_data(0).validation
    logits = model(validation.inputs).detach()
    if mode == "calibrated":
        logits = logits + offset_of(config, 0)
    assert loss == pytest.approx(float(F.cross_entropy(logits, validation.targets)), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "mode", "shares"),
    [
        ("spatl", "calibrated", "all"),
        ("spatl-paper", "local", "encoder"),
        ("spatl-no-transfer", "shared", "all"),
        ("fedper", "local", "encoder"),
        ("fedavg", "shared", "all"),
        ("local", "local", "nothing"),
    ],
)
def test_the_config_says_what_is_in_force_unless_told_otherwise(method, mode, shares):
    config = tiny_config(method=method)
    assert (config.predictor.mode, config.predictor_mode, config.shares) == (mode, mode, shares)
    assert "predictor.mode" not in settings_without_effect(config)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mode"), [("fedrep", "calibrated"), ("fedavg", "local"), ("spatl-paper", "shared")])
def test_a_mode_that_the_method_does_not_read_changes_nothing_and_is_said(method, mode):
    config, plain = tiny_config(method=method, predictor={"mode": mode}), tiny_config(method=method)
    told = settings_without_effect(config)["predictor.mode"]
    assert f"always has its predictor {plain.predictor_mode}" in told
    blueprint = make_blueprint(config)
    assert blueprint.layout.shapes == blueprint_of(plain).layout.shapes
    assert one_round(config)[0] == one_round(plain)[0]


RESIDUAL = {"classifier.private.weight", "classifier.private.bias"}


@pytest.mark.slow
def test_a_residual_starts_as_the_calibrated_network_and_never_travels():
    config = skewed_config("residual")
    blueprint = blueprint_of(config)
    arrival, _ = evaluate(Workplace(blueprint), 0, received(blueprint), None, acknowledged_round=0)
    plain = blueprint_of(skewed_config("calibrated"))
    assert arrival == evaluate(Workplace(plain), 0, received(plain), None, acknowledged_round=0)[0]
    assert torch.equal(blueprint.initial_encoder(), plain.initial_encoder())
    assert not RESIDUAL & blueprint.layout.shapes.keys()
    blob, _, state = one_round(config)
    assert state.private.keys() == RESIDUAL
    assert all(bool(tensor.any()) for tensor in state.private.values())
    for row in state.private["classifier.private.weight"]:
        assert row.numpy().tobytes() not in blob


@pytest.mark.slow
def test_shrinkage_pulls_the_residual_towards_zero_by_hand():
    """One step at 1/4 from parameters of 2: without the pull -1/4 g, with shrinkage 0.1 a further -1/4 * 0.1 * 2."""
    training = {"local_steps": 1, "learning_rate": 0.25}
    results = []
    for shrinkage in (0, 0.1):
        config = skewed_config("residual", training=training, predictor={"shrinkage": shrinkage})
        blueprint = blueprint_of(config)
        parameters = blueprint.split.predictor_parameters(blueprint.model)
        start = replace(
            ClientState.initial(blueprint.layout),
            private={name: torch.full_like(parameter, 2.0) for name, parameter in parameters.items()},
        )
        blob, state = train(Workplace(blueprint), 0, received(blueprint), start, acknowledged_round=0)
        results.append((parted(blob, blueprint.layout)[0], state.private))
    (blob, free), (pulled_blob, pulled) = results
    assert free.keys() == RESIDUAL
    for name, values in free.items():
        torch.testing.assert_close(pulled[name], values - 0.05)
    assert pulled_blob == blob


@pytest.mark.slow
def test_a_residual_of_no_strength_has_no_offset():
    config = skewed_config("residual", predictor={"strength": 0})
    blueprint, plain = blueprint_of(config), blueprint_of(skewed_config("shared"))
    arrival, _ = evaluate(Workplace(blueprint), 0, received(blueprint), None, acknowledged_round=0)
    assert arrival == evaluate(Workplace(plain), 0, received(plain), None, acknowledged_round=0)[0]


def test_a_residual_needs_a_cut_of_one_submodule():
    model = {"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["hidden", "head"]}
    with pytest.raises(ModelError, match="residual needs a cut of one submodule"):
        make_blueprint(tiny_config(model=model, predictor={"mode": "residual"}))
