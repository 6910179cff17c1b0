"""Error feedback over a whole federation: nothing of an update is lost, whichever replies are."""

import pytest
import torch

from spatl.channels.selection import Selection
from spatl.rounds.feedback import Feedback
from spatl.runs.records import read_lines
from tests.support.federations import blob_of, blueprint_of, opened, run_tiny, state_of, tampering, tiny_config

LOST = {(1, 2), (3, 1), (3, 2), (4, 3)}
"""Client and round of the answers that are lost after the client did its work."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["topk", "signsgd", "powersgd"])
def test_what_the_server_had_and_what_is_left_add_up_to_the_updates_that_count(
    tmp_path, monkeypatch, strategies, method
):
    config = tiny_config(method=method, rounds=4, wire={"downlink": "adaptive"})
    layout, made = blueprint_of(config).layout, list[torch.Tensor]()
    updates, sent = (torch.zeros(5, layout.num_entries) for _ in range(2))
    wanted = Feedback.wanted

    def note(self: Feedback, values: torch.Tensor, selection: Selection, own) -> torch.Tensor:
        made.append(values.clone())
        return wanted(self, values, selection, own)

    def arrives(client: int, content):
        update, own = opened(blob_of(content), layout), made.pop()
        if (client, update.server_round) not in LOST:
            updates[client] += own
            sent[client] += update.values
        return content

    def loses(client: int, message) -> bool:
        asked = message.metadata
        return asked.message_type == "train" and (client, int(asked.group_id)) in LOST

    monkeypatch.setattr(Feedback, "wanted", note)
    summary = run_tiny(config, tmp_path, app=tampering(arrives), loses=loses)
    assert summary["rejected"] == 0
    assert [each["missing"] for each in read_lines(tmp_path / "history.jsonl")] == [1, 2, 1, 0]
    (strategy,) = strategies
    for client in range(5):
        settled = state_of(tmp_path, client).settle(
            acknowledged_round=strategy.state.folded[client], server_round=5, half_life=None
        )
        assert settled.feedback is not None
        torch.testing.assert_close(sent[client] + settled.feedback.residual, updates[client], rtol=1e-4, atol=1e-6)
        assert float(settled.feedback.residual.abs().max()) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eden", "fedpaq", "fedavg"])
def test_a_codec_that_does_not_feed_back_keeps_nothing(tmp_path, method):
    run_tiny(tiny_config(method=method, rounds=2), tmp_path)
    state = state_of(tmp_path, 0)
    assert state.feedback is None
    assert state.pending_feedback is None


@pytest.mark.slow
def test_a_codec_of_ones_own_is_fed_back_if_it_says_so(tmp_path):
    """Half precision loses at most 2^-11 of a value, and 2^-25 of a very small one; an update here is below 1."""
    own = "tests.support.users_parts:FedBack"
    run_tiny(tiny_config(method="fedavg", rounds=2, wire={"uplink": own}), tmp_path)
    feedback = state_of(tmp_path, 0).pending_feedback
    assert feedback is not None
    assert 0 < float(feedback.residual.abs().max()) <= 2**-11


@pytest.mark.slow
def test_a_clipped_update_is_acknowledged_where_there_is_no_control_variate(tmp_path, strategies):
    """What it lost of itself counts as well, though the server scaled it down."""
    config = tiny_config(method="signsgd", rounds=3, server={"clip": 1e-3, "norm_bound": None})
    run_tiny(config, tmp_path)
    assert strategies[-1].state.folded == dict.fromkeys(range(5), 3)
