"""Devices with data of their own: it is all theirs, they agree on a model and a scale, and a bad one costs itself."""

import contextlib
import json

import numpy as np
import pytest
import torch

from clients.app import app as client_app
from server.app import serve
from server.checkpoint import load_checkpoint
from server.grids import InProcessGrid
from spatl.config.loading import load_config, on_device, parse_config, with_agreement
from spatl.console.main import main
from spatl.data.own import Agreement, fit
from spatl.errors import ConfigError, SpatlError
from spatl.json_files import read_json
from spatl.rounds.blueprint import load_own, make_blueprint
from spatl.runs.log import logged_to
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.server.test_questions import flowers_error
from tests.support.federations import COMPRESSED, tiny_config

NUMBERS = (200, 120, 60)
CLASSES = (range(4), range(4), (0, 1, 3))


def write_data(path, number, classes, *, seed=0, size=8, offset=0):
    """Images of stripes: the class is the row that is bright."""
    rng = np.random.default_rng(seed)
    labels = np.array(list(classes))[np.arange(number) % len(classes)]
    images = rng.integers(0, 60, (number, size, size))
    images[np.arange(number), 2 * labels + offset % 2] += 150
    np.savez(path, images=images.astype(np.uint8), labels=labels)


@pytest.fixture
def devices(tmp_path):
    """Three devices with unequal numbers of examples, the last without class 2."""
    for client, (number, classes) in enumerate(zip(NUMBERS, CLASSES, strict=True)):
        write_data(tmp_path / f"{client}.npz", number, classes, seed=client)
    return tmp_path


def own_config(**sections):
    values = {"data": {"name": "npz"}, "partition": {"name": "own", "num_clients": 3}, "rounds": 2,
              "server": {"connect_timeout_seconds": 0.2}, "method": "fedavg"}  # fmt: skip
    return tiny_config(**{**values, **sections})


def test_nodes_without_a_place_for_their_state_agree_in_flowers_memory(devices, monkeypatch):
    """As under `flwr run`, where a run's config names no directory."""
    config = own_config(rounds=1)
    grid = InProcessGrid(client_app, num_clients=3, run_config={"config": config.to_json()})
    for context in grid._contexts.values():
        context.node_config["data-dir"] = str(devices / f"{context.node_config['partition-id']}.npz")
    summary = serve(grid, config, devices / "run")
    assert (summary["num_clients"], summary["missing"], summary["rejected"]) == (3, 0, 0)


def serve_devices(config, base, *, resume=False, absent=(), grid_type=InProcessGrid, strict=False):
    """Run a config on devices of this process, each with a state and data of its own."""
    directory = base / "run"
    values = {"config": config.to_json(), "out": str(directory), "run": "20260101-000000-ab"}
    grid = grid_type(client_app, num_clients=config.partition.num_clients, run_config=values)
    for context in grid._contexts.values():
        client = context.node_config["partition-id"]
        context.node_config["data-dir"] = str(base / f"{client}.npz")
        context.node_config["state-dir"] = str(base / f"device-{client}")
    keys = {node: node - 2 for node in grid.get_node_ids()}
    for client in absent:
        del grid._contexts[client + 2]
    directory.mkdir(exist_ok=True)
    with logged_to(directory / "log.jsonl"):
        return serve(grid, config, directory, resume=resume, keys=keys, devices=not strict)


def test_everything_on_a_device_is_its_own_and_split_by_the_fractions(devices):
    """Of 200, 120 and 60 images, 15 % are for validation and 25 % for test: 120, 72 and 36 are left."""
    summary = serve_devices(own_config(), devices)
    numbers = {row["client"]: row["num_examples"] for row in read_lines(devices / "run" / "clients.jsonl")}
    assert numbers == {0: 120, 1: 72, 2: 36}
    assert (summary["missing"], summary["rejected"], summary["num_clients"]) == (0, 0, 3)
    assert read_json(devices / "run" / "registration.json") == {
        "num_examples": {"0": 120, "1": 72, "2": 36}, "absent": {},
    }  # fmt: skip


def test_200_and_400_images_are_120_and_240_training_examples(tmp_path):
    for client, number in enumerate((200, 400)):
        write_data(tmp_path / f"{client}.npz", number, range(3), seed=client)
    serve_devices(own_config(partition={"name": "own", "num_clients": 2}, rounds=1), tmp_path)
    numbers = {row["client"]: row["num_examples"] for row in read_lines(tmp_path / "run" / "clients.jsonl")}
    assert numbers == {0: 120, 1: 240}


