"""`spatl diagnose`: clients with a relabelled class are named with it, and mistakes of the user's in one line."""

import json
import shutil
from pathlib import Path

import pytest

from spatl.console.main import main
from spatl.deployment.sites import RUN
from spatl.diagnosis.run import diagnose_run
from spatl.runs.files import FINDINGS
from tests.support.faults import HONEST, NUM_CLIENTS, RELABELLED, config_of, plant
from tests.support.federations import run_tiny, tiny_config

SEED = 900


@pytest.fixture(scope="module")
def relabelled_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, tuple[int, int]]]:
    """A run of which three clients have a relabelled class, and which."""
    directory = tmp_path_factory.mktemp("planted")
    _, relabelled = plant("digits", RELABELLED, seed=SEED, path=directory / "shares.npz")
    run_tiny(config_of("digits", directory / "shares.npz", seed=SEED), directory / "run")
    return directory / "run", relabelled


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three clients without findings."""
    directory = tmp_path_factory.mktemp("few")
    run_tiny(tiny_config(rounds=1, partition={"num_clients": 3}), directory)
    return directory


@pytest.mark.slow
def test_clients_with_a_relabelled_class_are_named_with_it_and_the_others_are_not(relabelled_run, capsys):
    run, relabelled = relabelled_run
    assert main(["diagnose", str(run)]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.split()[0].isdigit() and line[0] == " "}
    assert len(lines) == NUM_CLIENTS
    for client in range(NUM_CLIENTS):
        if client in relabelled:
            says, was = relabelled[client]
            assert f"labels of class {says} look like class {was}" in lines[str(client)]
        else:
            assert "nothing found" in lines[str(client)]
    assert "from the findings that the run has recorded, after round 10" in printed
    assert "false alarms, relabelled class: 0 of 221 honest clients" in printed
    assert "not seen: a client that lies about its findings" in printed


@pytest.mark.slow
def test_what_is_printed_as_json_stands_in_the_runs_directory_too(relabelled_run, capsys):
    run, relabelled = relabelled_run
    assert main(["diagnose", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run / "diagnosis.json").read_text())
    kinds = {each["client"]: each["verdict"]["kind"] for each in printed["clients"]}
    assert {client for client, kind in kinds.items() if kind == "relabelled class"} == set(relabelled)


@pytest.mark.slow
def test_findings_that_are_computed_here_are_those_that_clients_would_have_told(relabelled_run, tmp_path):
    """But for what travels in float32."""
    run, _ = relabelled_run
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / FINDINGS)
    (copy / "marks.json").unlink()  # that they are gone would be damage
    told, computed = diagnose_run(run), diagnose_run(copy)
    assert (told.source, computed.source) == ("recorded", "computed")
    for one, other in zip(told.diagnosis.clients, computed.diagnosis.clients, strict=True):
        assert one.verdict == other.verdict
        assert one.evidence == pytest.approx(other.evidence, abs=1e-3)


@pytest.mark.slow
def test_in_a_federation_without_a_fault_nobody_is_named(tmp_path):
    plant("digits", HONEST, seed=SEED, path=tmp_path / "shares.npz")
    run_tiny(config_of("digits", tmp_path / "shares.npz", seed=SEED), tmp_path / "run")
    assert diagnose_run(tmp_path / "run").diagnosis.suspects == ()


def refusal(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["diagnose", str(run), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


@pytest.mark.slow
def test_too_few_clients_are_refused_before_anything_is_computed(few, capsys):
    assert "needs findings of at least 5 clients, got 3" in refusal(few, capsys)


@pytest.mark.slow
def test_clients_that_share_no_model_are_refused(tmp_path, capsys):
    run_tiny(tiny_config(rounds=1, method="local"), tmp_path)
    assert "have no model in common" in refusal(tmp_path, capsys)


@pytest.mark.slow
def test_a_round_without_findings_is_refused(few, capsys):
    assert "set report.findings" in refusal(few, capsys, "--round", "1")


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert "holds no run: config.yaml is not there" in refusal(tmp_path, capsys)


@pytest.mark.slow
def test_a_run_that_is_not_over_is_refused(few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    text = (tmp_path / "run" / "config.yaml").read_text().replace("num_clients: 3", "num_clients: 5")
    (tmp_path / "run" / "config.yaml").write_text(text)
    (tmp_path / "run" / "marks.json").unlink(missing_ok=True)
    assert "has not come to its end" in refusal(tmp_path / "run", capsys)


@pytest.mark.slow
def test_a_deployment_without_recorded_findings_is_refused(few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "run")
    (tmp_path / "run" / RUN).write_text("{}")
    assert "its data lie on the devices" in refusal(tmp_path / "run", capsys)


@pytest.mark.slow
def test_a_run_without_a_model_or_with_one_of_another_version_is_refused(tmp_path, capsys):
    run_tiny(tiny_config(rounds=1), tmp_path)
    description = tmp_path / "model" / "model.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "format": 99}))
    assert "format" in refusal(tmp_path, capsys)
    shutil.rmtree(tmp_path / "model")
    assert "model.json" in refusal(tmp_path, capsys)
