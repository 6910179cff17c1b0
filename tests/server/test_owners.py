"""Owners of devices in a federation: who asks too much of one loses that one, by name; the others go on."""

import shutil

import pytest
import torch
from flwr.app import Message

import server.app
from server.replies import blob_content
from server.strategy import FederationStrategy
from spatl.channels.selection import Selection
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.methods import METHODS
from spatl.rounds.blueprint import servers_blueprint
from spatl.rounds.evaluation import open_evaluation
from spatl.runs.directory import config_of
from spatl.runs.records import read_lines
from spatl.selection.selectors import SELECTORS
from spatl.wire.codecs import CODECS
from spatl.wire.findings import FINDINGS_QUESTION
from spatl.wire.statistics import STATISTICS_QUESTION
from spatl.wire.update import update_bytes
from tests.support.own_data import CLASSES, NUMBERS, own_config, serve_devices, write_data


@pytest.fixture
def owned_devices(tmp_path):
    """Three devices with data of their own, each in a directory that its owner can put a file into."""
    for client, (number, classes) in enumerate(zip(NUMBERS, CLASSES, strict=True)):
        write_data(tmp_path / f"{client}.npz", number, classes, seed=client)
        (tmp_path / f"owner-{client}").mkdir()
    return tmp_path


def says(base, client, text):
    """Have the owner of a device say something."""
    path = base / f"owner-{client}" / "device.yaml"
    path.write_text(text)
    path.chmod(0o600)


def places(base):
    return {client: base / f"owner-{client}" / "state" for client in range(3)}


@pytest.mark.slow
def test_a_run_that_asks_too_much_of_one_device_goes_on_without_it_and_says_why(owned_devices, caplog):
    says(owned_devices, 1, "methods: [spatl]")
    says(owned_devices, 2, "limits: {threads: 1}")
    serve_devices(own_config(), owned_devices, states=places(owned_devices))
    line = "methods (method): this run asks for fedavg, the owner of this device allows spatl"
    assert read_json(owned_devices / "run" / "registration.json")["absent"] == {"1": line}
    assert read_json(owned_devices / "run" / "summary.json")["absent"] == {"1": line}
    assert f"client 1 takes no part: {line}" in caplog.text  # on the server
    assert f"client 1 takes no part in this run: {line}" in caplog.text  # on the device
    assert not list((owned_devices / "owner-1" / "state").rglob("*.*"))


@pytest.mark.slow
def test_a_device_that_may_not_work_now_is_no_bad_client_and_is_back_when_it_may(owned_devices):
    """Its owner's command lets it work from the third round on; two failures in a row would leave it out for ten."""
    counter = "test $(echo x >> count; wc -l < count) -gt 3"
    says(owned_devices, 1, f"limits: {{command: [sh, -c, '{counter}']}}")
    config = own_config(rounds=5, server={"max_failures": 2, "connect_timeout_seconds": 0.2})
    serve_devices(config, owned_devices, states=places(owned_devices))
    rows = read_lines(owned_devices / "run" / "clients.jsonl")
    reasons = {row["round"]: row["rejected"] for row in rows if row["client"] == 1}
    told = "limits.command: the owner of this device lets nothing run now (status 1)"
    assert reasons == {1: told, 2: told, 3: told, 4: None, 5: None}
    assert read_json(owned_devices / "run" / "summary.json")["not_evaluated"] == 0


@pytest.mark.slow
def test_statistics_are_told_after_the_last_round_alone(owned_devices, monkeypatch):
    """A server that asks for them before it says that the last round was over."""
    original = FederationStrategy.configure_evaluate

    def early(self, server_round, arrays, config, grid):
        clients = {node - 2: node for node in grid.get_node_ids()}
        _, downloads = open_evaluation(self.federation, self.state, server_round, clients)
        questions = [
            Message(blob_content(blob), dst_node_id=clients[client], message_type=STATISTICS_QUESTION)
            for client, blob in downloads.items()
        ]
        for reply in grid.send_and_receive(questions):
            told.append(reply.error.reason if reply.has_error() else None)
        return original(self, server_round, arrays, config, grid)

    told = []
    monkeypatch.setattr(FederationStrategy, "configure_evaluate", early)
    model = {"name": "resnet8", "options": {"width": 0.25}}
    serve_devices(own_config(rounds=2, model=model), owned_devices, states=places(owned_devices))
    line = "an evaluation is asked for after round 1, and this run has 2 rounds"
    assert told[:3] == [line] * 3
    assert told[3:] == [None] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line"),
    [("limits: {examples: 10}", "limits.examples (data)"), ("budget: {keep_ratio: 0.3}", "budget.keep_ratio (method)")],
)
def test_what_an_owner_says_after_the_registration_counts_from_the_next_round_on(
    owned_devices, monkeypatch, text, line
):
    def then(self, *arguments, **named):
        says(owned_devices, 1, text)
        return start(self, *arguments, **named)

    start = FederationStrategy.start
    monkeypatch.setattr(FederationStrategy, "start", then)
    serve_devices(own_config(rounds=1), owned_devices, states=places(owned_devices))
    rows = read_lines(owned_devices / "run" / "clients.jsonl")
    reasons = {row["client"]: row["rejected"] for row in rows}
    assert (reasons[0], reasons[2]) == (None, None)
    assert reasons[1].startswith(line)


