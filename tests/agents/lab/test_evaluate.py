"""The honest table: every row keeps the budget, looks at the validation split only, and is compared in pairs."""

import json

import pytest
import torch
import yaml

from agents.lab import evaluate as evaluation
from agents.lab.evaluate import Plan, Record, difference, per_network, run_plan
from agents.lab.networks import worth_and_trial
from agents.lab.yardsticks import YARDSTICKS, Setting, num_evaluations, residual_streams
from agents.measurement import Outcome
from agents.policy import save_policy
from agents.selection_problem import Problem
from spatl.channels.costs import Budget
from spatl.config.loading import parse_config
from spatl.console.main import main
from spatl.data import Examples
from spatl.selection.energy import magnitude_scores
from tests.support.problems import blueprint_for, candidate_for, drawn_policy

pytestmark = pytest.mark.slow  # together more than a developer waits for

CONFIG = """
partition: {num_clients: 2, name: iid}
model: {name: cnn, options: {channels: [4, 6], hidden: 12}}
training: {local_epochs: 1, device: cpu}
"""


def record(network, seed, client, yardstick, accuracy):
    return Record(network, seed, client, 0.3, yardstick, 0, 0.3, accuracy, accuracy)


def setting_for(model, limit, *, seed=0, samples=5, calls=None):
    blueprint, made = blueprint_for(model), candidate_for(model)
    worth, trial = worth_and_trial(blueprint, made, made.data.validation, "pruned")

    def counting(selection):
        calls.append(selection)
        return trial(selection)

    return Setting(
        Problem(blueprint.costs, Budget("flops_ratio", limit), worth, "pruned"),
        magnitude_scores(made.weights, blueprint.layout),
        trial if calls is None else counting,
        drawn_policy(),
        samples,
        residual_streams(made.model, blueprint.layout),
        torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", YARDSTICKS)
def test_every_yardstick_meets_the_budget_with_the_evaluations_it_declares(name):
    for limit in (0.15, 0.6):
        calls = []
        setting = setting_for("resnet8", limit, calls=calls)
        costs = setting.problem.costs
        counts = YARDSTICKS[name](setting).counts(costs.layout)
        assert costs.of(counts, "flops_ratio") <= limit
        assert bool((counts >= 1).all())
        assert len(calls) <= num_evaluations(name, samples=5, num_groups=len(costs.layout.groups))


@pytest.mark.parametrize("name", YARDSTICKS)
def test_a_yardstick_repeats_with_its_seed(name):
    first, again = (YARDSTICKS[name](setting_for("resnet8", 0.4)) for _ in range(2))
    assert torch.equal(first.mask, again.mask)


@pytest.mark.parametrize("name", ["L2 + local search", "signal + local search", "agent, fine-tuned (search)"])
def test_searching_never_ends_below_where_it_began_on_the_validation_split(name):
    start = "global L2" if name.startswith("L2") else "signal (the prior)"
    setting = setting_for("resnet8", 0.3, samples=8)
    found = setting.measure(YARDSTICKS[name](setting))
    begun = setting.measure(setting.by_magnitude.prior() if start == "global L2" else setting.problem.prior())
    assert found.accuracy >= begun.accuracy
    assert found.advantage(begun) >= 0


def test_the_residual_rule_widens_streams_only():
    setting = setting_for("resnet8", 0.4)
    costs = setting.problem.costs
    change = YARDSTICKS["L2 + residual rule"](setting).counts(costs.layout) - setting.by_magnitude.prior().counts(
        costs.layout
    )
    assert setting.streams.tolist() == [True, False, False, True, False, True]
    assert int(change[setting.streams].sum()) > 0
    assert bool((change[~setting.streams] <= 0).all())


def test_a_network_without_additions_has_no_streams():
    for model in ("mobilenet", "vgg11", "cnn"):
        blueprint = blueprint_for(model, **({} if model == "cnn" else {"width": 0.25}))
        assert not residual_streams(blueprint.model, blueprint.layout).any()


def test_sensitivity_keeps_the_group_whose_loss_hurts():
    setting = setting_for("resnet8", 0.3)
    layout = setting.problem.costs.layout

    def trial(selection):
        lost = 1 - int(selection.counts(layout)[2]) / layout.groups[2].size
        return Outcome(1 - lost, 5 * lost, torch.zeros(2))

    setting.trial = trial
    counts = YARDSTICKS["signal + sensitivity"](setting).counts(layout)
    assert counts[2] == layout.groups[2].size


def test_differences_are_paired_over_networks_and_clients_averaged_first():
    """Networks a and b: agent (0.5 + 0.7)/2 = 0.6 and 0.9; L2 0.4 and 0.5. Differences 0.2, 0.4: 0.3 +- 0.1."""
    records = [
        record("a", 1, 0, "agent, zero-shot", 0.5),
        record("a", 1, 1, "agent, zero-shot", 0.7),
        record("b", 1, 0, "agent, zero-shot", 0.9),
        record("a", 1, 0, "global L2", 0.4),
        record("a", 1, 1, "global L2", 0.4),
        record("b", 1, 0, "global L2", 0.5),
    ]
    assert per_network(records, "agent, zero-shot", 0.3) == {("a", 1): pytest.approx(0.6), ("b", 1): 0.9}
    value, error = difference(records, "agent, zero-shot", "global L2", 0.3)
    assert (value, error) == (pytest.approx(0.3), pytest.approx(0.1))
    assert difference(records, "agent, zero-shot", "global L2", 0.3, network="a") == (pytest.approx(0.2), None)


def chosen_and_accuracies(monkeypatch, directory, *, scrambled):
    """The masks of all rows for one small network, and their accuracies; `scrambled` falsifies the test labels."""
    masks = []
    real_mask, real_measure = evaluation.masked_weights, evaluation.evaluate

    def mask(model, readers, selection):
        masks.append(selection.mask)
        return real_mask(model, readers, selection)

    def measure(model, examples):
        return real_measure(model, Examples(examples.inputs, (examples.targets + scrambled) % 10))

    monkeypatch.setattr(evaluation, "masked_weights", mask)
    monkeypatch.setattr(evaluation, "evaluate", measure)
    config = parse_config(yaml.safe_load(CONFIG))
    plan = Plan(budgets=(0.4,), samples=2, epochs=1, num_clients=1)
    records = run_plan([config], [1], plan, directory, workers=1, command="x")
    monkeypatch.undo()
    return masks, [record.accuracy for record in records]


def test_the_test_split_has_no_part_in_any_choice(tmp_path, monkeypatch):
    masks, accuracies = chosen_and_accuracies(monkeypatch, tmp_path / "a", scrambled=0)
    others, wrong = chosen_and_accuracies(monkeypatch, tmp_path / "b", scrambled=1)
    assert all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))
    assert accuracies != wrong


