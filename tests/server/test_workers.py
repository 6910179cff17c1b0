"""Clients that forked processes train side by side: the same files, and a process that dies costs a reply."""

import logging
import os
import signal
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
from server.workers import WorkerGrid
from spatl.config.resources import ResourcesConfig
from spatl.console.main import main
from spatl.deployment.processes import descendants, is_alive
from spatl.errors import ConfigError, SpatlError
from spatl.runs.directory import config_of, write_config
from spatl.runs.records import read_lines
from tests.support.federations import COMPRESSED, history_without_seconds, tiny_config, without_seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")

ROOT = Path(__file__).parents[2]


def grid_of(config, directory, app, *, num_workers=2):
    number = config.partition.num_clients
    return WorkerGrid(
        app, num_workers=num_workers, sizes=range(1, number + 1), num_clients=number,
        run_config={"config": config.to_json(), "out": str(directory)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"selection": {"selector": "update"}, "wire": COMPRESSED, "server": {"fraction_train": 0.6}},
        {"method": "fedavg", "model": {"name": "resnet8", "options": {"width": 0.25}}, "rounds": 2},
    ],
    ids=["spatl", "BatchNorm"],
)
def test_files_are_the_same_with_any_number_of_workers(tmp_path, sections):
    config = tiny_config(**sections)
    for number in (0, 1, 2, 4):
        run_inline(config.model_copy(update={"resources": config.resources.model_copy(update={"workers": number})}),
                   tmp_path / str(number))  # fmt: skip
    for number in (1, 2, 4):
        for name in ("clients.jsonl", "ledger.jsonl"):
            rows = [without_seconds(read_lines(tmp_path / each / name)) for each in ("0", str(number))]
            assert rows[0] == rows[1]
        assert history_without_seconds(tmp_path / "0") == history_without_seconds(tmp_path / str(number))
        models = [(tmp_path / each / "model" / "model.safetensors").read_bytes() for each in ("0", str(number))]
        assert models[0] == models[1]


