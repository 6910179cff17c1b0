"""What a device's owner has allowed takes place: files of their own, places of their own, and their time."""

import hashlib
import os
import sys
import time

import pytest
import torch
import yaml
from flwr.app import ConfigRecord, Message, RecordDict

from clients import owner
from clients.app import reporting
from clients.deploy import owners_rules
from clients.owner import check_now, owner_of
from spatl.config.device import DeviceConfig, Limits, device_text
from spatl.console.main import main
from spatl.deployment.sites import ClientSite, write_site
from spatl.errors import NotNow
from spatl.wire.blob import CLIENT_NOT_NOW, CLIENT_REFUSED, RECORD
from tests.support.own_data import write_data
from tests.support.owned import Case, context_of, register, told

NET = """
from torch import nn
from ownedlayers.wide import width

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, width(), 3), nn.Linear(width(), num_classes)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))
"""
WIDE = "def width():\n    return 5\n"
FILES = {"owned_net.py": NET, "ownedlayers/wide.py": WIDE}
LISTED = "files:\n" + "".join(
    f"  {name}: '{hashlib.sha256(text.encode()).hexdigest()}'\n" for name, text in FILES.items()
)
ASKED = {"model": {"name": "owned_net:Net", "options": {}, "cut": ["head"]}, "training": {"batch_norm": "local"}}


@pytest.fixture
def forgets():
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("owned_net", "ownedlayers")]:
        del sys.modules[name]


@pytest.mark.usefixtures("forgets")
def test_a_network_of_listed_files_is_built_and_puts_nothing_on_pythons_path(tmp_path):
    before = list(sys.path), list(sys.meta_path)
    reply, lines = register(context_of(Case(ASKED, LISTED, FILES), tmp_path))
    assert "fingerprint" in told(reply)
    assert lines == []
    assert (sys.path, sys.meta_path) == before


@pytest.mark.usefixtures("forgets")
def test_what_a_listed_file_imports_must_be_listed_or_installed(tmp_path):
    only = "\n".join(LISTED.splitlines()[:2])
    reply, _ = register(context_of(Case({**ASKED, "seed": 4}, only, FILES), tmp_path))  # one that is not built yet
    assert "it needs the module 'ownedlayers', which is not installed" in told(reply)["refused"]


@pytest.mark.usefixtures("forgets")
@pytest.mark.parametrize(
    ("name", "home"), [("system", os.system.__module__), ("from_file", "torch"), ("Linear", "torch.nn.modules.linear")]
)
def test_what_a_listed_file_has_from_elsewhere_is_not_called_unless_it_says_so(tmp_path, name, home):
    text = f"{NET}from os import system\nfrom torch import from_file\nfrom torch.nn import Linear\n"
    call = {"model": {"name": f"owned_net:{name}", "options": {"command": f"touch {tmp_path / 'MARK'}"}, "cut": []}}
    for more, line in (
        ("", f"owned_net:{name}, which owned_net.py has from {home}, the owner of this device allows what a listed"),
        (f"__all__ = ['{name}']\n", f"owned_net:{name}"),
    ):
        files = {**FILES, "owned_net.py": text + more}
        listed = {each: hashlib.sha256(content.encode()).hexdigest() for each, content in files.items()}
        asked = call if not more else {"model": {**call["model"], "options": {}}}
        reply, _ = register(context_of(Case(asked, f"files: {listed}", files), tmp_path))
        assert line in told(reply)["refused"]
        assert ("allows" in told(reply)["refused"]) is (not more)
        sys.modules.pop("owned_net")
    assert not (tmp_path / "MARK").exists()


def test_a_link_out_of_the_devices_directory_is_no_file_of_it(tmp_path):
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(NET)
    context = context_of(Case(ASKED, LISTED), tmp_path / "device")
    (tmp_path / "device" / "owned_net.py").symlink_to(elsewhere)
    reply, _ = register(context)
    assert "owned_net.py, which lies elsewhere" in told(reply)["refused"]


