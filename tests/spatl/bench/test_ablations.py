"""What each idea is worth, against the full row of the same seed; every number worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from spatl.bench.ablations import ablation_table, add_ablations_
from spatl.bench.figures import draw_factors, factors_svg
from spatl.bench.plan import make_plan
from spatl.bench.report import write_reports
from spatl.bench.results import Estimate, collect, run_directory, shown_target
from spatl.bench.tables import ablation_rows, factor_text
from spatl.config.bench import AblationsConfig
from spatl.report.figures import new_figure
from tests.support.bench_runs import write_run

IDEAS = {"spatl-no-selection": "selection", "spatl-no-control": "control <i>variates</i> | all"}
CONFIG = f"rounds: 4\nbench: {{targets: [0.8, 0.9], ablations: {{without: {json.dumps(IDEAS)}}}}}\n"

# Accuracies on arrival and at the end, and bytes each way in a round.
EARLY = [0.8, 0.8, 0.8, 0.8]
RUNS = {
    ("spatl", 1): ([*EARLY, 0.8], 10),
    ("spatl", 2): ([*EARLY, 0.8], 10),
    ("spatl", 3): ([*EARLY, 0.8], 10),
    ("spatl-no-selection", 1): ([*EARLY, 0.7], 20),
    ("spatl-no-selection", 2): ([*EARLY, 0.9], 80),
    ("spatl-no-selection", 3): ([0.1, 0.1, 0.1, 0.1, 0.6], 20),
    ("spatl-no-control", 1): ([0.9, 0.9, 0.9, 0.9, 0.9], 8),
    ("spatl-no-control", 2): ([0.9, 0.9, 0.9, 0.9, 0.9], 8),
    ("spatl-no-control", 3): ([*EARLY, 0.8], 8),
    ("fedavg", 1): ([*EARLY, 0.8], 100),
    ("fedavg", 2): ([*EARLY, 0.8], 100),
    ("fedavg", 3): ([*EARLY, 0.8], 100),
}


@pytest.fixture
def ablation_plan(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(CONFIG)
    return make_plan([path], methods=["spatl", *IDEAS, "fedavg"])


@pytest.fixture
def ablation_runs(ablation_plan, tmp_path):
    for row in ablation_plan.rows:
        for seed in (1, 2, 3):
            accuracies, num_bytes = RUNS[row.label, seed]
            path = run_directory(tmp_path, row.label, seed)
            write_run(path, row.config(seed), accuracies, bytes_each_way=num_bytes)
    return tmp_path


@pytest.fixture
def records(ablation_plan, ablation_runs):
    found, _ = collect(ablation_plan, ablation_runs)
    add_ablations_(found, ablation_plan.bench.ablations)
    return found


def ablations(records, method, place):
    return [record["ablation"]["targets"][place]["held"] for record in records if record["method"] == method]


def test_an_idea_is_worth_the_bytes_without_it_over_those_of_the_full_row_of_the_same_seed(records):
    """The full row holds 0.8 with its third accuracy, after two rounds: 2 * 20 + 10 = 50 bytes, with every seed.

    Without selection it is 100 bytes with seed 1 and 400 with seed 2: factors of 2 and 8. With seed 3 it is never, for
    the 4 * 40 = 160 bytes of its rounds: more than 160 / 50.
    """
    one, two, three = ablations(records, "spatl-no-selection", 0)
    assert one == {"factor": 2.0, "factor_at_least": None, "factor_at_most": None}
    assert two == {"factor": 8.0, "factor_at_least": None, "factor_at_most": None}
    assert three == {"factor": None, "factor_at_least": 3.2, "factor_at_most": None}


def test_where_only_the_row_without_the_idea_got_there_the_factor_has_an_upper_bound(records):
    """Without control 0.9 is held for 2 * 16 + 8 = 40 bytes with two seeds; the full row had sent 80 in vain."""
    one, two, three = ablations(records, "spatl-no-control", 1)
    assert one == two == {"factor": None, "factor_at_least": None, "factor_at_most": 0.5}
    assert three == dict.fromkeys(("factor", "factor_at_least", "factor_at_most"))


@pytest.mark.slow
def test_factors_are_averaged_as_logarithms_with_students_interval(records):
    """2 and 8: the logarithms to base 2 are 1 and 3, mean 2, standard deviation root 2, over root 2 of two seeds: 1.

    t(1, 97.5 %) = 12.706205. Final accuracies change by -0.1, 0.1 and -0.2: mean -0.0667, standard deviation 0.15275,
    times t(2) = 4.302653 over the root of 3: 0.3795.
    """
    full, selection, _ = ablation_table(records, 0)
    assert (full.cost.label, full.without, full.factor, full.accuracy_change) == ("spatl", None, None, None)
    low, high = 2 ** (2 - 12.706205), 2 ** (2 + 12.706205)
    assert selection.factor == Estimate(pytest.approx(4), pytest.approx(low), pytest.approx(high, rel=1e-5), 2)
    assert selection.at_least == (3.2,)
    assert selection.accuracy_change.value == pytest.approx(-0.2 / 3)
    assert selection.accuracy_change.high == pytest.approx(-0.2 / 3 + 0.3795, abs=1e-4)


def test_the_table_says_of_how_many_seeds_a_factor_is(records):
    """FedAvg holds 0.8 for 500 bytes, ten times the full row's, five and 1.25 times those without selection."""
    full, selection, control = ablation_rows(ablation_table(records, 0))
    assert full == {
        "method": "SPATL", "reached": "3 of 3", "bytes in total": "50 B", "ratio to FedAvg": "10.00x",
        "factor lost": "–", "change of final accuracy": "–",
    }  # fmt: skip
    assert (selection["method"], selection["reached"], selection["bytes in total"]) == (
        "without selection", "2 of 3", "250 B"
    )  # fmt: skip
    assert selection["factor lost"].startswith("4.00x (0.00–")
    assert selection["factor lost"].endswith(", 2 of 3; > 3.20x, 1 of 3")
    assert selection["ratio to FedAvg"].startswith("2.50x")
    assert selection["change of final accuracy"] == "−6.7 ± 37.9 points"
    assert control["factor lost"] == "0.80x"  # 40 against 50 bytes, with every seed
    at_nine = ablation_table(records, 1)
    assert [factor_text(row) for row in at_nine] == ["–", "–", "< 0.50x, 2 of 3"]
    assert ablation_rows(at_nine)[0]["reached"] == "not reached"