def doing(what, *, client=2, server_round="2"):
    """A client app that does something in one client's round before it trains."""

    def app(message, context):
        asked, own = message.metadata, context.node_config["partition-id"]
        if (asked.message_type, asked.group_id, own) == ("train", server_round, client):
            what()
        return client_app(message, context)

    return app


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_reply_and_the_others_take_its_clients(tmp_path, caplog):
    config = tiny_config(rounds=4)
    grid = grid_of(config, tmp_path, doing(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    try:
        summary = serve(grid, config, tmp_path)
    finally:
        grid.close()
    history = read_lines(tmp_path / "history.jsonl")
    assert summary["rounds"] == 4
    assert [row["missing"] for row in history] == [0, 1, 0, 0]
    assert "round 2: no answer of client 2: the worker that was at it died (SIGKILL)" in caplog.text


@pytest.mark.slow
def test_a_run_without_a_worker_left_ends_in_one_line_and_goes_on_as_undisturbed(tmp_path):
    config = tiny_config(rounds=3)
    grid = grid_of(config, tmp_path / "killed", doing(lambda: os._exit(7), server_round="3"), num_workers=1)
    with pytest.raises(SpatlError, match=r"all processes that train clients died \(status 7\): is memory enough"):
        serve(grid, config, tmp_path / "killed")
    run_inline(config, tmp_path / "killed", resume=True)
    run_inline(config, tmp_path / "whole")
    assert history_without_seconds(tmp_path / "killed") == history_without_seconds(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers_as_undisturbed(tmp_path, capsys):
    config = tiny_config(rounds=3, resources={"workers": 3})
    grid = grid_of(config, tmp_path / "killed", doing(lambda: os._exit(7)), num_workers=1)
    with pytest.raises(SpatlError, match="all processes that train clients died"):
        serve(grid, config, tmp_path / "killed")
    write_config(tmp_path / "killed", config)
    resumed = ["run", "--resume", str(tmp_path / "killed"), "--set"]
    assert main([*resumed, "resources.workers=-2"]) == 2
    assert "resources.workers: input should be greater than or equal to 0" in capsys.readouterr().err
    assert main([*resumed, "resources.cpus_per_client=2"]) == 2
    assert "or with another number of processes" in " ".join(capsys.readouterr().err.split())
    assert main([*resumed, "resources.workers=2"]) == 0
    assert config_of(tmp_path / "killed").resources.workers == 2
    run_inline(config, tmp_path / "whole")
    assert history_without_seconds(tmp_path / "killed") == history_without_seconds(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_client_raises_is_its_reply(tmp_path, caplog):
    def fail():
        raise RuntimeError("no such luck")

    config = tiny_config(rounds=2)
    grid = grid_of(config, tmp_path, doing(fail))
    try:
        serve(grid, config, tmp_path)
    finally:
        grid.close()
    refused = [row["rejections"] for row in read_lines(tmp_path / "history.jsonl")][1]
    assert [each["client"] for each in refused] == [2]
    assert "refused the update of client 2: RuntimeError: no such luck (test_workers.py" in caplog.text


def test_warnings_of_a_worker_come_with_its_reply(caplog):
    def app(message, context):
        logging.getLogger("spatl.somewhere").warning("round %d: odd", 3, extra={"round": 3, "client": 1})
        return Message(RecordDict(), reply_to=message)

    grid = WorkerGrid(app, num_workers=2, sizes=[1, 1, 1], num_clients=3, run_config={})
    try:
        messages = [Message(RecordDict(), node, "train", group_id="3") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
    finally:
        grid.close()
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    found = [record for record in caplog.records if record.name == "spatl.somewhere"]
    assert [(record.getMessage(), record.round, record.client) for record in found] == [("round 3: odd", 3, 1)] * 3


def test_replies_come_in_the_order_of_the_questions_and_few_are_kept():
    """Client 0 is the slowest: the other worker gets four questions a worker ahead, and waits for it."""
    begun = torch.zeros(20, dtype=torch.int64).share_memory_()

    def app(message, context):
        client = context.node_config["partition-id"]
        begun[client] = 1
        if client == 0:
            deadline = time.monotonic() + 20
            while int(begun.sum()) < 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            begun[0] = 100 + int(begun.sum())
        return Message(RecordDict(), reply_to=message)

    grid = WorkerGrid(app, num_workers=2, sizes=[100] + [1] * 19, num_clients=20, run_config={})
    try:
        nodes = list(grid.get_node_ids())
        messages = [Message(RecordDict(), node, "train", group_id="1") for node in nodes]
        assert [reply.metadata.src_node_id for reply in grid.send_and_receive(messages)] == nodes
    finally:
        grid.close()
    assert int(begun[0]) == 108  # eight had begun by then, itself among them


@pytest.mark.slow
def test_workers_end_with_a_server_that_is_killed_and_the_run_goes_on_as_undisturbed(tmp_path):
    config = tiny_config(rounds=40, resources={"workers": 2})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "spatl", "run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = tmp_path / "killed" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and history.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    below = descendants(process.pid)
    assert len(below) == 2
    process.kill()
    process.wait()
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, below))
    assert history.read_bytes().count(b"\n") < 40
    run_inline(config, tmp_path / "killed", resume=True)
    run_inline(config, tmp_path / "whole")
    assert history_without_seconds(tmp_path / "killed") == history_without_seconds(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:0", "threads": 1}, "training.device is cuda:0 here: set it to cpu, or take engine: ray"),
        ({"device": "cpu", "threads": 2}, "one thread a client, training.threads is 2: set it to 1"),
    ],
)
def test_what_workers_cannot_do_is_said(settings, message):
    with pytest.raises(ConfigError, match=f"resources.workers: 2 .*{message}"):
        ResourcesConfig(workers=2).check_workers(**settings)
    ResourcesConfig().check_workers(**settings)
    ResourcesConfig(workers=2).check_workers(device="cpu", threads=1)
