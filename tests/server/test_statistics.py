"""BatchNorm statistics after the last round: counted, checked, and put together from whoever can be believed."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from server.replies import blob_content
from spatl.errors import UpdateRejected
from spatl.models.weights import read_weights
from spatl.rounds.client import train_round
from spatl.rounds.client_evaluation import gather_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from spatl.wire.blob import section_bytes, with_digest
from spatl.wire.statistics import Statistics
from tests.support.clients import received
from tests.support.federations import (
    blob_of,
    blueprint_of,
    history_without_seconds,
    run_tiny,
    tampering,
    tiny_config,
)
from tests.support.messages import forged, written

RESNET = {"name": "resnet8", "options": {"width": 0.25}}
CONFIG = tiny_config(rounds=1, model=RESNET, training={"batch_norm": "aggregated"})
NUM_CHANNELS = 84  # 4 + 2 x 4 + 3 x 8 + 3 x 16 of ResNet-8 at a quarter of its width


def changed(body: bytes, place: int, *values: float) -> bytes:
    """A blob of statistics, but for its digest, with other numbers from a place on."""
    start = len(body) - section_bytes(with_digest(body))["values"]
    return written(start + 4 * place, f"{len(values)}f", *values)(body)


@pytest.mark.slow
def test_each_client_is_asked_once_more_and_both_ways_cost_eight_bytes_a_channel(tmp_path: Path) -> None:
    run_tiny(CONFIG, tmp_path / "put together")
    run_tiny(CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"batch_norm": "local"})}),
             tmp_path / "own")  # fmt: skip
    together, own = (read_lines(tmp_path / each / "ledger.jsonl") for each in ("put together", "own"))
    assert {row["phase"] for row in own} == {"query", "train", "evaluate"}
    asked = [row for row in together if row["phase"] == "query.statistics"]
    assert sorted((row["client"], row["direction"]) for row in asked) == sorted(
        (client, direction) for client in range(5) for direction in ("downlink", "uplink")
    )
    assert {row["values"] for row in asked if row["direction"] == "uplink"} == {8 * NUM_CHANNELS}
    evaluations = [row for row in together if (row["phase"], row["direction"]) == ("evaluate", "downlink")]
    assert all(8 * NUM_CHANNELS <= row["values"] <= 8 * NUM_CHANNELS + 1 for row in evaluations)  # and no change
    history = [read_lines(tmp_path / each / "history.jsonl") for each in ("put together", "own")]
    assert history[0][0]["encoder_fingerprint"] == history[1][0]["encoder_fingerprint"]  # no round knows of it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: changed(body, 3, float("nan")), "running means must be finite"),
        (lambda body: changed(body, NUM_CHANNELS, -1.0), "running variances must lie in"),
        (lambda body: changed(body, 0, *[1e6] * NUM_CHANNELS), "standard deviations and a factor of"),
        (lambda body: body[:-4], "promises"),
        (lambda body: b"", "fewer than a header"),
        (lambda body: body[:13] + b"\x07" + body[14:], "version 7, expected round 1 and version 1"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path, change, reason, caplog) -> None:  # type: ignore[no-untyped-def]
    def lie(client: int, content: RecordDict) -> RecordDict:
        return blob_content(forged(blob_of(content), change)) if client == 2 else content

    run_tiny(CONFIG, tmp_path / "all but one", app=tampering(statistics=lie))
    assert "the BatchNorm statistics of client 2 are not used: " in caplog.text
    assert reason in caplog.text
    last = load_checkpoint(tmp_path / "all but one")
    assert last is not None
    assert last.state.statistics is not None
    assert float(last.state.statistics.means.abs().max()) < 1e3
    assert json.loads((tmp_path / "all but one" / "summary.json").read_text())["not_evaluated"] == 0


@pytest.mark.slow
def test_where_nobody_answers_each_is_evaluated_with_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_tiny(CONFIG, tmp_path / "none", app=tampering(statistics=lambda client, content: blob_content(b"")))
    local = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"batch_norm": "local"})})
    run_tiny(local, tmp_path / "own")
    none, own = (json.loads((tmp_path / each / "summary.json").read_text()) for each in ("none", "own"))
    assert none["clients"] == own["clients"]
    assert "each is evaluated with its own" in caplog.text
    assert "norm.running_mean" not in read_weights(tmp_path / "none" / "model" / "model.safetensors")


@pytest.mark.slow
def test_a_rule_that_trusts_nobody_takes_medians(tmp_path: Path) -> None:
    """One client moves every mean by three deviations; the sum follows by a fifth of that, the median hardly at all."""

    def lie(client: int, content: RecordDict) -> RecordDict:
        if client != 2:
            return content
        return blob_content(forged(blob_of(content), lambda body: changed(body, 0, *[3.0] * NUM_CHANNELS)))

    means: dict[tuple[str, bool], torch.Tensor] = {}
    for rule in ("mean", "median"):
        for lies in (False, True):
            config = CONFIG.model_copy(update={"server": CONFIG.server.model_copy(update={"aggregation": rule})})
            directory = tmp_path / f"{rule}-{lies}"
            run_tiny(config, directory, app=tampering(statistics=lie if lies else lambda client, content: content))
            last = load_checkpoint(directory)
            assert last is not None
            assert last.state.statistics is not None
            means[rule, lies] = last.state.statistics.means
    moved = {rule: float((means[rule, True] - means[rule, False]).abs().mean()) for rule in ("mean", "median")}
    assert moved["mean"] > 0.3
    assert moved["median"] < 0.5 * moved["mean"]


@pytest.mark.slow
def test_a_client_gives_no_statistics_that_the_run_does_not_put_together() -> None:
    for own in (
        {"training": {"batch_norm": "local"}},
        {"method": "fedavg", "privacy": {"noise_multiplier": 0.1, "clip": 1.0}},
    ):
        workplace = Workplace(blueprint_of(tiny_config(model=RESNET, **own)))
        model, state = received(workplace.blueprint), ClientState.initial(workplace.blueprint.layout)
        with pytest.raises(UpdateRejected, match="which this run does not put together"):
            gather_round(workplace, 0, model, state)


def test_statistics_of_others_are_not_trained_with() -> None:
    workplace = Workplace(blueprint_of(CONFIG))
    model = received(workplace.blueprint)
    with_statistics = type(model)(
        model.server_round, model.version, model.encoder, None, None,
        Statistics(torch.zeros(NUM_CHANNELS), torch.ones(NUM_CHANNELS)),
    )  # fmt: skip
    state = ClientState.initial(workplace.blueprint.layout)
    with pytest.raises(UpdateRejected, match="they are for the evaluation"):
        train_round(workplace, 0, with_statistics, state)


@pytest.mark.slow
def test_statistics_of_few_examples_change_what_is_measured_and_nothing_that_is_trained(tmp_path):
    """Of some 230 training examples a client takes 8: other losses on arrival, the same encoders."""
    runs = {}
    for name, most in (("all", None), ("few", 8), ("more than there are", 10_000)):
        training = {"calibration_examples": most}
        run_tiny(tiny_config(rounds=2, model=RESNET, training=training), tmp_path / name)
        runs[name] = history_without_seconds(tmp_path / name)
    fingerprints = [[row["encoder_fingerprint"] for row in rows] for rows in runs.values()]
    assert fingerprints[0] == fingerprints[1]
    assert runs["all"] == runs["more than there are"]
    assert all(one["loss"] != other["loss"] for one, other in zip(runs["all"], runs["few"], strict=True))
