"""What a codec lost of a client's updates: what of it counts, where it is kept, and what does not touch it."""

import pytest
import torch

from spatl.channels.selection import Selection, select_all
from spatl.rounds.client_state import ClientState
from spatl.rounds.feedback import Feedback
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])


def state(*, left: float = 1.0) -> ClientState:
    """One whose update of round 4, which leaves 2, is under way."""
    before, pending = (Feedback(torch.full((6,), each), torch.tensor([each])) for each in (left, 2.0))
    initial = ClientState.initial(LAYOUT)
    kept = {name: getattr(initial, name) for name in ("private", "control")}
    return ClientState(**kept, control_round=4, pending_round=4, feedback=before, pending_feedback=pending)


@pytest.mark.parametrize(
    ("acknowledged", "left"), [(4, 2.0), (3, 1.0), (0, 1.0)], ids=["folded in", "lost", "none was ever folded in"]
)
def test_what_is_left_after_an_update_counts_once_the_server_has_folded_that_in(acknowledged, left):
    settled = state().settle(acknowledged_round=acknowledged, server_round=5, half_life=None)
    assert settled.feedback is not None
    assert settled.feedback.residual.tolist() == [left] * 6
    assert settled.feedback.memory.tolist() == [left]
    assert settled.pending_feedback is None
    again = settled.settle(acknowledged_round=acknowledged, server_round=6, half_life=None)
    assert again.feedback is settled.feedback


def test_it_is_written_and_read_back_and_nothing_is_written_of_none():
    read = ClientState.from_bytes(state().to_bytes())
    for found, expected in ((read.feedback, 1.0), (read.pending_feedback, 2.0)):
        assert found is not None
        assert (found.residual.tolist(), found.memory.tolist()) == ([expected] * 6, [expected])
    empty = ClientState.from_bytes(ClientState.initial(LAYOUT).to_bytes())
    assert empty.feedback is None
    assert empty.pending_feedback is None


def test_what_was_not_selected_keeps_what_is_left_of_it():
    """Of 0.5 left everywhere and updates of 1, 1.5 are wanted; 1 arrives, so that 0.5 are left, and 0.5 elsewhere."""
    selection = Selection(torch.tensor([True, False, True]))
    feedback = Feedback(torch.full((6,), 0.5), torch.zeros(0))
    number = selection.num_entries(LAYOUT)
    wanted = feedback.wanted(torch.ones(number), selection, LAYOUT)
    assert wanted.tolist() == [1.5] * number == [1.5] * 4
    after = feedback.after(wanted, torch.full((number,), 1.25), selection, LAYOUT, torch.ones(1))
    expected = torch.full((6,), 0.5)
    expected[selection.entries(LAYOUT)] = 0.25
    assert torch.equal(after.residual, expected)
    assert after.memory.tolist() == [1]
    assert feedback.residual.tolist() == [0.5] * 6  # state goes in and comes out


def test_the_first_update_is_wanted_as_it_is():
    values, everything = torch.arange(6.0), select_all(LAYOUT)
    wanted = Feedback.none().wanted(values, everything, LAYOUT)
    assert torch.equal(wanted, values)
    after = Feedback.none().after(wanted, torch.zeros(6), everything, LAYOUT, torch.zeros(0))
    assert torch.equal(after.residual, values)
