"""Records, ratios within a seed, and what the seeds say together; every number worked out by hand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.bench.plan import make_plan
from spatl.bench.results import (
    Estimate,
    average,
    average_ratio,
    collect,
    parts_table,
    reference_bytes,
    run_directory,
    target_table,
)  # fmt: skip
from spatl.bench.tables import part_rows, ratio_text, ratio_to_reference
from spatl.runs.records import append_lines
from tests.support.bench_runs import write_run


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("rounds: 4\nbench: {seeds: [1, 2], targets: [0.8, 0.5]}\n")
    return make_plan([path], methods=["fedavg", "fedavg+float16", "spatl", "local"])


@pytest.fixture
def finished(plan, tmp_path):
    """Accuracies on arrival and at the end; all bytes are 100 down and 100 up a round, times the row's factor."""
    accuracies = {
        ("fedavg", 1): [0.1, 0.8, 0.8, 0.8, 0.9],
        ("fedavg", 2): [0.1, 0.2, 0.7, 0.8, 0.8],
        ("fedavg+float16", 1): [0.1, 0.2, 0.8, 0.8, 0.8],
        ("fedavg+float16", 2): [0.1, 0.8, 0.8, 0.8, 0.8],
        ("spatl", 1): [0.8, 0.8, 0.8, 0.8, 0.7],
        ("spatl", 2): [0.1, 0.1, 0.8, 0.8, 0.8],
        ("local", 1): [0.1, 0.2, 0.6, 0.6, 0.6],
        ("local", 2): [0.1, 0.2, 0.4, 0.4, 0.4],
    }
    factor = {"fedavg": 100, "fedavg+float16": 50, "spatl": 10, "local": 1}
    for row in plan.rows:
        for seed in (1, 2):
            path = run_directory(tmp_path, row.label, seed)
            write_run(path, row.config(seed), accuracies[row.label, seed], bytes_each_way=factor[row.label])
    return tmp_path


def cells(records, method, place=0):
    return [record["targets"][place] for record in records if record["method"] == method]


def test_records_hold_costs_and_ratios_of_their_own_seed(plan, finished):
    """FedAvg holds 0.8 with seed 1 at its fourth accuracy: 3 rounds, 3 * 200 + 100 = 700 bytes; with seed 2 never.

    Compressed FedAvg holds it after 4 rounds, 4 * 100 + 50 = 450 bytes with the final encoder, and after 3, 350 bytes.
    SPATL holds it after 2 rounds, 50 bytes, and after 4, 90 bytes: 14 and 9 times fewer than FedAvg and compressed
    FedAvg with seed 1; with seed 2 the ratio to compressed FedAvg is 350/90, and FedAvg had sent 800 bytes in
    vain in its four rounds (the final encoder is no part of what going on would have cost).
    """
    records, _ = collect(plan, finished)
    assert [(r["method"], r["seed"]) for r in records][:3] == [("fedavg", 1), ("fedavg", 2), ("fedavg+float16", 1)]
    one, two = cells(records, "fedavg")
    assert (one["held"]["rounds"], one["held"]["bytes"], one["held"]["ratio_to_fedavg"]) == (3, 700, 1.0)
    assert two["held"] is None
    assert two["first_touch"]["bytes"] == 700
    one, two = cells(records, "spatl")
    assert (one["held"]["bytes"], one["held"]["ratio_to_fedavg"], one["held"]["ratio_to_compressed"]) == (50, 14, 9)
    assert one["held"]["compressed_baseline"] == one["held"]["published_baseline"] == "fedavg+float16"
    assert two["held"]["ratio_to_fedavg"] is None
    assert two["held"]["ratio_to_fedavg_at_least"] == 800 / 90
    assert two["held"]["ratio_to_compressed"] == pytest.approx(350 / 90)


def test_records_have_the_fields_that_are_promised(plan, finished):
    records, _ = collect(plan, finished)
    assert len(records) == 8
    for record in records:
        assert record.keys() >= {
            "method", "seed", "target", "reached", "rounds_to_target", "bytes_to_target", "final_accuracy",
            "ratio_to_fedavg",
        }  # fmt: skip
        assert record["target"] == 0.8
        assert record["reached"] == (record["bytes_to_target"] is not None)
    json.dumps(records, allow_nan=False)


def test_a_target_that_training_alone_touches_is_not_meaningful(plan, finished):
    records, _ = collect(plan, finished)
    assert [record["targets"][0]["meaningful"] for record in records] == [True] * 8
    assert [record["targets"][1]["meaningful"] for record in records] == [False] * 8
    assert all(cell["held"] is None or cell["held"]["ratio_to_fedavg"] is None for cell in cells(records, "local", 1))


def test_the_table_counts_who_reached_it_and_drops_nobody(plan, finished):
    records, _ = collect(plan, finished)
    table = {row.label: row for row in target_table(records, 0)}
    assert list(table) == ["fedavg", "fedavg+float16", "spatl", "local"]
    assert [(row.reached, row.seeds) for row in table.values()] == [(1, 2), (2, 2), (2, 2), (0, 2)]
    assert table["local"].bytes is None
    assert table["spatl"].rounds.value == 3
    assert table["spatl"].ratio == Estimate(pytest.approx(14), None, None, 1)
    assert (table["spatl"].ratio_at_least, table["spatl"].bounds) == (800 / 90, 1)
    assert table["spatl"].bytes_over_reference.value == 50 - 700
    assert table["local"].bytes_over_reference is None
    assert table["spatl"].compressed_ratio.value == pytest.approx(math.sqrt(9 * 350 / 90))
    assert table["spatl"].published_ratio == table["spatl"].compressed_ratio  # float16 is no codec of this product's


