"""What `spatl status` says of a run at every stage of its life."""

import json

import pytest

from server.engines import run_inline
from spatl.console.main import main
from spatl.errors import ConfigError
from spatl.runs.directory import alone_in_run
from spatl.runs.status import read_status
from tests.support.federations import blob_of, run_tiny, tampering, tiny_config
from tests.support.terminals import as_terminal, widest_line, words_of


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """Four rounds in which client 1's replies 2 and 3 are lost and client 2 is refused until it is left out."""
    directory = tmp_path_factory.mktemp("status") / "run"
    config = tiny_config(rounds=4, method="fedavg", server={"max_failures": 2, "fraction_train": 1.0})

    def attack(client, content):
        return type(content)() if client == 2 and blob_of(content) else content

    def loses(client, message):
        return message.metadata.message_type == "train" and client == 1 and message.metadata.group_id in ("2", "3")

    run_tiny(config, directory, app=tampering(attack), loses=loses)
    return directory


@pytest.mark.slow
def test_health_of_every_client_is_in_its_line(troubled):
    status = read_status(troubled)
    assert (status.state, status.round, status.rounds) == ("finished", 4, 4)
    assert (status.refused, status.missing) == (2, 2)
    healthy, missing, refused = status.clients[0], status.clients[1], status.clients[2]
    assert (healthy.rounds, healthy.last_round, healthy.missed, healthy.refused) == (4, 4, 0, 0)
    assert (missing.rounds, missing.last_round, missing.missed, missing.refused) == (2, 4, 2, 0)
    assert (refused.rounds, refused.last_round, refused.missed, refused.refused) == (0, None, 0, 2)
    assert refused.left_out
    assert "has no spatl record" in refused.last_reason
    assert sum(client.uplink_bytes for client in status.clients) == status.uplink_bytes
    assert sum(client.downlink_bytes for client in status.clients) == status.downlink_bytes
    assert healthy.accuracy is not None


def test_the_command_prints_a_table_or_json(troubled, capsys):
    assert main(["status", str(troubled)]) == 0
    printed = capsys.readouterr().out
    assert "FedAvg, finished" in printed
    assert "round 4 of 4" in printed
    assert "client 2, left out for now; its last refusal: the reply has no spatl record" in printed
    assert main(["status", str(troubled), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["state"] == "finished"
    assert [client["client"] for client in content["clients"]] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_findings_are_listed_when_asked(troubled, tmp_path, capsys):
    run_tiny(
        tiny_config(rounds=3, method="fedavg", report={"findings": 2}), tmp_path / "run",
        loses=lambda client, message: (
            (client, message.metadata.message_type, message.metadata.group_id) == (3, "query.findings", "2")
        ),
    )  # fmt: skip
    assert main(["status", str(tmp_path / "run"), "--findings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "round 2: findings of 4 of 5 clients; none of client 3" in lines
    assert "round 3: findings of 5 of 5 clients" in lines
    assert main(["status", str(tmp_path / "run"), "--findings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == {"2": [0, 1, 2, 4], "3": [0, 1, 2, 3, 4]}
    assert main(["status", str(troubled), "--findings"]) == 0
    assert "no round has findings: report.findings asks for them" in capsys.readouterr().out
    assert main(["status", str(troubled)]) == 0
    assert "findings" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_table_is_whole_at_every_width(troubled, width, capsys, monkeypatch):
    if width is not None:
        as_terminal(monkeypatch, width)
    assert main(["status", str(troubled)]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    table = [line for line in text.splitlines() if ("accuracy" in line and "last" in line) or "2, out" in line]
    assert {"client", "accuracy", "missed", "refused", "2,", "out"} <= set(words_of(" ".join(table)))
    if width is not None:
        assert max(widest_line(line) for line in table) <= width


@pytest.mark.slow
def test_a_run_is_running_while_a_process_has_it_and_stopped_when_none_has(tmp_path):
    config = tiny_config(rounds=2)
    run_inline(config, tmp_path)
    (tmp_path / "summary.json").unlink()
    status = read_status(tmp_path)
    assert (status.state, status.seconds_left) == ("stopped", 0.0)
    assert status.message is not None
    assert "spatl run --resume" in status.message
    (tmp_path / "config.yaml").write_text(tiny_config(rounds=6).to_yaml())
    (tmp_path / "marks.json").unlink(missing_ok=True)
    with alone_in_run(tmp_path):
        status = read_status(tmp_path)
    assert status.state == "running"
    assert status.seconds_per_round is not None
    assert status.seconds_left == pytest.approx(4 * status.seconds_per_round)


@pytest.mark.slow
def test_a_run_that_failed_says_why(tmp_path):
    run_inline(tiny_config(rounds=1), tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "error.json").write_text('{"error": "SpatlError", "message": "the disk is full"}')
    status = read_status(tmp_path)
    assert (status.state, status.message) == ("failed", "the disk is full")


def test_before_its_first_round_a_run_has_clients_and_no_numbers(tmp_path):
    (tmp_path / "config.yaml").write_text(tiny_config().to_yaml())
    status = read_status(tmp_path)
    assert (status.round, status.accuracy, status.seconds_per_round, status.seconds_since) == (0, None, None, None)
    assert len(status.clients) == 5


def test_a_directory_without_a_run_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"holds no run: config\.yaml is not there"):
        read_status(tmp_path)
    assert main(["status", str(tmp_path)]) == 2