@pytest.mark.parametrize("by_option", [True, False], ids=["--data-dir", "data.dir"])
def test_the_owners_data_are_read_whatever_path_the_run_names(tmp_path, by_option):
    write_data(tmp_path / "mine.npz", 300, range(3))
    asked = {"data": {"name": "npz", "options": {"path": "/etc/passwd"}}, "partition": {"name": "iid"}}
    case = Case(asked, "data: {dir: mine.npz}" if not by_option else None,
                node={"data-dir": str(tmp_path / "mine.npz")} if by_option else {})  # fmt: skip
    reply, _ = register(context_of(case, tmp_path))
    assert told(reply)["num-examples"] == 36  # 60 % of a fifth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "synthetic"])
@pytest.mark.parametrize("by_option", [True, False], ids=["--data-dir", "data.dir"])
def test_data_that_are_made_here_are_used_though_the_owner_has_some_and_no_file_of_theirs_is_opened(
    tmp_path, name, by_option
):
    (tmp_path / "mine.npz").write_text("no arrays")
    case = Case({"data": {"name": name}}, "data: {dir: mine.npz}" if not by_option else None,
                node={"data-dir": str(tmp_path / "mine.npz")} if by_option else {})  # fmt: skip
    reply, lines = register(context_of(case, tmp_path))
    assert "fingerprint" in told(reply)
    assert lines == []


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("limits: {examples: 10}", "limits.examples (data): this run asks for 180 training examples"),
        ("limits: {steps: 1}", "limits.steps (training.local_steps): this run asks for 3 steps"),
        ("limits: {upload_megabytes: 0.0001}", "limits.upload_megabytes (model, wire): "),
        ("limits: {memory_megabytes: 1}", "limits.memory_megabytes (model, training.batch_size): "),
        (
            "leaves: {least_examples: 181}",
            "leaves.least_examples (data.validation_fraction, data.test_fraction): this "
            "run asks for numbers of 180 training examples, the owner of this device allows those of 181 or more",
        ),
        ("budget: {uplink_bytes: 200}", "uplink_bytes"),
        ("", None),
    ],
)
@pytest.mark.parametrize("classes", [range(3), [1]], ids=["three classes", "one class"])
def test_nothing_of_an_owners_own_data_is_described_before_the_limits_have_been_looked_at(
    tmp_path, device, line, classes
):
    write_data(tmp_path / "mine.npz", 300, classes)
    asked = {"data": {"name": "npz"}, "partition": {"name": "own"}, "method": "fedavg"}
    reply, lines = register(context_of(Case(asked, f"data: {{dir: mine.npz}}\n{device}"), tmp_path))
    if line is None:
        assert "description" in told(reply)
        return
    assert line in told(reply)["refused"]
    assert set(told(reply)) <= {"refused", "partition-id", "check"}
    assert line in lines[0]


def test_a_run_cannot_have_a_device_tell_the_mean_of_one_training_example(tmp_path):
    """Of ten images, one is left to train on: its mean in each place, which would be told, is the image."""
    write_data(tmp_path / "mine.npz", 10, range(2))
    asked = {"data": {"name": "npz", "normalisation": "feature", "validation_fraction": 0.45, "test_fraction": 0.45},
             "partition": {"name": "own", "min_examples": 1}, "method": "fedavg"}  # fmt: skip
    case = Case(asked, node={"data-dir": str(tmp_path / "mine.npz")})
    reply, lines = register(context_of(case, tmp_path))
    assert "leaves.least_examples" in told(reply)["refused"]
    assert set(told(reply)) <= {"refused", "partition-id", "check"}
    assert "leaves.least_examples" in lines[0]


@pytest.mark.usefixtures("forgets")
@pytest.mark.parametrize(
    ("pinned", "cut", "kept"),
    [
        ("[head]", ["head"], True),
        ("[head]", ["conv", "head"], True),
        ("[conv.inner]", ["conv", "head"], True),
        ("[conv, head]", ["head"], False),
        ("[head]", ["conv"], False),
        ("[head]", ["head.inner"], False),
        ("null", ["conv"], True),
    ],
)
def test_an_owner_says_what_the_predictor_of_a_listed_network_is(tmp_path, pinned, cut, kept):
    asked = {**ASKED, "method": "fedper", "model": {**ASKED["model"], "cut": cut}}
    device = f"{LISTED}leaves: {{predictor: false, cut: {pinned}}}\n"
    reply, _ = register(context_of(Case(asked, device, FILES), tmp_path))
    line = f"leaves.cut (model.cut): this run asks for a predictor of {', '.join(cut)}, the owner of this device allows"
    assert (line in told(reply).get("refused", "")) == (not kept)


