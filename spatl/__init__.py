"""SPATL: federated learning in which salient channels of an encoder travel and predictors stay private.

`load_config` or `parse_config` makes a config, `run` runs it and returns what it left behind; `resume` goes on with a
run that was killed.
"""

from spatl.config import ExperimentConfig, load_config, parse_config
from spatl.errors import SpatlError
from spatl.history import RunResult, read_run
from spatl.runner import resume, run

__version__ = "0.1.0"

__all__ = ["ExperimentConfig", "RunResult", "SpatlError", "load_config", "parse_config", "read_run", "resume", "run"]
