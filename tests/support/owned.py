"""A device whose owner has said what a run may ask of it, watched by Python's audit hooks.

As a program, `python -m tests.support.owned DIR < CASES`: registers for one run after the other, and prints for each
what the server is told, what the device's log says, and what was opened, imported, executed or called meanwhile.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.app import app
from server.grids import InProcessGrid
from spatl.config.loading import parse_config
from spatl.extensions.late import import_late_modules
from spatl.wire.blob import RECORD
from spatl.wire.registration import RegistrationQuestion
from tests.support.federations import tiny_config

RUN = "20260101-000000-ab"
_EVENTS = ("open", "import", "compile", "exec", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
           "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "os.listdir", "os.scandir")  # fmt: skip


@dataclass
class Case:
    """One run, and one owner.

    Attributes:
        asked: Sections over those of `tiny_config`; or the whole of a run's config as text.
        device: The text of `device.yaml`; None for none.
        files: Further files of the device's directory, by name.
        node: Further keys of the node's config.
    """

    asked: Mapping[str, Any] | str
    device: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)

    def config_json(self) -> str:
        """The run's config as the server sends it: not parsed here, where its references lead nowhere."""
        if isinstance(self.asked, str):
            return self.asked
        config = json.loads(tiny_config().to_json())
        for key, value in self.asked.items():
            config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
        if "method" in self.asked and ":" not in self.asked["method"]:
            usual = json.loads(parse_config({"method": self.asked["method"]}).to_json())
            given = self.asked.get("predictor", {})
            config["predictor"] = {**usual["predictor"], **given}
        return json.dumps(config)


def context_of(case: Case, directory: Path, *, run: str = RUN) -> Context:
    """The context of client 0's node, whose directory holds what the case says."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = dict(case.files) | ({} if case.device is None else {"device.yaml": case.device})
    for name, text in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    node = {"partition-id": 0, "num-partitions": 5, "state-dir": str(directory / "state"), **case.node}
    return Context(run_id=1, node_id=2, node_config=node, state=RecordDict(),
                   run_config={"config": case.config_json(), "run": run})  # fmt: skip


def register(context: Context) -> tuple[Message, list[str]]:
    """The reply to the question for a registration, and the lines of the device's log."""
    InProcessGrid(app, num_clients=1, run_config={})  # without which Flower makes no message
    content = RecordDict({RECORD: ConfigRecord(dict(RegistrationQuestion().fields()))})
    with _lines() as lines:
        reply = app(Message(content, dst_node_id=2, message_type="query"), context)
    return reply, lines


def told(reply: Message) -> dict[str, Any]:
    """All that a reply carries, as text."""
    if reply.has_error():
        return {"error": reply.error.reason, "code": reply.error.code}
    fields = {key: value if isinstance(value, str | int) else str(value) for key, value in
              reply.content.config_records[RECORD].items()}  # fmt: skip
    return fields


@contextlib.contextmanager
def _lines() -> Iterator[list[str]]:
    """The warnings and errors of a block."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


_seen: list[list[str]] = []
_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _EVENTS:
        _seen.append([event, str(arguments[0])])


def main() -> None:
    """Register for each case that standard input holds."""
    global _watching
    base = Path(sys.argv[1])
    import_late_modules()
    register(context_of(Case({}), base / "warm-up"))  # what is imported late by anybody is there now
    sys.addaudithook(_hook)
    for name, values in json.load(sys.stdin).items():
        context = context_of(Case(**values), base / name)
        _seen.clear()
        _watching = True
        reply, lines = register(context)
        _watching = False
        print(json.dumps([name, told(reply), lines, _seen]), flush=True)


if __name__ == "__main__":
    main()
