"""Runs side by side: finished once, whatever is killed, and never half-done."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from spatl.bench.jobs import Job, missing_jobs, run_jobs
from spatl.bench.plan import make_plan
from spatl.bench.run import bench
from spatl.errors import ConfigError, SpatlError
from tests.support.federations import tiny_config, without_seconds

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[3]


def finished(directory):
    return {path.parent: path.stat().st_mtime_ns for path in directory.glob("runs/*/seed-*/summary.json")
            if "unfinished" not in str(path)}  # fmt: skip


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_a_new_seed_is_added(bench_config, tmp_path):
    started = []
    stage = lambda title, number, done: lambda event: started.append(event.job) if event.kind == "started" else None  # noqa: E731
    out = tmp_path / "out"
    bench(make_plan([bench_config], seeds=[1]), out, workers=1, on_stage=stage)
    before = finished(out)
    assert started == ["fedavg, seed 1", "spatl, seed 1", "local, seed 1"]
    started.clear()
    records = bench(make_plan([bench_config]), out, workers=1, on_stage=stage)
    assert started == ["fedavg, seed 2", "spatl, seed 2", "local, seed 2"]
    assert {path: finished(out)[path] for path in before} == before
    assert [(record["method"], record["seed"]) for record in records] == [
        (method, seed) for method in ("fedavg", "spatl", "local") for seed in (1, 2)
    ]


@pytest.mark.slow
def test_killed_and_started_again_it_runs_what_is_missing_and_ends_with_the_same_table(bench_config, tmp_path):
    """SIGKILL of the command while runs are finished, under way and still to come."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "spatl", "bench", str(bench_config), "--workers", "2", "--out", str(out),
               "--set", "rounds=12"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not finished(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while list(out.glob("runs/*/*.unfinished")) and any(_is_alive(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = finished(out)
    assert 0 < len(kept) < 6
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"runs: {len(kept)} of 6 are finished already" in done.stdout
    assert {path: finished(out)[path] for path in kept} == kept
    assert list(out.glob("runs/*/*.unfinished")) == []

    undisturbed = bench(make_plan([bench_config], overrides=["rounds=12"]), tmp_path / "whole", workers=1)
    assert without_seconds(json.loads((out / "bench.json").read_text())) == without_seconds(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_ends_although_many_jobs_are_left(bench_config, tmp_path, number):
    """120 jobs are more than a pipe holds: a process that waited until they are taken would wait for ever."""
    out, seeds = tmp_path / "out", ",".join(map(str, range(60)))
    command = [sys.executable, "-m", "spatl", "bench", str(bench_config), "--workers", "2", "--out", str(out),
               "--methods", "fedavg,local", "--seeds", seeds]  # fmt: skip
    # A test run in the background of a shell ignores SIGINT, and so would all it starts.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not finished(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "spatl: interrupted; what was written until then stands in the output directory\n"


def _is_alive(directory):
    """Whether the processes that work on unfinished runs are there: their ids are in the names."""
    for path in directory.glob("runs/*/*.unfinished"):
        try:
            os.kill(int(path.name.split(".")[1]), 0)
        except ProcessLookupError:
            yield False
        else:
            yield True


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result_and_the_others_go_on(bench_config, tmp_path):
    text = bench_config.read_text().replace("fedavg: {}", "fedavg: {training: {learning_rate: 1.0e+30}}")
    bench_config.write_text(text)
    records = bench(make_plan([bench_config], seeds=[1]), tmp_path / "out", workers=1)
    assert [record["stopped"] is None for record in records] == [False, True, True]
    assert "diverged in round 1" in records[0]["stopped"]
    assert not records[0]["reached"]


@pytest.mark.slow
def test_a_run_that_fails_is_done_again_at_the_next_start(tmp_path):
    good = tiny_config(rounds=1)
    bad = tiny_config(rounds=1, server={"min_replies": 5}, training={"device": "cuda:7"})
    jobs = [Job(name, tmp_path / name, config.to_json()) for name, config in (("bad", bad), ("good", good))]
    failed = run_jobs(jobs, workers=1)
    assert failed.keys() == {"bad"}
    assert "training.device is cuda:7" in failed["bad"]
    assert missing_jobs(jobs) == [jobs[0]]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_run_from_before_there_was_a_setting_counts_as_one_with_its_default(tmp_path):
    config = tiny_config(rounds=1)
    job = Job("old", tmp_path / "old", config.to_json())
    job.directory.mkdir()
    values = yaml.safe_load(config.to_yaml())
    assert values["data"].pop("agreed", "there is none") is None
    values["server"].pop("patience")
    (job.directory / "config.yaml").write_text(yaml.safe_dump(values))
    assert missing_jobs([job]) == []
    (job.directory / "config.yaml").write_text(yaml.safe_dump({**values, "seed": 9}))
    with pytest.raises(ConfigError, match=r"was run with seed 9, this benchmark wants 3"):
        missing_jobs([job])
    (job.directory / "config.yaml").write_text(config.to_yaml() + "of_another_version: null\n")
    with pytest.raises(ConfigError, match=r"was run with of_another_version None, this benchmark wants \(nothing\)"):
        missing_jobs([job])


@pytest.mark.slow
def test_a_directory_of_another_config_is_refused(bench_config, tmp_path):
    bench(make_plan([bench_config], methods=["local"], seeds=[1]), tmp_path / "out", workers=1)
    plan = make_plan([bench_config], overrides=["rounds=2"], methods=["local"], seeds=[1])
    with pytest.raises(ConfigError, match=r"seed-1 was run with rounds 3, this benchmark wants 2: start it"):
        bench(plan, tmp_path / "out", workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tune", "line"),
    [
        ({"methods": ["local"]}, False, "also has the rows fedavg; name them too"),
        ({"methods": ["fedavg", "local"], "seeds": [2]}, False, "also has the seeds 1; name them too"),
        ({"methods": ["fedavg", "local"]}, True, "was started without --tune"),
    ],
)
def test_a_start_that_would_drop_or_mix_results_is_refused_and_changes_nothing(
    bench_config, tmp_path, options, tune, line
):
    out = tmp_path / "out"
    bench(make_plan([bench_config], methods=["fedavg", "local"], seeds=[1]), out, workers=1)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=line):
        bench(make_plan([bench_config], **{"seeds": [1], **options}), out, tune=tune, workers=1)
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_what_the_reports_need_is_missed_before_the_runs(bench_config, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find_spec(name))
    with pytest.raises(SpatlError, match="a benchmark needs scipy, which is not installed: pip install"):
        bench(make_plan([bench_config]), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_start_that_was_killed_before_it_began_is_no_obstacle(bench_config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    assert len(bench(make_plan([bench_config], methods=["local"], seeds=[1]), tmp_path / "out", workers=1)) == 1


def test_a_directory_that_holds_something_else_is_refused(bench_config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="is already there and holds no benchmark"):
        bench(make_plan([bench_config]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_two_benchmarks_do_not_share_a_directory(bench_config, tmp_path):
    plan = make_plan([bench_config], methods=["local"], seeds=[1])

    def stage(title, number, done):
        with pytest.raises(ConfigError, match="another process is at work in"):
            bench(plan, tmp_path / "out", workers=1)
        return lambda event: None

    bench(plan, tmp_path / "out", workers=1, on_stage=stage)


@pytest.mark.slow
def test_a_mistake_in_one_row_shows_before_any_run(bench_config, tmp_path):
    plan = make_plan([bench_config], overrides=["selection.keep_ratio=0.0001"], methods=["fedavg", "spatl"])
    with pytest.raises(SpatlError, match="already costs"):
        bench(plan, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_bug_in_one_run_does_not_end_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("spatl.bench.jobs.run", raising)
    jobs = [Job(name, tmp_path / name, tiny_config(rounds=1).to_json()) for name in ("one", "two")]
    failed = run_jobs(jobs, workers=1)
    assert re.match(r"OSError: disk full \(test_jobs\.py:\d+, in raising\) \(see ", failed["one"])
    assert failed.keys() == {"one", "two"}
    assert "Traceback" in (tmp_path / "one.log").read_text()


def raising(*args, **kwargs):
    raise OSError("disk full")


@pytest.mark.slow
def test_a_worker_that_dies_is_one_clear_line(tmp_path, monkeypatch):
    """What the kernel does to a process that takes too much memory; with more jobs than a pipe holds at once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = tiny_config(model={"name": "tests.support.networks:deadly_net", "options": {}, "cut": ["head"]}, rounds=1)
    jobs = [Job(f"job {number}", tmp_path / str(number), config.to_json()) for number in range(100)]
    with pytest.raises(SpatlError, match=r"a worker ended with exit status -9 \(out of memory\?\)"):
        run_jobs(jobs, workers=2)
