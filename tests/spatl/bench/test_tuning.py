"""Learning rates are chosen on validation splits, and the choice is used."""

import json

import pytest

from spatl.bench.jobs import Event
from spatl.bench.plan import make_plan
from spatl.bench.run import bench
from spatl.bench.tuning import Tuned, tuned_rows, tuning_jobs, with_tuned
from spatl.config import config_from_json, load_config
from spatl.errors import SpatlError
from tests.spatl.bench.runs import write_run


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(
        """
rounds: 3
partition: {name: iid, num_clients: 4}
model: {name: cnn, options: {channels: [4, 6], hidden: 12}}
training: {local_steps: 6, batch_size: 16, device: cpu}
bench: {seeds: [1], targets: [0.3], learning_rates: [0.001, 0.2, 1.0e+30], tune_seeds: [7, 8], tune_rounds: 2}
"""
    )
    return make_plan([path], methods=["fedavg", "local"])


def test_every_row_meets_every_rate_and_tuning_seed_on_the_validation_split(plan, tmp_path):
    configs = [config_from_json(job.config_json) for job in tuning_jobs(plan, tmp_path)]
    assert len(configs) == 2 * 3 * 2
    assert {config.report.split for config in configs} == {"validation"}
    assert {config.rounds for config in configs} == {2}
    assert {(c.method, c.training.learning_rate, c.seed) for c in configs} == {
        (method, rate, seed) for method in ("fedavg", "local") for rate in (0.001, 0.2, 1e30) for seed in (7, 8)
    }


def test_the_best_rate_is_the_one_with_the_largest_mean_over_rounds_and_seeds(plan, tmp_path):
    """0.001 scores (0.2 + 0.4 + 0.6 + 0.8) / 4 = 0.5 with both seeds; 0.2 scores 0.9 and 0.3; 1e30 never ended.

    The accuracy before any training, the first of each list, does not count.
    """
    accuracies = {0.001: ([0.9, 0.2, 0.8], [0.9, 0.2, 0.8]), 0.2: ([0.0, 0.9, 0.9], [0.0, 0.2, 0.4])}
    for job in tuning_jobs(plan, tmp_path):
        config = config_from_json(job.config_json)
        if (values := accuracies.get(config.training.learning_rate)) is not None:
            write_run(job.directory, config, values[config.seed - 7], bytes_each_way=1)
        else:
            job.directory.mkdir(parents=True)
    for tuned in tuned_rows(plan, tmp_path):
        assert tuned.scores == {0.001: pytest.approx(0.5), 0.2: pytest.approx(0.6), 1e30: None}
        assert tuned.best == 0.2
        assert not tuned.at_edge


def test_a_best_rate_at_either_end_of_the_grid_is_at_its_edge():
    scores = {0.1: 0.3, 0.2: 0.2, 0.4: 0.1}
    assert Tuned("fedavg", scores, 0.1).at_edge
    assert Tuned("fedavg", scores, 0.4).at_edge
    assert not Tuned("fedavg", scores, 0.2).at_edge


def test_a_row_that_diverges_everywhere_is_one_clear_line(plan, tmp_path):
    for job in tuning_jobs(plan, tmp_path):
        job.directory.mkdir(parents=True)
    with pytest.raises(SpatlError, match=r"fedavg diverged with every learning rate of bench\.learning_rates"):
        tuned_rows(plan, tmp_path)


def test_the_tuned_rates_replace_those_of_the_rows(plan):
    tuned = with_tuned(plan, [Tuned("fedavg", {0.2: 1.0}, 0.2), Tuned("local", {0.1: 1.0}, 0.1)])
    assert [row.config(1).training.learning_rate for row in tuned.rows] == [0.2, 0.1]


@pytest.mark.slow
def test_tuning_comes_first_and_its_choice_is_run_and_reported(plan, tmp_path):
    stages, ended, found = [], [], []

    def stage(title, number, done):
        stages.append((title, number, done))
        return lambda event: ended.append(event.job) if isinstance(event, Event) and event.kind == "ended" else None

    records = bench(plan, tmp_path / "out", tune=True, workers=1, on_stage=stage, on_tuned=found.extend)
    assert stages == [("tuning", 12, 0), ("runs", 2, 0)]
    assert len(ended) == 14
    assert [each.best for each in found] == [0.2, 0.2]
    assert [each.scores[1e30] for each in found] == [None, None]
    assert [record["learning_rate"] for record in records] == [0.2, 0.2]
    written = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert [row["best"] for row in written] == [0.2, 0.2]
    assert load_config(tmp_path / "out/runs/fedavg/seed-1/config.yaml").training.learning_rate == 0.2
    page = (tmp_path / "out" / "bench.md").read_text()
    assert "## Learning rates" in page
    assert "stopped" in page
