"""The ledger against the socket: a real deployment on loopback, with a tap between each SuperNode and the SuperLink."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from spatl.json_files import read_json
from spatl.rounds.findings import findings_shape
from spatl.runs.findings import findings_rounds
from spatl.runs.records import read_lines
from tests.support.deployments import check_models, deploy
from tests.support.federations import blueprint_of, run_tiny, tiny_config
from tests.support.taps import Call, Tap

ROUNDS = 10
NUM_CLIENTS = 2
CONFIG = tiny_config(
    rounds=ROUNDS,
    partition={"name": "dirichlet", "num_clients": NUM_CLIENTS},
    model={"name": "resnet8", "options": {"width": 2.0}},  # small models drown in polling; with BatchNorm
    training={"local_steps": 5},
    report={"findings": 4},
    server={"ask_again_after": 0},  # a copy on a slow machine would be counted rightly, but not as inline
)
ASKED = [4, 8, 10]  # rounds after which clients are asked for their findings
MOST_CUT_OFF = 3  # a SuperNode's poll, its heartbeat, and what it asks in place of one that failed
OF_MESSAGES = ("pull-messages", "pull-object", "confirm-message-received", "push-messages", "push-object")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Runs:
    """One config on two engines, and what passed the taps."""

    inline: Path
    deployment: Path
    taps: list[Tap]

    def calls(self) -> list[Call]:
        return [call for tap in self.taps for call in tap.calls()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    directory = tmp_path_factory.mktemp("socket")
    run_tiny(CONFIG, directory / "inline")
    return Runs(directory / "inline", *deploy(CONFIG, directory / "deployment", timeout_seconds=600))


def of_messages(calls: list[Call]) -> list[Call]:
    """The calls that a message causes: all that concern objects, and those of PullMessages that found one."""
    return [call for call in calls if name(call) in OF_MESSAGES and (name(call) != "pull-messages" or call.response)]


def name(call: Call) -> str:
    return call.path.rpartition("/")[2]


def bodies(calls: list[Call]) -> dict[str, int]:
    return {
        "uplink": sum(len(call.request) for call in calls),
        "downlink": sum(len(call.response) for call in calls),
    }


def test_the_ledger_agrees_with_the_bodies_of_all_calls_on_the_socket(runs):
    """To 2 % with all that Flower says besides (polls, heartbeats, the app), and to 0.5 % with the messages' own calls.

    The ledger takes ids at their full length, the socket may repeat a request whose object was not there yet, and an
    object that two clients send alike at the same time goes up once: a few bytes each.
    """
    summary = read_json(runs.deployment / "summary.json")
    everything, messages = bodies(runs.calls()), bodies(of_messages(runs.calls()))
    for direction in ("uplink", "downlink"):
        counted = summary[f"{direction}_bytes"]
        assert counted == pytest.approx(messages[direction], rel=0.005)
        assert counted == pytest.approx(everything[direction], rel=0.02)


def test_every_message_on_the_socket_has_its_line_in_the_ledger(runs):
    ledger = read_lines(runs.deployment / "ledger.jsonl")
    for client, tap in enumerate(runs.taps):
        names = [name(call) for call in of_messages(tap.calls())]
        for direction, call in (("downlink", "pull-messages"), ("uplink", "push-messages")):
            lines = [row for row in ledger if (row["client"], row["direction"]) == (client, direction)]
            assert (
                len(lines) == names.count(call) == ROUNDS + 3 + len(ASKED)
            )  # and registration, statistics, evaluation


def test_findings_come_over_the_socket_and_are_those_of_inline(runs):
    """Each answer is one call that pushes an object at least as long as what the ledger says; the files are equal."""
    assert findings_rounds(runs.deployment) == ASKED
    for number in ASKED:
        inline, deployed = (
            directory / "findings" / f"{number}.safetensors" for directory in (runs.inline, runs.deployment)
        )
        assert inline.read_bytes() == deployed.read_bytes()
    ledger = read_lines(runs.deployment / "ledger.jsonl")
    answers = [row for row in ledger if (row["phase"], row["direction"]) == ("query.findings", "uplink")]
    assert [row["round"] for row in answers] == [number for number in ASKED for _ in range(NUM_CLIENTS)]
    shape = findings_shape(blueprint_of(CONFIG))
    length = 16 * shape.num_filters + 32 * shape.num_classes
    length += 4 * shape.num_classes * (shape.num_filters + shape.num_features)
    assert {row["values"] for row in answers} == {length}
    pushed = sorted(len(call.request) for call in runs.calls() if name(call) == "push-object")
    assert sum(length < each < length + 1500 for each in pushed) >= len(answers)


def test_all_other_bytes_are_http_headers(runs):
    """Nothing else is there, but for one call a connection that stopping a SuperNode may have cut off: a poll, a beat.

    They may be several, for a SuperNode's threads have connections of their own: with 1000 bytes for all of a tap, two
    calls that were cut off at once once failed this test.
    """
    for tap in runs.taps:
        calls = tap.calls()
        assert all(up < 1000 and down < 200 for up, down in tap.unanswered())
        assert sum(up > 0 for up, _ in tap.unanswered()) <= MOST_CUT_OFF
        assert all(500 < call.request_header_bytes < 1000 for call in calls)
        assert all(100 < call.response_header_bytes < 200 for call in calls)


def test_a_deployment_computes_and_counts_what_inline_does(runs):
    """Round for round the same encoder bits; message for message the same ledger, in the order replies came."""
    history = [read_lines(directory / "history.jsonl") for directory in (runs.inline, runs.deployment)]
    inline, deployed = ([row["encoder_fingerprint"] for row in rows] for rows in history)
    assert inline == deployed
    assert len(set(inline)) == ROUNDS
    ledgers = [read_lines(directory / "ledger.jsonl") for directory in (runs.inline, runs.deployment)]
    inline, deployed = (sorted(rows, key=str) for rows in ledgers)
    assert inline == deployed


def test_each_device_has_a_model_of_its_own_with_the_servers_statistics(runs):
    check_models(runs.deployment.parents[1], lambda client: blueprint_of(CONFIG).client_data(client).test)
