"""Benchmarks of other tasks: targets in the metric and the direction of the task; every number worked out by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.bench.ablations import ablation_table, add_ablations_
from spatl.bench.plan import make_plan
from spatl.bench.report import write_reports
from spatl.bench.results import collect, run_directory, shown_target
from spatl.bench.score import ACCURACY, Score, score_of, told
from spatl.bench.tables import ablation_rows, accuracy_rows, run_rows
from spatl.bench.tuning import tuned_rows, tuning_jobs
from spatl.config.loading import config_from_json, parse_config
from spatl.errors import ConfigError
from tests.support.bench_runs import write_run

MAE = Score("mae", higher_is_better=False, is_share=False)
REGRESSION = """
rounds: 4
task: {name: regression}
data: {name: npz, options: {path: houses.npz}}
partition: {name: iid}
model: {name: mlp}
"""


def plan_of(directory: Path, bench: str = "seeds: [1], targets: [5, 2]", methods=("fedavg", "spatl", "local")):
    path = directory / "bench.yaml"
    path.write_text(f"{REGRESSION}bench: {{{bench}}}\n")
    return make_plan([path], methods=methods)


ERRORS = {"fedavg": [9, 6, 5, 5, 4], "spatl": [9, 5, 4, 3, 1], "local": [9, 8, 7, 7, 7]}
"""Mean absolute errors on arrival, and after the last round: FedAvg holds 5 at its fifth, SPATL at its fourth."""


@pytest.fixture
def fallen(tmp_path):
    plan = plan_of(tmp_path)
    for row in plan.rows:
        path = run_directory(tmp_path, row.label, 1)
        write_run(path, row.config(1), ERRORS[row.label], bytes_each_way=100, score="mae")
    return plan, *collect(plan, tmp_path)


def test_a_target_of_an_error_is_reached_from_above(fallen):
    """Four rounds of 200 bytes bring FedAvg to 5, 5 and 4 in a row; SPATL has 5, 4 and 3 as it arrives in round 4."""
    _, records, _ = fallen
    fedavg, spatl, local = (record["targets"] for record in records)
    assert [cell["target"] for cell in fedavg] == [5, 2]
    assert (fedavg[0]["held"]["rounds"], fedavg[0]["held"]["bytes"], fedavg[0]["held"]["score"]) == (4, 900, 4)
    assert (spatl[0]["held"]["rounds"], spatl[0]["held"]["bytes"]) == (3, 700)
    assert spatl[0]["held"]["ratio_to_fedavg"] == 900 / 700
    assert (spatl[1]["held"], spatl[1]["first_touch"]["rounds"]) == (None, 4)
    assert (local[0]["first_touch"], local[0]["meaningful"]) == (None, True)
    assert "accuracy" not in json.dumps(records)


def test_records_tell_the_metric_and_its_worst_and_best(fallen):
    _, records, _ = fallen
    spatl = records[1]
    assert (spatl["metric"], spatl["final_score"], spatl["best_score"]) == ("mae", 1, 1)
    assert (spatl["score_worst"], told(spatl, "worst")) == (1.1, 1.1)  # clients at 0.9 and 1.1
    [line] = accuracy_rows({"spatl": [spatl]})
    assert (line["mae"], line["best round"]) == ("1", "1")
    [line] = run_rows([spatl])
    assert (line["final mae"], line["rounds to 5"]) == ("1", "3")


def test_the_most_demanding_target_is_the_lowest_error(fallen):
    plan, records, _ = fallen
    assert shown_target(records) == 0  # nobody held 2
    for record in records:
        record["targets"][1]["held"] = record["targets"][0]["held"]
    assert plan.bench.targets[shown_target(records)] == 2


def test_an_idea_that_lowers_the_error_shows_as_a_change_in_its_unit(tmp_path):
    plan = plan_of(tmp_path, "seeds: [1], targets: [5], ablations: {without: {fedavg: ideas}}", ("spatl", "fedavg"))
    for row in plan.rows:
        write_run(
            run_directory(tmp_path, row.label, 1), row.config(1), ERRORS[row.label], bytes_each_way=100, score="mae"
        )
    records, _ = collect(plan, tmp_path)
    add_ablations_(records, plan.bench.ablations)
    full, without = ablation_rows(ablation_table(records, 0), MAE)
    assert (full["change of final mae"], without["change of final mae"]) == ("–", "+3")  # 4 and not 1
    assert without["factor lost"] == "1.29x"  # 900 bytes and not 700


@pytest.mark.slow
def test_reports_name_the_metric_and_no_accuracy(fallen, tmp_path):
    plan, records, curves = fallen
    write_reports(plan, records, curves, tmp_path, command="spatl bench")
    text = (tmp_path / "bench.md").read_text()
    assert "# Cost of mae: mlp on npz" in text
    assert "## Cost of mae 5, held for 3 rounds" in text
    assert "accurac" not in text.lower()
    page = (tmp_path / "report.html").read_text()
    assert "Mae against bytes" in page


def test_the_best_rate_has_the_lowest_error(tmp_path):
    plan = plan_of(tmp_path, "seeds: [1], targets: [5], learning_rates: [0.1, 0.2], tune_seeds: [7]", ("fedavg",))
    for job in tuning_jobs(plan, tmp_path):
        config = config_from_json(job.config_json)
        errors = [9, 4, 4, 4, 4] if config.training.learning_rate == 0.1 else [9, 6, 6, 6, 6]
        write_run(job.directory, config, errors, bytes_each_way=1, score="mae")
    [tuned] = tuned_rows(plan, tmp_path)
    assert (tuned.best.rate, {pair.rate: score for pair, score in tuned.scores.items()}) == (0.1, {0.1: 4, 0.2: 6})


def test_targets_of_another_metric_are_to_be_named(tmp_path):
    with pytest.raises(ConfigError, match=r"bench\.targets must be values of mae, .* set them in the config"):
        plan_of(tmp_path, "seeds: [1]")
    assert plan_of(tmp_path, "seeds: [1], targets: [12.5]").bench.targets == (12.5,)


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ({}, ACCURACY),
        ({"task": {"metrics": ["macro-f1"]}}, Score("macro-f1")),
        ({"task": {"name": "regression", "metrics": ["r2"]}}, Score("r2", is_share=False)),
        ({"task": {"name": "next-token", "metrics": ["perplexity"]}}, Score("perplexity", higher_is_better=False,
                                                                           is_share=False)),
    ],
)  # fmt: skip
def test_the_score_is_the_first_metric(task, score):
    assert score_of(parse_config({"partition": {"name": "iid"}, **task})) == score


@given(value=st.floats(-1e6, 1e6), target=st.floats(-1e6, 1e6))
def test_the_two_directions_are_mirror_images(value, target):
    rising, falling = Score("r2", is_share=False), MAE
    assert rising.reaches(value, target) == falling.reaches(-value, -target)
    assert rising.reaches(value, target) or falling.reaches(value, target)
    assert rising.best([value, target]) == falling.worst([value, target])
