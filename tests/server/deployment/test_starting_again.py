"""A deployment whose run ended before its first round, and one whose run goes on; the SuperLink is left out."""

import contextlib
import shutil
from dataclasses import replace

import pytest

from spatl.console.main import main
from spatl.deployment.sites import RUN, run_name
from spatl.errors import ConfigError, SpatlError
from spatl.json_files import read_json
from spatl.runner import resume, run
from spatl.runs.checkpoint import load_checkpoint, save_checkpoint
from spatl.runs.directory import alone_in_run, serving_run
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.federations import tiny_config

CONFIG = tiny_config(rounds=2, method="fedavg")


@pytest.fixture
def site(tmp_path):
    """The server's directory of a deployment."""
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "config.yaml")]) == 0
    return tmp_path / "federation" / "server"


def serve(site, *more):
    return main(["deploy", "server", str(site), *more])


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["plain", "resume"])
@pytest.mark.parametrize(
    "failure", [SpatlError("after 1 s 0 of 5 clients are connected"), KeyboardInterrupt()], ids=["failed", "stopped"]
)
def test_what_ended_before_its_first_round_is_started_again_by_the_same_command(link, site, failure, more, capsys):
    link.failure = failure
    assert serve(site, *more) != 0
    name = run_name(site / "run")
    assert name is not None
    link.failure = None
    assert serve(site, *more) == 0
    assert len(read_lines(site / "run" / "history.jsonl")) == CONFIG.rounds
    assert run_name(site / "run") == name  # the devices find what they have of a first round


@pytest.mark.slow
def test_so_is_one_that_failed_while_its_clients_registered_with_another_config_if_need_be(link, site, monkeypatch):
    def fails(*args, **kwargs):
        raise SpatlError("client 3 could not register: its file is damaged")

    with monkeypatch.context() as patch:
        patch.setattr("server.app.register", fails)
        assert serve(site) == 2
    directory = site / "run"
    status = read_status(directory)
    assert status.state == "failed"
    assert "client 3 could not register" in status.message
    assert f"spatl deploy server {site} --resume starts it again" in status.message
    name = run_name(directory)
    (site / "config.yaml").write_text(tiny_config(rounds=1, method="fedavg").to_yaml())
    assert serve(site, "--resume") == 0
    assert len(read_lines(directory / "history.jsonl")) == 1
    assert run_name(directory) != name  # what the devices keep is of another run


@pytest.mark.slow
def test_a_run_whose_folder_was_renamed_is_not_quietly_begun_anew(link, site, capsys):
    """Nor one whose folder is gone; without --resume, somebody who wants a new one gets it."""
    assert serve(site) == 0
    name = run_name(site / "run")
    (site / "run").rename(site / "moved")
    assert serve(site, "--resume") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"the run {name} was begun in {site / 'run'}, which does not hold it any more" in line
    assert f"it is {site / 'moved'} by now; move it back" in line
    assert not (site / "run").exists()
    (site / "moved").rename(site / "run")
    assert serve(site, "--resume") == 0
    shutil.rmtree(site / "run")
    assert serve(site, "--resume") == 2
    assert "put it back, or start a new run without --resume" in capsys.readouterr().err
    assert serve(site) == 0
    assert run_name(site / "run") != name


