"""What a run asks of a device, what its owner has allowed, and the one line that both see; nothing else happens."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.owned import RUN, Case

ROOT = Path(__file__).parents[2]
NET = "from tests.support.networks import nothing\n"
DIGEST = hashlib.sha256(NET.encode()).hexdigest()
WHOLE = {"method": "fedavg", "wire": {"uplink": "float32", "downlink": "float32"}}
FEDREP = {"method": "fedrep"}
BILLION = 10**9
TRILLION = 10**12


def both(asked: object, allowed: object) -> str:
    """The words that name both values."""
    return f"this run asks for {asked}, the owner of this device allows {allowed}"


def rows() -> dict[str, tuple[Case, str]]:
    """A case and the line, by what is tried."""
    found = {}

    def row(name, asked, device, line, **more):
        found[name] = Case(asked, device, **more), line

    call = {"model": {"name": "os:system", "options": {"command": "touch MARK"}}}
    row("a function of Python as a model", call, None, f"files (model.name): {both('os', 'none')}")
    for setting in (
        "method", "data.name", "partition.name", "selection.selector", "wire.uplink", "wire.downlink",
        "training.augmentation", "task.loss", "task.metrics",
    ):  # fmt: skip
        section, _, key = setting.partition(".")
        asked = {section: {key: "evil:thing"} if key else "evil:thing"}
        row(f"code on Python's path as {setting}", asked, None, f"files ({setting}): {both('evil', 'none')}")
    loaded = {"selection": {"selector": "spatl.selection.selectors:rank_all"}}
    row("a module that is loaded already", loaded, None, both("spatl.selection.selectors", "none"))
    own, listed = {"model": {"name": "my_net:Net", "cut": ["head"]}}, f"files: {{my_net.py: '{DIGEST}'}}"
    other = hashlib.sha256(b"other").hexdigest()
    changed = both(f"my_net.py, whose SHA-256 is {other[:16]}...", f"the one with {DIGEST[:16]}...")
    row("a file that has changed since it was listed", own, listed, changed, files={"my_net.py": "other"})
    row("a file that is not there", own, listed, "files (model.name): my_net.py is listed, but cannot be read")
    row("a network that is built in", {"model": {"name": "vgg11", "options": {}}}, "models: [cnn, resnet8]",
        f"models (model.name): {both('vgg11', 'cnn, resnet8')}")  # fmt: skip
    row("a method that is built in", WHOLE, "methods: [spatl, fedper]",
        f"methods (method): {both('fedavg', 'spatl, fedper')}")  # fmt: skip
    row("a policy", {"agent": {"policy": "/etc/passwd"}}, None,
        f"files (agent.policy): {both('/etc/passwd', 'none')}")  # fmt: skip

    place = "digits, synthetic, or a place of its own (--data-dir)"
    for name in ("folder", "npz", "huggingface", "cifar10"):
        asked = {"data": {"name": name, "options": {"path": "/etc"}}, "partition": {"name": "own"}}
        if name == "cifar10":  # which has a path of its own
            asked = {"data": {"name": name}}
        line = both(f"{name}, read from a path of the run's", place)
        row(f"a path of the server's for {name}", asked, None, f"data.dir (data.name): {line}")
    hub = {"data": {"name": "huggingface", "options": {"name": "somebody/something", "hub": True}}}
    for device, allowed in ((None, "nothing from there"), ("data: {hub: [cifar10]}", "cifar10")):
        row(f"the hub, with {allowed}", hub, device,
            f"data.hub (data.options.hub): {both('somebody/something from the hub', allowed)}")  # fmt: skip
    row(
        "a config by its path", "/etc/passwd", None, "must be a config as JSON, got the path of a file, which no device"
    )
    return found | leaving() | limits()


def leaving() -> dict[str, tuple[Case, str]]:
    """The rows on what leaves a device."""
    found = {}

    def row(name, asked, device, line):
        found[name] = Case(asked, device), line

    stays, setting = "leaves: {predictor: false}", "leaves.predictor (predictor.mode): "
    row("the predictor", {}, stays, setting + both("a predictor that is calibrated", "none that leaves the device"))
    part = setting + both("a part of the predictor", "none that leaves the device")
    row("a part of the predictor", {"predictor": {"mode": "residual"}}, stays, part)
    row("the predictor by a cut of nothing", {**FEDREP, "model": {"cut": []}}, stays, part)
    shared = both("shared", "aggregated")
    row("statistics in every round", {"training": {"batch_norm": "shared"}}, None,
        f"leaves.statistics (training.batch_norm): {shared}")  # fmt: skip
    row("statistics with each update", {"report": {"best": True}}, None, f"leaves.statistics (report.best): {shared}")
    row("statistics after the last round", {}, "leaves: {statistics: nothing}",
        f"leaves.statistics (training.batch_norm): {both('aggregated', 'nothing')}")  # fmt: skip
    chosen = both("updates of the whole encoder", "chosen channels")
    for asked, setting in (
        (WHOLE, "method"), ({"selection": {"selector": "all"}}, "selection.selector"),
        ({"selection": {"selector": "update", "keep_ratio": 1.0}}, "selection"),
        ({"selection": {"selector": "update", "uplink_bytes": TRILLION}}, "selection.uplink_bytes"),
        ({"method": "ssfl", "selection": {"uplink_bytes": TRILLION}}, "selection.uplink_bytes"),
    ):  # fmt: skip
        row(f"whole updates by {setting} of {asked.get('method', 'spatl')}", asked, "leaves: {whole_updates: false}",
            f"leaves.whole_updates ({setting}): {chosen}")  # fmt: skip
    row("saliency", {"method": "ssfl"}, "leaves: {saliency: false}",
        f"leaves.saliency (method): {both('the saliency that SSFL, by channels goes by', 'none')}")  # fmt: skip
    for asked, allowed, task in (
        ("macro-f1", "accuracy", {"metrics": ["accuracy", "macro-f1"]}),
        ("accuracy", "macro-f1", {}), ("r2", "mae, rmse", {"name": "regression"}),
    ):  # fmt: skip
        row(f"{asked} where {allowed} may be told", {"task": task}, f"leaves: {{metrics: [{allowed}]}}",
            f"leaves.metrics (task.metrics): {both(asked, allowed)}")  # fmt: skip
    for asked, noise in ((WHOLE, "none"), ({**WHOLE, "privacy": {"noise_multiplier": 0.5}}, "0.5")):
        row(f"updates with a noise of {noise}", asked, "leaves: {least_noise: 1.0}",
            f"leaves.least_noise (privacy.noise_multiplier): {both(noise, 'at least 1')}")  # fmt: skip
    return found


def limits() -> dict[str, tuple[Case, str]]:
    """The rows on what a run may take of a device."""
    found = {}

    def row(name, asked, device, line):
        found[name] = Case(asked, device), line

    endless, epochs = f"{TRILLION:,}", {"local_steps": None, "local_epochs": 1}
    for key, method in (
        ("local_steps", {}), ("local_epochs", {}), ("head_epochs", FEDREP),
        ("finetune_epochs", {"method": "fedavg-finetune"}),
    ):  # fmt: skip
        unit = key.partition("_")[2]
        row(f"{key} without end", {**method, "training": {**epochs, key: TRILLION}}, None,
            f"limits.steps (training.{key}): {both(f'{endless} {unit}', '100,000 steps')}")  # fmt: skip
    row("more steps than a round may have", {"training": {**epochs, "local_epochs": 9}}, "limits: {steps: 100}",
        f"limits.steps (training): {both('126 steps a round', 100)}")  # fmt: skip
    row("threads", {"training": {"threads": 3000}}, None, f"limits.threads (training.threads): {both('3,000', 4)}")

    memory = "limits.memory_megabytes (model, training.batch_size): this run asks for "
    huge = {"model": {"options": {"channels": [4, 6], "hidden": BILLION}}}
    row("a huge network", huge, None, memory + "about ")
    row("a wide network", {"model": {"name": "resnet20", "options": {"width": 100.0}}}, None, memory + "about ")
    huger = {"model": {"options": {"channels": [4, 6], "hidden": 10**30}}}
    row("a network that no machine holds", huger, None, memory + "a network whose size cannot be told")
    images = {"data": {"name": "synthetic", "options": {"num_examples": 200_000, "image_size": 128}}}
    row("more images than there is memory", images, None,
        f"limits.memory_megabytes (data.options): {both('88,474', 4000)}")  # fmt: skip
    row("more images than may be made", {"data": {"name": "synthetic"}}, "limits: {examples: 5000}",
        f"limits.examples (data.options.num_examples): {both('6,000', '5,000')}")  # fmt: skip
    row("a list of all clients in the world", {"partition": {"num_clients": TRILLION}}, None,
        f"limits.memory_megabytes (partition.num_clients): {both('64,000,000', 4000)}")  # fmt: skip
    row("more examples than may be used", {}, "limits: {examples: 100}",
        f"limits.examples (data): {both('216 training examples', 100)}")  # fmt: skip
    for way in ("upload", "download"):
        row(f"a long {way}", {}, f"limits: {{{way}_megabytes: 0.0001}}",
            f"limits.{way}_megabytes (model, wire): this run asks for up to 0.0")  # fmt: skip

    for name, asked, setting in (
        ("whole updates", WHOLE, "method"), ("every channel", {"selection": {"selector": "all"}}, "selection.selector"),
        ("one mask for all", {"method": "ssfl", "selection": {"keep_ratio": 0.8}}, "method"),
    ):  # fmt: skip
        row(f"{name}, over the owner's budget", asked, "budget: {keep_ratio: 0.3}",
            f"budget.keep_ratio ({setting}): {both('updates of 1.0000', 0.3)}")  # fmt: skip
    row("bytes over the owner's budget", WHOLE, "budget: {uplink_bytes: 3000}",
        "budget.uplink_bytes (method): this run asks for updates of ")  # fmt: skip
    return found


ROWS = rows()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each registration told, by its row: all in one process, whose path leads to a module that leaves a mark."""
    base = tmp_path_factory.mktemp("devices")
    (base / "evil.py").write_text(f"open({str(base / 'MARK')!r}, 'w').close()\n")
    cases = {name: asdict(case) for name, (case, _) in ROWS.items()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.owned", str(base)], input=json.dumps(cases), capture_output=True,
        text=True, cwd=base, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(base)]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (base / "MARK").exists()
    kept = {path.relative_to(base).parts[0] for path in base.rglob("*/state/*/*")}
    assert kept == {"warm-up"}  # no device keeps anything of a run that it has refused
    return base, {name: found for name, *found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_what_a_run_asks_beyond_its_owner_is_refused_in_one_line_and_nothing_else_happens(seen, name):
    base, found = seen
    told, lines, events = found[name]
    line = ROWS[name][1]
    assert line in told["refused"]
    assert "\n" not in told["refused"]
    assert told["refused"] in lines[0]  # of the device's own log
    assert set(told) <= {"refused", "partition-id", "check"}  # nothing else is sent
    pinned = f"state/{RUN}/pinned.json"
    own = {str(base / name / each) for each in ("device.yaml", "my_net.py", pinned)}
    opened = {path for event, path in events if event == "open"} - own - {"/proc/self/status"}
    assert [path for path in opened if not path.endswith(("/digits.csv.gz", "/agents/policy.json"))] == []
    # Python looks for scikit-learn, which has the digits, on all of its path.
    assert [event for event in events if event[0] != "open" and event != ["os.listdir", str(base)]] == []


@pytest.mark.slow
def test_a_config_by_its_path_is_not_read(seen):
    _, found = seen
    told, lines, _ = found["a config by its path"]
    assert "root:" not in told["refused"] + "".join(lines)
