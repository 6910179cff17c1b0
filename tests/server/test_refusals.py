"""Updates and reports that are refused, with the reason, while the round goes on; and when a run ends for them."""

import dataclasses
import math
import re

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from server.replies import blob_content
from spatl.errors import DivergedError, SpatlError
from spatl.runs.records import read_lines
from spatl.wire.blob import section_bytes, with_digest
from spatl.wire.codecs import CODECS
from spatl.wire.update import pack_update
from tests.support.federations import (
    COMPRESSED,
    DENSE,
    blob_of,
    blueprint_of,
    opened,
    parted,
    run_tiny,
    tampering,
    tiny_config,
)
from tests.support.messages import forged


def reporting(content, layout, **numbers):
    """An update's records with other numbers in its report."""
    blob = blob_of(content)
    _, report = parted(blob, layout)
    other = dataclasses.replace(report, **numbers)
    return blob_content(forged(blob, lambda body: body.replace(report.to_bytes(), other.to_bytes())))


def packed(update, layout, codec=CODECS["float32"]):
    """The records of an update."""
    return blob_content(pack_update(update, layout, codec, generator=torch.Generator()))


def with_first_values(body, first):
    """A blob whose last section, the values, starts otherwise: with the step, where they are adaptive."""
    start = len(body) - section_bytes(with_digest(body))["values"]
    return body[:start] + first + body[start + len(first) :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wire", "change", "reason"),
    [
        (DENSE, lambda body: body[:-4] + b"\x00\x00\xc0\x7f", "NaN or infinity"),
        (DENSE, lambda body: body[:-4] + b"\x00\x00\x80\x7f", "NaN or infinity"),
        (COMPRESSED, lambda body: with_first_values(body, b"\x00\x00\xc0\x7f"), "step of adaptive values"),
        (COMPRESSED, lambda body: with_first_values(body, b"\x00\x00\x80\x7f"), "step of adaptive values"),
        (COMPRESSED, lambda body: body[:-1], "promises"),
        (COMPRESSED, lambda body: b"", "fewer than a header"),
        (COMPRESSED, lambda body: body[:8] + b"\0" * 4 + body[12:], "fingerprint"),
        (COMPRESSED, lambda body: body[:12] + b"\x01" + body[13:], "answers round"),
        (COMPRESSED, lambda body: body[:13] + bytes([body[13] & 1]) + body[14:], "from version 0, expected round"),
    ],
)
def test_a_bad_update_is_refused_and_counted_and_the_round_goes_on(tmp_path, caplog, wire, change, reason):
    def attack(client, content):
        return blob_content(forged(blob_of(content), change)) if client == 1 else content

    summary = run_tiny(tiny_config(rounds=2, wire=wire), tmp_path, app=tampering(attack))
    rows = read_lines(tmp_path / "history.jsonl")
    # A replay of round 1, or of version 0, is one only from round 2 on.
    refused_in = [2] if "round" in reason else [1, 2]
    assert [row["round"] for row in rows if row["rejected"]] == refused_in
    assert summary["rejected"] == len(refused_in)
    for row in rows:
        assert row["participants"] + row["rejected"] == 5
        assert all(reason in item["reason"] and item["client"] == 1 for item in row["rejections"])
    assert reason in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"num_examples": 10**9}, "num-examples is 1000000000, the client registered"),
        ({"num_examples": 10**9 + 1}, "the report's num_examples must lie in"),
        ({"accuracy": float("nan")}, "the report's accuracy must lie in"),
        ({"loss": float("inf")}, "the report's loss must lie in"),
    ],
)
def test_a_bad_report_is_refused(tmp_path, numbers, reason):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, **numbers) if client == 4 else content

    run_tiny(config, tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)
    assert reason in row["rejections"][0]["reason"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("report", None, "the update has no report"),
        ("corrected", False, "disagree on whether gradients were corrected"),
    ],
)
def test_an_update_without_a_report_or_that_says_otherwise_whether_it_was_corrected_is_refused(
    tmp_path, field, value, reason
):
    config = tiny_config(rounds=1)
    blueprint = blueprint_of(config)
    layout = blueprint.layout

    def attack(client, content):
        if client != 4:
            return content
        update = opened(blob_of(content), layout)
        assert getattr(update, field) != value
        return packed(dataclasses.replace(update, **{field: value}), layout, blueprint.codecs.uplink)

    run_tiny(config, tmp_path, app=tampering(attack))
    (rejection,) = read_lines(tmp_path / "history.jsonl")[0]["rejections"]
    assert rejection["client"] == 4
    assert reason in rejection["reason"]