@pytest.mark.slow
@pytest.mark.parametrize("beside", [[], ["other"]])
def test_a_simulation_that_is_not_there_is_not_begun_by_resume(beside, tmp_path, capsys):
    for each in beside:
        run(CONFIG, tmp_path / each, pictures=False)
    assert main(["run", "--resume", str(tmp_path / "gone")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path / 'gone'} holds no run to resume, for it is not there" in line
    assert ("runs beside it: other" in line) == bool(beside)
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow
def test_a_run_that_has_rounds_is_never_begun_anew(link, site, capsys):
    assert serve(site) == 0
    (site / "run" / "summary.json").unlink()
    before = (site / "run" / "history.jsonl").read_text()
    assert serve(site) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert (site / "run" / "history.jsonl").read_text() == before
    assert serve(site, "--resume") == 0


@pytest.mark.slow
def test_one_set_of_channels_waits_for_those_who_agreed_on_it_alone(tmp_path, link, monkeypatch):
    (tmp_path / "config.yaml").write_text(tiny_config(rounds=1, method="ssfl").to_yaml())
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "config.yaml")]) == 0
    site, waited = tmp_path / "federation" / "server", []
    assert serve(site) == 0
    checkpoint = load_checkpoint(site / "run")
    agreed = {client: number for client, number in checkpoint.state.num_examples.items() if client != 4}
    save_checkpoint(replace(checkpoint, state=replace(checkpoint.state, num_examples=agreed)), site / "run")

    def await_clients(number, say, **settings):
        waited.append((number, settings["enough"]))
        raise SpatlError("nobody came")

    monkeypatch.setattr(link, "await_clients", await_clients)
    assert serve(site, "--resume", "--set", "rounds=2") == 2
    assert waited == [(5, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_dead_deployment_is_gone_on_with_by_the_command_that_status_names(link, site, elsewhere, tmp_path, capsys):
    directory = tmp_path / "elsewhere" if elsewhere else site / "run"
    out = ["--out", str(directory)] if elsewhere else []
    assert serve(site, *out) == 0
    for name in ("summary.json", "report.html"):
        (directory / name).unlink(missing_ok=True)
    command = " ".join(["spatl", "deploy", "server", str(site), "--resume", *out])
    status = read_status(directory)
    assert (status.state, status.message) == ("stopped", f"{command} goes on after its last round")
    for refused in (["run", "--resume", str(directory)], ["run", "--resume", str(site)]):
        assert main(refused) == 2
        error = capsys.readouterr().err
        assert "whose clients are devices" in error
        assert "spatl deploy server" in error
        assert error.count("\n") == 1
    with pytest.raises(ConfigError, match="spatl deploy server"):
        resume(directory)
    with pytest.raises(ConfigError, match="spatl deploy server"):
        run(CONFIG, directory)
    assert not (directory / "summary.json").exists()
    assert main(command.split()[1:]) == 0
    assert (directory / "summary.json").exists()


@pytest.mark.slow
def test_the_status_of_a_servers_directory_is_that_of_its_run(link, site):
    with pytest.raises(ConfigError, match=r"run holds no run"):
        read_status(site)
    assert serve(site) == 0
    assert read_status(site).clients == read_status(site / "run").clients


@pytest.mark.slow
def test_a_server_that_waits_for_its_clients_is_running(link, site):
    link.failure = SpatlError("nobody came")
    assert serve(site) == 2
    assert read_status(site).state == "stopped"
    with serving_run(site / "run"):
        assert read_status(site).state == "running"
        assert serve(site) == 2


# More rounds


@pytest.mark.slow
def test_a_deployment_goes_on_to_more_rounds_as_if_they_had_been_asked_for_at_once(link, site):
    assert serve(site) == 0
    name = run_name(site / "run")
    (site / "run" / "report.html").touch()
    assert serve(site, "--resume", "--set", "rounds=4") == 0
    assert run_name(site / "run") == name  # what the devices know it by
    run(CONFIG.model_copy(update={"rounds": 4}), site / "whole", pictures=False)
    for file in ("model/model.safetensors", "server.checkpoint"):
        assert (site / "run" / file).read_bytes() == (site / "whole" / file).read_bytes()
    assert serve(site, "--resume", "--set", "rounds=5") == 0  # of one whose pictures are missing, too
    assert len(read_lines(site / "run" / "history.jsonl")) == 5


@pytest.mark.slow
def test_more_rounds_survive_a_start_that_fails(link, site, capsys):
    assert serve(site) == 0
    link.failure = SpatlError("nobody came")
    assert serve(site, "--resume", "--set", "rounds=3") == 2
    link.failure = None
    capsys.readouterr()
    assert serve(site, "--resume", "--set", "rounds=3") == 2
    assert "it is not over, and goes on to these without" in capsys.readouterr().err
    assert serve(site, "--resume") == 0
    assert len(read_lines(site / "run" / "history.jsonl")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("began", "more", "said"),
    [
        (False, ["--set", "rounds=4"], "--set rounds=N goes with --resume; what a run starts with stands in "),
        (False, ["--resume", "--set", "rounds=4"], "holds no run that could go on to more rounds; set rounds in "),
        (True, ["--resume", "--set", "seed=4"], "to more rounds at most (--set rounds=N): leave out --set seed=4"),
        (True, ["--resume", "--set", "rounds=2"], "is a run of 2 rounds: rounds must be more than that, got 2"),
        (True, ["--resume", "--set", "rounds=many"], "is a run of 2 rounds: rounds must be more than that, got many"),
        (True, ["--set", "rounds=4"], "--set rounds=N goes with --resume"),
    ],
)
def test_a_mistake_about_more_rounds_is_one_line_and_changes_nothing(link, site, began, more, said, capsys):
    if began:
        assert serve(site) == 0
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert serve(site, *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path: each for path, each in before.items() if path.read_bytes() != each} == {}


@pytest.mark.slow
def test_nobody_gives_more_rounds_to_a_run_that_is_served(link, site, capsys):
    assert serve(site) == 0
    with serving_run(site / "run"):
        assert serve(site, "--resume", "--set", "rounds=4") == 2
    assert "another process serves" in capsys.readouterr().err
    assert read_status(site).rounds == CONFIG.rounds


# A simulation, likewise


@pytest.mark.slow
def test_a_simulation_that_ended_before_its_first_round_may_take_its_directory_again(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise SpatlError("not today")

    with monkeypatch.context() as patch:
        patch.setattr("server.app.register", fails)
        with pytest.raises(SpatlError, match="not today"):
            run(CONFIG, tmp_path / "run", pictures=False)
    assert (tmp_path / "run" / "error.json").exists()
    assert run(CONFIG, tmp_path / "run", pictures=False).summary["rounds"] == CONFIG.rounds
    with pytest.raises(ConfigError, match="already there and not empty"):
        run(CONFIG, tmp_path / "run", pictures=False)


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", ".lock"])
def test_a_directory_with_files_of_somebody_elses_is_not_taken(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with contextlib.ExitStack() as stack:
        if name == ".lock":  # another process is about to run there
            stack.enter_context(alone_in_run(tmp_path))
        with pytest.raises(ConfigError, match="already there and not empty"):
            run(CONFIG, tmp_path, pictures=False)
    assert (tmp_path / name).read_text() == "mine"


def test_a_damaged_name_of_a_run_is_one_clear_line(tmp_path):
    (tmp_path / RUN).write_text("{")
    with pytest.raises(SpatlError, match=r"deployment\.json is damaged"):
        run_name(tmp_path)
    (tmp_path / RUN).write_text('{"run": "20260101-000000-ab"}')  # as versions before wrote it
    assert run_name(tmp_path) == read_json(tmp_path / RUN)["run"]
