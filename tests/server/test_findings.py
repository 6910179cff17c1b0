"""Findings of clients: asked, counted, checked and kept, and nothing else of a run changes by them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

import server.findings
from clients.app import app as client_app
from clients.deploy import node_config
from server.app import serve
from server.engines import run_inline
from server.grids import InProcessGrid
from server.replies import blob_content
from spatl.console.parser import make_parser
from spatl.deployment.sites import NO_FINDINGS, ClientSite
from spatl.diagnosis.own_data import compute_findings
from spatl.errors import ConfigError, UpdateRejected
from spatl.rounds.client_state import ClientState
from spatl.rounds.findings import find_round, findings_shape
from spatl.rounds.workplace import Workplace
from spatl.runner import resume
from spatl.runs.findings import findings_rounds, read_findings
from spatl.runs.records import read_lines
from spatl.wire.blob import section_bytes, with_digest
from tests.support.clients import received
from tests.support.federations import (
    blob_of,
    blueprint_of,
    history_without_seconds,
    run_tiny,
    state_of,
    tampering,
    tiny_config,
    without_seconds,
)
from tests.support.findings import same_findings
from tests.support.messages import forged, written
from tests.support.own_data import own_config, serve_devices

RESNET = {"name": "resnet8", "options": {"width": 0.25}}


def asking(when: object, **sections: Any) -> Any:
    return tiny_config(report={"findings": when, "prototype_examples": 1}, **sections)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"model": RESNET},
        {"predictor": {"mode": "local"}},
        {"model": RESNET, "method": "fedavg"},
        {"method": "ssfl", "selection": {"keep_ratio": 0.5}},
        {"model": RESNET, "training": {"batch_norm": "shared"}},
    ],
    ids=["spatl", "local predictors", "fedavg", "ssfl", "shared statistics"],
)
def test_what_arrives_is_what_each_client_finds_and_nothing_else_of_the_run_is_another(
    sections: dict[str, Any], tmp_path: Path
) -> None:
    """Findings of the last round are those of the model that the run leaves; all else but bytes is the same to the bit.

    So is what every client keeps.
    """
    config, asked, plain = asking(2, **sections), tmp_path / "asked", tmp_path / "plain"
    run_tiny(config, asked)
    run_tiny(tiny_config(**sections), plain)
    assert findings_rounds(asked) == [2, 3]
    record, computed = read_findings(asked), compute_findings(asked)
    assert list(record.by_client) == list(computed.findings) == [0, 1, 2, 3, 4]
    assert all(same_findings(each, computed.findings[client]) for client, each in record.by_client.items())
    assert not same_findings(read_findings(asked, 2).by_client[0], record.by_client[0])
    for name in ("history", "clients"):
        rows = [without_seconds(read_lines(each / f"{name}.jsonl")) for each in (asked, plain)]
        assert [_without_bytes(row) for row in rows[0]] == [_without_bytes(row) for row in rows[1]]
    for name in ("server.checkpoint", "model/model.safetensors"):
        assert (asked / name).read_bytes() == (plain / name).read_bytes()
    for client in range(5):
        assert state_of(asked, client).to_bytes() == state_of(plain, client).to_bytes()


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("uplink", "downlink") and "bytes" not in key}


@pytest.mark.slow
def test_each_message_is_in_the_ledger_and_all_bytes_are_theirs(tmp_path: Path) -> None:
    run_tiny(asking(2, model=RESNET), tmp_path / "asked")
    run_tiny(tiny_config(model=RESNET), tmp_path / "plain")
    asked, plain = (read_lines(tmp_path / each / "ledger.jsonl") for each in ("asked", "plain"))
    own = [row for row in asked if row["phase"] == "query.findings"]
    assert Counter((row["round"], row["client"], row["direction"]) for row in own) == Counter(
        (number, client, direction)
        for number in (2, 3) for client in range(5) for direction in ("downlink", "uplink")
    )  # fmt: skip
    shape = findings_shape(blueprint_of(tiny_config(model=RESNET)))
    length = 16 * shape.num_filters + 32 * 10 + 4 * 10 * (shape.num_filters + shape.num_features)
    assert (shape.num_filters, shape.num_features, length) == (84, 16, 5664)
    assert {row["values"] for row in own if row["direction"] == "uplink"} == {length}
    assert [row for row in asked if row["phase"] != "query.findings"] == plain
    history, without = (read_lines(tmp_path / each / "history.jsonl") for each in ("asked", "plain"))
    for row, other in zip(history, without, strict=True):
        for direction in ("uplink", "downlink"):
            rows = [each for each in own if each["round"] == row["round"]]
            more = sum(each["bytes"] if each["direction"] == direction else each["opposite"] for each in rows)
            assert row[f"{direction}_bytes"] == other[f"{direction}_bytes"] + more


def _with(place: int, value: float) -> Callable[[bytes], bytes]:
    """A change of one binary64 number of findings; the first is the mean of filter 0."""

    def change(body: bytes) -> bytes:
        first = len(body) - section_bytes(with_digest(body))["values"]
        return written(first + 8 * place, "d", value)(body)

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with(3, float("nan")), "the means must be finite"),
        (_with(4, -1.0), "the means must not be below 0"),
        (lambda body: body[:-4], "promises"),
        (lambda body: b"", "fewer than a header"),
        (lambda body: body[:13] + b"\x07" + body[14:], "version 7, expected round 1 and version 1"),
    ],
)
def test_what_cannot_be_used_is_named_and_left_out(
    change: Callable[[bytes], bytes], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lie(client: int, content: RecordDict) -> RecordDict:
        return blob_content(forged(blob_of(content), change)) if client == 2 else content

    summary = run_tiny(asking("end", rounds=1), tmp_path, app=tampering(findings=lie))
    assert "the findings of client 2 are not used: " in caplog.text
    assert reason in caplog.text
    assert list(read_findings(tmp_path).by_client) == [0, 1, 3, 4]
    assert summary["not_evaluated"] == 0


@pytest.mark.slow
def test_training_examples_that_were_not_registered_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One more of class 0: its number lies behind 16 bytes a filter and the counts and correct predictions."""
    config = asking("end", rounds=1)
    behind = 16 * findings_shape(blueprint_of(config)).num_filters + 2 * 8 * 10

    def lie(client: int, content: RecordDict) -> RecordDict:
        blob = blob_of(content)
        place = len(blob) - 8 - section_bytes(blob)["values"] + behind
        return blob_content(forged(blob, written(place, "B", blob[place] + 1))) if client == 4 else content

    run_tiny(config, tmp_path, app=tampering(findings=lie))
    assert "training examples, the client registered" in caplog.text
    assert list(read_findings(tmp_path).by_client) == [0, 1, 2, 3]


