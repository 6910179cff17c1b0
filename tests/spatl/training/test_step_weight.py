"""Tests of the accumulated step weight: the closed form is the recurrence, for any number of steps."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.training import step_weight
from spatl.training.step_weight import accumulated_step_weight


def settings(momentum=0.0, weight_decay=0.0, nesterov=False, learning_rate=0.1, steps=None, optimizer="sgd"):
    return SimpleNamespace(
        momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, learning_rate=learning_rate, local_steps=steps,
        local_epochs=1, batch_size=10, precision="float32", optimizer=optimizer,
    )  # fmt: skip


@pytest.mark.slow
@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.1]),
    nesterov=st.booleans(),
    learning_rate=st.sampled_from([0.001, 0.1, 0.8]),
    number=st.integers(1, 3000),
    optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
)
def test_the_closed_form_is_what_the_steps_add_up_to(
    momentum, weight_decay, nesterov, learning_rate, number, optimizer
):
    own = settings(momentum, weight_decay, nesterov, learning_rate, number, optimizer)
    followed = accumulated_step_weight(own, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_weight, "MOST_FOLLOWED", 0)
        assert accumulated_step_weight(own, 1) == pytest.approx(followed, rel=1e-9)


def test_any_number_of_examples_has_its_weight_at_once():
    """Plain SGD: steps times rate. With decay d it ends at 1 / d; with momentum m the rate is 1 / (1 - m) times it."""
    assert accumulated_step_weight(settings(), 10**12) == pytest.approx(1e10)
    assert accumulated_step_weight(settings(weight_decay=0.01), 10**12) == pytest.approx(100.0)
    assert accumulated_step_weight(settings(momentum=0.9), 10**12) == pytest.approx(1e11)
