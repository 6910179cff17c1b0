"""Learning rates and momenta are chosen on validation splits, and the choice is used."""

import json

import pytest

from spatl.bench.jobs import Event
from spatl.bench.plan import make_plan
from spatl.bench.run import bench
from spatl.bench.tables import tuning_note, tuning_rows
from spatl.bench.tuning import Pair, Tuned, tuned_rows, tuning_jobs, warn_of_replaced_momenta, with_tuned
from spatl.config.loading import config_from_json, load_config
from spatl.errors import SpatlError
from tests.support.bench_runs import write_run


@pytest.fixture
def plan_of(tmp_path):
    def make(settings, methods=None):
        path = tmp_path / "bench.yaml"
        path.write_text(
            f"""
rounds: 3
partition: {{name: iid, num_clients: 4}}
model: {{name: cnn, options: {{channels: [4, 6], hidden: 12}}}}
training: {{local_steps: 6, batch_size: 16, device: cpu}}
bench: {{seeds: [1], targets: [0.3], {settings}}}
"""
        )
        return make_plan([path], methods=methods)

    return make


@pytest.fixture
def tuning_plan(plan_of):
    return plan_of(
        "learning_rates: [0.001, 0.2, 1.0e+30], tune_seeds: [7, 8], tune_rounds: 2", methods=["fedavg", "local"]
    )


def test_every_row_meets_every_rate_and_tuning_seed_on_the_validation_split(tuning_plan, tmp_path):
    configs = [config_from_json(job.config_json) for job in tuning_jobs(tuning_plan, tmp_path)]
    assert len(configs) == 2 * 3 * 2
    assert {config.report.split for config in configs} == {"validation"}
    assert {config.rounds for config in configs} == {2}
    assert {(c.method, c.training.learning_rate, c.seed) for c in configs} == {
        (method, rate, seed) for method in ("fedavg", "local") for rate in (0.001, 0.2, 1e30) for seed in (7, 8)
    }


def test_the_best_rate_is_the_one_with_the_largest_mean_over_rounds_and_seeds(tuning_plan, tmp_path):
    """0.001 scores (0.2 + 0.4 + 0.6 + 0.8) / 4 = 0.5 with both seeds; 0.2 scores 0.9 and 0.3; 1e30 never ended.

    The accuracy before any training, the first of each list, does not count.
    """
    accuracies = {0.001: ([0.9, 0.2, 0.8], [0.9, 0.2, 0.8]), 0.2: ([0.0, 0.9, 0.9], [0.0, 0.2, 0.4])}
    for job in tuning_jobs(tuning_plan, tmp_path):
        config = config_from_json(job.config_json)
        if (values := accuracies.get(config.training.learning_rate)) is not None:
            write_run(job.directory, config, values[config.seed - 7], bytes_each_way=1)
        else:
            job.directory.mkdir(parents=True)
    for tuned in tuned_rows(tuning_plan, tmp_path):
        scores = {pair.rate: score for pair, score in tuned.scores.items()}
        assert scores == {0.001: pytest.approx(0.5), 0.2: pytest.approx(0.6), 1e30: None}
        assert tuned.best == Pair(0.2)
        assert not tuned.at_edge


def test_a_best_rate_at_either_end_of_the_grid_is_at_its_edge():
    scores = {Pair(rate, momentum): 0.5 for rate in (0.1, 0.2, 0.4) for momentum in (0.0, 0.9)}
    for momentum in (0.0, 0.9):  # it is the grid of rates that can be widened
        assert Tuned("fedavg", scores, Pair(0.1, momentum)).at_edge
        assert Tuned("fedavg", scores, Pair(0.4, momentum)).at_edge
        assert not Tuned("fedavg", scores, Pair(0.2, momentum)).at_edge


def test_a_row_that_diverges_everywhere_is_one_clear_line(tuning_plan, tmp_path):
    for job in tuning_jobs(tuning_plan, tmp_path):
        job.directory.mkdir(parents=True)
    with pytest.raises(SpatlError, match=r"fedavg diverged with every learning rate of bench\.learning_rates"):
        tuned_rows(tuning_plan, tmp_path)


