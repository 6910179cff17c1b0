"""Clients that come to a deployment, and go, while it runs: from the next round on, with c the sum of the p_i c_i."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.grids import InProcessGrid
from server.registration import RETIRED
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.errors import DamagedState, SpatlError
from spatl.json_files import read_json
from spatl.report.result import read_run
from spatl.report.run_report import write_report
from spatl.rounds.downlink import Versions
from spatl.rounds.members import retired
from spatl.rounds.server_state import ServerState
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.directory import write_config
from spatl.runs.members import Members, read_members, write_members
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from spatl.seeding import numpy_generator
from tests.support.federations import COMPRESSED
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data

EXAMPLES = {0: 120, 1: 72, 2: 36}
SPATL = {"method": "spatl", "selection": {"selector": "update"}}


def changing(base, at, *, num_clients=4):
    """A grid with so many nodes, on which who is let in changes once a round has been answered.

    Args:
        base: Where the devices are.
        at: What is let in after each of some rounds: the clients, and those that are retired.
        num_clients: How many nodes there are; those that are not let in are not connected.
    """

    class Changing(InProcessGrid):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **(named | {"num_clients": num_clients}))
            self.number, self.inside = 0, set(range(named["num_clients"]))

        def get_node_ids(self):
            return [node for node in super().get_node_ids() if node - 2 in self.inside]

        def send_and_receive(self, messages, *, timeout=None):
            outgoing = list(messages)
            yield from super().send_and_receive(outgoing, timeout=timeout)
            if outgoing and outgoing[0].metadata.message_type == "train":
                self.number += 1
                if self.number in at:
                    clients, gone = at[self.number]
                    self.inside = set(clients)
                    write_members(base / "run", Members({each: each + 2 for each in clients}, gone))

    return Changing


def participants(base):
    rows = read_lines(base / "run" / "clients.jsonl")
    rounds = max(row["round"] for row in rows)
    return [[row["client"] for row in rows if row["round"] == n and row["participated"]] for n in range(1, rounds + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("sections", [{}, {"wire": COMPRESSED, "control": {"half_life": 2.0}}], ids=str)
def test_one_that_comes_is_in_the_next_round_and_one_that_goes_in_none_and_c_is_the_sum_over_the_others(
    devices, sections, capsys
):
    """Client 3 comes after round 2, client 0 goes after round 4; c begins anew in round 5."""
    write_data(devices / "3.npz", 100, range(4), seed=3)
    config = own_config(rounds=7, **SPATL, **sections)
    at = {2: ((0, 1, 2, 3), ()), 4: ((1, 2, 3), (0,))}
    summary = serve_devices(config, devices, grid_type=changing(devices, at))
    assert participants(devices) == [[0, 1, 2]] * 2 + [[0, 1, 2, 3]] * 2 + [[1, 2, 3]] * 3
    check_devices_control(devices, config, {1: 72, 2: 36, 3: 60})
    assert (summary["num_clients"], summary["missing"], summary["not_evaluated"]) == (3, 0, 0)
    assert summary["absent"] == {"0": RETIRED}
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [row["joined"] for row in rows] == [[], [], [3], [], [], [], []]
    assert [row["retired"] for row in rows] == [[], [], [], [], [0], [], []]
    assert [row["control_anew"] for row in rows] == [False] * 4 + [True, False, False]
    asked = [(line["client"], line["round"]) for line in read_lines(devices / "run" / "ledger.jsonl")
             if line["phase"] == "query" and line["round"] > 1]  # fmt: skip
    assert set(asked) == {(3, 3)}
    registration = read_json(devices / "run" / "registration.json")
    assert (registration["num_examples"], registration["absent"]) == ({"1": 72, "2": 36, "3": 60}, {"0": RETIRED})
    assert load_config(devices / "run" / "config.yaml").partition.num_clients == 4
    status = read_status(devices / "run")
    assert (status.joined, status.retired) == ({3: (3,)}, {5: (0,)})
    assert status.clients[0].absent == RETIRED
    assert main(["status", str(devices / "run")]) == 0
    said = capsys.readouterr().out
    for line in ("3: client 3 came", "5: client 0 was retired", f"client 0 takes no part: {RETIRED}",
                 "5: all control variates began anew, for c contained those of who was retired"):  # fmt: skip
        assert line in said
    write_report(read_run(devices / "run"), devices / "report.html", config_yaml="", command="")
    page = (devices / "report.html").read_text()
    assert "4, 3 came" in page
    assert "3, 0 retired" in page


@pytest.mark.slow
def test_a_run_with_who_has_come_and_without_who_has_gone_goes_on_as_it_was(devices):
    """Retired while nobody runs it: client 1, before the second start."""
    write_data(devices / "3.npz", 100, range(4), seed=3)
    serve_devices(own_config(rounds=3, **SPATL), devices, grid_type=changing(devices, {1: ((0, 1, 2, 3), ())}))
    (devices / "run" / "summary.json").unlink()
    config = load_config(devices / "run" / "config.yaml").model_copy(update={"rounds": 6})
    write_config(devices / "run", config)
    write_members(devices / "run", Members({0: 2, 2: 4, 3: 5}, (1,)))
    summary = serve_devices(config, devices, resume=True, absent=(1,))
    assert participants(devices) == [[0, 1, 2]] + [[0, 1, 2, 3]] * 2 + [[0, 2, 3]] * 3
    assert summary["absent"] == {"1": RETIRED}
    check_devices_control(devices, config, {0: 120, 2: 36, 3: 60})


@pytest.mark.slow
def test_one_that_was_not_there_at_the_start_comes_when_it_is_and_one_that_does_not_fit_is_asked_once(devices, caplog):
    """Client 2 connects after round 1; client 3 comes with classes of its own."""
    write_data(devices / "3.npz", 100, range(4), seed=3)
    data = dict(np.load(devices / "3.npz"))
    np.savez(devices / "3.npz", images=data["images"], labels=data["labels"] + 6)

    class Late(changing(devices, {1: ((0, 1, 2, 3), ())})):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.inside = {0, 1}

    summary = serve_devices(own_config(rounds=4), devices, grid_type=Late)
    assert participants(devices) == [[0, 1]] + [[0, 1, 2]] * 3
    assert list(summary["absent"]) == ["3"]
    assert "4 classes of the data here are none of those" in summary["absent"]["3"]
    assert sum("client 3 takes no part" in record.getMessage() for record in caplog.records) == 2  # on both sides


@pytest.mark.slow
def test_a_run_of_which_all_were_retired_ends_in_one_line(devices):
    with pytest.raises(SpatlError, match="all clients were retired; add some"):
        serve_devices(own_config(rounds=3), devices, grid_type=changing(devices, {1: ((), (0, 1, 2))}))


@given(known=st.lists(st.integers(1, 1000), min_size=2, max_size=6), gone=st.integers(0, 5), folded=st.booleans())
def test_what_is_left_of_c_without_a_client_is_the_sum_over_the_others_whatever_it_contained(known, gone, folded):
    """c_i of one that nothing was folded in of is 0: the others' parts grow. Else all begin anew."""
    gone %= len(known)
    own = numpy_generator(1, "c_i").normal(size=(len(known), 3))
    own[gone] *= folded
    total = sum(known)
    control = torch.from_numpy(np.array(known) / total @ own).float()
    everyone = range(len(known))
    state = ServerState(
        torch.zeros(3), control, control, 0.5, Versions(0, torch.zeros(0, dtype=torch.int32)),
        {client: 4 for client in everyone if folded or client != gone}, dict.fromkeys(everyone, 2),
        dict.fromkeys(everyone, 0.5), dict(enumerate(known)),
    )  # fmt: skip
    after = retired(state, [gone], 5)
    others = [client for client in everyone if client != gone]
    assert list(after.num_examples) == list(after.held) == list(after.control_staleness) == others
    assert after.control is not None
    if folded:  # every client is told so, and sets its own to 0
        own[:] = 0
        assert (after.folded, after.control_since) == ({}, 5)
    else:
        assert (list(after.folded), after.control_since) == (others, 0)
    shares = np.array([known[client] for client in others]) / (total - known[gone])
    torch.testing.assert_close(after.control, torch.from_numpy(shares @ own[others]).float(), rtol=1e-4, atol=1e-5)
    assert retired(after, [gone], 6) is after


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"nodes": {"a": 1}, "retired": []}', '{"nodes": 3, "retired": []}']
)
def test_a_damaged_file_of_members_is_one_line(tmp_path, content):
    assert read_members(tmp_path) == Members()
    (tmp_path / "members.json").write_text(content)
    with pytest.raises(DamagedState, match=r"members\.json is damaged"):
        read_members(tmp_path)


def test_what_is_written_of_members_is_read(tmp_path):
    write_members(tmp_path, Members({3: 1 << 60, 0: 5}, (1, 2)))
    assert read_members(tmp_path) == Members({0: 5, 3: 1 << 60}, (1, 2))


@pytest.mark.slow
def test_the_checkpoint_has_no_share_of_a_client_that_was_retired(devices):
    serve_devices(own_config(rounds=3, **SPATL), devices, grid_type=changing(devices, {1: ((0, 1), (2,))}))
    state = load_checkpoint(devices / "run").state
    for values in (state.num_examples, state.held, state.folded, state.admission.by_client):
        assert sorted(values) == [0, 1]
