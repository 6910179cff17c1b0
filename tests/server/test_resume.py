"""A run that is killed at any instant and resumed ends as the run that was never killed, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clients.app
import server.strategy
from clients.shared_store import SharedStore
from server.engines import run_inline
from server.recorder import Recorder
from server.strategy import FederationStrategy
from spatl.disk.locks import alone_in
from spatl.errors import ConfigError, DamagedState, SpatlError
from spatl.json_files import read_json
from spatl.rounds.admission import Admission, Size
from spatl.rounds.aggregation import Aggregator
from spatl.rounds.downlink import Versions
from spatl.runner import resume, run
from spatl.runs.checkpoint import Checkpoint, ServerState, load_checkpoint, save_checkpoint
from spatl.runs.directory import alone_in_run, write_config
from spatl.runs.files import CHECKPOINT, CLIENTS_STATES
from spatl.runs.records import read_lines
from spatl.runs.state_tensors import StateTensors
from spatl.runs.states import States
from tests.support.federations import (
    COMPRESSED,
    DENSE,
    assert_c_is_the_weighted_sum_of_the_c_i,
    history_without_seconds,
    state_of,
    tiny_config,
    without_seconds,
)

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """What nothing in the product catches, as nothing catches SIGKILL."""


INSTANTS = {
    "a round opens": (FederationStrategy, "configure_train", "before"),
    "a client has trained": (SharedStore, "save", "before"),
    "a client's state is being written": (StateTensors, "keep_all", "after"),
    "a client has saved": (SharedStore, "save", "after"),
    "a file is being replaced": (os, "replace", "before"),
    "an update is folded in": (Aggregator, "add", "after"),
    "the clients' states go to the disk": (States, "settle", "before"),
    "the clients' states are on the disk": (States, "settle", "after"),
    "the round is being written": (server.strategy, "save_checkpoint", "before"),
    "the round is written": (server.strategy, "save_checkpoint", "after"),
    "a client has evaluated the final encoder": (clients.app, "evaluate_round", "after"),
    "the summary is missing": (Recorder, "write_summary", "before"),
}


def kill_at(patch, instant, nth):
    """Have the nth call of what belongs to an instant raise, before it does anything or after."""
    owner, name, when = INSTANTS[instant]
    truly, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(name)
        if len(calls) == nth and when == "before":
            raise Killed
        result = truly(*args, **kwargs)
        if len(calls) == nth:
            raise Killed
        return result

    patch.setattr(owner, name, killing)


def left_behind(directory, num_clients=5):
    """All that a run says and holds, but for the time it took and which process wrote it when."""
    summary = json.loads((directory / "summary.json").read_text())
    last = load_checkpoint(directory)
    assert last is not None
    return (
        without_seconds(summary),
        {name: without_seconds(read_lines(directory / f"{name}.jsonl")) for name in ("history", "clients", "ledger")},
        [state_of(directory, client).to_bytes() for client in range(num_clients)],
        last.to_bytes(),
    )


SETTINGS = {
    "spatl, dense": {"method": "spatl", "wire": DENSE, "selection": {"selector": "update"}},
    "spatl, compressed": {"method": "spatl", "wire": COMPRESSED, "selection": {"selector": "update"}},
    "spatl, some clients": {"method": "spatl", "wire": COMPRESSED, "server": {"fraction_train": 0.4}},
    "spatl, c is sent": {"method": "spatl", "wire": COMPRESSED, "control": {"downlink": "sent"}},
    "spatl-paper": {"method": "spatl-paper", "model": {"name": "resnet8", "options": {"width": 0.25}}},
    "fedrep, some clients": {"method": "fedrep", "server": {"fraction_train": 0.6}},
    "spatl, by agreement": {"method": "spatl", "wire": COMPRESSED, "server": {"aggregation": "agreement"}},
    "feddyn, some clients": {"method": "feddyn", "wire": COMPRESSED, "server": {"fraction_train": 0.6}},
    "ditto, some clients": {"method": "ditto", "server": {"fraction_train": 0.6}},
    "moon, some clients": {"method": "moon", "server": {"fraction_train": 0.6}},
    "ssfl": {"method": "ssfl", "selection": {"keep_ratio": 0.5}},
    "fedavg, lost clients": {"method": "fedavg", "wire": {"downlink": "int4"}},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What each setting leaves behind if nothing happens, computed once."""
    results = {}

    def of(setting):
        if setting not in results:
            directory = tmp_path_factory.mktemp("undisturbed")
            run_inline(tiny_config(**SETTINGS[setting]), directory)
            results[setting] = left_behind(directory)
        return results[setting]

    return of