def test_classes_and_scale_are_those_of_all_training_examples_together(devices):
    serve_devices(own_config(rounds=1), devices)
    config = load_config(devices / "run" / "config.yaml")
    agreed = config.data.agreed
    assert agreed.classes == ("0", "1", "2", "3")
    assert agreed.shape == (1, 8, 8)
    images, labels = [], []
    for client in range(3):
        device = on_device(config, data=str(devices / f"{client}.npz"))
        train = make_blueprint(device).client_data(client).train
        images.append(train.images)
        labels.append(train.labels)
    together = torch.cat(images).double()
    assert float(together.mean()) == pytest.approx(0.0, abs=1e-7)
    assert float(together.std(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    assert labels[2].unique().tolist() == [0, 1, 3]  # not numbered anew where class 2 is missing
    # The same pixel is the same number everywhere.
    raw, scaled = set(), set()
    for client in range(3):
        device = on_device(config, data=str(devices / f"{client}.npz"))
        found = load_own(device).images.clone()
        fitted = fit(load_own(device), agreed.agreement()).images
        raw.add(float(found[found == 37.0][0]))
        scaled.add(float(fitted[found == 37.0][0]))
    assert (raw, len(scaled)) == ({37.0}, 1)


def test_the_server_needs_no_data_and_all_build_the_same(devices):
    """Its config's path leads nowhere; that fingerprints agree is checked at registration."""
    config = own_config(data={"name": "npz", "options": {"path": "/nowhere/at/all.npz"}})
    assert serve_devices(config, devices)["num_clients"] == 3


def test_registration_is_counted_both_times(devices):
    serve_devices(own_config(rounds=1), devices)
    asked = [
        (row["client"], row["direction"]) for row in read_lines(devices / "run" / "ledger.jsonl")
        if row["phase"] == "query"
    ]  # fmt: skip
    assert sorted(asked) == sorted((client, way) for client in range(3) for way in ("downlink", "uplink") * 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "ssfl", "fedrep"])
def test_a_federation_of_unequal_devices_learns(devices, method):
    config = own_config(method=method, rounds=8, wire=COMPRESSED, training={"local_steps": None, "local_epochs": 4})
    summary = serve_devices(config, devices)
    assert summary["accuracy"] > 0.8
    assert (summary["missing"], summary["rejected"]) == (0, 0)


@pytest.mark.slow
def test_a_run_that_goes_on_goes_by_what_was_agreed_before(devices):
    config = own_config(rounds=3, method="spatl", wire=COMPRESSED, selection={"selector": "update"})
    serve_devices(config, devices)
    whole = (devices / "run" / "history.jsonl").read_text()
    agreed = load_config(devices / "run" / "config.yaml")
    (devices / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="was run with another config"):
        serve_devices(own_config(rounds=4), devices, resume=True)
    serve_devices(agreed, devices, resume=True)
    assert (devices / "run" / "history.jsonl").read_text() == whole


# One bad device


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def of_another_shape(path):
    write_data(path, 60, (0, 1, 3), size=10)


def too_few(path):
    write_data(path, 8, (0, 1))


def unreadable(path):
    path.write_text("no arrays")


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncated, "npz: "),
        (unreadable, "is not a file that numpy.savez wrote"),
        (missing, "no file"),
        (of_another_shape, "its images are 1 x 10 x 10, those of 2 of 3 clients 1 x 8 x 8"),
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


