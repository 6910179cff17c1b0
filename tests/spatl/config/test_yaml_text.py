"""A key that stands twice is an error with both lines; everything else is as the library reads it."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spatl.config import yaml_text
from spatl.config.yaml_text import RepeatedKey, load_yaml


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\ntraining: {}\nseed: 1\n", "seed stands twice, in lines 1 and 3; keep one"),
        ("training:\n  momentum: 0.1\n\n  momentum: 0.2\n", "training.momentum stands twice, in lines 2 and 4"),
        ("bench:\n  methods:\n    a: {}\n    b: {}\n    'a': {}\n", "bench.methods.a stands twice, in lines 3 and 5"),
        ("a: {x: 1, x: 2}", "a.x stands twice, in line 1"),
        ('{"a": 1,\n"a": 2}', "a stands twice, in lines 1 and 2"),
        ("a:\n- b: 1\n  b: 2\n", "a.0.b stands twice, in lines 2 and 3"),
        ('clients: {0: {}, "0": {}}', "clients.0 stands twice"),
        ("on: 1\nyes: 2\n", "True stands twice"),
        ("a: {<<: {x: 1}, <<: {y: 1}}", "a.<< stands twice"),
        ("a: &it {x: 1,\n  x: 2}\nb: *it\n", "a.x stands twice, in lines 1 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_told_with_its_lines(text, told):
    with pytest.raises(RepeatedKey) as caught:
        load_yaml(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            "base: &base {x: 1, y: 2}\nmore:\n  <<: *base\n  y: 3\n",
            {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}},
        ),
        ("a: &a {x: 1}\nb: &b {x: 2}\nc: {<<: [*a, *b]}\n", {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 1}}),
        ("a: {x: 1}\nb: {x: 1}\n", {"a": {"x": 1}, "b": {"x": 1}}),
        ("", None),
    ],
)
def test_merge_keys_and_aliases_are_as_they_were(text, values):
    found = load_yaml(text)
    assert found == values if values is not None else found is None or found[1] is found


LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@pytest.mark.slow
@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_has_no_key_twice_is_read_as_the_library_reads_it(values):
    text = yaml.safe_dump(values)
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a: 1", 3),
        ("[1, 2]", 3),
        ("a: &a [1, 2]\nb: *a\n", 9),
        ("a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n", 29),
    ],
)
def test_an_alias_counts_for_what_it_stands_for(text, number, monkeypatch):
    """The last one: a mapping, three keys, a of 3 values, b of 1 + 3 + 3, and c of 1 + 7 + 7."""
    monkeypatch.setattr(yaml_text, "MOST_VALUES", number)
    load_yaml(text)
    monkeypatch.setattr(yaml_text, "MOST_VALUES", number - 1)
    with pytest.raises(ValueError, match=f"at most {number - 1} values, this one for {number} "):
        load_yaml(text)


def test_a_value_that_holds_itself_is_refused():
    with pytest.raises(ValueError, match="endlessly many"):
        load_yaml("a: &a [1, *a]\n")


@pytest.mark.slow
def test_a_text_that_is_too_long_or_too_deep_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="nested too deeply"):
        load_yaml("[" * 2000 + "]" * 2000)
    monkeypatch.setattr(yaml_text, "MOST_CHARACTERS", 5)
    with pytest.raises(ValueError, match="at most 5 characters, got 6"):
        load_yaml("a: 123")
