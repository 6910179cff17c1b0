"""Commands that read a run, on one of a regression: they work, or say in one line that they are for classifications."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from spatl.console.main import main
from spatl.report.result import read_run
from spatl.rounds.blueprint import cached_blueprint
from spatl.runner import run
from spatl.runs.directory import config_of
from spatl.runs.scores import LOWER_IS_BETTER, SHARES
from spatl.tasks.metrics import METRICS
from spatl.terminal.result import print_result
from tests.support.tasks import task_config

FOR_CLASSIFICATIONS = {
    "explain": ["explain", "{run}"],
    "diagnose": ["diagnose", "{run}"],
    "export": ["export", "{run}"],
    "onboard": ["onboard", "{run}", "--data", "digits"],
}


@pytest.fixture(scope="module")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks") / "run"
    config = task_config("regression", rounds=2, report={"best": True, "compare_alone": True}, method="fedavg")
    run(config, directory, pictures=False)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("command", FOR_CLASSIFICATIONS)
def test_what_is_for_classifications_says_so(
    regression_run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = [word.format(run=regression_run) for word in FOR_CLASSIFICATIONS[command]]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "is for classifications, and this is regression: use its model from Python" in " ".join(said.split())


@pytest.mark.slow
def test_the_status_and_the_report_call_the_metric_by_its_name(
    regression_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(regression_run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    score = json.loads((regression_run / "summary.json").read_text())["score"]
    assert f"mae {score:.4g}, up" in said
    assert main(["report", str(regression_run)]) == 0
    page = (regression_run / "report.html").read_text()
    assert "Mae after the last round" in page
    assert "R2, all their examples pooled" in page
    assert "fraction correct" not in page


@pytest.mark.slow
def test_the_closing_table_has_each_metric_both_ways(regression_run: Path) -> None:
    console = Console(width=200, record=True, file=StringIO())
    print_result(console, read_run(regression_run))
    said = console.export_text()
    for name in ("mae, mean over clients", "mae, worst client", "rmse, all their examples pooled"):
        assert name in said
    assert repr(read_run(regression_run)).count("mae ") == 1


def test_the_model_of_a_run_returns_values_in_the_targets_units(regression_run: Path) -> None:
    """The error of what it returns, on what the clients were tested on, is the one that the run reports."""
    blueprint, result = cached_blueprint(config_of(regression_run).to_json()), read_run(regression_run)
    errors = []
    for client in range(4):
        test = blueprint.client_data(client).test
        with torch.no_grad():
            found = result.model()(test.inputs)
        errors.append(float((found - blueprint.task.in_units(test.targets)).abs().mean()))
    assert np.mean(errors) == pytest.approx(result.summary["score"], rel=1e-5)


def test_what_people_read_in_per_cent_are_the_metrics_that_are_shares() -> None:
    metrics = [metric for table in METRICS.values() for metric in table.values()]
    assert {each.name for each in metrics if (each.lowest, each.highest) == (0, 1)} == SHARES
    assert {each.name for each in metrics if not each.higher_is_better} == LOWER_IS_BETTER