def test_a_reply_without_records_is_refused(tmp_path):
    def attack(client, content):
        return RecordDict() if client == 0 else content

    run_tiny(tiny_config(rounds=1), tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)


def test_a_client_that_raises_is_counted_and_the_round_goes_on(tmp_path):
    def attack(client, content):
        if client == 3:
            raise RuntimeError("disk full")
        return content

    summary = run_tiny(tiny_config(rounds=1), tmp_path, app=tampering(attack))
    assert summary["rejected"] == 1
    (row,) = read_lines(tmp_path / "history.jsonl")
    (refusal,) = row["rejections"]
    assert refusal["client"] == 3
    assert re.fullmatch(r"RuntimeError: disk full \(test_refusals\.py:\d+, in attack\)", refusal["reason"])


def test_when_every_update_is_refused_the_run_ends_with_the_reason(tmp_path):
    def attack(client, content):
        return RecordDict()

    with pytest.raises(SpatlError, match=r"round 1: no update could be used.*has no spatl record with a blob of bytes"):
        run_tiny(tiny_config(), tmp_path, app=tampering(attack))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "reason"),
    [({"accuracy": 5.0}, "lie in"), ({"flops_ratio": -1.0}, "lie in"), ({"train_loss": 1.7e38}, "lie in")],
)
def test_numbers_out_of_range_are_refused(tmp_path, numbers, reason):
    config = tiny_config(rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, **numbers) if client >= 3 else content

    summary = run_tiny(config, tmp_path, app=tampering(attack))
    assert summary["rejected"] == 2
    assert reason in read_lines(tmp_path / "history.jsonl")[0]["rejections"][0]["reason"]


@pytest.mark.parametrize("factor", [1e-6, 2.0, 1e30])
def test_a_step_weight_that_does_not_belong_to_the_training_is_refused(tmp_path, factor):
    config = tiny_config(method="fednova", rounds=1)
    layout = blueprint_of(config).layout

    def attack(client, content):
        if client != 2:
            return content
        update = opened(blob_of(content), layout)
        return packed(dataclasses.replace(update, step_weight=update.step_weight * factor), layout)

    run_tiny(config, tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["rejected"]) == (4, 1)
    assert "step weight" in row["rejections"][0]["reason"]


@pytest.mark.slow
def test_one_bad_update_does_not_end_a_run_with_one_client_per_round(tmp_path):
    def attack(client, content):
        return RecordDict() if client == 1 else content

    config = tiny_config(rounds=12, server={"fraction_train": 0.2})
    summary = run_tiny(config, tmp_path, app=tampering(attack))
    assert 1 <= summary["rejected"] < 12


def test_the_round_in_which_a_run_stops_is_written(tmp_path):
    def attack(client, content):
        return RecordDict({"spatl": ConfigRecord({"blob": "no bytes"})})

    with pytest.raises(SpatlError, match="has no spatl record with a blob of bytes"):
        run_tiny(tiny_config(), tmp_path, app=tampering(attack))
    (row,) = read_lines(tmp_path / "history.jsonl")
    assert row["rejected"] == 5
    assert row["uplink_bytes"] > 0


@pytest.mark.slow
def test_one_client_cannot_stop_a_run_by_reporting_a_large_loss(tmp_path):
    config = tiny_config()
    layout = blueprint_of(config).layout

    def attack(client, content):
        return reporting(content, layout, train_loss=1e8) if client == 0 else content

    assert run_tiny(config, tmp_path, app=tampering(attack))["rejected"] == 0


@pytest.mark.slow
def test_a_run_that_began_with_clients_that_had_nothing_to_learn_has_not_diverged_where_others_only_guess(tmp_path):
    """As where those of the first round have one class each: a guess among ten classes has a loss of 2.3."""
    config = tiny_config(rounds=2)
    layout = blueprint_of(config).layout

    def reported(loss):
        def change(client, content):
            server_round = blob_of(content)[12]
            return reporting(content, layout, train_loss=0.01 if server_round == 1 else loss)

        return tampering(change)

    run_tiny(config, tmp_path / "guess", app=reported(9.9 * math.log(10)))
    with pytest.raises(DivergedError, match=r"the loss started at 2\.3"):
        run_tiny(config, tmp_path / "diverged", app=reported(10.1 * math.log(10)))
