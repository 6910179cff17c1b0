"""SPATL: federated learning in which salient channels of an encoder travel and predictors stay private.

`load_config` or `parse_config` makes a config, `run` runs it and returns what it left behind; `resume` goes on with a
run that was killed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, parse_config
from spatl.errors import SpatlError
from spatl.report.result import RunResult, read_run

if TYPE_CHECKING:
    from spatl.runner import resume, run

__version__ = "0.1.0"

__all__ = ["ExperimentConfig", "RunResult", "SpatlError", "load_config", "parse_config", "read_run", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import what runs and draws a federation when it is first asked for: a device pays for its imports per message."""
    if name in ("resume", "run"):
        return getattr(importlib.import_module("spatl.runner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