def test_no_path_of_the_device_goes_to_the_server(tmp_path):
    (tmp_path / "mine.npz").write_text("a secret")
    case = Case({"data": {"name": "npz"}, "partition": {"name": "iid"}}, "data: {dir: mine.npz}")
    reply, lines = register(context_of(case, tmp_path))
    assert "npz: (the owner's data)" in told(reply)["refused"]
    assert str(tmp_path) not in str(told(reply))
    assert str(tmp_path / "mine.npz") in lines[0]  # the owner is to know
    assert "secret" not in str(told(reply))


def test_neither_a_resolved_path_nor_the_home_nor_pythons_place_goes_to_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    (tmp_path / "alice" / "device").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "alice" / "device")
    context = context_of(Case({}), tmp_path / "link")
    text = f"{tmp_path}/link/a, {tmp_path}/alice/device/b, {tmp_path}/alice/.cache/c and {sys.prefix}/d"
    told = "(the device's directory)/a, (the device's directory)/b, ~/.cache/c and (Python)/d"
    assert owner.without_places(context, text) == told


@pytest.mark.slow
def test_a_file_as_it_is_made_lets_the_usual_run_register(tmp_path):
    reply, lines = register(context_of(Case({}, device_text()), tmp_path))
    assert "fingerprint" in told(reply)
    assert lines == []


@pytest.mark.parametrize("text", ["limits: {steps: 'a secret'}", "", "secret: [", "- secret"])
def test_a_file_that_cannot_be_used_stops_all_work_and_its_content_stays_here(tmp_path, text):
    reply, lines = register(context_of(Case({}, text), tmp_path))
    assert told(reply)["error"] == "the device.yaml of this device cannot be used; its own log says why"
    assert "device.yaml" in lines[0]
    assert "secret" not in told(reply)["error"]


def test_a_file_that_others_may_write_is_not_used(tmp_path):
    context = context_of(Case({}, device_text()), tmp_path)
    (tmp_path / "device.yaml").chmod(0o666)
    reply, lines = register(context)
    assert told(reply)["code"] == CLIENT_REFUSED
    assert "can be written by other users of this machine (mode 666): chmod 600" in lines[0]


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [("09:00-17:00", ("09:00", "16:59"), ("08:59", "17:00")), ("22:30-06:00", ("22:30", "05:59"), ("06:00", "22:29"))],
)
def test_hours_may_pass_midnight(tmp_path, hours, inside, outside):
    limits = Limits(hours=hours)
    for clock in inside:
        check_now(limits, tmp_path, now=time.strptime(clock, "%H:%M"))
    for clock in outside:
        with pytest.raises(NotNow, match=f"asks for work at {clock}, the owner of this device allows {hours}"):
            check_now(limits, tmp_path, now=time.strptime(clock, "%H:%M"))


def test_a_command_of_the_owners_says_whether_to_work(tmp_path):
    check_now(Limits(command=["test", "-d", "."]), tmp_path)
    with pytest.raises(NotNow, match=r"limits\.command: the owner of this device lets nothing run now \(status 1\)"):
        check_now(Limits(command=["test", "-e", "mains"]), tmp_path)
    (tmp_path / "mains").touch()
    check_now(Limits(command=["test", "-e", "mains"]), tmp_path)
    with pytest.raises(NotNow, match=r"\(status no status\)"):
        check_now(Limits(command=["a-program-that-is-nowhere"]), tmp_path)


def answered(context, handle, message_type="train"):
    """The reply of a handler under the owner's rules."""
    register(context)
    message = Message(RecordDict({RECORD: ConfigRecord({})}), dst_node_id=2, message_type=message_type)
    return reporting(handle)(message, context)