def test_without_the_other_way_round_every_factor_turns_over(ablation_plan, ablation_runs):
    """A law: what the full row is to the other, the other is to the full row."""
    found, _ = collect(ablation_plan, ablation_runs)
    for place in (0, 1):
        add_ablations_(found, AblationsConfig(full="spatl", without={"spatl-no-selection": "it"}))
        forth = ablations(found, "spatl-no-selection", place)
        add_ablations_(found, AblationsConfig(full="spatl-no-selection", without={"spatl": "it"}))
        back = ablations(found, "spatl", place)
        opposite = {"factor": "factor", "factor_at_least": "factor_at_most", "factor_at_most": "factor_at_least"}
        for one, other in zip(forth, back, strict=True):
            for key, turned in opposite.items():
                assert one[key] is other[turned] is None or math.isclose(one[key] * other[turned], 1)


def test_a_seed_without_the_full_row_and_a_run_that_stopped_count_for_nothing(records):
    """Of seed 2 the full row is not there; with seed 3 the run without selection stopped before its end."""
    kept = [record for record in records if (record["method"], record["seed"]) != ("spatl", 2)]
    for record in kept:
        if (record["method"], record["seed"]) == ("spatl-no-selection", 3):
            record.update(stopped="diverged", final_accuracy=None)
    add_ablations_(kept, AblationsConfig(without=IDEAS))
    (row,) = (each for each in ablation_table(kept, 0) if each.cost.label == "spatl-no-selection")
    assert row.factor == Estimate(pytest.approx(2), None, None, 1)
    assert factor_text(row) == "2.00x, 1 of 3; > 3.20x, 1 of 3"
    assert ablation_rows([row])[0]["change of final accuracy"] == "−10.0 points, 1 of 3"


