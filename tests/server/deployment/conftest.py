"""Deployments without a SuperLink."""

import contextlib

import pytest

import server.deployment.command
import spatl.report.pictures
from server.engines import run_inline


class Link:
    """Runs in this process what a SuperLink would have run, or fails as told."""

    failure = None

    def register(self, keys):
        return {}

    def open(self, keys):
        pass

    def await_clients(self, number, say, *, run, seconds, enough, give_up):
        if self.failure is not None:
            raise self.failure

    def run(self, config, directory, say, *, resume, nodes, longest_step, follow):
        run_inline(config, directory, resume=resume)


@pytest.fixture
def link(monkeypatch):
    link = Link()

    @contextlib.contextmanager
    def superlink(directory, run_directory, bind, *, insecure, num_clients):
        (run_directory / "flower.log").touch()
        yield link

    monkeypatch.setattr(server.deployment.command, "started_superlink", superlink)
    for name in ("draw_curves", "write_report"):  # seconds each
        monkeypatch.setattr(spatl.report.pictures, name, lambda *args, **kwargs: None)
    return link