@pytest.mark.slow
def test_who_does_not_answer_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = run_tiny(
        asking(1, rounds=2), tmp_path,
        loses=lambda client, message: client == 1 and message.metadata.message_type == "query.findings",
    )  # fmt: skip
    assert caplog.text.count("findings: no answer of client 1: ") == 2
    assert [list(read_findings(tmp_path, each).by_client) for each in (1, 2)] == [[0, 2, 3, 4]] * 2
    assert lost["missing"] == 0


@pytest.mark.slow
def test_where_nobody_answers_there_is_no_file(tmp_path: Path) -> None:
    run_tiny(asking(1, rounds=1), tmp_path, app=tampering(findings=lambda client, content: blob_content(b"")))
    assert findings_rounds(tmp_path) == []


@pytest.mark.slow
def test_devices_with_data_of_their_own_tell_of_these(devices: Path) -> None:
    """Of 200, 120 and 60 images, 15 % are for validation and 60 % for training; the last device has no class 2."""
    serve_devices(own_config(report={"findings": 1}), devices)
    assert findings_rounds(devices / "run") == [1, 2]
    record = read_findings(devices / "run")
    assert record.class_names == ("0", "1", "2", "3")
    assert [each.moments.count for each in record.by_client.values()] == [30, 18, 9]
    assert [int(each.labels.sum()) for each in record.by_client.values()] == [120, 72, 36]
    assert [int(each.labels[2]) > 0 for each in record.by_client.values()] == [True, True, False]


