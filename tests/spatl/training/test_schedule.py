"""Learning rates by round are PyTorch's schedules, after a warm-up."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.config.loading import parse_config
from spatl.config.training import TrainingConfig
from spatl.errors import ConfigError
from spatl.training.schedule import rate_factor


def torchs(make, rounds):
    """The rates of a scheduler of PyTorch's that takes a step for each round."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no step here
        for _ in range(rounds):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


def ours(rounds, **settings):
    return [rate_factor(TrainingConfig(**settings), each, rounds) for each in range(1, rounds + 1)]


def test_the_schedules_are_pytorchs():
    cosine = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=12), 12)
    assert ours(12, schedule="cosine") == pytest.approx(cosine)
    step = torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=3, gamma=0.5), 12)
    assert ours(12, schedule="step", step_rounds=3, step_factor=0.5) == pytest.approx(step)
    assert ours(4) == [1.0] * 4


def test_a_warm_up_rises_by_equal_steps_to_the_full_rate():
    """Three rounds: a quarter, a half, three quarters; then the schedule as if the run began there."""
    assert ours(6, warmup_rounds=3) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ours(9, warmup_rounds=3, schedule="cosine")[3:] == ours(6, schedule="cosine")


@given(
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    warmup=st.integers(0, 50),
    every=st.integers(1, 50),
    factor=st.floats(1e-6, 1.0),
    rounds=st.integers(1, 2000),
    server_round=st.integers(0, 3000),
)
def test_no_round_is_without_a_step_weight(schedule, warmup, every, factor, rounds, server_round):
    settings = TrainingConfig(schedule=schedule, warmup_rounds=warmup, step_rounds=every, step_factor=factor)
    assert 0 < rate_factor(settings, server_round, rounds) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "rmsprop"}, "training.optimizer: input should be 'sgd', 'adam' or 'adamw', got 'rmsprop'"),
        ({"schedule": "linear"}, "training.schedule: input should be 'constant', 'step' or 'cosine', got 'linear'"),
        ({"warmup_rounds": 20}, "training.warmup_rounds is 20, but the run has 20 rounds"),
        ({"clip_gradients": 0}, "training.clip_gradients: input should be greater than 0, got 0"),
        ({"step_factor": 2}, "training.step_factor: input should be less than or equal to 1, got 2"),
        ({"clients": {20: {"batch_size": 4}}}, "training.clients names client 20, but there are 20, from 0"),
        ({"clients": {1: {}}}, "training.clients.1: set one of learning_rate, local_epochs, local_steps, batch_size"),
        (
            {"clients": {1: {"local_steps": 4, "local_epochs": 2}}},
            "training.clients.1: set one of local_epochs and local_steps, got both",
        ),
        (
            {"clients": {1: {"batch": 4}}},
            "training.clients.1.batch: unknown key (did you mean 'batch_size'?); "
            "training.clients.1 takes learning_rate, local_epochs, local_steps, batch_size",
        ),
        (
            {"optimizer": "adam"},
            "the control variates of SPATL follow from updates that are sums of gradients, which those of adam are not",
        ),
    ],
)
def test_settings_that_do_not_go_are_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        parse_config({"training": values})
    assert message in str(caught.value)


def test_an_optimizer_brings_pytorchs_defaults_where_a_config_says_nothing_else():
    """Before the rate that a method brings, which is one of SGD."""
    for optimizer, rate, decay in (("adam", 1e-3, 0.0), ("adamw", 1e-3, 1e-2), ("sgd", 0.02, 0.0)):
        training = parse_config({"method": "spatl-no-control", "training": {"optimizer": optimizer}}).training
        assert (training.learning_rate, training.weight_decay) == (rate, decay)
        assert (training.beta_1, training.beta_2, training.epsilon) == (0.9, 0.999, 1e-8)
    own = {"optimizer": "adamw", "learning_rate": 0.5, "weight_decay": 0.0}
    assert parse_config({"method": "fedavg", "training": own}).training.learning_rate == 0.5
    assert parse_config({"method": "fedavg", "training": own}).training.weight_decay == 0.0


def test_a_client_trains_as_the_others_but_for_what_is_its_own():
    clients = {0: {"learning_rate": 0.5}, 1: {"local_epochs": 7, "batch_size": 2}}
    config = parse_config({"rounds": 4, "training": {"local_steps": 9, "schedule": "cosine", "clients": clients}})
    usual = config.training
    first, second, third = (config.training_of(client) for client in range(3))
    assert third == usual
    assert (first.learning_rate, first.local_steps) == (0.5, 9)
    assert (second.local_steps, second.local_epochs, second.batch_size) == (None, 7, 2)
    assert config.training_of(0, 3).learning_rate == pytest.approx(0.25)  # half of it, after two of four rounds
