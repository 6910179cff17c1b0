"""What of the predictor is a client's own, as `predictor.mode` says."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F

from agents.trial import sent_trial
from clients.round import Workplace
from spatl.federation import load_encoder_, make_blueprint
from spatl.selection.selection import select_all
from spatl.selection.selectors import Choice
from spatl.training.calibration import class_offset
from tests.clients.test_round import received
from tests.federations import blueprint_of, parted, tiny_config

SKEWED = {"name": "dirichlet", "num_clients": 5, "alpha": 0.1}


def skewed_config(mode, **sections):
    return tiny_config(partition=SKEWED, **{**sections, "predictor": {"mode": mode, **sections.get("predictor", {})}})


def one_round(config, client=0):
    """The bytes of a first update but for its report, the report and the state."""
    blueprint = blueprint_of(config)
    blob, state = Workplace(blueprint).train(client, received(blueprint), None, acknowledged_round=0)
    return *parted(blob, blueprint.layout), state


def offset_of(config, client):
    labels = blueprint_of(config).client_data(client).train.labels
    return class_offset(
        labels, num_classes=10, strength=config.predictor.strength, smoothing=config.predictor.smoothing
    )


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
        report, _ = workplace.evaluate(client, received(blueprint), None, acknowledged_round=0)
        logits = blueprint.model(test.images).detach() + offset_of(config, client)
        assert report.loss == pytest.approx(float(F.cross_entropy(logits, test.labels)), rel=1e-5)
    assert not torch.equal(offset_of(config, 0), offset_of(config, 1))


def test_nothing_of_the_offset_is_left_on_the_model():
    config = skewed_config("calibrated")
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    workplace.train(1, received(blueprint), None, acknowledged_round=0)
    workplace.evaluate(2, received(blueprint), None, acknowledged_round=0)
    assert not workplace._model._forward_hooks
    after_others = workplace.train(0, received(blueprint), None, acknowledged_round=0)
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
            received=request.weights - request.update,
            update=request.update,
            examples=request.validation,
        )
        measured.append((request.weights, trial(select_all(blueprint.layout)).loss))
        return Choice(select_all(blueprint.layout))

    workplace._selector = selector
    workplace.train(0, received(blueprint), None, acknowledged_round=0)
    ((weights, loss),) = measured
    model = copy.deepcopy(blueprint.model)
    load_encoder_(model, blueprint.split, blueprint.layout, weights)
    validation = blueprint.client_data(0).validation
    logits = model(validation.images).detach()
    if mode == "calibrated":
        logits = logits + offset_of(config, 0)
    assert loss == pytest.approx(float(F.cross_entropy(logits, validation.labels)), rel=1e-5)


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
def test_the_config_says_what_is_in_force_unless_told_otherwise(method, mode, shares, caplog):
    config = tiny_config(method=method)
    assert (config.predictor.mode, config.predictor_mode, config.shares) == (mode, mode, shares)
    with caplog.at_level(logging.WARNING):
        make_blueprint(config)
    assert "predictor.mode" not in caplog.text


@pytest.mark.parametrize(("method", "mode"), [("fedrep", "calibrated"), ("fedavg", "local"), ("spatl-paper", "shared")])
def test_a_mode_that_the_method_does_not_read_changes_nothing_and_is_said(method, mode, caplog):
    config, plain = tiny_config(method=method, predictor={"mode": mode}), tiny_config(method=method)
    with caplog.at_level(logging.WARNING):
        blueprint = make_blueprint(config)
    assert f"always has its predictor {plain.predictor_mode}: predictor.mode {mode} is not read" in caplog.text
    assert blueprint.layout.shapes == blueprint_of(plain).layout.shapes
    assert one_round(config)[0] == one_round(plain)[0]
