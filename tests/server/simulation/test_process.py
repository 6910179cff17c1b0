"""A simulation's backend, where a worker of Ray's dies, and where Ray itself is gone."""

import types
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.server.superlink.fleet.vce.backend import raybackend
from ray.exceptions import ActorDiedError, RayTaskError

from server.grids import InProcessGrid
from server.questions import is_lost
from server.simulation import process
from server.simulation.process import LastingBackend
from spatl.deployment.processes import REASON_VARIABLE


class Ended(BaseException):
    """What stands for the end of the process."""


@pytest.fixture
def backend(monkeypatch):
    """A backend whose workers raise what `failing` of it says, with one of Ray's servers dead where `dead` does."""
    monkeypatch.setattr(raybackend.RayBackend, "init_ray", lambda self, config: None)
    monkeypatch.setattr(process, "WATCH_SECONDS", 3600.0)
    monkeypatch.setattr(raybackend.RayBackend, "terminate", lambda self: None)

    def fail(self, message, context):
        raise self.failing

    monkeypatch.setattr(raybackend.RayBackend, "process_message", fail)
    made = LastingBackend({"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    node = types.SimpleNamespace(dead_processes=lambda: [(name, None) for name in made.dead])
    made.dead = []
    monkeypatch.setattr(process.ray._private.worker, "_global_node", node)
    yield made
    made.terminate()


@pytest.fixture
def message() -> Message:
    InProcessGrid(None, num_clients=1, run_config={})  # gives this process its identity
    return Message(RecordDict(), 7, "train", group_id="3")


def test_workers_start_again_whenever_they_die_and_do_once_more_what_they_were_at(backend):
    assert backend.client_resources == {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1, "max_task_retries": 1}


def test_the_reply_of_a_worker_that_died_is_lost_and_says_so_in_one_line(backend, message):
    backend.failing, context = ActorDiedError(), object()
    reply, same = backend.process_message(message, context)
    assert is_lost(reply)
    assert same is context
    assert reply.error.reason.startswith("the Ray worker that was at it died: ")
    assert "\n" not in reply.error.reason


def test_what_a_clients_code_raises_is_no_death(backend, message):
    backend.failing = RayTaskError("run", "Traceback: ...", ValueError("no"), ip="127.0.0.1")
    with pytest.raises(RayTaskError):
        backend.process_message(message, object())


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_where_ray_is_gone_the_process_ends_before_a_round_without_answers_is_written(
    server, backend, message, monkeypatch, tmp_path
):
    def end(status):
        raise Ended

    monkeypatch.setattr(process.os, "_exit", end)
    monkeypatch.setenv(REASON_VARIABLE, str(tmp_path / "reason"))
    backend.failing, backend.dead = ActorDiedError(), ["log_monitor", server]
    with pytest.raises(Ended):
        backend.process_message(message, object())
    assert Path(tmp_path / "reason").read_text() == f"Ray's {server} is gone"
    backend.dead = ["log_monitor"]
    assert is_lost(backend.process_message(message, object())[0])
