"""The server's optimizer: its formulas, what it leaves alone, and what a run with it keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.config.loading import parse_config
from spatl.config.server_optimizer import ServerOptimizerConfig
from spatl.errors import ConfigError
from spatl.rounds.server_optimizer import Moments, moved
from spatl.runs.checkpoint import load_checkpoint
from tests.support.federations import blueprint_of, run_tiny, tiny_config
from tests.support.layouts import interleaved_layout

NAMES = ("momentum", "adam", "yogi")
LAYOUT = interleaved_layout([(1, 3), (6, 4), (5, 2)], statistics=4)


def settings_of(name: str) -> ServerOptimizerConfig:
    return ServerOptimizerConfig(name=name, momentum=0.5, beta_1=0.5, beta_2=0.75, tau=0.125)


def steps_of(name: str, changes: list[float], rate: float) -> list[float]:
    """What one weight becomes that starts at 0 and whose average lies so far from it in each round, by hand."""
    x, first, second, found = 0.0, 0.0, 0.0, []
    for number, change in enumerate(changes, 1):
        if name == "momentum":
            first = 0.5 * first + change
            x += rate * first
        else:
            first = 0.5 * first + 0.5 * change
            if name == "adam":
                second = 0.75 * second + 0.25 * change**2
                factor = math.sqrt(1 - 0.75 ** (number + 1)) / (1 - 0.5 ** (number + 1))
            else:
                second -= 0.25 * change**2 * math.copysign(1.0, second - change**2)
                factor = 1.0
            x += rate * factor * first / (math.sqrt(second) + 0.125)
        found.append(x)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_follows_the_formula(name):
    settings, changes = settings_of(name), [0.5, -0.3, 1.0, 0.125]
    encoder, moments = torch.zeros(LAYOUT.num_entries), Moments.start(settings, LAYOUT)
    everybody = torch.ones(LAYOUT.num_channels, dtype=torch.bool)
    for change, expected in zip(changes, steps_of(name, changes, 0.25), strict=True):
        assert moments is not None
        encoder, moments = moved(
            encoder, encoder + change, everybody, moments, settings, learning_rate=0.25, layout=LAYOUT
        )
        weights = encoder[: LAYOUT.num_parameter_entries]
        torch.testing.assert_close(weights, torch.full_like(weights, expected), rtol=1e-5, atol=1e-6)


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**31))
def test_what_nobody_sent_keeps_its_bits_and_its_moments_and_statistics_are_the_average(name, seed):
    draws = torch.Generator().manual_seed(seed)
    settings = settings_of(name)
    before, averaged = (torch.randn(LAYOUT.num_entries, generator=draws) for _ in range(2))
    sent = torch.rand(LAYOUT.num_channels, generator=draws) < 0.5
    entries = sent[LAYOUT.owner_in(slice(0, LAYOUT.num_entries))]
    averaged = torch.where(entries, averaged, before)
    length = LAYOUT.num_parameter_entries
    old = Moments(3, torch.randn(length, generator=draws),
                  None if name == "momentum" else torch.rand(length, generator=draws))  # fmt: skip
    encoder, new = moved(before, averaged, sent, old, settings, learning_rate=0.5, layout=LAYOUT)
    assert new.steps == 4
    rests = ~entries[:length]
    assert torch.equal(encoder[:length][rests], before[:length][rests])
    assert torch.equal(new.first[rests], old.first[rests])
    assert bool(rests.all()) or not torch.equal(encoder[:length], before[:length])
    if old.second is not None:
        assert new.second is not None
        assert torch.equal(new.second[rests], old.second[rests])
        assert bool((new.second >= 0).all())
    assert torch.equal(encoder[length:], averaged[length:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_running_variances_stay_positive(tmp_path, name):
    """Flower's FedAvgM and FedAdam drive them below zero: they take a step along statistics, too."""
    config = tiny_config(
        method="fedavg", rounds=4, server_optimizer={"name": name}, server={"learning_rate": 1.0},
        model={"name": "resnet8", "options": {"width": 0.25}}, training={"batch_norm": "shared"},
    )  # fmt: skip
    run_tiny(config, tmp_path)
    last = load_checkpoint(tmp_path)
    assert last is not None
    for place in blueprint_of(config).layout.variances:
        assert bool((last.state.encoder[place] > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_under_privacy_what_nobody_sent_moves_by_noise_like_all_else(tmp_path, name):
    """Otherwise the encoder would tell whose channels nobody chose."""
    config = tiny_config(
        method="spatl-no-control", rounds=1, partition={"num_clients": 2}, selection={"keep_ratio": 0.3},
        server_optimizer={"name": name}, privacy={"noise_multiplier": 1.0},
    )  # fmt: skip
    run_tiny(config, tmp_path)
    last = load_checkpoint(tmp_path)
    assert last is not None
    assert bool((last.state.encoder != blueprint_of(config).initial_encoder()).all())


def test_clients_cannot_derive_c_from_steps_of_another_kind():
    with pytest.raises(ConfigError, match=r"control\.downlink: derived needs server_optimizer\.name: sgd"):
        parse_config({"method": "spatl", "control": {"downlink": "derived"}, "server_optimizer": {"name": "adam"}})
