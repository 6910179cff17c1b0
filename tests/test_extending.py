"""Page docs/extending.md: its code is that of `docs/examples/`, and each example runs with the config beside it."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from spatl import RunResult, parse_config, run
from spatl.bench.plan import merged
from spatl.rounds.blueprint import Blueprint, make_blueprint
from spatl.runs.records import read_lines
from tests.support.federations import state_of
from tests.support.layouts import interleaved_layout, make_update

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (An? .*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
SMALL: dict[str, Any] = {
    "rounds": 2,
    "partition": {"name": "iid", "num_clients": 4},
    "model": {"name": "cnn", "options": {"channels": [4, 6], "hidden": 12}},
    "training": {"local_steps": 3, "batch_size": 16, "device": "cpu"},
    "agent": {"samples": 0},
}


@pytest.fixture(autouse=True)
def _beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start where the page says that one starts."""
    monkeypatch.syspath_prepend(EXAMPLES)


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.M | re.S)


def config_of(section: str) -> dict[str, Any]:
    (text,) = blocks(section, "yaml")
    return merged(SMALL, yaml.safe_load(text))


def run_of(section: str, directory: Path, **sections: Any) -> RunResult:
    return run(merged(config_of(section), sections), directory, pictures=False, progress=False)


def blueprint_of(section: str) -> Blueprint:
    return make_blueprint(parse_config(config_of(section)))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_code_of_a_section_is_the_whole_of_its_module(section: str) -> None:
    (code,) = blocks(section, "python")
    (module,) = set(re.findall(r"\bmy_\w+(?=:)", *blocks(section, "yaml")))
    assert code == (EXAMPLES / f"{module}.py").read_text()


def test_every_module_has_a_section_and_every_section_a_line_of_the_table() -> None:
    named = {name for section in SECTIONS for name in re.findall(r"\bmy_\w+(?=:)", *blocks(section, "yaml"))}
    assert {path.stem for path in EXAMPLES.glob("my_*.py")} == named
    anchors = {f"#{section.lower().replace(' ', '-')}" for section in SECTIONS}
    assert set(re.findall(r"\(below\]|\[below\]\((#[\w-]+)\)", PAGE)) == anchors


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_runs_and_repeats(section: str, tmp_path: Path) -> None:
    first, again = (run_of(section, tmp_path / name) for name in ("first", "again"))
    assert [row["encoder_fingerprint"] for row in first.history] == [
        row["encoder_fingerprint"] for row in again.history
    ]
    assert all(row["rejected"] == 0 for row in first.history)


def test_the_selector_sends_what_is_overdue(tmp_path: Path) -> None:
    """Each channel was sent in the second round or grew one older: ages are 1, or one more than before."""
    run_of("A selector", tmp_path / "one", rounds=1)
    run_of("A selector", tmp_path / "two", rounds=2)
    for client in range(4):
        ages = []
        for name in ("one", "two"):
            state = state_of(tmp_path / name, client)
            ages.append(state.selector["age"])
        before, after = ages
        assert 0 < int((after == 1).sum()) < len(after)
        assert bool(((after == 1) | (after == before + 1)).all())


def test_the_other_selector_of_its_module_runs_too(tmp_path: Path) -> None:
    result = run_of("A selector", tmp_path, selection={"selector": "my_selector:by_update"})
    assert result.history[-1]["rejected"] == 0


@pytest.mark.slow
def test_the_data_set_has_the_directions_as_classes_and_is_learnt(tmp_path: Path) -> None:
    dataset = blueprint_of("A data set").dataset
    assert len(dataset) == 400
    assert dataset.class_names == ("0", "1", "2", "3")
    result = run_of("A data set", tmp_path, rounds=6, training={"local_steps": 20})
    assert result.summary["accuracy"] > 0.5


def test_the_partitioner_gives_most_clients_two_classes() -> None:
    blueprint = blueprint_of("A partitioner")
    classes = [len(blueprint.dataset.targets[part].unique()) for part in blueprint.partition]
    assert len(classes) == 10
    assert sorted(torch.cat(blueprint.partition).tolist()) == list(range(len(blueprint.dataset)))
    assert sorted(classes)[5] <= 4  # a shard may begin in one class and end in the next


def test_the_method_brings_its_settings_and_the_config_goes_first() -> None:
    config = parse_config(config_of("A method"))
    assert config.shares == "encoder"
    assert config.training.learning_rate == 0.05
    assert config.training.proximal_mu == 0.05


@pytest.mark.slow
def test_two_codecs_have_two_numbers_and_the_change_of_the_encoder_takes_a_bit_a_value(tmp_path: Path) -> None:
    codecs = blueprint_of("A codec").codecs
    assert (codecs.uplink.number, codecs.downlink.number) == (128, 129)
    result = run_of("A codec", tmp_path, method="fedavg", rounds=8, training={"local_steps": 12})
    num_entries = blueprint_of("A codec").layout.num_entries
    assert num_entries  # of SPATL's calibrated predictor: the whole network, as FedAvg's
    sent = [row["values"] for row in read_lines(tmp_path / "ledger.jsonl")
            if row["phase"] == "train" and row["direction"] == "downlink" and row["round"] > 1]  # fmt: skip
    assert set(sent) == {1 + 4 + (num_entries + 7) // 8}
    assert result.summary["accuracy"] > 0.3


@pytest.mark.slow
def test_the_rules_do_as_their_names_say(tmp_path: Path) -> None:
    """Of updates 0, 0 and 9 in one entry the geometric median is 0, which eight steps come near to (the mean is 3).

    No entry moves by more than 0.01.
    """
    rule = import_module("my_rule")
    moved = rule.geometric_median(torch.tensor([[0.0], [0.0], [9.0]]), torch.tensor([10, 10, 10]))
    assert abs(float(moved)) < 0.05
    run_of("An aggregation rule", tmp_path / "one", rounds=1)
    result = run_of("An aggregation rule", tmp_path / "two", server={"aggregation": "my_rule:Bounded"})
    assert result.history[-1]["rejected"] == 0
    layout = interleaved_layout([(2, 2)])
    made = rule.Bounded(layout, torch.zeros(4), None, total_examples=10)
    made.add(make_update(layout, [True, False], torch.tensor([1.0, 0.005, -1.0, 0.0])), 10)
    assert float(made.encoder().abs().max()) == pytest.approx(0.01)
