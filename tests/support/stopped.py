"""Runs that are stopped in between, as SIGKILL would stop them."""

from pathlib import Path

import pytest

import server.strategy
from server.engines import run_inline
from server.recorder import Recorder
from spatl.config.experiment import ExperimentConfig


class Stopped(BaseException):
    """What nothing in the product catches, as nothing catches SIGKILL."""


def stopped_after(number: int, config: ExperimentConfig, directory: Path, *, resume: bool = False) -> None:
    """Run a config, or go on with it, until so many rounds are on disk, or all and not the summary."""
    truly, written = server.strategy.save_checkpoint, []

    def save(checkpoint, run):
        truly(checkpoint, run)
        written.append(checkpoint.server_round)
        if checkpoint.server_round == number < config.rounds:
            raise Stopped

    def end(*args, **kwargs):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.strategy, "save_checkpoint", save)
        patch.setattr(Recorder, "write_summary", end)
        with pytest.raises(Stopped):
            run_inline(config, directory, resume=resume)
    assert written[-1] == number