def test_a_device_that_goes_while_it_registers_is_named_and_not_node_1(devices):
    summary = serve_devices(own_config(), devices, grid_type=Vanishing)
    assert summary["absent"] == {"1": "client 1 could not register: Error: Node Unavailable"}
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    assert "client 1 could not register, it will be asked again: Error: Node Unavailable" in said
    assert not any("node 1 " in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("wire", [{}, COMPRESSED], ids=["dense", "compressed"])
def test_c_stays_the_weighted_sum_of_the_c_i_when_one_comes_later_and_another_stays_away(devices, wire):
    """Client 1 is away for two rounds, comes for two, then client 0 stays away: p_i are shares of all there were."""

    def config_of(rounds, agreed=None):
        config = own_config(method="spatl", rounds=rounds, wire=wire, selection={"selector": "update"})
        return config if agreed is None else config.model_copy(
            update={"data": config.data.model_copy(update={"agreed": agreed})}
        )  # fmt: skip

    serve_devices(config_of(2), devices, absent=[1])
    for rounds, absent in ((4, []), (6, [0])):
        agreed = load_config(devices / "run" / "config.yaml").data.agreed
        (devices / "run" / "config.yaml").write_text(config_of(rounds, agreed).to_yaml())
        with contextlib.suppress(FileNotFoundError):
            (devices / "run" / "summary.json").unlink()
        serve_devices(config_of(rounds, agreed), devices, resume=True, absent=absent)
        _check_control(devices, config_of(rounds, agreed), rounds)


def _check_control(devices, config, rounds):
    from clients.store import DirectoryStore

    last = load_checkpoint(devices / "run")
    examples = {0: 120, 1: 72, 2: 36}
    assert last.state.num_examples == examples
    expected = torch.zeros_like(last.state.control, dtype=torch.float64)
    for client, number in examples.items():
        state = DirectoryStore(devices / f"device-{client}" / "20260101-000000-ab").load()
        settled = state.settle(
            acknowledged_round=last.state.folded.get(client, 0), server_round=rounds,
            half_life=config.control.half_life,
        )  # fmt: skip
        expected += number / sum(examples.values()) * settled.control.double()
    torch.testing.assert_close(last.state.control.double(), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.abs().max()) > 1e-3


def test_a_device_whose_data_have_grown_does_not_go_on(devices):
    serve_devices(own_config(rounds=1), devices)
    write_data(devices / "2.npz", 90, (0, 1, 3))
    (devices / "run" / "summary.json").unlink()
    config = load_config(devices / "run" / "config.yaml")
    summary = serve_devices(config, devices, resume=True)
    assert "54 training examples, in the rounds before it had 36" in summary["absent"]["2"]


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


def test_where_all_copies_differ_from_the_servers_the_run_does_not_start(devices):
    write_data(devices / "server.npz", 300, range(4), seed=9)
    config = own_config(
        data={"name": "npz", "options": {"path": str(devices / "server.npz")}},
        partition={"name": "dirichlet", "num_clients": 3, "min_examples": 5},
    )
    with pytest.raises(SpatlError, match=r"0 of 3 clients could register.*has the digest"):
        serve_devices(config, devices)


# The commands


@pytest.mark.parametrize("registered", [False, True])
def test_a_simulation_of_devices_own_data_is_refused_in_one_line(tmp_path, registered, capsys):
    """Nor is it run from what a deployment left, in which all is said that its devices have agreed on."""
    write_data(tmp_path / "data.npz", 100, range(4))
    config = own_config(data={"name": "npz", "options": {"path": str(tmp_path / "data.npz")}})
    if registered:
        config = with_agreement(config, Agreement(("0", "1", "2", "3"), (1, 8, 8), (0.0,), (1.0,)))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for command in ("run", "partition", "check", "bench"):
        assert main([command, str(tmp_path / "config.yaml")]) == 2
        error = capsys.readouterr().err
        assert "partition.name: own is for devices" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("partition", "expected", "said"),
    [
        ("partition: {num_clients: 2}", "own", "partition.name: own, for the config names none"),
        ("partition: {name: own, num_clients: 2}", "own", "partition.name: own: what lies on a device"),
        ("partition: {name: iid, num_clients: 2}", "iid", "partition.name: iid: each device gets its share"),
    ],
)
def test_init_takes_own_where_a_config_names_no_partitioner_and_needs_no_data_then(
    tmp_path, partition, expected, said, capsys
):
    write_data(tmp_path / "data.npz", 100, range(4))
    path = "/nowhere.npz" if expected == "own" else str(tmp_path / "data.npz")
    (tmp_path / "c.yaml").write_text(f"data: {{name: npz, options: {{path: {path}}}}}\n{partition}\n")
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "c.yaml")]) == 0
    assert load_config(tmp_path / "federation" / "server" / "config.yaml").partition.name == expected
    assert said in capsys.readouterr().out


def test_data_that_are_generated_lie_on_no_device(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("data: {name: synthetic}\n")
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "c.yaml")]) == 2
    assert "name a partitioner, e.g. --set partition.name=iid" in capsys.readouterr().err
    assert not (tmp_path / "federation").exists()


@pytest.mark.parametrize(
    ("agreed", "message"),
    [
        ({"classes": ["a"]}, "two classes or more"),
        ({"classes": ["a", "a"]}, "named twice"),
        ({"classes": ["a", "b" * 201]}, "1 to 200 characters"),
        ({"shape": [1, 8]}, "channels x height x width"),
        ({"means": [0.0, 0.0]}, "means and deviations of 1 channels"),
        ({"deviations": [0.0]}, "greater than 0"),
        ({"means": [float("nan")]}, "finite number"),
    ],
)
def test_an_agreement_that_cannot_hold_is_refused(agreed, message):
    whole = {"classes": ["a", "b"], "shape": [1, 8, 8], "means": [0.0], "deviations": [1.0], **agreed}
    with pytest.raises(ConfigError, match=message):
        parse_config({"data": {"agreed": whole}})


def test_an_agreement_passes_through_a_config_to_the_last_bit():
    means = [1 / 3, 1e-17, -123456.789]
    agreed = {"classes": ["no", "yes"], "shape": [3, 8, 8], "means": means, "deviations": [1e-5, 0.1, 3e10]}
    config = parse_config({"data": {"agreed": agreed}})
    import yaml

    assert parse_config(yaml.safe_load(config.to_yaml())) == config
    assert parse_config(json.loads(config.to_json())) == config