def test_a_run_that_diverged_stays_in_the_table(plan, finished):
    path = run_directory(finished, "spatl", 2)
    (path / "summary.json").unlink()
    (path / "error.json").write_text('{"error": "DivergedError", "message": "the run diverged"}')
    records, _ = collect(plan, finished)
    assert [record["stopped"] for record in records if record["method"] == "spatl"] == [None, "the run diverged"]
    assert next(row for row in target_table(records, 0) if row.label == "spatl").seeds == 2


def test_what_a_round_costs_does_not_depend_on_how_many_there_were(plan, finished):
    """100 up and 100 down a round for two clients, whatever the final encoder cost."""
    record = collect(plan, finished)[0][0]
    assert (record["uplink_bytes_per_round"], record["downlink_bytes_per_round"]) == (100, 100)
    assert record["bytes_per_round_and_client"] == 100
    assert (record["evaluation_bytes"], record["registration_bytes"], record["total_bytes"]) == (100, 0, 900)


def test_what_a_message_sends_the_opposite_way_counts_in_its_phase(plan, finished):
    """Of the four rounds' 400 up, a registration of 30 down that was asked for with 8 up is none."""
    path = run_directory(finished, "fedavg", 1)
    append_lines(path / "ledger.jsonl", [{"phase": "query", "direction": "downlink", "bytes": 30, "opposite": 8}])
    record = collect(plan, finished)[0][0]
    assert record["registration_bytes"] == 38
    assert record["uplink_bytes_per_round"] == 100


def test_the_parts_of_the_bytes_add_up_and_are_shares_of_fedavgs(plan, finished):
    """Four rounds of FedAvg: 4 * 100 up and 4 * 100 down (these files break the final encoder down into no parts); of
    every 100 bytes one is no value.

    Four rounds of SPATL: 4 * 9 and 4 bytes up, and as much down; together 80 of FedAvg's 800.
    """
    table = {row.label: row for row in parts_table(collect(plan, finished)[0])}
    assert table["fedavg"].uplink == {"values": 396, "indices": 0, "control": 0, "other": 4}
    assert table["spatl"].downlink == {"values": 36, "indices": 0, "control": 0, "other": 4}
    assert reference_bytes(list(table.values())) == 800
    cells = {line["method"]: line for line in part_rows(list(table.values()))}
    assert cells["SPATL"]["of FedAvg's total"] == "10.0 %"
    assert cells["SPATL"]["uplink values"] == "36 B"


def test_bytes_of_a_run_that_stopped_early_are_no_saving(plan, finished):
    """Of SPATL's seeds one is left; of a method whose runs all stopped there is nothing to show."""
    for label, seed in (("spatl", 2), ("local", 1), ("local", 2)):
        path = run_directory(finished, label, seed)
        (path / "history.jsonl").write_text((path / "history.jsonl").read_text().splitlines()[0] + "\n")
        (path / "error.json").write_text('{"error": "DivergedError", "message": "diverged"}')
    table = {row.label: row for row in parts_table(collect(plan, finished)[0])}
    assert table["spatl"].total == 80
    assert table["local"].total == 0
    assert set(part_rows([table["local"]])[0].values()) == {"Training alone", "–"}


def test_whether_a_target_needs_a_federation_is_unknown_where_a_run_alone_stopped(plan, finished):
    path = run_directory(finished, "local", 2)
    (path / "summary.json").unlink()
    (path / "error.json").write_text('{"error": "DivergedError", "message": "diverged"}')
    records, _ = collect(plan, finished)
    assert [record["targets"][0]["meaningful"] for record in records] == [None] * 8
    assert [record["targets"][1]["meaningful"] for record in records] == [False] * 8  # touched with the other seed


def test_ratios_say_of_how_many_seeds_they_are():
    assert ratio_text(Estimate(2.0, 1.5, 2.5, 3), 3) == "2.00x (1.50–2.50)"
    assert ratio_text(Estimate(2.0, None, None, 1), 3) == "2.00x, 1 of 3"
    assert ratio_text(None, 3) == "–"


def test_the_bound_stands_beside_the_ratio(plan, finished):
    table = {row.label: row for row in target_table(collect(plan, finished)[0], 0)}
    assert ratio_to_reference(table["spatl"]) == "14.00x, 1 of 2; > 8.89x, 1 of 2"
    assert ratio_to_reference(table["local"]) == "–"


def test_the_interval_is_students():
    """0, 1, 2: mean 1, standard deviation 1, t(2, 97.5 %) = 4.302653 over the root of 3: 2.484138."""
    assert average([0.0, 1.0, 2.0]) == Estimate(1.0, pytest.approx(1 - 2.484138), pytest.approx(1 + 2.484138), 3)
    assert average([None, 5.0]) == Estimate(5.0, None, None, 1)
    assert average([None]) is None


@given(ratios=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_ratios_average_the_same_whichever_way_they_are_taken(ratios):
    forth, back = average_ratio(ratios), average_ratio([1 / ratio for ratio in ratios])
    assert forth.value == pytest.approx(1 / back.value)
    assert min(ratios) * 0.999 <= forth.value <= max(ratios) * 1.001
    if len(ratios) > 1:
        assert forth.low == pytest.approx(1 / back.high, rel=1e-6)