def test_a_full_row_that_stopped_before_it_sent_anything_bounds_nothing(ablation_plan, ablation_runs):
    path = run_directory(ablation_runs, "spatl", 1)
    for name in ("history.jsonl", "ledger.jsonl"):
        (path / name).write_text("")
    (path / "summary.json").unlink()
    (path / "error.json").write_text('{"error": "DivergedError", "message": "diverged in round 1"}')
    found, _ = collect(ablation_plan, ablation_runs)
    add_ablations_(found, ablation_plan.bench.ablations)
    first = ablations(found, "spatl-no-selection", 0)[0]
    assert first == dict.fromkeys(("factor", "factor_at_least", "factor_at_most"))


@pytest.mark.slow
def test_without_ablations_or_their_full_row_there_is_no_table(ablation_plan, ablation_runs):
    found, _ = collect(ablation_plan, ablation_runs)
    assert ablation_table(found, 0) == []
    add_ablations_(found, AblationsConfig())
    assert ablation_table(found, 0) == []
    others = [record for record in found if record["method"] != "spatl"]
    add_ablations_(others, AblationsConfig(without=IDEAS))
    assert ablation_table(others, 0) == []
    json.dumps(others, allow_nan=False)


@pytest.mark.slow
def test_bars_go_from_one_to_the_factor_and_are_pale_where_it_is_a_bound(records):
    def bars(place):
        with new_figure(8, 4) as figure:
            axes = figure.subplots()
            draw_factors(axes, ablation_table(records, place))
            names = [label.get_text().split("\n")[0] for label in axes.get_yticklabels()]
            ends = [(bar.get_x() + bar.get_width(), bar.get_alpha() == 1) for bar in axes.patches]
            return dict(zip(names, ends, strict=True))

    control = f"without {IDEAS['spatl-no-control']}"
    assert bars(0) == {control: (pytest.approx(0.8), True), "without selection": (pytest.approx(4), True)}
    assert bars(1) == {control: (0.5, False), "without selection": (1, False)}
    assert factors_svg(ablation_table(records, 1)).startswith("<svg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_least", "at_most", "end"),
    [((3.0, 2.0), (), 2.0), ((0.6,), (), 1.0), ((), (0.4, 0.5), 0.5), ((), (1.3,), 1.0), ((2.0,), (0.5,), 1.0)],
)
def test_a_bound_is_drawn_only_where_it_says_whether_the_idea_saves(records, at_least, at_most, end):
    """More than 0.6 may be more or less than 1, as may less than 1.3; two seeds that disagree say nothing."""
    full, row, _ = ablation_table(records, 0)
    with new_figure(8, 4) as figure:
        axes = figure.subplots()
        draw_factors(axes, [full, replace(row, factor=None, at_least=at_least, at_most=at_most)])
        (bar,) = axes.patches
        assert bar.get_x() + bar.get_width() == end


@pytest.mark.slow
def test_the_reports_hold_a_table_per_target_and_the_picture_of_the_one_that_is_shown(
    ablation_plan, ablation_runs, records
):
    write_reports(
        ablation_plan, records, collect(ablation_plan, ablation_runs)[1], ablation_runs, command="spatl bench"
    )
    text, page = ((ablation_runs / name).read_text() for name in ("bench.md", "report.html"))
    for heading in ("80.0 %, held for 3 rounds", "80.0 %, first touch", "90.0 %, held for 3 rounds"):
        assert f"## What each idea is worth at {heading}" in text
    assert "| without selection | 2 of 3 | 250 B |" in text
    assert "| without control <i>variates</i> \\| all |" in text
    assert shown_target(records) == 1
    assert "At 90.0 %, held for 3 rounds, against SPATL." in page
    assert "<i>" not in page
    assert "&lt;i&gt;variates" in page
