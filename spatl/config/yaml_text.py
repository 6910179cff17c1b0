"""YAML in which a key stands once.

The library keeps the last of two equal keys and says nothing, so that a section given twice loses its first half. Here
that is an error with both lines. Merge keys (`<<`) stay what they are: what they bring gives way to what is written.
"""

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKey(ValueError):
    """Key that stands twice in one mapping; the message names it, and the lines."""


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: It is not YAML.
        RepeatedKey: A key stands twice.
        ValueError: A date is none.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with a check for repeated keys."""

    def construct_document(self, node: yaml.Node) -> Any:
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
