"""Rounds that devices rest in do not count, and one that hangs does not cost every round its whole time."""

from pathlib import Path

import pytest

from server import waiting
from server.grids import InProcessGrid
from server.waiting import Rest
from spatl.errors import SpatlError
from spatl.rounds.answers import Outcome
from spatl.runs.records import read_lines
from spatl.runs.waiting import read_waiting
from tests.support.own_data import check_devices_control, own_config, serve_devices

NOBODY = Outcome(rejected={0: "not now", 1: "not now"}, not_now={0, 1})


def resting(base: Path, *, numbers: dict[int, int]) -> dict[int, Path]:
    """Have owners let their devices rest the first few times that they are asked; return the places of all states."""
    for client in range(3):
        own = base / f"owner-{client}"
        own.mkdir()
        if client in numbers:
            counter = f"test $(echo x >> count; wc -l < count) -gt {numbers[client]}"
            (own / "device.yaml").write_text(f"limits: {{command: [sh, -c, '{counter}']}}")
            (own / "device.yaml").chmod(0o600)
    return {client: base / f"owner-{client}" / "state" for client in range(3)}


@pytest.fixture
def slept(monkeypatch):
    """What the server waited for resting devices, and what it said of it meanwhile."""
    found = []

    def sleep(seconds):
        if seconds == waiting.REST_SECONDS:
            found.append(seconds)

    monkeypatch.setattr(waiting.time, "sleep", sleep)
    return found


@pytest.mark.slow
def test_a_night_in_which_all_devices_rest_is_no_round_and_changes_no_number(devices, slept, monkeypatch):
    told, written = [], waiting.write_waiting
    monkeypatch.setattr(waiting, "write_waiting", lambda run, what: (told.append(what), written(run, what)))
    config = own_config(rounds=3, method="spatl")
    serve_devices(config, devices, run=devices / "undisturbed", states={n: devices / f"u-{n}" / "s" for n in range(3)})
    places = resting(devices, numbers={0: 4, 1: 4, 2: 4})
    serve_devices(config, devices, states=places)
    rows, expected = (read_lines(devices / name / "history.jsonl") for name in ("run", "undisturbed"))
    assert len(slept) == 4
    assert [row["participants"] for row in rows] == [3, 3, 3]
    assert [row["rejected"] for row in rows] == [0, 0, 0]
    assert [row["encoder_fingerprint"] for row in rows] == [row["encoder_fingerprint"] for row in expected]
    assert [_questions(devices / name) for name in ("run", "undisturbed")] == [5 * 3, 3]  # each is counted
    assert "waits since" in str(told[0])
    assert str(told[0]).endswith("for 1 more of 1 clients; the owners of their devices let them rest: 0, 1, 2")
    assert len(told) == 2  # not each minute
    assert read_waiting(devices / "run") is None
    states = {client: place / "20260101-000000-ab" for client, place in places.items()}
    rows = read_lines(devices / "run" / "clients.jsonl")
    check_devices_control(devices, config, {row["client"]: row["num_examples"] for row in rows}, states=states)


def _questions(run: Path) -> int:
    """How often devices were asked for the first round."""
    return sum(
        (line["round"], line["phase"], line["direction"]) == (1, "train", "downlink")
        for line in read_lines(run / "ledger.jsonl")
    )


@pytest.mark.slow
def test_where_a_round_draws_some_the_others_are_asked_before_anybody_is_waited_for(devices, slept, monkeypatch):
    monkeypatch.setattr("server.strategy.secrets.randbits", lambda bits: 7)
    config = own_config(rounds=6, server={"connect_timeout_seconds": 0.2, "fraction_train": 0.3})
    serve_devices(config, devices, states=resting(devices, numbers={0: 10**6, 1: 10**6}))
    rows = read_lines(devices / "run" / "clients.jsonl")
    assert slept == []
    assert [row["client"] for row in rows if row["participated"]] == [2] * 6


