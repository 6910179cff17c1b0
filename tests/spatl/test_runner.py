"""Where runs go: never into one another's directory, however many start at once."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest

from spatl.errors import ConfigError, SpatlError
from spatl.report.result import read_run
from spatl.runner import run
from spatl.runs.directory import alone_in_run, clear_start, fresh_directory
from spatl.runs.files import CONFIG, HISTORY, LOCK
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

ROOT = Path(__file__).parents[2]


def test_directories_that_are_made_in_one_second_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spatl.runs.directory.time.strftime", lambda form: "20260101-000000")
    together = Barrier(8)

    def made(_: int) -> Path:
        together.wait(timeout=10)
        return fresh_directory(None, name="spatl-1")

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(made, range(8)))
    names = {"spatl-1-20260101-000000", *(f"spatl-1-20260101-000000-{number}" for number in range(2, 9))}
    assert paths == {tmp_path / "runs" / name for name in names}
    assert all(path.is_dir() for path in paths)


def test_a_directory_that_is_given_is_not_made_until_the_config_is_right(tmp_path: Path) -> None:
    assert fresh_directory(tmp_path / "new", name="any") == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").write_text("here")
    with pytest.raises(ConfigError, match="is already there and not empty"):
        fresh_directory(tmp_path, name="any")


def test_a_mistake_in_the_config_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="nose"):
        run(tiny_config(model={"cut": ["nose"]}))
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_another_process_is_about_to_run_is_not_cleared(tmp_path: Path) -> None:
    assert clear_start(tmp_path)
    for name in (LOCK, CONFIG):
        (tmp_path / name).touch()
    with alone_in_run(tmp_path):
        assert not clear_start(tmp_path)
        assert (tmp_path / CONFIG).exists()
    assert clear_start(tmp_path)
    assert not (tmp_path / CONFIG).exists()


def test_a_start_that_was_run_to_its_end_before_it_is_locked_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (LOCK, CONFIG):
        (tmp_path / name).touch()

    @contextmanager
    def too_late(lock: Path, *, otherwise: SpatlError) -> Iterator[None]:
        (lock.parent / HISTORY).write_text("{}\n")  # the other one's, which has let go of the lock
        yield

    monkeypatch.setattr("spatl.runs.directory.alone_in", too_late)
    assert not clear_start(tmp_path)
    assert (tmp_path / CONFIG).exists()


@pytest.mark.slow
def test_runs_in_a_loop_each_have_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spatl.runs.directory.time.strftime", lambda form: "20260101-000000")
    results = [run(tiny_config(rounds=1, seed=4), pictures=False) for _ in range(3)]
    assert len({result.directory for result in results}) == 3
    assert len({str(result.summary["accuracy"]) for result in results}) == 1


@pytest.mark.slow
def test_processes_that_start_at_once_each_finish_a_run_of_their_own(tmp_path: Path) -> None:
    """With the same --out one of them runs, and the others say why they do not."""
    (tmp_path / "tiny.yaml").write_text(tiny_config(rounds=1).to_yaml())
    code = (
        "import sys, spatl.runner; spatl.runs.directory.time.strftime = lambda form: '20260101-000000'; "
        "spatl.runner.draw = lambda *result, **options: None; "
        f"sys.path.insert(0, {str(ROOT)!r}); from spatl.console.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", "tiny.yaml"]

    def at_once(*more: str) -> list[tuple[int, str]]:
        started = [
            subprocess.Popen([*command, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        ended = [process.communicate(timeout=300) for process in started]
        return [(process.returncode, errors) for process, (_, errors) in zip(started, ended, strict=True)]

    assert [status for status, _ in at_once()] == [0, 0, 0]
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 3
    assert [len(read_lines(path / "history.jsonl")) for path in runs] == [1, 1, 1]
    assert len({read_run(path).summary["accuracy"] for path in runs}) == 1

    shared = at_once("--out", "shared")
    assert sorted(status for status, _ in shared) == [0, 2, 2]
    said = ("another process is running", "already there", "of another run")
    assert [e for status, e in shared if status and not any(words in e for words in said)] == []
    assert len(read_lines(tmp_path / "shared" / "history.jsonl")) == 1
