"""What a client may look at, what it changes, and what it sends."""

import dataclasses

import pytest
import torch

from clients.round import Workplace
from spatl.data import ClientData, Examples
from spatl.errors import DivergedError
from spatl.protocol import Model, unpack_update
from tests.federations import blueprint_of, tiny_config


def received(blueprint, *, server_round=1, control=None) -> Model:
    return Model(server_round, server_round - 1, blueprint.initial_encoder(), control)


def trained(config, *, client=0, state=None, acknowledged=0, change=lambda data: data, control=None, server_round=1):
    """One round in a workplace of its own, on data that went through `change`."""
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    workplace._data[client] = change(blueprint.client_data(client))
    return workplace, workplace.train(
        client, received(blueprint, control=control, server_round=server_round), state, acknowledged_round=acknowledged
    )


def with_other_test_split(data: ClientData) -> ClientData:
    return dataclasses.replace(data, test=Examples(torch.randn_like(data.test.images), data.test.labels.flip(0)))


def with_other_validation_split(data: ClientData) -> ClientData:
    images = torch.randn_like(data.validation.images)
    return dataclasses.replace(data, validation=Examples(images, data.validation.labels))


@pytest.mark.parametrize("selector", ["random", "magnitude", "update"])
def test_what_is_sent_and_kept_does_not_depend_on_the_test_split(selector):
    config = tiny_config(selection={"selector": selector}, model={"name": "resnet8", "options": {"width": 0.25}})
    _, (blob, report, state) = trained(config)
    _, (other_blob, other_report, other_state) = trained(config, change=with_other_test_split)
    assert blob == other_blob
    assert state.to_bytes() == other_state.to_bytes()
    assert report.loss != other_report.loss


def with_unreadable_test_split(data: ClientData) -> ClientData:
    images = torch.full_like(data.test.images, torch.nan)
    return dataclasses.replace(data, test=Examples(images, data.test.labels))


@pytest.mark.parametrize("selector", ["random", "agent"])
def test_tuning_measures_on_the_validation_split_and_leaves_the_test_split_unread(selector):
    config = tiny_config(report={"split": "validation"}, selection={"selector": selector})
    _, (blob, report, _) = trained(config)
    _, (other_blob, other_report, _) = trained(config, change=with_unreadable_test_split)
    assert (blob, report.accuracy, report.loss) == (other_blob, other_report.accuracy, other_report.loss)
    _, (_, on_test, _) = trained(tiny_config(selection={"selector": selector}))
    assert on_test.loss != report.loss


def test_training_does_not_see_the_validation_split():
    _, (blob, _, _) = trained(tiny_config())
    _, (other_blob, _, _) = trained(tiny_config(), change=with_other_validation_split)
    assert blob == other_blob


def test_batch_norm_statistics_move_in_training_although_evaluation_came_first():
    """The research code's fault: eval mode after the first evaluation froze the statistics for good."""
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}}, training={"batch_norm": "shared"})
    blueprint = blueprint_of(config)
    _, (blob, _, _) = trained(config)
    layout = blueprint.layout
    update = unpack_update(blob, layout, server_round=1, base_version=0)
    change = torch.zeros(layout.num_entries)
    change[update.selection.entries(layout)] = update.values
    moved = {name: bool(v.any()) for name, v in layout.unflatten(change).items() if "running" in name}
    assert any(moved.values())


def test_local_statistics_stay_with_the_client():
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}})
    _, (_, _, state) = trained(config)
    assert not any("running" in name for name in blueprint_of(config).layout.shapes)
    kept = {name: tensor for name, tensor in state.private.items() if "running_mean" in name}
    assert kept
    assert all(bool(tensor.any()) for tensor in kept.values())


def test_nothing_of_one_client_is_left_in_the_next():
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}})
    blueprint = blueprint_of(config)
    shared = Workplace(blueprint)
    shared.train(1, received(blueprint), None, acknowledged_round=0)
    shared.evaluate(2, received(blueprint), None, acknowledged_round=0)
    after_others = shared.train(0, received(blueprint), None, acknowledged_round=0)
    alone = Workplace(blueprint).train(0, received(blueprint), None, acknowledged_round=0)
    assert after_others[0] == alone[0]
    assert after_others[2].to_bytes() == alone[2].to_bytes()


def test_zero_control_variates_train_as_no_control_does():
    config, without = tiny_config(), tiny_config(method="spatl-no-control")
    zeros = torch.zeros(blueprint_of(config).layout.num_parameter_entries)
    assert trained(config, control=zeros)[1][0] == trained(without)[1][0]


def test_the_predictors_gradients_are_not_corrected():
    """A huge c moves the encoder; in a single step, the predictor's own update stays what it is without c."""
    config = tiny_config(training={"local_steps": 1}, predictor={"mode": "local"})
    layout = blueprint_of(config).layout
    zeros, huge = torch.zeros(layout.num_parameter_entries), torch.full((layout.num_parameter_entries,), 3.0)
    _, (blob, _, state) = trained(config, control=zeros)
    _, (moved_blob, _, moved_state) = trained(config, control=huge)
    assert blob != moved_blob
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(state.private[name], moved_state.private[name])