def killed_twice_and_resumed(setting, kills, directory, monkeypatch):
    """Run a setting, have it killed at each of two instants, the nth time each comes, and let it come to its end."""
    config = tiny_config(**SETTINGS[setting])
    for (instant, nth), again in zip(kills, (False, True), strict=True):
        with monkeypatch.context() as patch:
            kill_at(patch, instant, nth)
            with pytest.raises(Killed):
                run_inline(config, directory, resume=again)
    run_inline(config, directory, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("instant", INSTANTS)
def test_a_run_killed_twice_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, undisturbed, instant):
    comes = {"a file is being replaced": 8, "the summary is missing": 1, "a round opens": 2, "the round is written": 2}
    first = comes.get(instant, 3)  # early enough that it comes once more
    setting = "spatl, some clients"
    killed_twice_and_resumed(setting, [(instant, first), (instant, 1)], tmp_path, monkeypatch)
    assert left_behind(tmp_path) == undisturbed(setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_so_does_a_run_of_every_kind_killed_at_random_instants(tmp_path, monkeypatch, undisturbed, setting):
    """Four of them, two in a run: the second is one that comes later in a round, so that it does come."""
    draw, instants = random.Random(setting), list(INSTANTS)
    chosen = draw.sample(instants, 4)
    for number in (0, 2):
        first, second = sorted(chosen[number : number + 2], key=instants.index)
        # The second replaced file is the config: before it there is nothing to resume.
        least, most = {"the summary is missing": (1, 1), "a file is being replaced": (3, 8)}.get(first, (1, 3))
        directory = tmp_path / str(number)
        killed_twice_and_resumed(setting, [(first, draw.randint(least, most)), (second, 1)], directory, monkeypatch)
        assert left_behind(directory) == undisturbed(setting), (first, second)


RUNNER = """
import os, signal, sys
from pathlib import Path
from server.engines import run_inline
from spatl.runner import config_of
from spatl.rounds.blueprint import cached_blueprint
import clients.app, torch, torch._dynamo
torch.set_num_threads(1)  # a forked process cannot use its parent's threads
directory = Path(sys.argv[1])
cached_blueprint(config_of(directory).to_json())
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.write(1, f"{os.getpid()}\\n".encode())
        run_inline(config_of(directory), directory, resume=True)
        os._exit(0)
    os.write(1, f"{os.waitpid(child, 0)[1]}\\n".encode())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_twenty_real_kills_in_one_run_change_nothing_and_c_stays_the_weighted_sum(tmp_path):
    """SIGKILL of server and clients at random instants of their work, each time they got to work again."""
    config = tiny_config(method="spatl", rounds=30, wire=COMPRESSED, selection={"selector": "update"})
    run_inline(config, tmp_path / "undisturbed")
    directory, draw, kills = tmp_path / "killed", random.Random(11), 0
    directory.mkdir()
    (directory / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", RUNNER, str(directory)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        for _ in range(21):
            began = newest(directory)
            runner.stdin.write("again\n")
            pid = int(runner.stdout.readline())
            deadline = time.monotonic() + 60
            while kills < 20 and newest(directory) == began and time.monotonic() < deadline:
                time.sleep(0.001)
            if kills < 20:
                time.sleep(draw.uniform(0, 0.1))
                os.kill(pid, signal.SIGKILL)
            status = int(runner.stdout.readline())
            kills += status == signal.SIGKILL
        runner.stdin.close()
    assert (kills, status) == (20, 0)
    assert left_behind(directory) == left_behind(tmp_path / "undisturbed")
    last = load_checkpoint(directory)
    assert last is not None
    assert_c_is_the_weighted_sum_of_the_c_i(config, directory, last.state)


def newest(directory):
    """When anything of a run was last written."""
    paths = [directory / f"{CLIENTS_STATES}{end}" for end in ("", "-wal")]
    return max((path.stat().st_mtime_ns for path in paths if path.exists()), default=0)


@pytest.mark.slow
def test_ray_goes_on_to_the_same_history_and_metrics_as_inline_but_for_the_seconds(tmp_path):
    """Killed after its first round by what kills the in-process engine; the others are Ray's, replies in its order.

    The network has BatchNorm and buffers of its own; a plain one is compared in `simulation`, from the first round on.
    """
    model = {"name": "tests.support.networks:CountingNet", "options": {}, "cut": ["head"]}
    task = {"metrics": ["accuracy", "macro-f1"]}
    config = tiny_config(method="spatl", model=model, wire=COMPRESSED, server={"fraction_train": 0.8}, task=task)
    run(config, tmp_path / "undisturbed", pictures=False)
    directory = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "the round is written", 1)
        with pytest.raises(Killed):
            run_inline(config, directory)
    write_config(directory, config.model_copy(update={"engine": "ray"}))
    resume(directory, pictures=False)
    both = (directory, tmp_path / "undisturbed")
    rounds = [history_without_seconds(each) for each in both]
    told = [read_json(each / "summary.json")["metrics"] for each in both]
    assert len(rounds[0]) == 3
    assert (rounds[0], told[0]) == (rounds[1], told[1])
    assert told[0]["macro_f1_pooled"] > 0


@pytest.mark.slow
def test_resume_goes_on_with_what_is_missing_the_clients_that_train_alone_included(tmp_path):
    """Killed while they train; then once more while the pictures are drawn."""
    config = tiny_config(rounds=2, report={"compare_alone": True})
    whole = run(config, tmp_path / "whole", pictures=False)
    directory = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "the round is written", 3)
        with pytest.raises(Killed):
            run(config, directory)
    assert (directory / "summary.json").exists()
    assert not (directory / "alone" / "summary.json").exists()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spatl.report.pictures.draw_curves", kill)
        with pytest.raises(Killed):
            resume(directory, on_round_alone=seen.append)
    assert [row["round"] for row in seen] == [1, 2]
    result = resume(directory)
    assert (directory / "report.html").exists()
    assert result.alone is not None
    assert whole.alone is not None
    for one, other in ((result.summary, whole.summary), (result.alone, whole.alone)):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    with pytest.raises(ConfigError, match="is finished; there is nothing to resume"):
        resume(directory)


def kill(*args):
    raise Killed


@pytest.mark.slow
def test_a_run_without_an_answer_to_its_final_encoder_can_be_resumed(tmp_path, monkeypatch):
    config = tiny_config(rounds=2)
    with monkeypatch.context() as patch:
        patch.setattr(clients.app, "evaluate_round", refuse)
        with pytest.raises(SpatlError, match="no client could evaluate"):
            run_inline(config, tmp_path)
    assert (tmp_path / "error.json").exists()
    run_inline(config, tmp_path, resume=True)
    assert not (tmp_path / "error.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"] > 0


def refuse(*args, **kwargs):
    raise SpatlError("not today")


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_config_only(tmp_path):
    run_inline(tiny_config(rounds=1), tmp_path)
    with pytest.raises(ConfigError, match="was run with another config"):
        run_inline(tiny_config(rounds=2), tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"holds no run to resume.*config\.yaml is not there"):
        resume(tmp_path / "elsewhere")


@pytest.mark.skipif(sys.platform == "win32", reason="locks")
def test_one_process_at_a_time_runs_a_directory(tmp_path):
    with alone_in_run(tmp_path), pytest.raises(SpatlError, match="another process is running"):
        run_inline(tiny_config(rounds=1), tmp_path)
    assert not (tmp_path / "error.json").exists()  # the other process's run did not fail
    with alone_in(tmp_path / ".lock", otherwise=ConfigError("taken")):
        pass


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    versions = Versions(2, torch.zeros(0, dtype=torch.int32))
    state = ServerState(torch.ones(4), None, None, 0.0, versions, {}, {0: 0}, {0: 0.0}, {0: 5})
    save_checkpoint(Checkpoint(3, state), tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedState, match=r"the server's checkpoint is damaged: its SHA-256 is not as written"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_reads_as_it_was_written(tmp_path):
    """None stays None, and tensors that are one in memory are two in the file."""
    vector = torch.arange(4.0)
    versions = Versions(4, torch.arange(3, dtype=torch.int32), (b"change", b""))
    for control in (None, vector):
        state = ServerState(
            vector, control, control, 0.25, versions, {1: 7, 0: 6}, {0: 3, 1: 4}, {0: 0.5, 1: 1e-9}, {0: 5, 1: 6},
            frozenset({1}), 2.5, 1,
            Admission(
                (Size(1.5, 0.1),), Size(2.5, 1 / 3), {1: 2}, {1: 9}, {0: 0.1, 1: -1 / 3}, {1: Size(0.5, 0.7)}, {0: 0.2},
                (0.1, -0.3),
            ),
            sampling_seed=None if control is None else 2**127 + 1,
            control_steps=((0.5, 0.1), (0.25, 1 / 3)),
        )  # fmt: skip
        written = Checkpoint(7, state)
        read = Checkpoint.from_bytes(written.to_bytes())
        assert read.to_bytes() == written.to_bytes()
        assert (read.state.control is None) == (control is None)
        assert (read.state.folded, read.state.held) == (state.folded, state.held)
        assert (read.state.versions.version, read.state.versions.changes) == (4, (b"change", b""))
        assert torch.equal(read.state.versions.offsets, versions.offsets)
        assert read.state.num_examples == {0: 5, 1: 6}
        assert read.state.control_staleness == state.control_staleness
        assert read.state.admission == state.admission
        assert read.state.sampling_seed == state.sampling_seed
        assert read.state.control_steps == state.control_steps
        first = replace(written, state=replace(state, admission=Admission()))
        assert Checkpoint.from_bytes(first.to_bytes()).state.admission == Admission()
        assert (read.state.first_loss, read.state.useless_rounds, read.state.cannot_build) == (2.5, 1, {1})


@pytest.mark.slow
def test_clients_that_have_files_of_their_own_keep_them_and_come_to_the_same(tmp_path):
    """As of a run that an earlier version began, of a large model, or of a cluster."""
    config = tiny_config(**SETTINGS["spatl, some clients"])
    (tmp_path / "files" / "clients" / "0").mkdir(parents=True)
    for name in ("files", "one file"):
        run_inline(config, tmp_path / name)
    assert left_behind(tmp_path / "files") == left_behind(tmp_path / "one file")
    assert not (tmp_path / "files" / CLIENTS_STATES).exists()
    assert [path.name for path in (tmp_path / "one file" / "clients").iterdir() if path.is_dir()] == []
