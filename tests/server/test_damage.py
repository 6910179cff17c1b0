"""What befalls the files of a run between two starts: it goes on as undisturbed, or one line says what is wrong."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import server.strategy
from spatl.console.main import main
from spatl.errors import DamagedState, SpatlError
from spatl.report.result import read_run
from spatl.runner import resume, run
from spatl.runs.files import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CLIENTS,
    CLIENTS_STATES,
    CONFIG,
    CURVES,
    ERROR,
    HISTORY,
    LEDGER,
    MARKS,
    REGISTRATION,
    REPORT,
    SUMMARY,
    TIMINGS,
)  # fmt: skip
from spatl.runs.records import read_lines
from tests.studies import damage as study
from tests.support.federations import harm_state, history_without_seconds, tiny_config

ROUNDS = 4


class Killed(BaseException):
    """What nothing in the product catches, as nothing catches SIGKILL."""


def kill_after_checkpoint(patch, nth) -> None:
    """Have the run end when its nth checkpoint has been written."""
    truly, calls = server.strategy.save_checkpoint, []

    def killing(*arguments):
        truly(*arguments)
        calls.append(arguments)
        if len(calls) == nth:
            raise Killed

    patch.setattr(server.strategy, "save_checkpoint", killing)


@pytest.fixture(scope="module")
def whole_and_killed(tmp_path_factory) -> tuple[Path, Path]:
    """A run of four rounds, and the same one killed when the third had been written."""
    root = tmp_path_factory.mktemp("runs")
    config = tiny_config(rounds=ROUNDS)
    run(config, root / "whole", pictures=False)
    with pytest.MonkeyPatch.context() as patch:
        kill_after_checkpoint(patch, 3)
        with pytest.raises(Killed):
            run(config, root / "killed", pictures=False)
    assert len(read_lines(root / "killed" / HISTORY)) == 3
    return root / "whole", root / "killed"


@pytest.fixture
def killed_run(whole_and_killed, tmp_path) -> Path:
    """A copy of the one that was killed."""
    return Path(shutil.copytree(whole_and_killed[1], tmp_path / "run"))


def edited(path: Path, edit) -> None:
    """Replace a file by what `edit` makes of its lines."""
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))


DAMAGE = {
    "a line is lost": lambda lines: [lines[0], *lines[2:]],
    "a line stands twice": lambda lines: [lines[0], lines[0], *lines[1:]],
    "a line is blank": lambda lines: [lines[0], b"\n", *lines[2:]],
    "a line is filled with zeros": lambda lines: [lines[0], b"\0" * (len(lines[1]) - 1) + b"\n", *lines[2:]],
    "a digit is another": lambda lines: [lines[0].replace(b"1", b"2", 1), *lines[1:]],
    "the last newline is gone": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "its end is cut": lambda lines: [*lines[:-1], lines[-1][:5]],
    "it is empty": lambda lines: [],
    "two lines have changed places": lambda lines: [lines[1], lines[0], *lines[2:]],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [HISTORY, CLIENTS, LEDGER, TIMINGS])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_that_lacks_something_is_refused_and_stays_as_it_is(name, damage, killed_run, capsys):
    edited(killed_run / name, DAMAGE[damage])
    before = {
        path.name: path.read_bytes() for path in killed_run.iterdir() if path.is_file() and path.suffix != ".lock"
    }
    assert main(["run", "--resume", str(killed_run)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{name} is not what it was after round 3" in error
    kept = (name, CHECKPOINT, MARKS, HISTORY)
    assert {each: (killed_run / each).read_bytes() for each in kept} == {each: before[each] for each in kept}


@pytest.mark.slow
def test_a_record_that_is_not_there_is_refused(killed_run):
    (killed_run / CLIENTS).unlink()
    with pytest.raises(DamagedState, match=f"{CLIENTS} is not what it was after round 3.*it is not there"):
        resume(killed_run, pictures=False)


@pytest.mark.slow
def test_the_line_that_is_lost_or_doubled_is_named(killed_run):
    edited(killed_run / HISTORY, DAMAGE["a line is lost"])
    with pytest.raises(DamagedState, match="line 2 is of round 3, after one of round 1"):
        resume(killed_run, pictures=False)
    edited(killed_run / HISTORY, lambda lines: [b"x\n", *lines])
    with pytest.raises(DamagedState, match="line 1 is no line of it"):
        resume(killed_run, pictures=False)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b'{"round": 4, "accu', b'{"round": 3}\n', b"\0" * 40, b"\n"])
def test_what_was_torn_after_the_checkpoint_is_cut_off(torn, killed_run, whole_and_killed, caplog):
    for name in (HISTORY, CLIENTS, LEDGER):
        with (killed_run / name).open("ab") as file:
            file.write(torn)
    resume(killed_run, pictures=False)
    assert history_without_seconds(killed_run) == history_without_seconds(whole_and_killed[0])
    assert f"{len(torn)} bytes that were written after the last checkpoint are cut off" in caplog.text


@pytest.mark.slow
def test_a_damaged_checkpoint_names_the_one_before_from_which_the_run_ends_as_undisturbed(killed_run, whole_and_killed):
    (killed_run / CHECKPOINT).write_bytes((killed_run / CHECKPOINT).read_bytes()[:100])
    with pytest.raises(DamagedState, match=f"the one before it is whole, of round 2: mv .*{CHECKPOINT_BEFORE}"):
        resume(killed_run, pictures=False)
    (killed_run / CHECKPOINT_BEFORE).replace(killed_run / CHECKPOINT)
    resume(killed_run, pictures=False)
    assert history_without_seconds(killed_run) == history_without_seconds(whole_and_killed[0])


def test_a_run_without_its_checkpoint_cuts_nothing(killed_run):
    before = (killed_run / HISTORY).read_bytes()
    (killed_run / CHECKPOINT).unlink()
    with pytest.raises(DamagedState, match=f"3 rounds on record and no {CHECKPOINT}.*take the one of the round before"):
        resume(killed_run, pictures=False)
    assert (killed_run / HISTORY).read_bytes() == before


@pytest.mark.slow
def test_a_run_of_a_version_that_left_no_marks_goes_on_if_its_rounds_are_there(killed_run, whole_and_killed):
    (killed_run / MARKS).unlink()
    edited(killed_run / HISTORY, DAMAGE["a line is lost"])
    with pytest.raises(DamagedState, match="line 2 is of round 3, expected round 2"):
        resume(killed_run, pictures=False)
    shutil.copy(whole_and_killed[1] / HISTORY, killed_run / HISTORY)
    resume(killed_run, pictures=False)
    assert history_without_seconds(killed_run) == history_without_seconds(whole_and_killed[0])


@pytest.mark.parametrize(
    "damage", ["a line is lost", "a line stands twice", "a line is blank", "a line is filled with zeros"]
)
def test_status_and_a_finished_run_name_the_line(damage, whole_and_killed, tmp_path, capsys):
    finished = Path(shutil.copytree(whole_and_killed[0], tmp_path / "run"))
    edited(finished / HISTORY, DAMAGE[damage])
    assert (finished / SUMMARY).exists()
    assert main(["status", str(finished)]) == 2
    assert re.search(f"{HISTORY} is not what it was after round 4: line 2 is", capsys.readouterr().err)
    with pytest.raises(SpatlError, match=f"{HISTORY} is damaged: line 2"):
        read_run(finished)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGE, "the last line stands twice"])
def test_nothing_is_told_of_a_finished_run_by_the_lines_of_clients_that_are_not_as_it_left_them(
    damage, whole_and_killed, tmp_path, capsys
):
    finished = Path(shutil.copytree(whole_and_killed[0], tmp_path / "run"))
    edited(finished / CLIENTS, DAMAGE.get(damage, lambda lines: [*lines, lines[-1]]))
    for command in ("status", "report", "diagnose"):
        assert main([command, str(finished)]) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert f"{CLIENTS} is not what it was after round 4" in error or f"{CLIENTS} is damaged" in error
    (finished / MARKS).unlink()
    (finished / CLIENTS).write_bytes((whole_and_killed[0] / CLIENTS).read_bytes())
    assert main(["status", str(finished)]) == 0


@pytest.mark.parametrize("content", ["", "{}\n", "rounds: 4\n"])
def test_a_config_that_is_not_whole_is_not_read_as_the_defaults(content, killed_run):
    (killed_run / CONFIG).write_text(content)
    with pytest.raises(DamagedState, match=f"{CONFIG} is not as the run left it: put it back from a copy"):
        resume(killed_run, pictures=False)
    (killed_run / MARKS).unlink()
    with pytest.raises(DamagedState, match=f"{CONFIG} is not a run's whole config: it lacks method"):
        resume(killed_run, pictures=False)


@pytest.mark.slow
def test_pictures_are_made_again_and_are_whole_or_not_there(whole_and_killed, tmp_path, capsys):
    finished = Path(shutil.copytree(whole_and_killed[0], tmp_path / "run"))
    (finished / REPORT).write_text("<html>cut o")
    with pytest.raises(SpatlError, match=f"is finished; there is nothing to resume \\(spatl report {finished}"):
        resume(finished)
    assert main(["report", str(finished)]) == 0
    assert str(finished / REPORT) in capsys.readouterr().out
    assert (finished / REPORT).read_text().rstrip().endswith("</html>")
    with Image.open(finished / CURVES) as picture:
        assert picture.width == 1400
    assert [path.name for path in finished.iterdir() if path.suffix == ".tmp"] == []


def test_there_is_no_report_of_a_run_that_is_not_over(killed_run, capsys):
    assert main(["report", str(killed_run)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_status_opens_nothing_for_writing(killed_run, monkeypatch, capsys):
    """So that a folder that is read-only, or another user's, has a status too."""
    truly = os.open
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def reading(path, flags, *more, **others):
        assert not flags & writes, path
        return truly(path, flags, *more, **others)

    def read_only(self, mode="r", *more, **others):
        assert not set(mode) & set("wax+"), self
        return open(self, mode, *more, **others)

    before = sorted(path.name for path in killed_run.iterdir())
    monkeypatch.setattr(os, "open", reading)
    monkeypatch.setattr(Path, "open", read_only)
    assert main(["status", str(killed_run)]) == 0
    assert "round 3 of 4" in capsys.readouterr().out
    assert sorted(path.name for path in killed_run.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", "[]", '{"accuracy": 0.9'])
def test_a_summary_that_is_not_whole_is_one_line(content, whole_and_killed, tmp_path, capsys):
    finished = Path(shutil.copytree(whole_and_killed[0], tmp_path / "run"))
    (finished / SUMMARY).write_text(content)
    for command in (["report", str(finished)], ["explain", str(finished), "--client", "1"]):
        assert main(command) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(f"{SUMMARY} is (damaged|not as the run left it)", error)


@pytest.mark.parametrize("name", [HISTORY, CLIENTS])
def test_the_status_of_a_run_that_is_not_over_names_a_line_that_lacks_something(name, killed_run, capsys):
    edited(killed_run / name, lambda lines: [*lines[:-1], b'{"round": 3}\n'])
    assert main(["status", str(killed_run)]) == 2
    assert f"{name} is not what it was after round 3" in capsys.readouterr().err
    (killed_run / MARKS).unlink()
    assert main(["status", str(killed_run)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"{name} is damaged: line " in error
    assert " lacks " in error


@pytest.mark.slow
def test_the_config_of_another_network_is_one_line(killed_run, capsys):
    config = (killed_run / CONFIG).read_text()
    (killed_run / CONFIG).write_text(config.replace("    - 6\n", "    - 5\n"))
    assert (killed_run / CONFIG).read_text() != config
    (killed_run / MARKS).unlink()  # which would not let it pass
    before = {name: (killed_run / name).read_bytes() for name in (HISTORY, CLIENTS, LEDGER, CHECKPOINT)}
    assert main(["run", "--resume", str(killed_run)]) == 2
    assert "it is not the config of this run; put it back from a copy" in capsys.readouterr().err
    assert {name: (killed_run / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("rounds", ["2", "44", "4e0"])
def test_a_digit_of_the_config_is_as_the_run_left_it(rounds, killed_run, capsys):
    config = (killed_run / CONFIG).read_text()
    (killed_run / CONFIG).write_text(config.replace("rounds: 4\n", f"rounds: {rounds}\n", 1))
    for command in (["status", str(killed_run)], ["run", "--resume", str(killed_run)]):
        assert main(command) == 2
        assert f"{CONFIG} is not as the run left it" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", '{"message": ', "[]"])
@pytest.mark.parametrize("name", [ERROR, REGISTRATION])
def test_status_names_a_file_of_errors_or_absences_that_is_damaged(name, content, killed_run, capsys):
    (killed_run / name).write_text(content)
    assert main(["status", str(killed_run)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{name} is damaged" in line


@pytest.mark.slow
def test_a_client_of_a_simulation_that_lost_its_state_does_not_go_on_to_other_numbers(killed_run, whole_and_killed):
    """Neither from none, nor from that of the round before, which is of another round than the server's."""
    path = killed_run / CLIENTS_STATES
    before = path.read_bytes()
    for harm in ({"lost": True}, {"lost": True, "newest": True}, {}):
        harm_state(killed_run, 1, **harm)
        with pytest.raises(DamagedState, match=r"client 1 cannot go on after round 3: .*put it back"):
            resume(killed_run, pictures=False)
        path.write_bytes(before)
    resume(killed_run, pictures=False)
    assert history_without_seconds(killed_run) == history_without_seconds(whole_and_killed[0])


def test_more_rounds_are_refused_before_anything_of_a_damaged_run_is_taken_away(whole_and_killed, tmp_path, capsys):
    finished = Path(shutil.copytree(whole_and_killed[0], tmp_path / "run"))
    edited(finished / LEDGER, DAMAGE["a line is lost"])
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["run", "--resume", str(finished), "--set", "rounds=5"]) == 2
    assert f"{LEDGER} is not what it was after round 4" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def study_runs(tmp_path_factory):
    """The runs of `tests.studies.damage`, and what the commands say of them."""
    scratch = tmp_path_factory.mktemp("study")
    runs = study.make_runs(scratch)
    return runs, {kind: study.undisturbed_answers(run, scratch) for kind, run in runs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopped", "over"])
@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_is_damaged_anywhere_gives_the_same_or_one_line(kind, seed, study_runs, tmp_path):
    """Files, damages and places that are drawn; `python -m tests.studies.damage` takes them all."""
    runs, undisturbed = study_runs
    draw = random.Random(f"{kind} {seed}")
    path, damage = draw.choice(study.files_of(runs[kind])), draw.choice(sorted(study.DAMAGE))
    found = list(study.outcomes(runs[kind], tmp_path, path, damage, draw, undisturbed[kind]))
    assert [each for each in found if each[1] == study.WRONG] == []
    assert len(found) == len(undisturbed[kind])
