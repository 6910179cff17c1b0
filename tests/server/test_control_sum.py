"""c is the weighted sum of the c_i, whatever is lost and whichever way clients come by c."""

import pytest
import torch

from tests.support.federations import (
    COMPRESSED,
    DENSE,
    DITHERED,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blob_of,
    blueprint_of,
    losing,
    opened,
    run_tiny,
    state_of,
    tampering,
    tiny_config,
)

INTEGERS = {"uplink": "int4", "downlink": "int8"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half_life", "selector", "wire"),  # every two values of two of them meet
    [
        (2.0, "random", DENSE), (None, "update", DENSE), (None, "random", COMPRESSED), (2.0, "update", COMPRESSED),
        (2.0, "random", INTEGERS), (None, "update", INTEGERS), (None, "random", DITHERED), (2.0, "update", DITHERED),
    ],
    ids=str,
)  # fmt: skip
def test_c_equals_the_weighted_sum_of_c_i_through_the_real_apps(tmp_path, strategies, selector, half_life, wire):
    """20 rounds, 40 % of 10 clients, a third of the replies lost after the client did its work; c is sent."""
    config = tiny_config(
        rounds=20,
        partition={"name": "dirichlet", "num_clients": 10, "alpha": 0.5},
        server={"fraction_train": 0.4},
        selection={"selector": selector, "keep_ratio": 0.4},
        control={"half_life": half_life, "downlink": "sent"},
        training={"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 1e-3},
        wire=wire,
    )
    held_c = []

    def watch(client, content):
        state = strategies[-1].state
        held_c.append(torch.equal(state.control, state.held_control))
        return content

    loses, losses = losing(1 / 3)
    summary = run_tiny(config, tmp_path, loses=loses, app=tampering(watch))
    assert summary["missing"] == sum(losses)
    assert 15 <= sum(losses) <= 40
    assert summary["rejected"] == 0
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert all(held_c) if wire == DENSE else not all(held_c)


@pytest.mark.slow
@pytest.mark.parametrize("wire", [COMPRESSED, DITHERED, INTEGERS], ids=str)
@pytest.mark.parametrize("selector", ["random", "update"])
def test_c_equals_the_weighted_sum_of_c_i_where_clients_derive_it(tmp_path, strategies, selector, wire):
    """24 rounds, 90 % of 10 clients, a third of the replies of four rounds lost; c fades to a quarter in a round.

    So a client that missed a version is corrected again some 13 rounds later; in most rounds some are and some are not.
    """
    config = tiny_config(
        rounds=24,
        partition={"name": "dirichlet", "num_clients": 10, "alpha": 0.5},
        server={"fraction_train": 0.9},
        selection={"selector": selector, "keep_ratio": 0.4},
        control={"half_life": 0.5, "downlink": "derived"},
        training={"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 1e-3},
        wire=wire,
    )
    layout, corrected, held_c = blueprint_of(config).layout, [], []

    def watch(client, content):
        update = opened(blob_of(content), layout)
        corrected.append((update.server_round, update.corrected))
        state = strategies[-1].state
        held_c.append(torch.equal(state.control, state.held_control))
        return content

    loses, losses = losing(1 / 3, rounds=(2, 4, 5, 18))
    summary = run_tiny(config, tmp_path, loses=loses, app=tampering(watch))
    assert summary["missing"] == sum(losses) >= 8
    assert summary["rejected"] == 0
    assert {was for server_round, was in corrected if server_round > 6} == {True, False}
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert not all(held_c)


@pytest.mark.slow
def test_a_lost_reply_leaves_the_old_c_i(tmp_path):
    """Client 2's replies are lost in every round: its c_i stays zero though it trained three times."""
    summary = run_tiny(
        tiny_config(), tmp_path, loses=lambda client, m: client == 2 and m.metadata.message_type == "train"
    )
    assert summary["missing"] == 3
    assert not state_of(tmp_path, 2).control.any()
    assert state_of(tmp_path, 1).control.any()


@pytest.mark.slow
def test_c_is_the_weighted_sum_of_c_i_under_a_schedule_with_clipping_and_clients_of_their_own(tmp_path, strategies):
    """Each round has another rate, and client 1 its own batches: every update is admitted, and one reply is lost."""
    config = tiny_config(
        rounds=4,
        training={
            "learning_rate": 0.05, "momentum": 0.9, "schedule": "cosine", "warmup_rounds": 1, "clip_gradients": 0.5,
            "clients": {1: {"batch_size": 8, "local_epochs": 1}, 2: {"learning_rate": 0.01}},
        },
        wire=COMPRESSED,
    )  # fmt: skip
    weights = {}

    def watch(client, content):
        update = opened(blob_of(content), blueprint_of(config).layout)
        weights[update.server_round, client] = update.step_weight
        return content

    def loses(client, message):
        return client == 3 and message.metadata.group_id == "2" and message.metadata.message_type == "train"

    summary = run_tiny(config, tmp_path, loses=loses, app=tampering(watch))
    assert (summary["missing"], summary["rejected"]) == (1, 0)
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert weights[1, 0] == weights[1, 4] == pytest.approx(weights[2, 0] / 2)  # half a warm-up, then the full rate
    assert weights[3, 0] == pytest.approx(weights[2, 0] * 0.75)  # cos(60 degrees) is a half
    assert weights[2, 2] == pytest.approx(weights[2, 0] / 5)
    assert weights[2, 1] != weights[2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl-no-control", "fednova"])
def test_methods_without_control_run_under_adam(tmp_path, strategies, method):
    config = tiny_config(method=method, training={"optimizer": "adamw", "learning_rate": 0.01, "local_steps": 8})
    summary = run_tiny(config, tmp_path)
    assert (summary["rejected"], strategies[-1].state.control) == (0, None)
    assert summary["accuracy"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["sent", "derived"])
def test_c_equals_the_weighted_sum_of_c_i_where_clients_train_parts(tmp_path, strategies, downlink):
    """6 rounds of parts at a quarter and a half, and whole networks; a third of the replies of two rounds lost."""
    config = tiny_config(
        rounds=6,
        partition={"name": "dirichlet", "num_clients": 6, "alpha": 0.5},
        selection={
            "when": "before", "selector": "rolling", "flops_ratio": 1.0,
            "clients": {0: {"flops_ratio": 0.25}, 1: {"flops_ratio": 0.25}, 2: {"flops_ratio": 0.5}},
        },
        control={"half_life": 2.0, "downlink": downlink},
        training={"learning_rate": 0.02, "momentum": 0.5},
        wire=COMPRESSED,
    )  # fmt: skip
    loses, losses = losing(1 / 3, rounds=(2, 4))
    run_tiny(config, tmp_path, loses=loses)
    assert sum(losses) > 0
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