@pytest.mark.slow
def test_what_too_few_have_made_while_the_others_rest_is_used_once_they_work(devices, slept):
    """Client 0 works; two of three are needed. It is asked three times, and trains once."""
    config = own_config(rounds=1, server={"connect_timeout_seconds": 0.2, "min_replies": 2})
    places = resting(devices, numbers={1: 2, 2: 2})
    (devices / "owner-0" / "device.yaml").write_text("limits: {rounds_a_day: 1}")
    (devices / "owner-0" / "device.yaml").chmod(0o600)
    serve_devices(config, devices, states=places)
    (row,) = read_lines(devices / "run" / "history.jsonl")
    assert (row["participants"], row["rejected"], row["skipped"]) == (3, 0, False)
    assert len(slept) == 2


def test_a_round_counts_where_something_else_is_wrong_than_that_devices_rest(tmp_path, slept):
    for outcome in (
        Outcome(),
        Outcome(rejected={0: "no"}),
        Outcome(rejected={0: "no", 1: "not now"}, not_now={1}),
        Outcome(rejected=NOBODY.rejected, not_now=NOBODY.not_now, ending=SpatlError("over")),
    ):
        assert Rest(1, own_config().server, run=tmp_path).is_over(outcome)
    assert slept == []


def test_a_server_gives_up_on_devices_that_rest_when_it_was_told_to(tmp_path, slept):
    server = own_config(server={"give_up_seconds": 1e-9}).server
    rest = Rest(3, server, run=tmp_path)
    assert not rest.is_over(NOBODY)
    with pytest.raises(SpatlError, match=r"round 3 waits since .* let them rest: 0, 1; given up after 1e-09 s"):
        rest.wait(NOBODY, (0, 1), (0, 1))


def silent(first: int = 1, *, client: int = 1, kinds: tuple[str, ...] = ("train",)) -> type[InProcessGrid]:
    """A grid on which a client is there and does not answer, from a round on."""

    class Silent(InProcessGrid):
        def __init__(self, *arguments, **named):
            def is_lost(whose, message):
                own = message.metadata
                return (
                    whose == client and own.message_type in kinds and int(own.group_id) >= first and int(own.group_id)
                )

            super().__init__(*arguments, loses=is_lost, **named)

    return Silent


@pytest.mark.slow
def test_a_device_that_is_there_and_never_answers_is_left_out_for_a_while_and_named(devices, caplog):
    config = own_config(rounds=9, server={"max_failures": 2, "rounds_away": 3, "connect_timeout_seconds": 0.2})
    serve_devices(config, devices, grid_type=silent(first=2))
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in rows] == [3] + [2] * 8
    assert [row["missing"] for row in rows] == [0, 1, 1, 0, 0, 0, 1, 0, 0]
    assert [row["left_out"] for row in rows] == [[], [], [], [1], [1], [1], [], [1], [1]]
    line = "client 1 is connected and did not answer, its failure 2 in a row: it is left out of the next 3 rounds"
    assert f"round 3: {line}" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["patience", "simulation", "away"])
def test_nobody_is_left_out_who_is_slow_by_patience_or_away_or_whose_machine_is_the_servers(devices, how):
    more = {"patience": 2.0} if how == "patience" else {}
    config = own_config(rounds=5, server={"max_failures": 2, "connect_timeout_seconds": 0.2, **more})

    class Gone(silent()):
        def get_node_ids(self):
            nodes = super().get_node_ids()
            return [node for node in nodes if node != 3] if getattr(self, "begun", False) else nodes

        def send_and_receive(self, messages, *, timeout=None):
            outgoing = list(messages)
            self.begun = bool(outgoing) and outgoing[0].metadata.message_type == "train"
            yield from super().send_and_receive(outgoing, timeout=timeout)

    grid = Gone if how == "away" else silent()
    serve_devices(config, devices, grid_type=grid, strict=how == "simulation")
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [(row["missing"], row["left_out"]) for row in rows] == [(1, [])] * 5