def test_the_tuned_pairs_replace_what_the_rows_have(tuning_plan):
    """0.5 with momentum 0.8 is 0.5 * (1 - 0.8) = 0.1."""
    best = {"fedavg": Pair(0.2), "local": Pair(0.5, 0.8)}
    tuned = with_tuned(tuning_plan, [Tuned(label, {pair: 1.0}, pair) for label, pair in best.items()])
    trainings = [row.config(1).training for row in tuned.rows]
    assert [(training.learning_rate, training.momentum) for training in trainings] == [(0.2, 0.0), (0.1, 0.8)]


def test_every_momentum_meets_every_rate_at_the_same_effective_step(plan_of, tmp_path):
    """After many steps along a gradient g, momentum m steps by rate * (1 - m) * g * (1 + m + m^2 + ...) = rate * g."""
    plan = plan_of("learning_rates: [0.2, 0.4], momenta: [0.0, 0.5, 0.9]", methods=["fedavg"])
    jobs = tuning_jobs(plan, tmp_path)
    trainings = [config_from_json(job.config_json).training for job in jobs]
    assert [(training.momentum, training.learning_rate) for training in trainings] == [
        (0.0, 0.2), (0.0, 0.4), (0.5, 0.1), (0.5, 0.2), (0.9, 0.02), (0.9, 0.04)
    ]  # fmt: skip
    assert len({job.directory for job in jobs}) == len({job.name for job in jobs}) == 6
    assert jobs[5].name == "fedavg, learning rate 0.4, momentum 0.9, seed 101"


def test_without_momenta_jobs_are_called_and_stand_as_ever(tuning_plan, tmp_path):
    job = tuning_jobs(tuning_plan, tmp_path)[0]
    assert job.name == "fedavg, learning rate 0.001, seed 7"
    assert job.directory == tmp_path / "tuning" / "fedavg" / "learning-rate-0.001" / "seed-7"


@pytest.mark.parametrize("momenta", ["", "momenta: [0.0, 0.5]"])
def test_the_grid_replaces_a_momentum_of_the_rows_own_and_says_so_where_it_is_lost(plan_of, tmp_path, caplog, momenta):
    """Nesterov's, which plain SGD cannot have, stays with the pairs that have momentum."""
    own = "methods: {fedavg: {training: {momentum: 0.9, nesterov: true}}, fedprox: {}}"
    plan = plan_of(f"learning_rates: [0.1], {own}, {momenta}")
    trainings = [config_from_json(job.config_json).training for job in tuning_jobs(plan, tmp_path)]
    fedavg = [(0.0, False), (0.5, True)] if momenta else [(0.0, False)]
    assert [(each.momentum, each.nesterov) for each in trainings[: len(fedavg)]] == fedavg
    warn_of_replaced_momenta(plan)
    assert "the momentum of fedavg (0.9); bench.momenta does not hold it" in caplog.text
    assert "fedprox" not in caplog.text


def test_the_table_has_a_line_per_momentum_and_marks_one_pair():
    pairs = {Pair(0.1): 0.5, Pair(0.2): 0.6, Pair(0.1, 0.9): 0.7, Pair(0.2, 0.9): None}
    assert tuning_rows([Tuned("fedavg", pairs, Pair(0.1, 0.9))]) == [
        {"method": "fedavg", "momentum": "0", "0.1": "50.0 %", "0.2": "60.0 %"},
        {"method": "fedavg", "momentum": "0.9", "0.1": "70.0 % *", "0.2": "stopped"},
    ]
    plain = Tuned("fedavg", {Pair(0.1): 0.5, Pair(0.2): 0.6}, Pair(0.2))
    assert tuning_rows([plain]) == [{"method": "fedavg", "0.1": "50.0 %", "0.2": "60.0 % *"}]
    assert tuning_note([plain]) == "mean validation accuracy over the rounds, by learning rate"


