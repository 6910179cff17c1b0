"""JSON files as every program reads them: no Infinity, no NaN."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from spatl.disk.writing import replace_file
from spatl.errors import DamagedState


def to_json(content: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Write JSON as every program reads it: a number that is not finite, which JSON does not have, is null."""
    write = partial(json.dumps, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    try:
        return write(content)
    except (ValueError, TypeError):  # a number that is not finite, or a mapping that is no dict: likewise, and slower
        return write(_finite(content))


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(each) for each in content] if isinstance(content, list | tuple) else content


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name, then rename."""
    replace_file(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Return what `write_json` writes."""
    return (to_json(content, indent=2) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """Read the object of a file that a run has left.

    Raises:
        DamagedState: It is not as it was written.
    """
    return parse_object(path, path.read_bytes())


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """Return the object that a file's bytes hold.

    Raises:
        DamagedState: They are not as they were written.
    """
    try:
        content = json.loads(data.decode())
    except ValueError as error:
        raise DamagedState(f"{path} is damaged: it is no JSON ({error}); put it back from a copy") from error
    if not isinstance(content, dict):
        raise DamagedState(f"{path} is damaged: it holds no JSON object; put it back from a copy")
    return content
