"""The engines run the same two apps; that they do to the same bytes, `test_resume.py` and `simulation/` look at."""

import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients.app import app as client_app
from server.app import app as server_app
from server.engines import check_outcome, run_inline, write_app
from server.grids import SERVER_NODE_ID, InProcessGrid
from spatl.deployment.processes import descendants, stop
from spatl.errors import ConfigError, DivergedError, SpatlError
from spatl.runner import run
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_error_inside_flowers_runtime_comes_out_as_it_was(tmp_path):
    """It is left in the run's directory, where an engine finds it that runs the ServerApp in another process."""
    config = tiny_config(training={"learning_rate": 1e30}, partition={"num_clients": 2})
    expected = r"round 1: no update could be used.*diverged"
    with pytest.raises(DivergedError, match=expected):
        run_inline(config, tmp_path)
    with pytest.raises(DivergedError, match=expected):
        check_outcome(tmp_path, otherwise=SpatlError("ended somehow"))


@pytest.mark.slow
def test_flwr_run_works_in_a_checkout_with_nothing_installed(tmp_path):
    """`flwr run .` bundles the checkout; the packages it runs are the bundle's, and the results lie under runs/.

    The checkout's config asks for 3 rounds where it had 40, all of whose learning other tests look at.
    """
    app = tmp_path / "checkout"
    app.mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes((ROOT / name).read_bytes())
    config = app / "configs" / "quickstart.yaml"
    assert "\nrounds: 40\n" in config.read_text()
    config.write_text(config.read_text().replace("\nrounds: 40\n", "\nrounds: 3\n"))
    script = f"""
import sys
from pathlib import Path
from server.engines import running_superlink
from spatl.deployment.processes import environment, script
import subprocess
home = Path({str(tmp_path)!r}) / "home"
home.mkdir()
settings = environment(home)
settings["PYTHONPATH"] = ""
log = Path({str(tmp_path)!r}) / "log"
with running_superlink([script("flower-superlink")], home, settings, log) as address:
    (home / "config.toml").write_text(
        f'[superlink]\\ndefault = "test"\\n[superlink.test]\\naddress = "{{address}}"\\ninsecure = true\\n'
    )
    done = subprocess.run(
        [script("flwr"), "run", ".", "test", "--federation-config", "num-supernodes=20 client-resources-num-cpus=1",
         "--stream"], cwd={str(app)!r}, env=settings, timeout=300, capture_output=True, text=True)
print(done.stdout[-3000:], done.stderr[-3000:])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=400)
    summaries = list((tmp_path / "home").rglob("runs/*/summary.json"))
    assert summaries, done.stdout + done.stderr
    history = read_lines(summaries[0].parent / "history.jsonl")
    assert len(history) == 3
    assert history[-1]["final_accuracy"] > 0.5


def test_an_app_bundle_carries_any_path():
    """What JSON writes as a surrogate pair, TOML would refuse."""
    with tempfile.TemporaryDirectory() as directory:
        write_app(Path(directory), tiny_config(), Path('/somewhere/run \U0001f600 "quoted"'))
        content = tomllib.loads((Path(directory) / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["tool"]["flwr"]["app"]["config"]["out"] == '/somewhere/run \U0001f600 "quoted"'


@pytest.mark.slow
def test_stopping_a_process_stops_all_below_it_in_whatever_group():
    """A shell that starts a shell in a session of its own, which starts a sleep."""
    process = subprocess.Popen(["bash", "-c", "setsid bash -c 'sleep 60 & wait' & wait"], start_new_session=True)
    for _ in range(100):
        below = descendants(process.pid)
        if len(below) >= 2:
            break
        time.sleep(0.05)
    assert len(below) >= 2
    stop(process)
    listing = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    alive = {int(line.split()[0]) for line in listing.splitlines() if "Z" not in line.split()[1]}
    assert not alive & {process.pid, *below}


def test_what_a_progress_callback_raises_comes_out(tmp_path):
    def fail(row):
        raise RuntimeError("no room on screen")

    with pytest.raises(RuntimeError, match="no room on screen"):
        run(tiny_config(rounds=1), tmp_path / "out", on_round=fail)
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("name", ["history.jsonl", "summary.json", "error.json"])
def test_a_directory_that_holds_another_run_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("{}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"holds the {name} of another run"):
        run_inline(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "{}\n"


def test_a_run_that_ended_before_this_one_has_its_lock_is_left_alone(tmp_path, monkeypatch):
    @contextmanager
    def too_late(directory):
        (directory / "history.jsonl").write_text("{}\n", encoding="utf-8")  # the other one's
        yield

    monkeypatch.setattr("server.app.alone_in_run", too_late)
    with pytest.raises(ConfigError, match=r"holds the history.jsonl of another run"):
        run_inline(tiny_config(), tmp_path)
    assert (tmp_path / "history.jsonl").read_text(encoding="utf-8") == "{}\n"


@pytest.mark.slow
def test_a_run_that_flower_starts_from_a_file_says_what_has_no_effect(tmp_path):
    """`spatl run` hands the whole config over, and has said it by then."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "rounds: 1\nmethod: fedavg\npartition: {name: iid, num_clients: 2, alpha: 0.5}\n"
        "model: {options: {channels: [4, 6], hidden: 12}}\ntraining: {local_steps: 1, device: cpu}\n"
    )
    run_config = {"config": str(path), "out": str(tmp_path / "run")}
    grid = InProcessGrid(client_app, num_clients=2, run_config=run_config)
    context = Context(run_id=1, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=run_config)
    server_app(grid, context)
    warnings = [row["message"] for row in read_lines(tmp_path / "run" / "log.jsonl") if row["level"] == "warning"]
    assert warnings == [
        "partition.alpha has no effect: the partition iid does not read it (dirichlet, flwr-dirichlet, quantity do)"
    ]
