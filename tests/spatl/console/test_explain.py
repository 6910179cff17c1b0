"""Command `spatl explain`, on a run that nobody may change."""

import json
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest

from spatl import run as run_federation
from spatl.console.main import main
from spatl.deployment.sites import RUN
from tests.support.federations import tiny_config
from tests.support.own_data import own_config, serve_devices, write_data
from tests.support.terminals import as_terminal, words_of

FEW = ["--examples", "1", "--groups", "2", "--top-k", "3"]


def numbers_in(directory: Path) -> dict:
    return json.loads((directory / "explanation.json").read_text())


@pytest.mark.slow
def test_it_prints_the_largest_groups_and_writes_a_page_and_its_numbers(explained_run, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["explain", str(explained_run), *FEW, "--out", str(out)]) == 0
    output = capsys.readouterr()
    found = numbers_in(out)
    mistakes = found["mistakes"]
    assert output.err == ""
    lines = output.out.splitlines()
    share = f"{mistakes['num_errors']} of {found['num_examples']}"
    assert lines[0].startswith(f"{share} examples (validation split) are wrong (")
    assert lines[-2:] == [str(out / "explanation.html"), str(out / "explanation.json")]
    first = mistakes["groups"][0]
    names = found["class_names"]
    row = next(line.split() for line in lines if line.split()[2:3] == [str(first["num_errors"])])
    assert row[:2] == [names[first["true"]], names[first["predicted"]]]
    assert found["about"]["client"] is None
    assert found["choices"]["groups"]
    page = (out / "explanation.html").read_text()
    assert f"spatl explain {explained_run}" in page
    assert "What the model of the federation gets wrong" in page


@pytest.mark.slow
def test_two_explanations_of_one_run_are_equal_to_the_byte(explained_run, tmp_path):
    for name in ("one", "two"):
        assert main(["explain", str(explained_run), *FEW, "--client", "3", "--out", str(tmp_path / name)]) == 0
    for name in ("explanation.html", "explanation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_without_a_directory_it_writes_into_the_runs_own(explained_run, tmp_path):
    copy = shutil.copytree(explained_run, tmp_path / "run")
    assert main(["explain", str(copy), *FEW]) == 0
    assert main(["explain", str(copy), *FEW, "--client", "2", "--split", "test"]) == 0
    assert numbers_in(copy / "explanation")["about"]["split"] == "validation"
    found = numbers_in(copy / "explanation-client-2-test")
    assert (found["about"]["client"], found["about"]["split"]) == (2, "test")
    assert found["standing"]["num_compared"] == 4


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is(explained_run, tmp_path, capsys, monkeypatch):
    as_terminal(monkeypatch, 100)
    assert main(["explain", str(explained_run), *FEW, "--client", "1", "--out", str(tmp_path / "page")]) == 0
    told = " ".join(words_of(capsys.readouterr().err))
    for what in ("profiles of the validation split", "filters switched off and repaired", "profiles of other clients"):
        assert what in told


@pytest.mark.slow
def test_names_of_classes_are_shown_as_they_are(tmp_path, capsys):
    names = np.array(["[red]apple", "<b>pear</b>", "[/]", "plum"])
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "data.npz",
        images=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8),
        labels=names[np.arange(200) % 4],
    )
    config = tiny_config(rounds=1, data={"name": "npz", "options": {"path": str(tmp_path / "data.npz")}})
    run_federation(config, tmp_path / "run", pictures=False, progress=False)
    assert main(["explain", str(tmp_path / "run"), "--examples", "1", "--groups", "9", "--top-k", "2"]) == 0
    page, output = (tmp_path / "run" / "explanation" / "explanation.html").read_text(), capsys.readouterr().out
    found = numbers_in(tmp_path / "run" / "explanation")
    for group in found["mistakes"]["groups"]:
        for number in (group["true"], group["predicted"]):
            assert found["class_names"][number] in output
            assert escape(found["class_names"][number]) in page
    assert "<b>" not in page


@pytest.mark.slow
def test_a_client_that_has_its_own_part_of_the_model_is_explained_where_the_federation_cannot_be(tmp_path, capsys):
    run_federation(tiny_config(rounds=1, method="spatl-paper"), tmp_path / "run", pictures=False, progress=False)
    assert main(["explain", str(tmp_path / "run"), *FEW]) == 2
    assert "which each client has of its own" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "run"), *FEW, "--client", "0"]) == 0
    assert numbers_in(tmp_path / "run" / "explanation-client-0")["standing"]["by_own_model"]


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A device's directory after a run on data of its own, and its data."""
    base = tmp_path_factory.mktemp("devices")
    for client, number in enumerate((80, 60, 60)):
        write_data(base / f"{client}.npz", number, range(4), seed=client)
    serve_devices(own_config(rounds=1), base)
    (state,) = (base / "device-1").iterdir()
    return state, base / "1.npz", base / "run"


@pytest.mark.slow
def test_a_device_explains_its_own_model_on_its_own_data(device, tmp_path, capsys):
    state, data, _ = device
    assert main(["explain", str(state), "--data", str(data), *FEW, "--out", str(tmp_path / "page")]) == 0
    found = numbers_in(tmp_path / "page")
    assert found["about"]["client"] == 1
    assert (found["standing"], found["choices"]) == (None, None)
    assert not [note for note in found["notes"] if "may not be the run's" in note]
    assert "Nobody to compare with" in (tmp_path / "page" / "explanation.html").read_text()


