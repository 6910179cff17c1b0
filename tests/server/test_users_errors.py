"""Errors of a user's code in the middle of a run, and models that are not built alike: named on screen and logged."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.app import app as client_app
from clients.app import reporting
from server.replies import error_line, error_traceback
from spatl.console.main import main
from spatl.errors import SpatlError
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.workplace import Workplace
from spatl.runs.records import read_lines
from spatl.wire.blob import CLIENT_FAILED
from tests.support import users_parts
from tests.support.federations import of_users, registered, run_tiny, tiny_config


def log_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_error_in_a_round_keeps_type_line_and_place_on_screen_and_its_traceback_in_the_log(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_users("RaisingLate", rounds=2, training={"local_steps": 8}).to_yaml())
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert "no update could be used, 5 were refused; the first, of client 0: " in last
    assert "RuntimeError: the fourth step (users_nets.py:" in last
    assert "Traceback" not in error
    refused = [line for line in log_of(tmp_path / "run") if "refused the update of client 3" in line["message"]]
    assert [(line["client"], line["round"]) for line in refused] == [(3, 1)]
    assert 'raise RuntimeError("the fourth step' in refused[0]["traceback"]
    assert "and what comes after the first line" in refused[0]["traceback"]
    assert "Traceback" in log_of(tmp_path / "run")[-1]["traceback"]
    row = read_lines(tmp_path / "run" / "history.jsonl")[0]
    assert "\n" not in row["rejections"][0]["reason"]
    assert "Traceback" in json.loads((tmp_path / "run" / "error.json").read_text())["traceback"]


@pytest.mark.slow
def test_debug_prints_the_traceback_of_a_client(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_users("RaisingLate", rounds=2, training={"local_steps": 8}).to_yaml())
    assert main(["run", str(path), "--out", str(tmp_path / "run"), "--debug"]) == 2
    assert 'raise RuntimeError("the fourth step' in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_keeps_the_traceback_in_the_log_that_it_names(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_users("RaisingLate", rounds=2, training={"local_steps": 8}).to_yaml())
    out = tmp_path / "bench"
    arguments = ["bench", str(path), "--methods", "fedavg", "--seeds", "3", "--target", "0.5", "--out", str(out)]
    assert main([*arguments, "--workers", "1"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "RuntimeError: the fourth step (users_nets.py:" in last
    (log,) = out.rglob("*.log")
    assert str(log) in last
    assert 'raise RuntimeError("the fourth step' in log.read_text()


def test_a_benchmark_of_a_network_that_cannot_train_starts_no_run(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_users("Raising").to_yaml())
    out = tmp_path / "bench"
    assert main(["bench", str(path), "--methods", "fedavg", "--seeds", "3", "--target", "0.5", "--out", str(out)]) == 2
    assert "fails in training on a batch of 16: RuntimeError: mat1 and mat2" in capsys.readouterr().err
    assert not list(out.rglob("history.jsonl"))


TRACEBACK = """\x1b[36mray::ClientAppActor.run()\x1b[39m
Traceback (most recent call last):
  File "/site-packages/ray/worker.py", line 12, in run
    go()
  File "/home/somebody/my_net.py", line 42, in forward
    return self.head(x)
RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x10)
which comes with a second line"""


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (None, "the client reported an error without a reason"),
        ("one line", "one line"),
        ("RuntimeError: told (my_net.py:1, in f)\nTraceback ...", "RuntimeError: told (my_net.py:1, in f)"),
        ("\x1b[2J\x07gone", "?[2J?gone"),
        (TRACEBACK.partition("\n")[2], "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x10) "
                                       "(my_net.py:42, in forward)"),
        (TRACEBACK, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x10) "
                    "(my_net.py:42, in forward)"),
        ("y" * 100_000, "y" * 500),
    ],
)  # fmt: skip
def test_the_one_line_of_what_a_client_reports(reason, line):
    ours = reason is None or "ray/worker" not in reason
    error = Error(code=CLIENT_FAILED if ours else ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
    assert error_line(error) == line
    assert len(error_traceback(error)) <= 16_000
    assert "\x1b" not in error_traceback(error)


def test_a_devices_error_carries_no_path_of_the_device_and_stands_whole_in_its_own_log(caplog, tmp_path):
    def fails(message, context):
        raise RuntimeError("out of luck")

    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    node = {"partition-id": 0, "state-dir": str(tmp_path)}
    context = Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={})
    reply = reporting(fails)(message, context)
    assert error_line(reply.error).startswith("RuntimeError: out of luck (test_users_errors.py:")
    assert 'File "test_users_errors.py", line' in reply.error.reason
    assert str(Path(__file__).parent) not in reply.error.reason
    assert str(Path(__file__).parent) in caplog.text


KINDS = {
    "frozen": "mix.weight",
    "buffer": "constant",
    "tensor": "constant",
    "number": "constant",
    "layer": r"\(the settings of its layers\)",
    "statistics": "norm.running_mean",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_whose_model_differs_in_what_does_not_travel_is_refused_by_name(tmp_path, monkeypatch, kind):
    """Client 2's machine says 2 where the others say 1: the encoder that travels is the same, the model is not."""
    config = of_users("FromTheEnvironment", options={"kind": kind}, rounds=1)
    here = make_blueprint(config)
    monkeypatch.setenv("SPATL_TEST_NUMBER", "2")
    elsewhere = make_blueprint(config)
    monkeypatch.undo()
    assert here.layout.fingerprint == elsewhere.layout.fingerprint

    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_config["partition-id"] == 2:
            return Message(registered(reply.content, rest=b"".join(elsewhere.rest.values())), reply_to=message)
        return reply

    with pytest.raises(SpatlError, match=f"client 2's model has another {KINDS[kind]} than the server's"):
        run_tiny(config, tmp_path, app=app)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"method": "tests.support.users_parts:AS_FEDAVG"}, "method 'tests.support.users_parts:AS_FEDAVG'"),
        ({"partition": {"name": "tests.support.users_parts:by_turns"}},
         "partition by 'tests.support.users_parts:by_turns'"),
        ({"wire": {"uplink": "tests.support.users_parts:Halves"}}, "codec 'tests.support.users_parts:Halves'"),
    ],
)  # fmt: skip
def test_a_client_whose_method_partition_or_codec_is_another_is_refused_by_name(tmp_path, monkeypatch, sections, what):
    """Client 2's machine has another version of the module; in the same place, so that nothing else tells."""
    config = tiny_config(rounds=1, **sections)
    other = replace(users_parts.AS_FEDAVG, fine_tunes=True)
    monkeypatch.setattr(users_parts, "AS_FEDAVG", other)
    monkeypatch.setattr(users_parts, "by_turns", lambda labels, num_clients: list(labels.argsort().chunk(num_clients)))
    monkeypatch.setattr(users_parts, "Halves", users_parts.Inherited)
    elsewhere = b"".join(make_blueprint(config).rest.values())
    monkeypatch.undo()

    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_config["partition-id"] == 2:
            return Message(registered(reply.content, rest=elsewhere), reply_to=message)
        return reply

    with pytest.raises(SpatlError, match=f"client 2 has another {what} than the server: the module must be the same"):
        run_tiny(config, tmp_path, app=app)


@pytest.mark.slow
def test_models_that_are_built_alike_have_the_same_digests_in_another_process_too(tmp_path):
    config = of_users("Forgetful")
    code = (
        "import sys\nfrom spatl.config.loading import config_from_json\n"
        "from spatl.rounds.blueprint import make_blueprint\n"
        "print(b''.join(make_blueprint(config_from_json(sys.argv[1])).rest.values()).hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, config.to_json()], capture_output=True, text=True, check=True)
    blueprint = make_blueprint(config)
    assert done.stdout.strip() == b"".join(blueprint.rest.values()).hex()
    Workplace(blueprint).model(blueprint.dataset.inputs[:4])
    assert make_blueprint(config).rest == blueprint.rest
    assert {"steps", "average", "scale", "moving"} <= blueprint.rest.keys()
    assert not any(name.startswith("norm.running") for name in blueprint.rest)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "resnet8", "mobilenet", "vgg11"])
def test_a_built_in_network_says_no_more_than_before(model):
    assert make_blueprint(tiny_config(model={"name": model, "options": {}})).rest == {}