def test_the_correction_enters_without_a_hidden_factor():
    """One plain step: the update under c differs from the one without by exactly -lr * c, on every entry sent."""
    config = tiny_config(training={"local_steps": 1, "learning_rate": 0.25}, method="spatl-no-selection")
    layout = blueprint_of(config).layout
    control = torch.linspace(-2, 2, layout.num_parameter_entries)
    plain, corrected = (
        unpack_update(trained(config, control=c)[1][0], layout, server_round=1, base_version=0).values
        for c in (torch.zeros_like(control), control)
    )
    torch.testing.assert_close(corrected - plain, -0.25 * control, rtol=1e-4, atol=1e-5)


def test_a_client_evaluates_the_encoder_as_it_arrived():
    config = tiny_config()
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    arrival, _ = workplace.evaluate(0, received(blueprint), None, acknowledged_round=0)
    _, report, _ = workplace.train(0, received(blueprint), None, acknowledged_round=0)
    assert (report.accuracy, report.loss) == (arrival.accuracy, arrival.loss)


def test_a_frozen_parameter_neither_moves_nor_travels():
    config = tiny_config(model={"name": "tests.networks:frozen_stem_net", "options": {}, "cut": ["head"]}, rounds=1)
    blueprint = blueprint_of(config)
    workplace, (_, _, state) = trained(config)
    assert not any(name.startswith("stem") for name in blueprint.layout.shapes)
    assert torch.equal(workplace._model.stem.weight, blueprint.model.stem.weight)
    assert not any(name.startswith("stem") for name in state.private)


def test_a_local_run_that_leaves_the_finite_numbers_says_so():
    with pytest.raises(DivergedError, match=r"client 0 diverged in round 1 .*lower training\.learning_rate"):
        trained(tiny_config(training={"learning_rate": 1e30}))


def test_a_loss_that_is_finite_but_absurd_is_a_divergence_too():
    """Undamped control variates at a high learning rate left a loss of 4e15, which no report may carry."""
    blueprint = blueprint_of(tiny_config())
    huge = Model(1, 0, blueprint.initial_encoder() * 1e5, None)
    with pytest.raises(DivergedError, match="client 0 diverged in round 1"):
        Workplace(blueprint).train(0, huge, None, acknowledged_round=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_round_on_each_device_and_precision(device, precision):
    config = tiny_config(training={"device": device, "precision": precision, "local_steps": 20, "learning_rate": 0.1})
    blueprint = blueprint_of(config)
    _, (blob, report, state) = trained(config)
    update = unpack_update(blob, blueprint.layout, server_round=1, base_version=0)
    assert bool(update.values.any())
    assert report.train_loss < 2.5
    assert all(tensor.device.type == "cpu" for tensor in state.private.values())


def test_bf16_computes_otherwise_than_float32():
    one, other = (trained(tiny_config(training={"precision": p}))[1][0] for p in ("float32", "bf16"))
    assert one != other


def test_buffers_that_are_not_persistent_are_not_left_to_the_next_client():
    config = tiny_config(model={"name": "tests.networks:CountingNet", "options": {}, "cut": ["head"]})
    blueprint = blueprint_of(config)
    shared = Workplace(blueprint)
    shared.train(1, received(blueprint), None, acknowledged_round=0)
    after_another = shared.train(0, received(blueprint), None, acknowledged_round=0)
    assert after_another[0] == trained(config)[1][0]


@pytest.mark.parametrize("batch_norm", ["local", "shared"])
def test_a_constant_infinite_buffer_is_no_divergence_and_does_not_travel(batch_norm):
    config = tiny_config(
        model={"name": "tests.networks:CountingNet", "options": {}, "cut": ["head"]},
        training={"batch_norm": batch_norm},
    )
    _, (blob, _, _) = trained(config)
    assert not {"mask", "calls"} & set(blueprint_of(config).layout.shapes)
    unpack_update(blob, blueprint_of(config).layout, server_round=1, base_version=0)


@pytest.mark.parametrize("selector", ["update", "magnitude"])
def test_shared_statistics_do_not_decide_the_selection(selector):
    """The same training selects the same channels whether or not statistics travel along (budget: one per group)."""
    masks = []
    for batch_norm in ("local", "shared"):
        config = tiny_config(
            model={"name": "resnet8", "options": {"width": 0.5}},
            training={"batch_norm": batch_norm},
            selection={"selector": selector, "flops_ratio": 0.3},
        )
        _, (blob, _, _) = trained(config)
        masks.append(unpack_update(blob, blueprint_of(config).layout, server_round=1, base_version=0).selection.mask)
    assert torch.equal(*masks)
