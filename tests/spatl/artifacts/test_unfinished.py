"""Model of a run that is not over: that of a run of so many rounds, to the bit, and nothing of the run is touched."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import server.strategy
from server.engines import run_inline
from spatl.artifacts.description import read_description
from spatl.artifacts.onboarding import federations_model
from spatl.artifacts.unfinished import UnfinishedModel, run_directory, unfinished_model
from spatl.deployment.sites import ServerSite, write_site
from spatl.errors import DamagedState, SpatlError
from spatl.models.weights import read_weights
from spatl.runner import resume
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.directory import alone_in_run, serving_run, write_config
from tests.support.deployments import await_that
from tests.support.federations import COMPRESSED, DENSE, tiny_config
from tests.support.stopped import Stopped, stopped_after

RESNET = {"name": "resnet8", "options": {"width": 0.25}}
SETTINGS: dict[str, dict[str, Any]] = {
    "compressed": {"wire": COMPRESSED},
    "some clients": {"wire": COMPRESSED, "server": {"fraction_train": 0.4}},
    "float32": {"wire": DENSE},
    "statistics shared": {"model": RESNET, "training": {"batch_norm": "shared"}},
    "statistics put together": {"wire": COMPRESSED, "model": RESNET},
    "a private predictor": {"method": "spatl-paper", "model": RESNET},
    "one set of channels": {"method": "ssfl", "model": RESNET, "wire": COMPRESSED},
    "one set of channels, float32": {"method": "ssfl", "wire": DENSE},
}
FAST = "compressed"


def found_in(directory: Path) -> UnfinishedModel:
    found = unfinished_model(directory, version="0")
    assert found is not None
    return found


def contents(directory: Path) -> dict[str, tuple[int, str]]:
    """When each file was last written, and what is in it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@pytest.mark.parametrize(
    "what", [pytest.param(each, marks=pytest.mark.slow) for each in SETTINGS if each != FAST] + [FAST]
)
def test_what_a_stopped_run_has_is_the_model_of_a_run_of_so_many_rounds(tmp_path: Path, what: str) -> None:
    run_inline(tiny_config(rounds=2, **SETTINGS[what]), tmp_path / "short")
    stopped_after(2, tiny_config(rounds=5, **SETTINGS[what]), tmp_path / "run")
    before = contents(tmp_path / "run")
    found = found_in(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    short = read_description(tmp_path / "short" / "model")
    weights = read_weights(tmp_path / "short" / "model" / "model.safetensors")
    assert (found.description.round, found.rounds, found.description.encoder) == (2, 5, short.encoder)
    assert found.description.class_names == short.class_names
    missing = weights.keys() - found.tensors.keys()
    assert all("running_" in name or "tracked" in name for name in missing)
    assert bool(missing) == (short.statistics == "aggregated")
    assert found.description.statistics == ("client" if missing else short.statistics)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.tensors.items())


@pytest.mark.slow
def test_statistics_are_there_where_all_but_the_summary_is(tmp_path: Path) -> None:
    config = tiny_config(rounds=2, **SETTINGS["statistics put together"])
    run_inline(config, tmp_path / "whole")
    stopped_after(2, config, tmp_path / "run")
    found = found_in(tmp_path / "run")
    weights = read_weights(tmp_path / "whole" / "model" / "model.safetensors")
    assert found.description.statistics == "aggregated"
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.tensors.items())


