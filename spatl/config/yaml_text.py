"""YAML in which a key stands once, and that takes no more memory than its text says.

The library keeps the last of two equal keys and says nothing, so that a section given twice loses its first half. Here
that is an error with both lines. Merge keys (`<<`) stay what they are: what they bring gives way to what is written.

An alias stands for all that its anchor holds, so that a few lines of aliases of aliases can stand for billions of
values. They are counted before any is made.
"""

from typing import Any, Final

import yaml

MOST_CHARACTERS: Final = 1_000_000
"""Characters of a text, at most."""
MOST_VALUES: Final = 100_000
"""Values that a text stands for, at most, aliases counted for what they stand for."""
_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKey(ValueError):
    """Key that stands twice in one mapping; the message names it, and the lines."""


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: It is not YAML.
        RepeatedKey: A key stands twice.
        ValueError: A date is none, or the text is too long, nested too deeply, or stands for too many values.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a config has at most {MOST_CHARACTERS:,} characters, got {len(text):,}")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with a check for repeated keys."""

    def construct_document(self, node: yaml.Node) -> Any:
        if (number := _num_values(node, {})) > MOST_VALUES:
            told = f"{number:,}" if number < _ENDLESS else "endlessly many"
            raise ValueError(f"a config stands for at most {MOST_VALUES:,} values, this one for {told} (aliases)")
        self._check_keys(node, "", set())
        return super().construct_document(node)

    def _check_keys(self, node: yaml.Node, path: str, seen: set[int]) -> None:
        if id(node) in seen:  # an alias, which may lead back to where it stands
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for place, item in enumerate(node.value):
                self._check_keys(item, f"{path}{place}.", seen)
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            # As text: the client 0 of selection.clients is the client "0".
            is_value = isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE
            key = str(self.construct_object(key_node)) if is_value else str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in lines:
                where = f"in lines {lines[key]} and {line}" if line != lines[key] else f"in line {line}"
                raise RepeatedKey(f"{path}{key} stands twice, {where}; keep one")
            lines[key] = line
            self._check_keys(value_node, f"{path}{key}.", seen)


_ENDLESS = 10**18


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, itself included; `_ENDLESS` where it holds itself."""
    if id(node) not in known:
        known[id(node)] = _ENDLESS  # while its own values are counted
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        known[id(node)] = min(_ENDLESS, 1 + sum(_num_values(each, known) for each in inner))
    return known[id(node)]