def test_what_is_refused_for_now_has_a_code_of_its_own_and_a_registration_takes_place_at_any_hour(tmp_path):
    context = context_of(Case({}, "limits: {command: [test, -e, mains]}"), tmp_path)
    assert "fingerprint" in told(register(context)[0])
    reply = answered(context, lambda message, context: message)
    assert reply.error.code == CLIENT_NOT_NOW
    assert "limits.command" in reply.error.reason


def test_a_day_has_so_many_rounds(tmp_path, monkeypatch):
    moment = 1_000_000.0
    monkeypatch.setattr(owner.time, "time", lambda: moment)
    mine = owner_of(context_of(Case({}, "limits: {rounds_a_day: 2}"), tmp_path))
    taken = []
    for hours in (0, 1, 2, 23.9, 24.1, 24.2):
        moment = 1_000_000.0 + 3600 * hours
        try:
            mine.begin_round(tmp_path / "state")
            taken.append(None)
        except NotNow as error:
            taken.append(str(error))
    assert [each is None for each in taken] == [True, True, False, False, True, False]
    assert taken[2] == (
        "limits.rounds_a_day: this run asks for round 3 in 24 hours, the owner of this device allows 2; the next in "
        "22.0 h"
    )
    assert (tmp_path / "state" / "rounds.txt").stat().st_mode & 0o777 == 0o600


def test_no_run_has_the_name_of_the_file_of_rounds(tmp_path):
    context = context_of(Case({}, "limits: {rounds_a_day: 2}"), tmp_path, run="rounds")
    assert "fingerprint" in told(register(context)[0])
    owner_of(context).begin_round(tmp_path / "state")
    assert "fingerprint" in told(register(context)[0])


@pytest.mark.slow
def test_work_that_takes_too_long_is_ended(tmp_path):
    def works_for_ever(message, context):
        while True:
            pass

    context = context_of(Case({}, "limits: {seconds: 2}"), tmp_path)
    reply = answered(context, works_for_ever)
    assert reply.error.reason == (
        "limits.seconds: this run asks for more than 2 for one message, the owner of this device allows 2"
    )


@pytest.mark.slow
def test_no_code_on_the_way_takes_the_end_of_its_time_for_an_error_of_its_own(tmp_path):
    def answers_whatever_befalls(message, context):
        try:
            while True:
                pass
        except Exception:
            return Message(RecordDict(), reply_to=message)

    reply = answered(context_of(Case({}, "limits: {seconds: 1}"), tmp_path), answers_whatever_befalls)
    assert reply.error.reason.startswith("limits.seconds: this run asks for more than 1 ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system's limit of a process's memory")
def test_work_that_takes_too_much_memory_is_ended(tmp_path):
    context = context_of(Case({}, "limits: {memory_megabytes: 100}"), tmp_path)
    reply = answered(context, lambda message, context: torch.zeros(10**9))
    assert reply.error.reason == "limits.memory_megabytes: this run asks for more, the owner of this device allows 100"
    assert torch.zeros(10**8).numel() == 10**8  # it holds for the message alone


def test_the_safe_values_are_those_of_the_text(tmp_path):
    values = yaml.safe_load(device_text())
    assert DeviceConfig.model_validate(values) == DeviceConfig()


def test_the_command_says_once_that_there_is_no_file_and_ends_where_it_has_a_mistake(tmp_path, caplog, capsys):
    write_site(tmp_path, ClientSite("127.0.0.1:1", 0, 2))
    assert owners_rules(tmp_path) == DeviceConfig()
    assert caplog.text.count("device.yaml is not there: its safe values hold") == 1
    for text, line in {
        "limits: {stepz: 3}": "limits.stepz: unknown key",
        f"files: {{net.py: '{'0' * 64}'}}": "files (net.py): net.py is listed, but cannot be read: No such file",
        "data: {dir: nowhere}": f"data.dir: {tmp_path / 'nowhere'} is not there",
    }.items():
        (tmp_path / "device.yaml").write_text(text)
        (tmp_path / "device.yaml").chmod(0o600)
        assert main(["deploy", "client", str(tmp_path), "--insecure"]) == 2
        assert line in capsys.readouterr().err