@pytest.mark.slow
def test_a_device_tells_no_findings_of_few_examples_and_no_features_of_a_single_one(
    devices: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 200, 120 and 60 images, the run leaves 6, 4 and 2 for validation, and asks for features of classes of one."""
    rules = devices / "device.yaml"
    rules.write_text("leaves: {least_examples: 4}")
    rules.chmod(0o600)
    config = own_config(
        rounds=1, report={"findings": "end", "prototype_examples": 1}, data={"name": "npz", "validation_fraction": 0.03}
    )  # fmt: skip
    serve_devices(config, devices)
    assert "leaves.least_examples (data.validation_fraction, data.test_fraction): this run asks for" in caplog.text
    found = read_findings(devices / "run").by_client
    assert {client: each.moments.count for client, each in found.items()} == {0: 6, 1: 4}
    for each in found.values():
        assert torch.equal(each.prototypes.any(1), each.counts >= 2)
    assert any(bool((each.counts == 1).any()) for each in found.values())


@pytest.mark.slow
def test_a_device_whose_owner_does_not_want_it_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = make_parser().parse_args(["deploy", "client", "DIR", "--no-findings"])
    node = node_config(
        ClientSite("server:9092", 3, 5), tmp_path, data=None, budget=None, device=None,
        tells_findings=not options.no_findings,
    )  # fmt: skip
    assert node["findings"] == NO_FINDINGS
    config = asking("end", rounds=1)
    values = {"config": config.to_json(), "out": str(tmp_path)}
    grid = InProcessGrid(client_app, num_clients=5, run_config=values)
    grid.contexts[3 + 2].node_config["findings"] = node["findings"]
    summary = serve(grid, config, tmp_path)
    assert "the findings of client 3 are not used: its owner says that it tells none (--no-findings)" in caplog.text
    assert list(read_findings(tmp_path).by_client) == [0, 1, 2, 4]
    assert (summary["not_evaluated"], summary["rejected"]) == (0, 0)


@pytest.mark.slow
def test_a_device_that_is_away_is_not_asked_and_named(devices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes once it has trained; all others are asked, and nobody waits for it."""

    class Leaving(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            known = list(super().get_node_ids())
            return [each for each in known if each != 3] if "round 1:" in caplog.text else known

    with caplog.at_level("INFO", logger="spatl.events"):
        serve_devices(own_config(report={"findings": "end"}), devices, grid_type=Leaving)
    assert "findings: not connected, and not asked: client 1" in caplog.text
    assert list(read_findings(devices / "run").by_client) == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2])
def test_a_run_that_was_killed_with_findings_leaves_the_same_files(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed once the nth file is written, before the checkpoint of its round is."""

    class Killed(BaseException):
        pass

    written, truly = [], server.findings.write_findings

    def killing(*args: Any, **kwargs: Any) -> Path:
        written.append(truly(*args, **kwargs))
        if len(written) == nth:
            raise Killed
        return written[-1]

    config = asking(1, rounds=2)
    run_inline(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(server.findings, "write_findings", killing)
        with pytest.raises(Killed):
            run_inline(config, tmp_path / "killed")
    assert findings_rounds(tmp_path / "killed") == list(range(1, nth + 1))
    resume(tmp_path / "killed", pictures=False, progress=False)
    for number in (1, 2):
        whole, killed = (tmp_path / each / "findings" / f"{number}.safetensors" for each in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
    assert history_without_seconds(tmp_path / "whole") == history_without_seconds(tmp_path / "killed")


@pytest.mark.slow
def test_prototypes_are_sent_of_classes_with_enough_examples(tmp_path: Path) -> None:
    """Some have too few; null sends none of any class."""
    found = {}
    for fewest in (2, 4, None):
        config = tiny_config(
            rounds=1, partition={"name": "dirichlet", "alpha": 0.5},
            report={"findings": "end", "prototype_examples": fewest},
        )  # fmt: skip
        run_tiny(config, tmp_path / str(fewest))
        found[fewest] = read_findings(tmp_path / str(fewest)).by_client
    for fewest in (2, 4):
        small = 0
        for each in found[fewest].values():
            sent = each.prototypes.any(1)
            assert torch.equal(sent, each.counts >= fewest)
            small += int(((each.counts > 0) & ~sent).sum())
        assert small > 0
    assert {each.prototypes.shape for each in found[None].values()} == {torch.Size([10, 0])}


def test_a_client_answers_no_question_that_its_config_does_not_ask() -> None:
    for when, server_round in ((None, 3), ("end", 2), (2, 1)):
        workplace = Workplace(blueprint_of(asking(when)))
        model = received(workplace.blueprint, server_round=server_round)
        with pytest.raises(UpdateRejected, match=f"for findings after round {server_round}, which this run does not"):
            find_round(workplace, 0, model, ClientState.initial(workplace.blueprint.layout))


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"method": "local"}, "report.findings: Training alone has no model of all clients; leave it out"),
        ({"method": "fedavg-finetune"}, "has no model of all clients; leave it out"),
        (
            {"method": "fedavg", "privacy": {"noise_multiplier": 1.0}},
            "privacy: what report.findings sends of each client would be free of noise; leave it out",
        ),
        ({"report": {"findings": 0}}, "must be off, end, or a number of rounds from 1, got 0"),
        ({"report": {"findings": True}}, "must be off, end, or a number of rounds from 1, got True"),
        ({"report": {"findings": "always"}}, "must be off, end, or a number of rounds from 1, got 'always'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{"report": {"findings": "end"}, **sections})
    assert line in str(caught.value)


def test_off_is_what_yaml_makes_of_it() -> None:
    assert [tiny_config(report={"findings": each}).report.findings for each in (False, "off", None)] == [None] * 3
