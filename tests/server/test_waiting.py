"""A deployment's server that waits for its clients: no clients is not a failed round."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.deployment.control import StartedSuperLink
from server.grids import InProcessGrid
from spatl.config.loading import load_config
from spatl.errors import DamagedState, SpatlError
from spatl.runs.directory import serving_run, write_config
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from spatl.runs.waiting import Waiting, read_waiting, write_waiting
from tests.support.flower import flowers_error
from tests.support.own_data import check_devices_control, own_config, serve_devices

WAITING = Waiting(3, 1_700_000_000.0, 2, 1, (0, 2))


class Cut(InProcessGrid):
    """All nodes but some go before round 2, and are back when they have been looked for a few times."""

    gone, looks, seen = (2, 3, 4), 3, []

    def get_node_ids(self):
        if self.number == 2 and self.left > 0:
            self.left -= 1
            type(self).seen.append(read_waiting(self.run_directory))
            return [node for node in super().get_node_ids() if node not in self.gone]
        return super().get_node_ids()

    def __init__(self, *arguments, run_config, **named):
        super().__init__(*arguments, run_config=run_config, **named)
        self.number, self.left, self.run_directory = 1, self.looks, Path(run_config["out"])

    def send_and_receive(self, messages, *, timeout=None):
        outgoing = list(messages)
        yield from super().send_and_receive(outgoing, timeout=timeout)
        if outgoing and outgoing[0].metadata.message_type == "train":
            self.number += 1


@pytest.mark.slow
@pytest.mark.parametrize(("gone", "least", "connected"), [((2, 3, 4), 1, 0), ((2, 4), 3, 1)])
def test_a_round_begins_when_enough_are_back_and_who_is_missing_is_told_meanwhile(
    devices, monkeypatch, gone, least, connected
):
    monkeypatch.setattr(Cut, "seen", [])
    monkeypatch.setattr(Cut, "gone", gone)
    config = own_config(rounds=3, server={"connect_timeout_seconds": 0.2, "min_replies": least})
    serve_devices(config, devices, grid_type=Cut)
    history = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in history] == [3, 3, 3]
    assert Cut.seen[0] is None
    told = Cut.seen[1]
    missing = tuple(node - 2 for node in gone)
    assert (told.server_round, told.needed, told.connected, told.missing) == (2, least, connected, missing)
    assert abs(told.since - time.time()) < 3600
    assert read_waiting(devices / "run") is None
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    assert sum(line == str(told) for line in said) == 1
    assert any(line.startswith("round 2 goes on after ") for line in said)


@pytest.mark.slow
def test_a_server_gives_up_after_as_long_as_it_was_told_and_the_run_goes_on_by_resume(devices, monkeypatch):
    monkeypatch.setattr(Cut, "looks", 10**6)
    config = own_config(rounds=2, server={"connect_timeout_seconds": 0.2, "give_up_seconds": 0.3})
    with pytest.raises(SpatlError, match=r"round 2 waits since .* for 1 more of 1 clients; .*: 0, 1, 2; given up"):
        serve_devices(config, devices, grid_type=Cut)
    config = load_config(devices / "run" / "config.yaml")
    assert serve_devices(config, devices, resume=True)["rounds"] == 2


@pytest.mark.slow
def test_rounds_that_no_device_answers_end_no_run(devices):
    """In a simulation, three of them would."""
    config = own_config(rounds=7, method="spatl")
    summary = serve_devices(config, devices, grid_type=_losing(rounds=5))
    assert summary["missing"] == 15
    assert [row["participants"] for row in read_lines(devices / "run" / "history.jsonl")] == [0] * 5 + [3, 3]


def _losing(*, rounds):
    class Losing(InProcessGrid):
        def __init__(self, *arguments, **named):
            def is_lost(client, message):
                own = message.metadata
                return own.message_type == "train" and int(own.group_id) <= rounds

            super().__init__(*arguments, loses=is_lost, **named)

    return Losing


class Gone(InProcessGrid):
    """Client 1 goes for good once it is asked to train."""

    is_gone = False

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node != 3 or not self.is_gone]

    def send_and_receive(self, messages, *, timeout=None):
        outgoing = list(messages)
        self.is_gone = self.is_gone or (bool(outgoing) and outgoing[0].metadata.message_type == "train")
        lost = [each for each in outgoing if self.is_gone and each.metadata.dst_node_id == 3]
        yield from super().send_and_receive([each for each in outgoing if each not in lost], timeout=timeout)
        for message in lost:
            self.push_messages([message])
            yield flowers_error(message)


@pytest.mark.slow
def test_a_device_that_never_comes_back_blocks_no_run_whose_rounds_draw_one_client(devices, monkeypatch):
    monkeypatch.setattr("server.strategy.secrets.randbits", lambda bits: 7)
    config = own_config(
        rounds=8, server={"connect_timeout_seconds": 0.2, "give_up_seconds": 20.0, "fraction_train": 0.3}
    )
    serve_devices(config, devices, grid_type=Gone)
    rows = read_lines(devices / "run" / "clients.jsonl")
    drawn = [row["client"] for row in rows if row["participated"] or row["missed"]]
    history = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in history] == [int(client != 1) for client in drawn]
    assert drawn.count(1) > 1
    assert read_waiting(devices / "run") is None


# A run that goes on


@pytest.mark.slow
def test_one_set_of_channels_goes_on_with_those_who_agreed_on_it_though_another_has_come(devices):
    config = own_config(rounds=1, method="ssfl")
    serve_devices(config, devices, absent=(2,))
    (devices / "run" / "summary.json").unlink()
    config = load_config(devices / "run" / "config.yaml").model_copy(update={"rounds": 2})
    write_config(devices / "run", config)
    summary = serve_devices(config, devices, resume=True)
    assert (summary["rounds"], summary["num_clients"], summary["missing"]) == (2, 2, 0)
    assert summary["absent"] == {"2": "it was not there when the clients of SSFL, by channels agreed on their channels"}


class Late(InProcessGrid):
    """Client 1 comes back after the first round that goes on."""

    def send_and_receive(self, messages, *, timeout=None):
        outgoing = list(messages)
        there = [message for message in outgoing if message.metadata.dst_node_id in self.contexts]
        yield from super().send_and_receive(there, timeout=timeout)
        for message in outgoing:
            if message not in there:
                self.push_messages([message])
                yield flowers_error(message)
        if outgoing and outgoing[0].metadata.message_type == "train" and self.away:
            self.contexts |= self.away
            self.away = {}

    def get_node_ids(self):
        nodes = super().get_node_ids()
        if not hasattr(self, "away"):
            self.away = {3: self.contexts.pop(3)}  # when the keys are known
        return nodes


@pytest.mark.slow
def test_one_that_is_away_when_a_run_goes_on_takes_part_again_when_it_is_back(devices):
    config = own_config(rounds=2, method="spatl")
    first = serve_devices(config, devices)
    (devices / "run" / "summary.json").unlink()
    config = load_config(devices / "run" / "config.yaml").model_copy(update={"rounds": 5})
    write_config(devices / "run", config)
    summary = serve_devices(config, devices, resume=True, grid_type=Late)
    rows = read_lines(devices / "run" / "clients.jsonl")
    assert [row["round"] for row in rows if row["client"] == 1 and row["participated"]] == [1, 2, 4, 5]
    assert "absent" not in summary
    assert summary["num_clients"] == first["num_clients"] == 3
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    assert "client 1 is away; it takes part again when it is back" in said
    check_devices_control(devices, config, {row["client"]: row["num_examples"] for row in rows})


# What whoever looks sees


@pytest.mark.slow
def test_what_is_waited_for_is_kept_as_it_is_and_told_by_the_status(devices):
    serve_devices(own_config(rounds=1), devices)
    (devices / "run" / "summary.json").unlink()
    write_waiting(devices / "run", WAITING)
    assert read_waiting(devices / "run") == WAITING
    with serving_run(devices / "run"):
        status = read_status(devices / "run")
    assert status.state == "running"
    assert status.message == str(WAITING)
    assert "waits since 20" in status.message
    assert "for 1 more of 2 clients; not connected: 0, 2" in status.message
    write_waiting(devices / "run", None)
    write_waiting(devices / "run", None)
    assert read_waiting(devices / "run") is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"missing": 3}', '{"missing": [], "why": 1}'])
def test_a_damaged_file_of_it_is_one_line(tmp_path, content):
    (tmp_path / "waiting.json").write_text(content)
    with pytest.raises(DamagedState, match=r"waiting\.json is damaged"):
        read_waiting(tmp_path)


# Before a run


class Nodes:
    """The Control API of a SuperLink whose nodes connect one by one, as often as it is asked."""

    def __init__(self, *online: int) -> None:
        self.online = list(online)

    def ListNodes(self, request):  # noqa: N802  (as Flower names it)
        number = self.online.pop(0) if len(self.online) > 1 else self.online[0]
        nodes = [SimpleNamespace(name=f"client-{n}", status="online" if n < number else "offline") for n in range(3)]
        return SimpleNamespace(nodes_info=nodes)


def awaited(directory, *online, seconds=600.0, enough=2, give_up=None):
    """What a server says that waits for clients."""
    process, said = SimpleNamespace(poll=lambda: None), []
    link = StartedSuperLink(process, Nodes(*online), None, directory / "flower.log")
    link.await_clients(3, said.append, run=directory, seconds=seconds, enough=enough, give_up=give_up)
    assert read_waiting(directory) is None
    return said


def test_before_a_run_all_are_waited_for_and_then_enough(tmp_path):
    assert awaited(tmp_path, 0, 3) == ["0 of 3 clients are connected", "3 of 3 clients are connected"]
    said = awaited(tmp_path, 0, 1, 2, seconds=0.0)
    without = "without client-0, client-1, client-2"
    assert said[1] == f"after 0 s 0 of 3 clients are connected, {without}; waiting for 2 (server.min_replies)"
    assert said[-1] == "after 0 s 2 of 3 clients are connected, without client-2 (--wait); going on with those"


def test_too_few_are_waited_for_until_the_server_is_told_to_give_up(tmp_path):
    with pytest.raises(SpatlError, match=r"after 0 s 1 of 3 clients are connected, .* \(server\.give_up_seconds\)"):
        awaited(tmp_path, 1, seconds=0.0, give_up=0.0)
    waiting = read_waiting(tmp_path)
    assert (waiting.server_round, waiting.needed, waiting.missing) == (0, 2, (1, 2))
    assert str(waiting).startswith("the start waits since ")
