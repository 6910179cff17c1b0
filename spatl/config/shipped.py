"""Configs that ship with SPATL, by name: `quickstart`, `bench/digits`, wherever one is.

In a checkout they lie in `configs/`; a wheel holds the same files beside this module (pyproject.toml).
"""

import re
from functools import cache
from pathlib import Path

_INSTALLED = Path(__file__).parents[1] / "configs"
_CHECKOUT = Path(__file__).parents[2] / "configs"


@cache
def shipped_configs() -> dict[str, Path]:
    """Return the file of each config by its name, the path below `configs/` without its ending."""
    root = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    paths = sorted(root.rglob("*.yaml"), key=lambda path: (path.parent != root, path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def config_path(path: str | Path) -> Path:
    """Return the file a config is read from: the one at that path, or the config that ships under that name."""
    shipped = shipped_configs().get(str(path).removesuffix(".yaml"))
    return shipped if shipped is not None and not Path(path).is_file() else Path(path)


def opening_words(path: Path) -> str:
    """Return the first sentence of the comment at the head of a config: what it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return re.split(r"\.(?: |$)|(?= Source:)", head)[0] + "."
