"""Reports of a benchmark that is not at its end, and the order of its runs."""

import json

import pytest

from spatl.bench.plan import make_plan
from spatl.bench.results import run_directory
from spatl.bench.run import bench, report
from spatl.console.main import main
from spatl.errors import ConfigError, SpatlError
from tests.support.bench_runs import write_run

METHODS = ["fedavg", "local"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("rounds: 4\npartition: {num_clients: 2}\nbench: {targets: [0.5], seeds: [1, 2]}\n")
    return path


@pytest.fixture
def begun(config, tmp_path, monkeypatch):
    """A benchmark that was stopped after the first seed of FedAvg: the order of all its runs, and where it is."""
    order, directory = [], tmp_path / "out"

    def stopped(missing, **given):
        order.extend(job.name for job in missing)
        raise KeyboardInterrupt

    monkeypatch.setattr("spatl.bench.run.run_jobs", stopped)
    plan = make_plan([config], methods=METHODS)
    with pytest.raises(KeyboardInterrupt):
        bench(plan, directory)
    done = plan.rows[0].config(1, report={"compare_alone": False})
    write_run(run_directory(directory, "fedavg", 1), done, [0.1, 0.4, 0.6, 0.7, 0.8], bytes_each_way=1000)
    return order, directory


def test_a_benchmark_that_is_stopped_has_all_rows_of_fewer_seeds(begun):
    order, _ = begun
    assert order == ["fedavg, seed 1", "local, seed 1", "fedavg, seed 2", "local, seed 2"]


@pytest.mark.slow
def test_what_has_ended_is_reported_and_the_rest_is_said_to_be_missing(config, begun, capsys):
    _, directory = begun
    command = ["bench", str(config), "--methods", ",".join(METHODS), "--report"]
    assert main([*command, "--out", str(directory)]) == 0
    assert str(directory / "report.html") in capsys.readouterr().out
    records = json.loads((directory / "bench.json").read_text())
    assert [(each["method"], each["seed"], each["reached"]) for each in records] == [("fedavg", 1, True)]
    assert "3 of 4 runs are not there, for they failed or have not ended." in (directory / "bench.md").read_text()
    assert not run_directory(directory, "local", 1).exists()
    assert main(command) == 2
    assert "name its directory (--out)" in capsys.readouterr().err


def test_there_is_no_report_of_another_config_nor_of_nothing(config, begun, tmp_path):
    _, directory = begun
    other = make_plan([config], methods=METHODS, overrides=["rounds=5"])
    with pytest.raises(ConfigError, match="was run with rounds 4, this benchmark wants 5"):
        report(other, directory)
    with pytest.raises(ConfigError, match="holds no benchmark to report of"):
        report(other, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="was started without --tune"):
        report(make_plan([config], methods=METHODS), directory, tune=True)
    assert not (directory / "bench.json").exists()


def test_before_a_run_has_ended_there_is_nothing_to_report(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "spatl.bench.run.run_jobs", lambda missing, **given: dict.fromkeys(("fedavg, seed 1",), "failed")
    )
    plan = make_plan([config], methods=METHODS)
    with pytest.raises(SpatlError, match="1 of 4 runs failed"):
        bench(plan, tmp_path / "out")
    with pytest.raises(ConfigError, match="no run has ended yet"):
        report(plan, tmp_path / "out")
