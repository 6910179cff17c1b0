"""What a client may look at, what it changes, and what it sends."""

import dataclasses
from typing import NamedTuple

import pytest
import torch

from spatl.data import ClientData, Examples
from spatl.errors import DivergedError, ModelError
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.wire.download import Model
from spatl.wire.reports import TrainReport
from spatl.wire.update import Update
from tests.support.clients import evaluate, received, train
from tests.support.federations import DENSE, blueprint_of, opened, parted, tiny_config


class Round(NamedTuple):
    """What came of one round: the update as the server sees it, its bytes without the report, and the rest."""

    workplace: Workplace
    update: Update
    sent: bytes
    report: TrainReport
    state: ClientState


def trained(config, *, client=0, change=lambda data: data, control=None) -> Round:
    """One round in a workplace of its own, on data that went through `change`."""
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    workplace.data[client] = change(blueprint.client_data(client))
    blob, state = train(workplace, client, received(blueprint, control=control), None, acknowledged_round=0)
    return Round(workplace, opened(blob, blueprint.layout), *parted(blob, blueprint.layout), state)


def with_other_test_split(data: ClientData) -> ClientData:
    return dataclasses.replace(data, test=Examples(torch.randn_like(data.test.inputs), data.test.targets.flip(0)))


def with_other_validation_split(data: ClientData) -> ClientData:
    images = torch.randn_like(data.validation.inputs)
    return dataclasses.replace(data, validation=Examples(images, data.validation.targets))


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["random", "magnitude", "update"])
def test_what_is_sent_and_kept_does_not_depend_on_the_test_split(selector):
    config = tiny_config(selection={"selector": selector}, model={"name": "resnet8", "options": {"width": 0.25}})
    one, other = trained(config), trained(config, change=with_other_test_split)
    assert one.sent == other.sent
    assert one.state.to_bytes() == other.state.to_bytes()
    assert one.report.loss != other.report.loss


def with_unreadable_test_split(data: ClientData) -> ClientData:
    images = torch.full_like(data.test.inputs, torch.nan)
    return dataclasses.replace(data, test=Examples(images, data.test.targets))


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["random", "agent"])
def test_tuning_measures_on_the_validation_split_and_leaves_the_test_split_unread(selector):
    config = tiny_config(report={"split": "validation"}, selection={"selector": selector})
    one, other = trained(config), trained(config, change=with_unreadable_test_split)
    assert (one.sent, one.report.accuracy, one.report.loss) == (other.sent, other.report.accuracy, other.report.loss)
    assert trained(tiny_config(selection={"selector": selector})).report.loss != one.report.loss


def test_training_does_not_see_the_validation_split():
    one, other = trained(tiny_config()), trained(tiny_config(), change=with_other_validation_split)
    assert one.sent == other.sent


@pytest.mark.slow
def test_batch_norm_statistics_move_in_training_although_evaluation_came_first():
    """The research code's fault: eval mode after the first evaluation froze the statistics for good."""
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}}, training={"batch_norm": "shared"})
    layout = blueprint_of(config).layout
    update = trained(config).update
    change = torch.zeros(layout.num_entries)
    change[update.selection.entries(layout)] = update.values
    moved = {name: bool(v.any()) for name, v in layout.unflatten(change).items() if "running" in name}
    assert any(moved.values())


@pytest.mark.slow
def test_local_statistics_stay_with_the_client():
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}})
    state = trained(config).state
    assert not any("running" in name for name in blueprint_of(config).layout.shapes)
    kept = {name: tensor for name, tensor in state.private.items() if "running_mean" in name}
    assert kept
    assert all(bool(tensor.any()) for tensor in kept.values())


@pytest.mark.slow
def test_nothing_of_one_client_is_left_in_the_next():
    config = tiny_config(model={"name": "resnet8", "options": {"width": 0.25}})
    blueprint = blueprint_of(config)
    shared = Workplace(blueprint)
    train(shared, 1, received(blueprint), None, acknowledged_round=0)
    evaluate(shared, 2, received(blueprint), None, acknowledged_round=0)
    after_others = train(shared, 0, received(blueprint), None, acknowledged_round=0)
    alone = train(Workplace(blueprint), 0, received(blueprint), None, acknowledged_round=0)
    assert parted(after_others[0], blueprint.layout)[0] == parted(alone[0], blueprint.layout)[0]
    assert after_others[1].to_bytes() == alone[1].to_bytes()


@pytest.mark.slow
def test_zero_control_variates_train_as_no_control_does():
    config, without = tiny_config(), tiny_config(method="spatl-no-control")
    zeros = torch.zeros(blueprint_of(config).layout.num_parameter_entries)
    one, other = trained(config, control=zeros).update, trained(without).update
    assert (one.corrected, other.corrected) == (True, False)
    assert torch.equal(one.selection.mask, other.selection.mask)
    assert torch.equal(one.values, other.values)


@pytest.mark.slow
def test_the_predictors_gradients_are_not_corrected():
    """A huge c moves the encoder; in a single step, the predictor's own update stays what it is without c."""
    config = tiny_config(training={"local_steps": 1}, predictor={"mode": "local"})
    layout = blueprint_of(config).layout
    zeros, huge = torch.zeros(layout.num_parameter_entries), torch.full((layout.num_parameter_entries,), 3.0)
    one, other = trained(config, control=zeros), trained(config, control=huge)
    assert one.sent != other.sent
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(one.state.private[name], other.state.private[name])