def test_every_row_meets_multiples_of_its_own_server_learning_rate_and_is_run_at_the_best(plan_of, tmp_path):
    """FedAdam's own is 0.03, FedAvg's 1, of 4 in the config; what trains alone has no server."""
    own = "methods: {fedadam: {}, fedavg: {server: {learning_rate: 4.0}}, local: {}}"
    plan = plan_of(f"learning_rates: [0.1, 0.2], server_factors: [1.0, 0.5, 2.0], {own}")
    jobs = tuning_jobs(plan, tmp_path)
    configs = [config_from_json(job.config_json) for job in jobs]
    found = {row.label: [c.server.learning_rate for c in configs if c.method == row.label] for row in plan.rows}
    assert found == {
        "fedadam": [0.03, 0.03, 0.015, 0.015, 0.06, 0.06], "fedavg": [4, 4, 2, 2, 8, 8], "local": [1, 1]
    }  # fmt: skip
    assert len({job.directory for job in jobs}) == len({job.name for job in jobs}) == 14
    assert jobs[4].name == "fedadam, learning rate 0.1, server x 2, seed 101"
    best = {"fedadam": Pair(0.2, 0, 2.0), "fedavg": Pair(0.1), "local": Pair(0.2)}
    tuned = with_tuned(plan, [Tuned(label, {pair: 1.0}, pair) for label, pair in best.items()])
    assert [row.config(1).server.learning_rate for row in tuned.rows] == [0.06, 4, 1]
    assert [row.config(1).training.learning_rate for row in tuned.rows] == [0.2, 0.1, 0.2]


def test_of_three_server_factors_the_outer_ones_are_edges_and_the_table_has_a_line_for_each():
    scores = {Pair(rate, server_factor=factor): 0.5 + rate for factor in (0.5, 1.0, 2.0) for rate in (0.1, 0.2, 0.4)}
    assert Tuned("fedavg", scores, Pair(0.2)).edges == ()
    assert Tuned("fedavg", scores, Pair(0.2, 0, 2.0)).edges == ("bench.server_factors",)
    assert Tuned("fedavg", scores, Pair(0.4, 0, 0.5)).edges == ("bench.learning_rates", "bench.server_factors")
    two = {pair: 0.5 for pair in scores if pair.server_factor < 2}
    assert Tuned("fedavg", two, Pair(0.2, 0, 0.5)).edges == ()
    best = Tuned("fedavg", two, Pair(0.2, 0, 0.5))
    assert tuning_rows([best]) == [
        {"method": "fedavg", "server": "x 0.5", "0.1": "50.0 %", "0.2": "50.0 % *", "0.4": "50.0 %"},
        {"method": "fedavg", "server": "x 1", "0.1": "50.0 %", "0.2": "50.0 %", "0.4": "50.0 %"},
    ]
    assert "by factor of the server's learning rate, learning rate" in tuning_note([best])


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_tuning_comes_first_and_its_choice_is_run_and_reported(tuning_plan, tmp_path):
    stages, ended, found = [], [], []

    def stage(title, number, done):
        stages.append((title, number, done))
        return lambda event: ended.append(event.job) if isinstance(event, Event) and event.kind == "ended" else None

    records = bench(tuning_plan, tmp_path / "out", tune=True, workers=1, on_stage=stage, on_tuned=found.extend)
    assert stages == [("tuning", 12, 0), ("runs", 2, 0)]
    assert len(ended) == 14
    assert [each.best for each in found] == [Pair(0.2), Pair(0.2)]
    assert [each.scores[Pair(1e30)] for each in found] == [None, None]
    assert [record["learning_rate"] for record in records] == [0.2, 0.2]
    written = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert [row["best"] for row in written] == [0.2, 0.2]
    assert load_config(tmp_path / "out/runs/fedavg/seed-1/config.yaml").training.learning_rate == 0.2
    page = (tmp_path / "out" / "bench.md").read_text()
    assert "## Learning rates" in page
    assert "stopped" in page


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_with_momenta_the_chosen_pair_is_run_stored_and_shown(plan_of, tmp_path):
    """At 0.001 nothing is learned in two rounds without momentum; the grid's 0.5 with momentum 0.5 is 0.25."""
    plan = plan_of("learning_rates: [0.001, 0.5], momenta: [0.0, 0.5], tune_rounds: 2", methods=["fedavg"])
    (record,) = bench(plan, tmp_path / "out", tune=True, workers=1)
    (written,) = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert list(written["scores"]) == ["0.001", "0.5", "0.001, momentum 0.5", "0.5, momentum 0.5"]
    assert written["scores"][Pair(written["best"], written["momentum"]).text] == max(written["scores"].values())
    assert written["learning_rate"] == written["best"] * (1 - written["momentum"])
    training = load_config(tmp_path / "out/runs/fedavg/seed-1/config.yaml").training
    assert (training.learning_rate, training.momentum) == (written["learning_rate"], written["momentum"])
    assert (record["learning_rate"], record["momentum"]) == (written["learning_rate"], written["momentum"])
    assert "by momentum and learning rate" in (tmp_path / "out" / "bench.md").read_text()
