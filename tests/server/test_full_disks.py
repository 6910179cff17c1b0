"""A machine that refuses to write ends a run in one line, and the run goes on as undisturbed once it writes again."""

import errno
import itertools
import os
import resource
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import DEFAULT, Mock, call

import pytest

from server import strategy
from server.engines import check_outcome
from spatl.console.main import main
from spatl.errors import SpatlError, SystemFault
from spatl.runner import resume, run
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.files import CONFIG, ERROR, HISTORY, REPORT, SUMMARY
from spatl.runs.records import read_lines
from tests.support.federations import history_without_seconds, tiny_config

ROUNDS = 3


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """A run of three rounds."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    run(tiny_config(rounds=ROUNDS), directory, pictures=False)
    return directory


@pytest.fixture
def written_config(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(rounds=ROUNDS).to_yaml())
    return str(path)


@pytest.fixture
def refuse(monkeypatch):
    """Have the nth wait for the disk, and all after it, be refused."""
    truly = os.fsync

    def refusing(nth, number):
        calls = itertools.count(1)

        def fsync(descriptor):
            if next(calls) >= nth:
                raise OSError(number, os.strerror(number))
            truly(descriptor)

        # In the true one's place no frame of a test would be seen.
        own = {**globals(), "__name__": "os", "__builtins__": __builtins__}
        monkeypatch.setattr(os, "fsync", types.FunctionType(fsync.__code__, own, closure=fsync.__closure__))

    yield refusing
    monkeypatch.setattr(os, "fsync", truly)


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 4, 9, 16, 25, 36, 49])
def test_wherever_the_disk_is_full_the_run_ends_in_one_line_and_goes_on_from_there(
    nth, written_config, whole_run, refuse, monkeypatch, tmp_path, capsys, request
):
    out = tmp_path / "out"
    with monkeypatch.context():
        refuse(nth, errno.ENOSPC)
        status = main(["run", written_config, "--out", str(out)])
    monkeypatch.undo()
    error = capsys.readouterr().err.strip().splitlines()
    if status == 0:
        pytest.fail(f"the run does not wait for the disk {nth} times")
    assert status == 2
    assert "no space is left on the disk: make room" in error[-1]
    assert not any("Traceback" in line for line in error)
    begun = (out / CONFIG).exists()
    request.getfixturevalue("undrawn")
    assert main(["run", *(["--resume", str(out)] if begun else [written_config, "--out", str(out)])]) == 0
    assert history_without_seconds(out) == history_without_seconds(whole_run)
    assert not (out / ERROR).exists()


@pytest.mark.slow
def test_a_disk_that_refuses_the_clients_states_ends_the_run_before_its_checkpoint(whole_run, monkeypatch, tmp_path):
    """The states did not wait for the disk one by one: what all wait for is before the round counts."""
    out, refused = tmp_path / "out", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    syncs = Mock(wraps=strategy.settle_states, side_effect=[DEFAULT, refused, DEFAULT, DEFAULT])
    monkeypatch.setattr(strategy, "settle_states", syncs)
    with pytest.raises(SystemFault, match="no space is left on the disk"):
        run(tiny_config(rounds=ROUNDS), out, pictures=False)
    before = load_checkpoint(out)
    assert before is not None
    assert before.server_round == 1
    resume(out, pictures=False)
    assert syncs.call_args_list == [call(out)] * (2 + 2)  # the refused round's, and once for each that was left
    assert history_without_seconds(out) == history_without_seconds(whole_run)


@pytest.mark.slow
def test_files_that_may_not_grow_end_a_real_process_in_one_line(written_config, whole_run, tmp_path):
    """By the system's own limit, which stands for a disk that fills up."""
    out = tmp_path / "out"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "spatl", "run", written_config, "--out", str(out)], capture_output=True, text=True,
        preexec_fn=limit, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the file may not grow any further" in done.stderr.strip().splitlines()[-1]
    assert main(["run", "--resume", str(out)]) == 0
    assert history_without_seconds(out) == history_without_seconds(whole_run)


@pytest.mark.slow
def test_a_full_standard_output_costs_neither_a_round_nor_the_report_and_is_told(written_config, tmp_path):
    out = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "spatl", "run", written_config, "--out", str(out)], stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last == "spatl: standard output: No space left on device; what was printed there is not whole"
    assert len(read_lines(out / HISTORY)) == ROUNDS
    assert (out / REPORT).exists()
    assert (out / SUMMARY).exists()


@pytest.mark.slow
def test_a_reader_who_has_enough_costs_nothing(written_config, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "spatl", "run", written_config, "--out", str(out)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()  # before anything is printed
    assert process.stderr is not None
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert "Traceback" not in error
    assert "Broken" not in error
    assert (out / REPORT).exists()


def test_what_ended_a_run_elsewhere_is_told_though_the_disk_had_no_room_for_its_error(tmp_path, refuse):
    with pytest.raises(SpatlError, match="ended somehow"):
        check_outcome(tmp_path, otherwise=SpatlError("ended somehow"))
    refuse(1, errno.ENOSPC)
    with pytest.raises(SystemFault, match=r"no space is left on the disk: make room; then go on .*--resume"):
        check_outcome(tmp_path, otherwise=SpatlError("ended somehow"))
    assert not list(tmp_path.iterdir())
