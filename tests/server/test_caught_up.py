"""Clients that missed rounds are sent the changes one by one, so that they know c as well as those who missed none."""

import re

import pytest
from flwr.app import Message, RecordDict

from clients.app import app as client_app
from spatl.errors import ConfigError
from spatl.rounds.federation import remarks_on_control
from spatl.runs.records import read_lines
from spatl.seeding import numpy_generator
from tests.support.federations import (
    COMPRESSED,
    assert_c_is_the_weighted_sum_of_the_c_i,
    blob_of,
    blueprint_of,
    opened,
    run_tiny,
    tiny_config,
)


def run_missing(config, directory, *, asked_in_vain=lambda client, number: False, lost=lambda client, number: False):
    """Run a federation whose clients do not get some questions, and whose server does not get some answers.

    Returns the summary, and by client and round whether the update that was made was corrected.
    """
    layout, corrected = blueprint_of(config).layout, {}

    def which(message):
        return int(message.metadata.group_id)

    def app(message, context):
        client = context.node_config["partition-id"]
        if message.metadata.message_type != "train":
            return client_app(message, context)
        if asked_in_vain(client, which(message)):
            return Message(RecordDict(), reply_to=message)
        reply = client_app(message, context)
        corrected[client, which(message)] = opened(blob_of(reply.content), layout).corrected
        return reply

    def loses(client, message):
        ways = asked_in_vain, lost
        return message.metadata.message_type == "train" and any(each(client, which(message)) for each in ways)

    return run_tiny(config, directory, app=app, loses=loses), corrected


def config_of(*, rounds=8, **control):
    return tiny_config(
        rounds=rounds,
        partition={"name": "dirichlet", "num_clients": 3, "alpha": 0.5},
        server={"max_failures": 100},
        selection={"selector": "update", "keep_ratio": 0.6},
        control=control,
        training={"learning_rate": 0.02, "momentum": 0.5},
        wire=COMPRESSED,
    )


def in_turn(client, number):
    """Each client in turn misses three of four rounds, for eight rounds."""
    return client == (number - 1) // 8 % 3 and number % 4 != 0


@pytest.mark.slow
def test_a_client_that_missed_rounds_is_corrected_at_once_and_c_stays_the_sum(tmp_path, strategies):
    """Questions are lost in turn, and answers at random; of both, whatever came through is corrected."""
    config = config_of(rounds=24)
    draw = numpy_generator(3, "lost answers").random((3, 25)) < 0.2
    summary, corrected = run_missing(
        config, tmp_path, asked_in_vain=in_turn, lost=lambda client, number: bool(draw[client, number])
    )
    assert summary["missing"] >= 20
    assert summary["rejected"] == 0
    assert all(corrected.values())
    state = strategies[-1].state
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, state)
    assert float(state.control.abs().max()) > 0.02
    assert set(state.control_staleness.values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("catch_up", "is_corrected"), [(3, True), (2, False), (0, False)])
def test_it_is_led_to_the_sum_where_it_missed_more_than_is_asked_for(tmp_path, strategies, catch_up, is_corrected):
    """Client 1 misses rounds 4 to 6; c stays the weighted sum in any case."""
    config = config_of(catch_up=catch_up)
    _, corrected = run_missing(config, tmp_path, asked_in_vain=lambda client, number: client == 1 and 4 <= number <= 6)
    later = {number: was for (client, number), was in corrected.items() if client == 1 and number > 6}
    assert later[7] == is_corrected
    assert all(was for (client, number), was in corrected.items() if client != 1 or number < 4)
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategies[-1].state)
    assert len(strategies[-1].state.control_steps) == catch_up + 1


@pytest.mark.slow
def test_changes_one_by_one_are_sent_to_those_who_missed_them_only(tmp_path):
    """Client 1 misses rounds 4 and 5, so that 5 and 6 send it two changes and three; their sum is shorter."""
    sent = {}
    for catch_up in (3, 0):
        directory = tmp_path / str(catch_up)
        run_missing(
            config_of(catch_up=catch_up),
            directory,
            asked_in_vain=lambda client, number: client == 1 and number in (4, 5),
        )
        rows = read_lines(directory / "history.jsonl")
        sent[catch_up] = [row["downlink_bytes"] for row in rows]
    assert sent[3][:4] == sent[0][:4]
    assert 0 < sent[3][4] - sent[0][4] < sent[3][5] - sent[0][5]


@pytest.mark.slow
def test_where_clients_are_drawn_nobody_catches_up_unless_it_is_asked_for(tmp_path, strategies):
    config = tiny_config(rounds=4, server={"fraction_train": 0.6}, wire=COMPRESSED)
    run_tiny(config, tmp_path)
    assert len(strategies[-1].state.control_steps) == 1
    assert 1.0 in strategies[-1].state.control_staleness.values()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"predictor": {"mode": "shared"}}, "3 of 5 clients take part .*sends c, and control.half_life: null keeps"),
        ({"method": "scaffold"}, r"3 of 5 clients take part .*\(control.downlink: sent sends c\)$"),
        ({"predictor": {"mode": "shared"}, "control": {"catch_up": 2}}, None),
        ({"predictor": {"mode": "shared"}, "control": {"downlink": "sent"}}, None),
        ({"predictor": {"mode": "shared"}, "server": {"fraction_train": 1.0}}, None),
        ({"predictor": {"mode": "calibrated"}}, None),
        ({"method": "fedavg"}, None),
    ],
)
def test_who_draws_clients_is_told_that_few_updates_are_corrected(sections, said):
    config = tiny_config(**{"server": {"fraction_train": 0.6}, "wire": COMPRESSED, **sections})
    found = remarks_on_control(blueprint_of(config))
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [(999, "less than or equal to 254, got 999"), (-1, "greater than or equal to 0, got -1"), (True, "got true")],
)
def test_a_number_of_rounds_that_is_none_is_one_line(given, said):
    with pytest.raises(ConfigError, match=rf"^control\.catch_up: [^;\[]*{said}$"):
        tiny_config(control={"catch_up": given})