@pytest.mark.slow
def test_other_data_than_those_of_the_run_are_noticed(device, tmp_path):
    state, data, _ = device
    with np.load(data, allow_pickle=False) as found:
        order = np.arange(len(found["labels"]))[::-1]
        np.savez(tmp_path / "other.npz", images=found["images"][order], labels=(found["labels"] + 1) % 4)
    arguments = ["explain", str(state), "--data", str(tmp_path / "other.npz"), *FEW, "--out", str(tmp_path / "page")]
    assert main(arguments) == 0
    assert [note for note in numbers_in(tmp_path / "page")["notes"] if "may not be the run's" in note]


_FILES = {"config": "config.yaml", "run": RUN, "diagnosis": "diagnosis.json", "selections": "selections.jsonl"}


def _changed(explained_run: Path, directory: Path, *, without: str = "", **files: str) -> Path:
    shutil.copytree(explained_run, directory)
    if without:
        path = directory / without
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in files.items():
        (directory / _FILES[name]).write_text(text)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NOWHERE"], "nowhere holds no model: model.json is not there"),
        (["UNFINISHED"], "has no model yet: it did not reach its last round (spatl status "),
        (["OLD"], "rounds_per_day"),
        (["OTHER_MODEL"], "must be a model's description of format 1, got 9"),
        (["DEPLOYED"], "is a deployment's run, whose data lie on the devices: there, explain the directory of the dev"),
        (["OWN"], "is a deployment's run, whose data lie on the devices"),
        (["DAMAGED"], "cannot read "),
        (["ODD"], "diagnosis.json is not as spatl diagnose writes it; that writes it anew"),
        (["CHOSEN"], "selections.jsonl is not what it was after round "),
        (["RUN", "--client", "7"], "has the clients 0 to 4, got client 7"),
        (["RUN", "--client", "-1"], "has the clients 0 to 4, got client -1"),
        (["RUN", "--data", "digits"], "is a run, whose config says where its data are: leave out --data"),
        (["RUN", "--examples", "0"], "--examples must be at least 1, got 0"),
        (["RUN", "--top-k", "999"], "the number of filters must be in [1, 10], got 999"),
        (["RUN", "--split", "train"], "invalid choice: 'train'"),
        (["RUN", "--device", "abacus"], "training.device"),
        (["RUN/model"], "holds a model without the run's config and data: give the run's directory"),
        (["STATE"], "holds the model of client 1 without its data: give --data, the examples of this device"),
        (["STATE", "--data", "nowhere"], "--data must be a folder of class folders"),
        (["STATE", "--client", "2"], "holds the model of client 1 alone, not that of 2"),
        (["RUN", "--out", "FILE"], "cannot make "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments, message, explained_run, device, tmp_path, capsys):
    config = (explained_run / "config.yaml").read_text()
    places = {
        "RUN": lambda: explained_run, "RUN/model": lambda: explained_run / "model", "STATE": lambda: device[0],
        "OWN": lambda: device[2], "NOWHERE": lambda: "nowhere",
        "UNFINISHED": lambda: _changed(explained_run, tmp_path / "run", without="model"),
        "OLD": lambda: _changed(explained_run, tmp_path / "run", config=f"{config}\nrounds_per_day: 3\n"),
        "DEPLOYED": lambda: _changed(explained_run, tmp_path / "run", run="{}"),
        "DAMAGED": lambda: _changed(explained_run, tmp_path / "run", diagnosis="{"),
        "ODD": lambda: _changed(explained_run, tmp_path / "run", diagnosis='{"clients": [{"client": 0, "scores": 1}]}'),
        "CHOSEN": lambda: _changed(explained_run, tmp_path / "run", selections="{}\n"),
        "OTHER_MODEL": lambda: _changed(explained_run, tmp_path / "run"),
        "FILE": lambda: tmp_path / "file",
    }  # fmt: skip
    (tmp_path / "file").touch()
    words = [str(places[each]()) if each in places else each for each in arguments]
    if "OLD" in arguments:
        (tmp_path / "run" / "marks.json").unlink()
    if "OTHER_MODEL" in arguments:
        path = tmp_path / "run" / "model" / "model.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    before = sorted(explained_run.rglob("*"))
    try:
        status: object = main(["explain", *words])
    except SystemExit as ended:
        status = ended.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1, error
    assert message in error
    assert sorted(explained_run.rglob("*")) == before
    assert not list((tmp_path / "run").glob("explanation*"))


@pytest.mark.slow
def test_a_network_without_a_convolution_is_one_line(tmp_path, capsys):
    model = {"name": "tests.support.networks:Perceptron", "options": {}, "cut": ["head"]}
    run_federation(
        tiny_config(rounds=1, method="fedavg", model=model), tmp_path / "run", pictures=False, progress=False
    )
    assert main(["explain", str(tmp_path / "run")]) == 2
    expected = "spatl: expected a network with a layer of the kind convolution, got Perceptron without any"
    assert capsys.readouterr().err.startswith(expected)
