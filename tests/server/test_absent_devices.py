"""A device with bad data, or that is away, costs itself only and is named; so is one whose copy differs."""

import numpy as np
import pytest

from server.grids import InProcessGrid
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.errors import SpatlError
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.flower import flowers_error
from tests.support.own_data import own_config, serve_devices, unreadable, write_data


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def of_another_shape(path):
    write_data(path, 60, (0, 1, 3), size=10)


def too_few(path):
    write_data(path, 8, (0, 1))


def missing(path):
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncated, "npz: "),
        (unreadable, "is not a file that numpy.savez wrote"),
        (missing, "no file"),
        (
            of_another_shape,
            "its examples are numbers scaled by channel 1 x 10 x 10, those of 2 of 3 clients numbers scaled by channel "
            "1 x 8 x 8",
        ),
        (too_few, "8 examples lie here, expected at least 10"),
    ],
)
def test_a_device_with_a_bad_file_costs_that_device_only_and_is_named(devices, harm, reason, capsys, caplog):
    harm(devices / "1.npz")
    summary = serve_devices(own_config(), devices)
    assert list(summary["absent"]) == ["1"]
    assert reason in summary["absent"]["1"]
    assert [row["participants"] for row in read_lines(devices / "run" / "history.jsonl")] == [2, 2]
    said = [line for line in read_lines(devices / "run" / "log.jsonl") if line.get("client") == 1]
    assert any("client 1 takes no part: " in line["message"] and reason in line["message"] for line in said)
    status = read_status(devices / "run")
    assert [client.absent is not None for client in status.clients] == [False, True, False]
    assert main(["status", str(devices / "run")]) == 0
    assert "client 1 takes no part: " in capsys.readouterr().out
    if harm is not of_another_shape:  # which it cannot know
        assert any(record.name == "clients.app" and reason in record.getMessage() for record in caplog.records)


def test_too_few_devices_end_the_start_and_all_are_named(devices):
    for client in (0, 2):
        unreadable(devices / f"{client}.npz")
    with pytest.raises(SpatlError, match=r"1 of 3 clients could register, the run needs 2 .*client 0: .*client 2: "):
        serve_devices(own_config(server={"connect_timeout_seconds": 0.2, "min_replies": 2}), devices)
    assert not (devices / "run" / "history.jsonl").exists()


def test_a_simulation_of_devices_stays_strict(devices):
    unreadable(devices / "1.npz")
    with pytest.raises(SpatlError, match="client 1 could not register: npz: "):
        serve_devices(own_config(), devices, strict=True)


@pytest.mark.slow
def test_a_device_that_is_away_is_named_and_left_out(devices):
    summary = serve_devices(own_config(), devices, absent=[0])
    assert summary["absent"] == {"0": "it did not connect in 0.2 s"}
    assert summary["num_clients"] == 2


class Vanishing(InProcessGrid):
    """Client 1's node has gone when it is asked; Flower says so in its place."""

    def send_and_receive(self, messages, *, timeout=None):
        for message, message_id in zip(messages, self.push_messages(messages), strict=True):
            if message.metadata.message_type == "query" and message.metadata.dst_node_id == 3:
                yield flowers_error(message)
            else:
                yield from self.pull_messages([message_id])


@pytest.mark.slow
def test_a_device_that_goes_while_it_registers_is_named_and_not_node_1(devices):
    summary = serve_devices(own_config(), devices, grid_type=Vanishing)
    assert summary["absent"] == {"1": "client 1 could not register: Error: Node Unavailable"}
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    assert "client 1 could not register, it will be asked again: Error: Node Unavailable" in said
    assert not any("node 1 " in line for line in said)


@pytest.mark.slow
def test_a_device_whose_data_have_grown_does_not_go_on(devices):
    serve_devices(own_config(rounds=1), devices)
    write_data(devices / "2.npz", 90, (0, 1, 3))
    (devices / "run" / "summary.json").unlink()
    config = load_config(devices / "run" / "config.yaml")
    summary = serve_devices(config, devices, resume=True)
    assert "54 training examples, in the rounds before it had 36" in summary["absent"]["2"]


@pytest.mark.slow
def test_a_class_that_nobody_agreed_upon_keeps_a_device_out_of_what_goes_on(devices):
    serve_devices(own_config(rounds=1), devices, absent=[2])
    write_data(devices / "2.npz", 60, (0, 1, 3))
    data = dict(np.load(devices / "2.npz"))
    np.savez(devices / "2.npz", images=data["images"], labels=data["labels"] + 6)
    (devices / "run" / "summary.json").unlink()
    summary = serve_devices(load_config(devices / "run" / "config.yaml"), devices, resume=True)
    assert (
        "3 classes of the data here are none of those that the clients have agreed on: 6, 7, 9"
        in (summary["absent"]["2"])
    )


# Shares of one data set


@pytest.mark.slow
def test_devices_whose_copies_differ_are_refused_with_their_digests(devices):
    write_data(devices / "server.npz", 200, range(4), seed=0)
    write_data(devices / "0.npz", 200, range(4), seed=0)
    write_data(devices / "1.npz", 200, range(4), seed=0)
    write_data(devices / "2.npz", 200, range(4), seed=1)
    config = own_config(
        data={"name": "npz", "options": {"path": str(devices / "server.npz")}},
        partition={"name": "iid", "num_clients": 3},
    )
    summary = serve_devices(config, devices)
    (reason,) = summary["absent"].values()
    assert list(summary["absent"]) == ["2"]
    assert "its data set has the digest" in reason
    assert "partition.name: own" in reason
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    (told,) = (line for line in said if line.startswith("the clients' data sets differ, by digest"))
    assert "at client 0, client 1" in told
    assert told.endswith("at client 2") or "at client 2;" in told


@pytest.mark.slow
def test_where_all_copies_differ_from_the_servers_the_run_does_not_start(devices):
    write_data(devices / "server.npz", 300, range(4), seed=9)
    config = own_config(
        data={"name": "npz", "options": {"path": str(devices / "server.npz")}},
        partition={"name": "dirichlet", "num_clients": 3, "min_examples": 5},
    )
    with pytest.raises(SpatlError, match=r"0 of 3 clients could register.*has the digest"):
        serve_devices(config, devices)
