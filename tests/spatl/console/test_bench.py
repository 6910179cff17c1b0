"""`spatl bench` on the command line: what it prints, writes and returns."""

import json
from io import StringIO

import pytest
from rich.console import Console

from spatl.bench.jobs import Event
from spatl.bench.plan import make_plan
from spatl.bench.results import collect, run_directory
from spatl.console.bench import BenchProgress, print_records
from spatl.console.main import main
from tests.support.bench_runs import write_run
from tests.support.terminals import pipe, shown, terminal, widest_line, words_of


def arguments_of(config, methods):
    return ["bench", str(config), "--methods", methods, "--seeds", "3", "--target", "0.15"]


@pytest.mark.slow
def test_a_benchmark_ends_with_a_table_and_the_paths_of_what_it_wrote(bench_config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = arguments_of(bench_config, "fedavg,local,fedavg+float16")
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    for text in ("runs: 3/3  fedavg+float16, seed 3: accuracy", "digits, 4 clients, 1 seed", "15.0 %"):
        assert text in printed
    for name in ("bench.json", "bench.md", "report.html", "curves.png", "bytes.png"):
        assert str(out / name) in printed
        assert (out / name).stat().st_size > 0
    records = json.loads((out / "bench.json").read_text())
    assert [(r["method"], r["seed"], r["target"]) for r in records] == [
        ("fedavg", 3, 0.15), ("local", 3, 0.15), ("fedavg+float16", 3, 0.15)
    ]  # fmt: skip
    for record in records:
        for way in ("uplink", "downlink"):
            assert record[way].keys() == {"values", "indices", "control", "other"}
            assert sum(record[way].values()) == record[f"{way}_bytes"] > 0
    assert "spatl bench" in (out / "bench.md").read_text()
    assert main([*arguments, "--out", str(out)]) == 0
    assert "runs: 3 of 3 are finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_benchmark_of_unequal_optimizers_says_so_on_the_terminal_and_in_its_reports(bench_config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = arguments_of(bench_config, "fedavg,spatl-no-selection")
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 0
    assert "warning: the rows have unequal optimizers" in capsys.readouterr().out
    for name in ("bench.md", "report.html"):
        assert "Not tuned: the rows have unequal optimizers" in (out / name).read_text()


@pytest.mark.slow
def test_ablations_end_with_a_table_of_what_each_idea_is_worth(bench_config, tmp_path, capsys, monkeypatch):
    """Without selection every client sends all channels each round, so the same target costs more bytes."""
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "out"
    arguments = ["bench", str(bench_config), "--seeds", "1", "--target", "0.05", "--workers", "1", "--out", str(out),
                 "--set", "bench.methods={spatl: {selection: {selector: random}}, spatl-no-selection: {}, fedavg: {}}",
                 "--set", "bench.ablations.without={spatl-no-selection: '[b]selection'}"]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "what each idea is worth, at 5.0 %:" in printed
    assert "without [b]selection" in printed
    assert "factor lost" in printed
    full, without, fedavg = json.loads((out / "bench.json").read_text())
    assert full["ablation"] is fedavg["ablation"] is None
    cell = without["ablation"]["targets"][0]["held"]
    assert cell["factor"] == without["bytes_to_target"] / full["bytes_to_target"] > 1
    assert "| without [b]selection | 1 of 1 |" in (out / "bench.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_tuning_prints_its_grid_and_warns_at_its_edge(bench_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["bench", str(bench_config), "--methods", "fedavg", "--seeds", "1", "--tune", "--workers", "1",
                 "--set", "bench.learning_rates=[0.001, 0.01]", "--set", "rounds=1"]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Learning rates: mean validation accuracy over the rounds" in printed
    assert "is at the edge of the grid; widen bench.learning_rates" in printed
    assert "0.001" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--methods", "fedavgg"], "unknown method 'fedavgg' (did you mean 'fedavg'?); known: fedavg, spatl, local"),
        (["--methods", ","], "there is no method to compare"),
        (["--target", "1.2"], "bench.targets: accuracy lies in (0, 1], got"),
        (["--tune", "--set", "bench.learning_rates=[]"], "bench.learning_rates: is empty"),
        (["--set", "data.name=cifar10", "--set", "data.options={path: nowhere}"], "cifar-10-binary"),
        (["--set", "bench.methods.spatl.rounds=9"], "spatl differs from fedavg in rounds (9 against 3)"),
        (["--set", "model.name=resnet9"], "model.name: unknown name 'resnet9'"),
        (["--workers", "-1"], "--workers must be 0 or more"),
    ],
)
def test_mistakes_are_one_clear_line_and_status_2(bench_config, tmp_path, capsys, arguments, line):
    assert main(["bench", str(bench_config), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert error.startswith("spatl: ")
    assert not (tmp_path / "out" / "runs").exists()


def test_two_configs_that_differ_in_more_than_their_method_are_one_clear_line(bench_config, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(bench_config.read_text().replace("num_clients: 4", "num_clients: 5") + "method: fedavg\n")
    assert main(["bench", str(bench_config), str(other), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "fedavg differs from spatl in partition.num_clients (5 against 4)" in error
    assert error.count("\n") == 1


def test_a_run_that_ends_at_zero_is_shown_at_zero(bench_config):
    """Not at its accuracy on arrival in the last round."""
    console = Console(file=StringIO(), width=100, force_terminal=False)
    progress = BenchProgress(console, make_plan([bench_config], seeds=[1]))
    show = progress.stage("runs", 1, 0)
    show(Event("fedavg, seed 1", "started"))
    show(Event("fedavg, seed 1", "round", row={"round": 1, "accuracy": 0.75, "final_accuracy": 0.0}))
    show(Event("fedavg, seed 1", "ended"))
    assert "fedavg, seed 1: accuracy 0.0 %" in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_last_table_is_whole_at_every_width(width, tmp_path):
    (tmp_path / "bench.yaml").write_text("rounds: 30\nbench: {targets: [0.8]}\n")
    plan = make_plan([tmp_path / "bench.yaml"], methods=["fedavg", "fedavg+float16", "spatl-no-control", "local"])
    for place, row in enumerate(plan.rows):
        for seed in plan.bench.seeds:
            accuracies = [0.9 * (1 - 0.9**number) - 0.01 * seed for number in range(31)]
            path = run_directory(tmp_path, row.label, seed)
            write_run(path, row.config(seed), accuracies, bytes_each_way=1000 * (place + seed))
    records, _ = collect(plan, tmp_path)
    console = pipe() if width is None else terminal(width)
    print_records(console, plan, records)
    lines = shown(console).splitlines()[1:]
    text = "\n".join(lines)
    assert "…" not in text
    words = words_of(text)
    assert {"fedavg", "fedavg+float16", "1.00x"} <= set(words)
    assert words.count("±") == 4
    if width is not None:
        assert widest_line("\n".join(line for line in lines if "training alone" not in line)) <= width
