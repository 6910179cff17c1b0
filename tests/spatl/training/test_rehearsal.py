"""The training step before a run: what a network does in training is one line, before anything is written."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from spatl.config.training import TrainingConfig
from spatl.console.main import main
from spatl.data import Examples, batches
from spatl.errors import ModelError
from spatl.rounds.blueprint import make_blueprint
from spatl.training.rehearsal import batch_lengths, rehearse
from tests.support.federations import of_users, tiny_config

BEFORE_ANYTHING = {
    "Auxiliary": r"in training the model must return logits of shape \(16, 10\) for a batch of 16, got tuple of "
    r"Tensor, Tensor: leave out what comes beside them",
    "Late": r"changes its own parts in training: module 'late' was not there and is there; make it when",
    "Lazy": r"'head\.weight', 'head\.bias' of Lazy has no shape yet",
    "Growing": r"buffer 'memory' was \[1\] of torch\.float32 and is \[2\] of torch\.float32; make it when",
    "Replacing": r"replaces its parameter 'head\.weight' in training",
    "Unfreezing": r"parameter 'conv\.weight' was \[6, 1, 3, 3\] of torch\.float32, trained and is \[6, 1, 3, 3\]",
    "Renaming": r"module 'drop' was there and is not there",
    "NotANumber": r"returns NaN on the first batch of 16, before any step, in training mode, though not in eval mode",
    "AlwaysNotANumber": r"returns NaN for the first example, before any training",
    "Detached": r"its logits depend on no parameter that is trained",
    "Raising": r"fails in training on a batch of 16: RuntimeError: mat1 and mat2 shapes cannot be multiplied "
    r"\(16x8 and 9x8\) \(users_nets\.py:\d+, in forward\)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE_ANYTHING)
def test_what_a_network_does_in_training_is_one_line_before_anything_is_written(name):
    with pytest.raises(ModelError, match=BEFORE_ANYTHING[name]) as caught:
        make_blueprint(of_users(name)).check_clients()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_ends_with_that_line_and_no_directory(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_users("Raising").to_yaml())
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(users_nets.py:" in error
    assert error.endswith("(--debug prints the traceback)\n")
    assert not (tmp_path / "run").exists()
    assert main(["run", str(path), "--out", str(tmp_path / "run"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "features = features @ torch.ones(9, 8)  # the line that errors name" in error
    assert not error.endswith("traceback)\n")


def test_a_batch_of_one_under_batch_norm_is_said_with_what_to_do():
    told = (
        r"fails in training on a batch of 1: ValueError: Expected more than 1 value per channel when training.*"
        r"\(users_nets\.py:\d+, in forward\); BatchNorm needs two: raise training\.batch_size"
    )
    with pytest.raises(ModelError, match=told):
        make_blueprint(of_users("OneDimensionalNorm", training={"batch_size": 1})).check_clients()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 7, 16, 100])
def test_a_last_batch_of_one_never_comes(batch_size):
    """Whatever is left over joins the batch before it, in the rehearsal as in the run."""
    make_blueprint(of_users("OneDimensionalNorm", training={"batch_size": batch_size})).check_clients()


@pytest.mark.slow
def test_a_batch_size_in_the_network_fails_on_the_shortest_batch_that_a_client_has():
    config = of_users("FixedBatch", training={"local_steps": None, "local_epochs": 1})
    told = (
        r"fails in training on a batch of \d+, the shortest that a client has \(the longest: 16\): RuntimeError: shape"
    )
    with pytest.raises(ModelError, match=told):
        make_blueprint(config).check_clients()
    make_blueprint(of_users("FixedBatch")).check_clients()  # three steps, which never come to the shorter one


@given(
    number=st.integers(2, 70),
    batch_size=st.integers(1, 20),
    steps=st.one_of(st.none(), st.integers(1, 40)),
    epochs=st.integers(1, 2),
)
@example(number=9, batch_size=4, steps=1, epochs=1)
def test_the_lengths_are_those_of_the_batches(number, batch_size, steps, epochs):
    examples = Examples(torch.zeros(number, 1), torch.zeros(number, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    num_epochs = epochs if steps is None else 41
    stream = [
        len(labels)
        for _ in range(num_epochs)
        for _, labels in batches(examples, batch_size=batch_size, generator=generator)
    ]
    settings = TrainingConfig(local_epochs=epochs, local_steps=steps, batch_size=batch_size, learning_rate=0.1)
    assert batch_lengths(number, settings) == set(stream[:steps])


@pytest.mark.slow
def test_state_outside_of_the_modules_is_said(caplog):
    make_blueprint(of_users("KeepsAGlobal")).check_clients()
    assert "keeps something outside of its modules" in caplog.text
    caplog.clear()
    for name in ("Forgetful", "DrawsElsewhere", "RaisingLate"):
        make_blueprint(of_users(name)).check_clients()
    assert not caplog.text


@pytest.mark.slow
def test_a_rehearsal_changes_neither_the_network_nor_any_generator():
    blueprint = make_blueprint(tiny_config(model={"name": "resnet8", "options": {"width": 0.25}}))
    tensors = {name: tensor.clone() for name, tensor in blueprint.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    blueprint.check_clients()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in blueprint.model.state_dict().items())
    assert all(module.training for module in blueprint.model.modules())


def test_a_learning_rate_that_diverges_is_not_the_networks_fault():
    make_blueprint(tiny_config(training={"learning_rate": 1e30})).check_clients()


def test_a_rehearsal_takes_three_steps(monkeypatch):
    blueprint = make_blueprint(tiny_config(training={"local_steps": None, "local_epochs": 1}))
    seen = []
    model = blueprint.model
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
    settings = blueprint.config.training
    rehearse(
        model, blueprint.dataset.inputs, blueprint.dataset.targets, settings, num_classes=10, client_sizes=[35], seed=1
    )
    handle.remove()
    assert seen == [(True, 3), (True, 16), (False, 1), (True, 3)]