@pytest.mark.slow
def test_statistics_of_another_rounds_encoder_are_not_taken(tmp_path: Path) -> None:
    """A finished run of two rounds goes on to four, and is stopped after the third."""
    config = tiny_config(rounds=2, **SETTINGS["statistics put together"])
    run_inline(config, tmp_path / "run")
    for name in ("summary.json", "report.html"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    longer = config.model_copy(update={"rounds": 4})
    write_config(tmp_path / "run", longer)
    stopped_after(3, longer, tmp_path / "run", resume=True)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.state.statistics is None
    found = found_in(tmp_path / "run")
    assert (found.description.round, found.description.statistics) == (3, "client")
    model = federations_model(tmp_path / "run", found)  # not the file in model/, which is of the second round
    assert model.description.round == 3


@pytest.mark.slow
def test_the_best_model_gives_its_statistics_where_it_is_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """What clients told of the second encoder when it arrived is in `model/best` before the third round is over."""
    config = tiny_config(rounds=5, report={"best": True}, **SETTINGS["statistics put together"])
    truly = server.strategy.save_checkpoint

    def save(checkpoint: Any, run: Path) -> None:
        if checkpoint.server_round == 3:
            raise Stopped
        truly(checkpoint, run)

    with monkeypatch.context() as patch:
        patch.setattr(server.strategy, "save_checkpoint", save)
        with pytest.raises(Stopped):
            run_inline(config, tmp_path)
    best = read_description(tmp_path / "model" / "best")
    assert best.round == 2
    found = found_in(tmp_path)
    assert found.description == best
    assert any("running_mean" in name for name in found.tensors)
    (tmp_path / "model" / "best" / "model.safetensors").write_bytes(b"half of another one")
    again = found_in(tmp_path)
    assert (again.description.statistics, again.description.encoder) == ("client", best.encoder)


@pytest.mark.slow
def test_there_is_none_of_a_run_that_is_over_or_of_no_run(tmp_path: Path) -> None:
    run_inline(tiny_config(rounds=1), tmp_path / "run")
    assert unfinished_model(tmp_path / "run", version="0") is None
    assert unfinished_model(tmp_path / "run" / "model", version="0") is None
    assert unfinished_model(tmp_path / "nothing", version="0") is None


@pytest.mark.slow
def test_a_run_without_a_whole_round_and_one_that_is_damaged_are_one_line(tmp_path: Path) -> None:
    config = tiny_config(rounds=3)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(SpatlError, match=r"^no round of the run in .* is over, and it has no model yet"):
        found_in(tmp_path)
    (tmp_path / "config.yaml").unlink()
    stopped_after(1, config, tmp_path)
    wider = tiny_config(rounds=3, model={"options": {"channels": [5, 6], "hidden": 12}})
    write_config(tmp_path, wider)
    with pytest.raises(SpatlError, match="one of the two is of another run"):
        found_in(tmp_path)
    path = tmp_path / "server.checkpoint"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedState, match="is damaged"):
        found_in(tmp_path)


def test_the_run_of_a_servers_directory_lies_below_it(tmp_path: Path) -> None:
    assert run_directory(tmp_path) == tmp_path
    write_site(tmp_path, ServerSite("127.0.0.1:9092", 2))
    assert run_directory(tmp_path) == tmp_path / "run"


@pytest.mark.slow
def test_a_run_in_another_process_gives_its_model_and_goes_on_undisturbed(tmp_path: Path) -> None:
    """While it has its lock; it is stopped by the test once it is a round further, and goes on from there."""
    config = tiny_config(rounds=1000, **SETTINGS["compressed"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "spatl", "run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_that(lambda: (tmp_path / "run" / "server.checkpoint").exists(), process, seconds=120)
        with pytest.raises(SpatlError, match="another process is running"), alone_in_run(tmp_path / "run"):
            pass
        found = [found_in(tmp_path / "run") for _ in range(5)]
        last = found[-1].description.round
        await_that(lambda: _round(tmp_path / "run") > last, process, seconds=120)
    finally:
        process.kill()
        process.wait(60)
    run_inline(tiny_config(rounds=last, **SETTINGS["compressed"]), tmp_path / "short")
    weights = read_weights(tmp_path / "short" / "model" / "model.safetensors")
    assert found[-1].tensors.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found[-1].tensors.items())
    rounds = _round(tmp_path / "run") + 1
    config = config.model_copy(update={"rounds": rounds})
    write_config(tmp_path / "run", config)
    assert resume(tmp_path / "run", pictures=False).summary["rounds"] == rounds


def _round(directory: Path) -> int:
    checkpoint = load_checkpoint(directory)
    assert checkpoint is not None
    return checkpoint.server_round


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="locks")
def test_no_lock_is_looked_at(tmp_path: Path, monkeypatch: Any) -> None:
    """Whoever has them keeps them; and nobody who is about to take one finds it taken."""
    import fcntl

    stopped_after(1, tiny_config(rounds=3), tmp_path)

    def lock(*args: Any) -> None:
        raise AssertionError("a lock was asked for")

    with alone_in_run(tmp_path), serving_run(tmp_path), monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock)
        patch.setattr(fcntl, "lockf", lock)
        assert found_in(tmp_path).description.round == 1