def test_the_correction_enters_without_a_hidden_factor():
    """One plain step: the update under c differs from the one without by exactly -lr * c, on every entry sent."""
    config = tiny_config(training={"local_steps": 1, "learning_rate": 0.25}, method="spatl-no-selection", wire=DENSE)
    layout = blueprint_of(config).layout
    control = torch.linspace(-2, 2, layout.num_parameter_entries)
    plain, corrected = (trained(config, control=c).update.values for c in (torch.zeros_like(control), control))
    torch.testing.assert_close(corrected - plain, -0.25 * control, rtol=1e-4, atol=1e-5)


def test_a_client_evaluates_the_encoder_as_it_arrived():
    config = tiny_config()
    blueprint = blueprint_of(config)
    workplace = Workplace(blueprint)
    arrival, _ = evaluate(workplace, 0, received(blueprint), None, acknowledged_round=0)
    blob, _ = train(workplace, 0, received(blueprint), None, acknowledged_round=0)
    report = opened(blob, blueprint.layout).report
    assert report.accuracy == arrival.accuracy
    assert report.loss == pytest.approx(arrival.loss, rel=1e-6)  # a float32 with an update, a float64 after the end


@pytest.mark.slow
def test_a_frozen_parameter_neither_moves_nor_travels():
    config = tiny_config(
        model={"name": "tests.support.networks:frozen_stem_net", "options": {}, "cut": ["head"]}, rounds=1
    )
    blueprint = blueprint_of(config)
    after = trained(config)
    assert not any(name.startswith("stem") for name in blueprint.layout.shapes)
    assert torch.equal(after.workplace.model.stem.weight, blueprint.model.stem.weight)
    assert not any(name.startswith("stem") for name in after.state.private)


def test_a_local_run_that_leaves_the_finite_numbers_says_so():
    with pytest.raises(DivergedError, match=r"client 0 diverged in round 1 .*lower training\.learning_rate"):
        trained(tiny_config(training={"learning_rate": 1e30}))


def test_a_loss_that_is_finite_but_absurd_is_a_divergence_too():
    """Undamped control variates at a high learning rate left a loss of 4e15, which no report may carry."""
    blueprint = blueprint_of(tiny_config())
    huge = Model(1, 0, blueprint.initial_encoder() * 1e5, None)
    with pytest.raises(DivergedError, match="client 0 diverged in round 1"):
        train(Workplace(blueprint), 0, huge, None, acknowledged_round=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_round_on_each_device_and_precision(device, precision):
    config = tiny_config(training={"device": device, "precision": precision, "local_steps": 20, "learning_rate": 0.1})
    after = trained(config)
    assert bool(after.update.values.any())
    assert after.report.train_loss < 2.5
    assert all(tensor.device.type == "cpu" for tensor in after.state.private.values())


@pytest.mark.slow
def test_bf16_computes_otherwise_than_float32():
    one, other = (trained(tiny_config(wire=DENSE, training={"precision": p})) for p in ("float32", "bf16"))
    assert one.sent != other.sent


@pytest.mark.slow
def test_buffers_that_are_not_persistent_are_not_left_to_the_next_client():
    config = tiny_config(model={"name": "tests.support.networks:CountingNet", "options": {}, "cut": ["head"]})
    blueprint = blueprint_of(config)
    shared = Workplace(blueprint)
    train(shared, 1, received(blueprint), None, acknowledged_round=0)
    after_another = train(shared, 0, received(blueprint), None, acknowledged_round=0)
    assert parted(after_another[0], blueprint.layout)[0] == trained(config).sent


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["local", "shared"])
def test_a_constant_infinite_buffer_is_no_divergence_and_does_not_travel(batch_norm):
    config = tiny_config(
        model={"name": "tests.support.networks:CountingNet", "options": {}, "cut": ["head"]},
        training={"batch_norm": batch_norm},
    )
    update = trained(config).update
    assert not {"mask", "calls"} & set(blueprint_of(config).layout.shapes)
    assert bool(torch.isfinite(update.values).all())


@pytest.mark.slow
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
        masks.append(trained(config).update.selection.mask)
    assert torch.equal(*masks)


@pytest.mark.slow
def test_channels_last_is_another_order_of_the_same_sums():
    """What is sent is that of a contiguous network but for rounding, and what is kept lies as ever."""
    sections = {"model": {"name": "resnet8", "options": {"width": 1.0}}, "wire": DENSE}
    one, other = (
        trained(tiny_config(**sections, training={"local_steps": 2, "memory_format": each}))
        for each in ("contiguous", "channels-last")
    )
    filters = next(p for p in other.workplace.model.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1)
    assert filters.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(one.update.values, other.update.values)
    assert torch.allclose(one.update.values, other.update.values, atol=1e-4)
    assert {name: each.stride() for name, each in one.state.private.items()} == {
        name: each.stride() for name, each in other.state.private.items()
    }
    again = trained(tiny_config(**sections, training={"local_steps": 2, "memory_format": "channels-last"}))
    assert torch.equal(again.update.values, other.update.values)


@pytest.mark.slow
def test_channels_last_is_refused_where_pytorch_would_write_beyond_its_memory():
    sections = {
        "model": {"name": "resnet8", "options": {"width": 0.25}},
        "training": {"memory_format": "channels-last"},
    }
    with pytest.raises(ModelError, match="1x1 convolution with a stride that reads 4 channels"):
        Workplace(blueprint_of(tiny_config(**sections)))
