"""Clients that train as one program: what they train by themselves, but for the last digits, and the same each time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from clients.app import app as client_app
from server.app import serve
from server.engines import run_inline
from server.groups import GroupGrid
from spatl.config.unread import settings_without_effect
from spatl.console.main import main
from spatl.errors import ConfigError
from spatl.report.result import read_run
from spatl.runs.records import read_lines
from tests.support.federations import (
    COMPRESSED,
    history_without_seconds,
    losing,
    run_tiny,
    tiny_config,
    without_seconds,
)

ROOT = Path(__file__).parents[2]
RESNET = {"name": "resnet8", "options": {"width": 0.25}}


def grouped(config, size):
    return config.model_copy(update={"training": config.training.model_copy(update={"group_size": size})})


def grid_of(config, directory, app, *, size=2, **settings):
    number = config.partition.num_clients
    return GroupGrid(
        app, group_size=size, threads=1, sizes=range(1, number + 1), num_clients=number,
        run_config={"config": config.to_json(), "out": str(directory)}, **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"selection": {"selector": "update"}, "server": {"fraction_train": 0.6}, "training": {"momentum": 0.9}},
        {"method": "fedavg", "model": RESNET, "training": {"local_steps": None, "local_epochs": 1}},
        {"method": "fedprox", "model": RESNET, "partition": {"name": "dirichlet", "min_examples": 5}},
        {"method": "fedrep", "predictor": {"mode": "local"}},
        {"method": "ditto", "training": {"clients": {1: {"batch_size": 7}}, "clip_gradients": 1.0}},
    ],
    ids=["spatl", "BatchNorm", "FedProx", "FedRep", "Ditto"],
)
def test_a_federation_learns_what_it_learns_one_by_one(tmp_path, sections):
    config = tiny_config(**sections)
    for size in (1, 2, 5):
        run_inline(grouped(config, size), tmp_path / str(size))
    alone = read_run(tmp_path / "1")
    for size in (2, 5):
        found = read_run(tmp_path / str(size))
        ledgers = [
            [{key: row[key] for key in ("round", "client", "direction", "phase")} for row in
             read_lines(tmp_path / str(each) / "ledger.jsonl")] for each in (1, size)
        ]  # fmt: skip
        assert ledgers[0] == ledgers[1]
        for client in (0, 4):
            wanted = alone.model(client).state_dict()
            torch.testing.assert_close(found.model(client).state_dict(), wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_a_run_repeats_to_the_bit_and_goes_on_after_a_kill_as_undisturbed(tmp_path):
    config = tiny_config(
        rounds=30, method="spatl", wire=COMPRESSED, training={"group_size": 3}, partition={"name": "dirichlet"}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "spatl", "run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = tmp_path / "killed" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and history.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert history.read_bytes().count(b"\n") < 30
    run_inline(config, tmp_path / "killed", resume=True)
    run_inline(config, tmp_path / "whole")
    assert history_without_seconds(tmp_path / "killed") == history_without_seconds(tmp_path / "whole")
    models = [(tmp_path / each / "model" / "model.safetensors").read_bytes() for each in ("killed", "whole")]
    assert models[0] == models[1]


def test_clients_with_about_as_many_examples_make_a_group_and_replies_keep_their_order():
    begun = []

    def app(message, context):
        begun.append(int(context.node_config["partition-id"]))
        return Message(RecordDict(), reply_to=message)

    config = tiny_config(partition={"num_clients": 7})
    grid = grid_of(config, "", app, size=3)
    try:
        nodes = list(grid.get_node_ids())
        del grid.contexts[nodes[6]]
        for kind, order in (("train", [5, 4, 3, 2, 1, 0]), ("evaluate", [0, 1, 2, 3, 4, 5])):
            begun.clear()
            messages = [Message(RecordDict(), node, kind, group_id="1") for node in nodes]
            replies = list(grid.send_and_receive(messages))
            assert [reply.metadata.src_node_id for reply in replies] == nodes
            assert [reply.has_error() for reply in replies] == [False] * 6 + [True]
            assert begun == order
    finally:
        grid.close()


def test_a_client_that_fails_costs_its_own_reply_and_a_lost_one_counts_for_nothing(tmp_path):
    def app(message, context):
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            raise OSError("a disk of one client")
        return client_app(message, context)

    config = grouped(tiny_config(rounds=2, server={"max_failures": 4}), 5)
    loses, losses = losing(0.3)
    grid = grid_of(config, tmp_path / "run", app, size=5, loses=loses)
    try:
        serve(grid, config, tmp_path / "run")
    finally:
        grid.close()
    rows = read_lines(tmp_path / "run" / "clients.jsonl")
    trained = [[row["client"] for row in rows if row["round"] == number and row["participated"]] for number in (1, 2)]
    lost = [[client for client in range(5) if losses[5 * number + client]] for number in range(2)]
    assert any(lost)
    assert trained == [[client for client in range(5) if client not in (1, *each)] for each in lost]


def test_groups_and_workers_exclude_each_other():
    with pytest.raises(ConfigError, match=r"training.group_size: 4 trains clients in the process of the server"):
        tiny_config(training={"group_size": 4}, resources={"workers": 2})


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"engine": "ray"}, "only engine inline trains clients as one program"),
        ({"method": "moon"}, "clients of this method train by themselves"),
        ({"selection": {"when": "before"}}, "clients of this method train by themselves"),
        ({}, None),
    ],
)
def test_where_nothing_is_grouped_the_setting_is_named(sections, says):
    found = settings_without_effect(tiny_config(training={"group_size": 4}, **sections))
    assert found.get("training.group_size") == (says and f"training.group_size has no effect: {says}")


def test_a_network_that_cannot_is_refused_before_anything_is_written(tmp_path, capsys):
    config = tiny_config(
        model={"name": "tests.support.networks:MixedNet", "options": {}, "cut": ["head"]}, training={"group_size": 2}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert main(["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) != 0
    said = capsys.readouterr().err
    assert "training.group_size: clients of this network cannot train as one program, for its layer ''" in said
    assert "set it to 1" in said
    assert not (tmp_path / "run").exists()


def test_grouped_clients_of_ten_are_no_other_run(tmp_path):
    """A group of one, and one larger than all that are asked, are no special cases."""
    config = tiny_config(rounds=1)
    results = [run_tiny(config, tmp_path / "alone")]
    for size in (2, 8):
        grid = grid_of(grouped(config, size), tmp_path / str(size), client_app, size=size)
        try:
            results.append(serve(grid, grouped(config, size), tmp_path / str(size)))
        finally:
            grid.close()
    assert [without_seconds(each)["uplink_bytes"] for each in results] == [results[0]["uplink_bytes"]] * 3
