"""A client that lost its c_i, or has an older one, is told at once, and c is the weighted sum of the c_i again soon."""

import pytest

from spatl.console.main import main
from spatl.rounds.opened_control import RESTART_ROUNDS
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.federations import COMPRESSED, DENSE, run_tiny, tiny_config
from tests.support.forgetting import backup_of, distances_with, loss_of, return_of_backup

WIRES = pytest.mark.parametrize(
    "wire", [DENSE, COMPRESSED, {"uplink": "int4", "downlink": "int8"}], ids=["dense", "adaptive", "int"]
)
EXACT = 1e-5


def config_of(wire, *, rounds=9, **sections):
    values = {
        "method": "spatl", "selection": {"selector": "update", "keep_ratio": 0.5}, "wire": wire, "rounds": rounds,
        "training": {"learning_rate": 0.02},
    }  # fmt: skip
    return tiny_config(**values | sections)


def refusals(directory):
    return {
        (row["round"], each["client"]): each["reason"]
        for row in read_lines(directory / "history.jsonl")
        for each in row["rejections"]
    }


@pytest.mark.slow
@WIRES
@pytest.mark.parametrize("half_life", [2.0, None])
def test_a_lost_state_costs_one_refusal_and_c_is_exact_in_the_second_round_after_it(tmp_path, wire, half_life, capsys):
    config = config_of(wire, control={"half_life": half_life})
    found = distances_with(config, tmp_path, {4: [loss_of(2)]})
    assert found[4] > 0.1  # round 5, in which nobody can do anything yet
    assert max(found[:4] + found[5:]) < EXACT
    ((refused, reason),) = refusals(tmp_path).items()
    assert refused == (5, 2)
    assert "no state of this client is here, and the server has folded in its round 4" in reason
    status = read_status(tmp_path)
    assert (dict(status.control_anew), status.mishaps["errors"]) == ({6: (2,)}, 1)
    assert main(["status", str(tmp_path)]) == 0
    assert "round 6: all control variates began anew, for" in capsys.readouterr().out


@pytest.mark.slow
def test_so_do_the_linear_terms_of_feddyn(tmp_path):
    config = config_of(COMPRESSED, method="feddyn", training={"dynamic_alpha": 0.1})
    found = distances_with(config, tmp_path, {4: [loss_of(2)]})
    assert max(found[:4] + found[5:]) < EXACT
    ((refused, reason),) = refusals(tmp_path).items()
    assert refused == (5, 2)
    assert "no state of this client is here, and the server has folded in its round 4" in reason


@pytest.mark.slow
@WIRES
@pytest.mark.parametrize("downlink", ["auto", "sent"])
def test_an_older_backup_is_told_by_its_version_and_put_right_likewise(tmp_path, wire, downlink):
    config = config_of(wire, control={"downlink": downlink})
    found = distances_with(config, tmp_path, {2: [backup_of(2)], 5: [return_of_backup(2)]})
    assert found[5] > 0.01
    assert max(found[:5] + found[6:]) < EXACT
    ((refused, reason),) = refusals(tmp_path).items()
    assert refused == (6, 2)
    assert "its control variate of round 1, the server that of round 5" in reason  # and pending that of round 2


@pytest.mark.slow
def test_the_backup_of_the_last_round_is_none_too_old(tmp_path):
    found = distances_with(config_of(COMPRESSED), tmp_path, {5: [backup_of(2), return_of_backup(2)]})
    assert max(found) < EXACT
    assert not refusals(tmp_path)


@pytest.mark.slow
@WIRES
def test_clients_that_are_away_when_all_begin_anew_do_so_when_they_are_back(tmp_path, wire):
    """Three of five a round: whoever is asked later has a c_i of before, which counts no more."""
    config = config_of(wire, rounds=14, server={"fraction_train": 0.6})
    found = distances_with(config, tmp_path, {4: [loss_of(0, 2)]})
    first = min(number for (number, _), reason in refusals(tmp_path).items() if "no state of this client" in reason)
    assert max(found[:4]) < EXACT
    assert min(found[4:first]) > 0.01
    assert max(found[first:]) < EXACT  # also of the second one, which need not have been asked by then


@pytest.mark.slow
def test_who_keeps_forgetting_makes_all_begin_anew_once_in_ten_rounds_and_in_between_it_fades(tmp_path):
    """Client 2 forgets after rounds 3 and 6; c begins anew in rounds 5 and 15, and fades by half in two rounds."""
    config = config_of(COMPRESSED, rounds=16)
    found = distances_with(config, tmp_path, {3: [loss_of(2)], 6: [loss_of(2)]})
    assert [number for number, _ in refusals(tmp_path)] == [4, 7]
    assert RESTART_ROUNDS == 10
    assert max(found[4:6]) < EXACT
    assert min(found[6:9]) > 1e-3
    assert max(found[14:]) < EXACT
    assert found[12] < found[6] / 3


@pytest.mark.slow
def test_a_method_without_control_variates_has_nothing_to_begin_anew(tmp_path):
    lost = []

    def loses(client, message):
        if (client, message.metadata.message_type, message.metadata.group_id) == (2, "train", "2"):
            loss_of(2)(tmp_path, 2)
            lost.append(client)
        return False

    run_tiny(tiny_config(method="fedavg", rounds=4, wire=COMPRESSED), tmp_path, loses=loses)
    assert lost == [2]
    ((refused, reason),) = refusals(tmp_path).items()
    assert refused == (3, 2)
    assert "the server's changes start from version" in reason