def test_a_comparison_that_is_stopped_leaves_the_networks_it_had(tmp_path):
    config = parse_config(yaml.safe_load(CONFIG))
    plan = Plan(budgets=(0.4,), samples=1, epochs=1, num_clients=1)

    def stop(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan([config], [1, 2], plan, tmp_path, workers=1, command="x", on_network=stop)
    content = json.loads((tmp_path / "evaluate.json").read_text())
    assert not content["complete"]
    assert {row["seed"] for row in content["records"]} == {1}
    assert "agent, zero-shot" in (tmp_path / "evaluate.md").read_text()


def test_the_command_prints_the_table_and_writes_it_with_a_picture(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(CONFIG)
    policy = tmp_path / "own.safetensors"
    save_policy(drawn_policy(), policy)
    out = tmp_path / "out"
    arguments = ["agent", "evaluate", str(tmp_path / "config.yaml"), "--seeds", "1,2", "--budgets", "0.3,0.6"]
    arguments += ["--samples", "2", "--epochs", "1", "--clients", "1", "--workers", "1", "--policy", str(policy)]
    assert main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for row in YARDSTICKS:
        assert row.split(",")[0].split(" (")[0] in shown
    content = json.loads((out / "evaluate.json").read_text())
    assert len(content["records"]) == 2 * 2 * (len(YARDSTICKS) + 1)
    assert content["command"].startswith("spatl agent evaluate")
    assert all(row["cost"] <= row["budget"] for row in content["records"] if row["yardstick"] in YARDSTICKS)
    assert (out / "evaluate.png").read_bytes().startswith(b"\x89PNG")
    written = (out / "evaluate.md").read_text()
    assert "| agent, zero-shot | 0 |" in written
    assert f"--policy {policy}" in written
    assert main([*arguments, "--out", str(out)]) == 2
    assert "already there and not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "1.5"], "--budgets: flops_ratio must be in (0, 1], got 1.5"),
        (["--budgets", "0.0001"], "--budgets.flops_ratio is 0.0001, but one channel"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--clients", "5"], "--clients is 5, but cnn, digits, iid has 2"),
        (["--policy", "nowhere.safetensors"], "policy file not found"),
        (["--set", "model.name=resnet21"], "unknown name 'resnet21'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_computed(tmp_path, capsys, arguments, message):
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = ["agent", "evaluate", str(tmp_path / "config.yaml"), "--workers", "1", "--out", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
