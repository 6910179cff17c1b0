"""Errors by class, and the filters that are blamed for them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.data import Examples
from spatl.diagnosis.mistakes import Blamed, ExplainSettings, confusions, find_mistakes, first_of, placed_in_the_middle
from spatl.diagnosis.subject import Subject, read_subject
from spatl.errors import ConfigError, SpatlError

SETTINGS = ExplainSettings(num_examples=2, num_groups=3, top_k=4)


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def pooled(explained_run: Path) -> Subject:
    """The federation's model of a small run, with the examples of all clients."""
    return read_subject(explained_run)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_every_error_is_in_one_group_and_the_largest_come_first(pairs):
    labels, predictions = (torch.tensor(each) for each in zip(*pairs, strict=True))
    groups = confusions(labels, predictions)
    assert [len(places) for _, _, places in groups] == sorted((len(places) for _, _, places in groups), reverse=True)
    found = sorted(place for _, _, places in groups for place in places.tolist())
    assert found == (labels != predictions).nonzero().squeeze(1).tolist()
    for true, predicted, places in groups:
        assert true != predicted
        assert labels[places].unique().tolist() == [true]
        assert predictions[places].unique().tolist() == [predicted]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=8), st.data())
def test_a_filter_that_does_not_vary_is_neither_blamed_nor_the_least(values, data):
    living = data.draw(st.sets(st.integers(0, len(values) - 1), min_size=3))
    varies = torch.tensor([place in living for place in range(len(values))])
    z = torch.where(varies, torch.tensor(values), 0.0)[None]
    found = placed_in_the_middle(z, varies)
    assert torch.equal(found[:, varies], z[:, varies])
    assert bool(((found >= z[:, varies].min()) & (found <= z[:, varies].max())).all())


@pytest.mark.slow
def test_the_groups_that_are_shown_and_the_others_are_all_errors(pooled):
    mistakes, maps = find_mistakes(pooled, SETTINGS, seed=3, tell=silent)
    with torch.no_grad():
        wrong = pooled.network(pooled.shown.inputs).argmax(1) != pooled.shown.targets
    assert mistakes.num_errors == int(wrong.sum()) > 0
    assert sum(group.num_errors for group in mistakes.groups) + mistakes.num_other_errors == mistakes.num_errors
    assert 1 <= len(mistakes.groups) <= SETTINGS.num_groups
    assert sum(each.share for each in mistakes.layers) == pytest.approx(1.0)
    assert sum(each.salient for each in mistakes.layers) == pytest.approx(1.0)
    assert sum(each.harmful for each in mistakes.layers) == pytest.approx(1.0)
    shown = [example for group in mistakes.groups for example in group.examples]
    assert {example.place for example in shown} == set(maps)
    for group in mistakes.groups:
        assert len(group.examples) == min(SETTINGS.num_examples, group.num_errors)
        assert [each.loss for each in group.examples] == sorted((e.loss for e in group.examples), reverse=True)
        assert len(group.salient) == len(group.harmful) == SETTINGS.top_k
        assert group.switching[0].righted == group.repair[0].righted == 0.0
        for example in group.examples:
            assert pooled.shown.targets[example.place] == group.true
            assert example.confidence_predicted >= example.confidence_true
            assert example.place not in [each.place for each in example.neighbours]
            assert all(each.true != each.predicted for each in example.neighbours)
            assert maps[example.place][0].shape == pooled.shown.inputs.shape[2:]


@pytest.mark.slow
def test_the_same_seed_finds_the_same_and_the_network_stays_as_it_is(pooled):
    before = {name: each.clone() for name, each in pooled.network.state_dict().items()}
    first, second = (find_mistakes(pooled, SETTINGS, seed=3, tell=silent)[0] for _ in range(2))
    assert first == second
    assert first != find_mistakes(pooled, SETTINGS, seed=4, tell=silent)[0]  # other controls
    assert all(torch.equal(before[name], each) for name, each in pooled.network.state_dict().items())
    assert not pooled.network.training


@pytest.mark.slow
def test_progress_is_told_to_the_end(pooled):
    told = []
    find_mistakes(pooled, SETTINGS, seed=3, tell=lambda *what: told.append(what))
    for what in {each[0] for each in told}:
        done = [(number, total) for name, number, total in told if name == what]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


def test_a_model_that_is_right_on_everything_has_no_mistakes(pooled):
    with torch.no_grad():
        predicted = pooled.network(pooled.shown.inputs).argmax(1)
    examples = Examples(pooled.shown.inputs, predicted)
    mistakes, maps = find_mistakes(replace(pooled, usual=examples, shown=examples), SETTINGS, seed=3, tell=silent)
    assert mistakes.num_errors == len(mistakes.groups) == len(maps) == 0


def test_a_filter_without_a_score_above_zero_is_not_named_first():
    assert first_of([Blamed("conv[3]", 0.5)]) == "conv[3]"
    assert first_of([Blamed("conv[3]", 0.0)]) == "-"


def test_more_filters_than_there_are_cannot_be_blamed(pooled):
    settings = replace(SETTINGS, top_k=pooled.filters.num_filters + 1)
    with pytest.raises(SpatlError, match="number of filters must be in"):
        find_mistakes(pooled, settings, seed=3, tell=silent)


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"num_examples": 0}, "--examples"), ({"num_groups": -1}, "--groups"), ({"top_k": 0}, "--top-k")],
)
def test_settings_below_one_are_refused(changes, option):
    with pytest.raises(ConfigError, match=f"{option} must be at least 1, got"):
        replace(SETTINGS, **changes)
