"""A device runs the installed ClientApp, whatever an app bundle holds."""

import io
import sys
import zipfile
from importlib import import_module

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from clients.deploy import make_programs
from clients.device import message_process
from clients.device.bundle import app_for
from clients.device.handover import SIGNED_BUNDLES
from server.engines import write_app
from server.grids import InProcessGrid
from spatl.wire.blob import CLIENT_REFUSED
from tests.support.federations import tiny_config
from tests.support.owned import Case, context_of


def bundle(project, **files):
    """The bytes of an app bundle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in {"pyproject.toml": project, **files}.items():
            file.writestr(name, text)
    return buffer.getvalue()


def project_of(component):
    return f'[tool.flwr.app.components]\nclientapp = "{component}"\n'


def asked(app):
    """What an app says to a message without content."""
    InProcessGrid(app, num_clients=1, run_config={})
    message = Message(RecordDict(), dst_node_id=2, message_type="query")
    context = Context(run_id=1, node_id=2, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    return app(message, context)


@pytest.mark.parametrize("component", ["evil:app", "clients.app:evaluate", "os:system", ""])
def test_a_bundle_that_names_another_app_is_refused_in_one_line(component, caplog):
    reply = asked(app_for(bundle(project_of(component))))
    assert reply.error.code == CLIENT_REFUSED
    assert reply.error.reason == (
        f"code.trusted (the app bundle's clientapp): this run asks for {component}, the owner of this device allows "
        "clients.app:app alone"
    )
    assert reply.error.reason in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"no archive", bundle("not = toml = at all"), bundle("[tool]"), bundle("x = '" + "0" * 17_000_000 + "'")],
    ids=["no archive", "no TOML", "no app", "too large"],
)
def test_a_bundle_that_cannot_be_read_is_refused(content):
    assert "the run's app bundle cannot be read" in asked(app_for(content)).error.reason


def test_the_bundle_of_a_run_leads_to_the_installed_app(tmp_path):
    write_app(tmp_path, tiny_config(), tmp_path)
    reply = asked(app_for(bundle((tmp_path / "pyproject.toml").read_text())))
    assert "the run has no config" in reply.content.config_records["spatl"]["refused"]


def test_no_program_of_flowers_for_any_kind_of_app_is_found_before_the_devices_own(tmp_path):
    """A server may ask for an app of another kind than a ClientApp, whose program would run what the bundle holds."""
    found = {path.name: path.read_text() for path in make_programs(tmp_path, tmp_path, None, signed=False).iterdir()}
    assert set(TASK_TYPE_TO_COMMAND.values()) <= found.keys()
    for name in TASK_TYPE_TO_COMMAND.values():
        assert "clients.device.message_process" in found[name] or "exec false" in found[name]
        assert SIGNED_BUNDLES not in found[name]
    signed = make_programs(tmp_path, tmp_path, None, signed=True)
    assert f'message_process {SIGNED_BUNDLES} "$@"' in (signed / "flwr-clientapp").read_text()


class Client:
    """Stands for Flower's Runtime API."""

    def __init__(self, **named):
        pass

    @classmethod
    def from_server_address(cls, **named):
        return cls()

    def close(self):
        pass


@pytest.fixture
def runtime(monkeypatch, tmp_path):
    """Flower's program for one message without a SuperNode, with a bundle that would leave a mark where it runs."""
    runtime = import_module("flwr.supernode.runtime.run_clientapp")
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))  # what the program replaces is put back
    sent = []

    class Ended(Exception):
        pass

    def exits(**named):
        raise Ended

    InProcessGrid(lambda message, context: message, num_clients=1, run_config={})
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    evil = f"open({str(tmp_path / 'MARK')!r}, 'w').close()\nfrom clients.app import app\n"
    content = bundle(project_of("evil:app"), **{"evil.py": evil, "torch.py": evil})
    run = type("Run", (), {"fab_id": "a/b", "fab_version": "1", "run_id": 1})
    fab = type("Fab", (), {"content": content, "hash_str": "0" * 64})
    context = context_of(Case({}), tmp_path / "device")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    for name, value in {
        "RuntimeHttpClient": Client, "pull_task_input": lambda client: (message, context, run, fab), "flwr_exit": exits,
        "push_message": lambda client, reply, context: sent.append(reply), "register_signal_handlers": lambda **n: None,
        "HeartbeatSender": lambda fn: type("Sender", (), {"start": lambda self: None})(),
        "make_task_heartbeat_fn_http": lambda client: None, "event": lambda *a: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(runtime, name, value)
    monkeypatch.setattr(
        sys, "argv", ["flwr-clientapp", "--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"]
    )
    return Ended, sent


def test_a_bundle_is_neither_unpacked_nor_put_on_pythons_path_nor_run(runtime, tmp_path):
    ended, sent = runtime
    before = list(sys.path)
    with pytest.raises(ended):
        message_process.main()
    assert "this run asks for evil:app" in sent[0].error.reason
    assert sys.path == before
    assert "evil" not in sys.modules
    assert [path.name for path in tmp_path.iterdir()] == ["device"]  # no mark, and no apps in Flower's home


def test_a_token_in_a_file_is_read_once(runtime, monkeypatch, tmp_path):
    given, path = [], tmp_path / "token"
    path.write_text("secret")
    program = import_module("flwr.supernode.runtime.run_clientapp")
    monkeypatch.setattr(program, "run_clientapp", lambda **options: given.append(options["token"]))
    monkeypatch.setattr(
        sys, "argv", ["flwr-clientapp", "--runtime-api-address", "here:1", "--token-file", str(path), "--insecure"]
    )
    message_process.main()
    assert given == ["secret"]
    assert not path.exists()