@pytest.mark.slow
def test_a_server_cannot_widen_the_mask_of_a_run_whose_whole_updates_are_to_stay(owned_devices, monkeypatch):
    says(owned_devices, 0, "leaves: {whole_updates: false}")
    says(owned_devices, 1, "leaves: {whole_updates: false}")
    config = own_config(rounds=1, method="ssfl", selection={"keep_ratio": 0.5})
    serve_devices(config, owned_devices, states=places(owned_devices), run=owned_devices / "as-agreed")
    rows = read_lines(owned_devices / "as-agreed" / "clients.jsonl")
    assert [row["rejected"] for row in rows] == [None] * 3

    def every(saliency, num_examples, costs, budget):
        return Selection(torch.ones(costs.layout.num_channels, dtype=torch.bool), closed=True)

    monkeypatch.setattr(server.app, "common_selection", every)
    for place in places(owned_devices).values():
        shutil.rmtree(place)
    serve_devices(config, owned_devices, states=places(owned_devices))
    rows = read_lines(owned_devices / "run" / "clients.jsonl")
    line = "leaves.whole_updates (the server's mask): this run asks for updates of 1.0000, the owner of this device"
    assert {row["client"]: (row["rejected"] or "")[: len(line)] for row in rows} == {0: line, 1: line, 2: ""}


@pytest.mark.slow
def test_no_earlier_round_comes_after_findings_that_were_asked_for_as_if_the_last_one_was_over(
    owned_devices, monkeypatch
):
    original = FederationStrategy.configure_evaluate

    def early(self, server_round, arrays, config, grid):
        if server_round == 1:
            node = min(grid.get_node_ids())
            _, downloads = open_evaluation(self.federation, self.state, 4, [0])
            question = Message(blob_content(downloads[0]), dst_node_id=node, message_type=FINDINGS_QUESTION)
            told.extend(reply.has_content() for reply in grid.send_and_receive([question]))
        return original(self, server_round, arrays, config, grid)

    told = []
    monkeypatch.setattr(FederationStrategy, "configure_evaluate", early)
    serve_devices(own_config(rounds=4, report={"findings": "end"}), owned_devices, states=places(owned_devices))
    assert told == [True]
    rows = read_lines(owned_devices / "run" / "clients.jsonl")
    line = "round 2 is asked for after the evaluation of round 4, the last one"
    assert {row["round"]: row["rejected"] for row in rows if row["client"] == 0} == {1: None, 2: line, 3: None, 4: None}
    assert read_json(owned_devices / "run" / "summary.json")["not_evaluated"] == 0


def ways():
    """Every method, every selector under two kinds of budget, and one mask for all within the budget and above it."""
    for name in METHODS:
        yield "keep_ratio", {"method": name}
    for name in SELECTORS:
        for kind in ("keep_ratio", *(["uplink_bytes"] if name in ("all", "update", "drawn") else [])):
            whole = {"clients": {client: {"keep_ratio": 1.0} for client in range(3)}} if name == "able" else {}
            yield kind, {"method": "spatl", "selection": {"selector": name, **whole}}  # able asks for one that is able
    for ratio in (0.3, 0.31):
        yield "keep_ratio", {"method": "ssfl", "selection": {"keep_ratio": ratio}}


def refusal_of(config, base):
    """Why the run was refused, or None."""
    try:
        serve_devices(config, base, states=places(base))
    except SpatlError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), list(ways()), ids=str)
def test_a_budget_of_the_owners_is_kept_by_every_update_or_the_run_is_refused(owned_devices, kind, way):
    limit = {"keep_ratio": 0.3, "uplink_bytes": 700}[kind]
    for client in range(3):
        says(owned_devices, client, f"budget: {{{kind}: {limit}}}")
    config = own_config(rounds=1, **way)
    refusal = refusal_of(config, owned_devices)
    if refusal is not None:
        assert f"budget.{kind}" in refusal
        assert not list(owned_devices.rglob("state.safetensors"))
        return
    rows = read_lines(owned_devices / "run" / "clients.jsonl")
    parts = [
        row["values"] + row["indices"] for row in read_lines(owned_devices / "run" / "ledger.jsonl")
        if row["phase"] == "train" and row["direction"] == "uplink"
    ]  # fmt: skip
    assert len(rows) == len(parts) == 3
    if kind == "uplink_bytes":
        layout = servers_blueprint(config_of(owned_devices / "run").to_json()).layout
        around = update_bytes(layout, CODECS["float32"], num_values=0, num_channels=layout.num_channels)
        assert max(parts) + around <= limit
    elif config.shares != "nothing":
        assert max(row["keep_ratio"] for row in rows) <= limit
