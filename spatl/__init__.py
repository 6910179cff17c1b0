"""SPATL: federated learning in which salient channels of an encoder travel and predictors stay private.

`load_config` or `parse_config` makes a config, `run` runs it and returns what it left behind; `resume` goes on with a
run that was killed.
"""

from typing import TYPE_CHECKING

from spatl.extensions.late import late_names

if TYPE_CHECKING:
    from spatl.config.experiment import ExperimentConfig
    from spatl.config.loading import load_config, parse_config
    from spatl.errors import SpatlError
    from spatl.report.result import RunResult, read_run
    from spatl.runner import resume, run

__version__ = "0.1.0"

__all__ = ["ExperimentConfig", "RunResult", "SpatlError", "load_config", "parse_config", "read_run", "resume", "run"]

_MODULES = {
    "ExperimentConfig": "spatl.config.experiment",
    "RunResult": "spatl.report.result",
    "SpatlError": "spatl.errors",
    "load_config": "spatl.config.loading",
    "parse_config": "spatl.config.loading",
    "read_run": "spatl.report.result",
    "resume": "spatl.runner",
    "run": "spatl.runner",
}


__getattr__ = late_names(__name__, _MODULES)  # `spatl predict` runs where PyTorch is not installed


def __dir__() -> list[str]:
    """Return the public names, for shells that complete them."""
    return sorted([*globals(), *__all__])
