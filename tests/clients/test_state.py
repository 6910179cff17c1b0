"""A client's state survives being written and read, and settles its pending update exactly once."""

import pytest
import torch
from flwr.app import RecordDict

from clients.state import ClientState, ContextStore, DirectoryStore
from spatl.errors import SpatlError
from tests.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])


def pending_state() -> ClientState:
    return ClientState(
        private={"head.weight": torch.randn(2, 3), "norm.num_batches_tracked": torch.tensor(7)},
        control=torch.full((6,), 1.0),
        control_round=4,
        pending_round=4,
        pending_control=torch.full((6,), 2.0),
        selector={"theta": torch.randn(5)},
    )


def same(one: ClientState, other: ClientState) -> bool:
    return (
        torch.equal(one.control, other.control)
        and torch.equal(one.pending_control, other.pending_control)
        and (one.control_round, one.pending_round) == (other.control_round, other.pending_round)
        and all(
            a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
            for a, b in ((one.private, other.private), (one.selector, other.selector))
        )
    )


def test_reading_gives_back_what_was_written():
    state = pending_state()
    assert same(ClientState.from_bytes(state.to_bytes()), state)
    empty = ClientState.initial(interleaved_layout([(1, 1)]))
    assert same(ClientState.from_bytes(empty.to_bytes()), empty)


@pytest.mark.parametrize("kind", ["directory", "context"])
def test_a_store_holds_the_last_state_saved(tmp_path, kind):
    store = DirectoryStore(tmp_path / "clients" / "3") if kind == "directory" else ContextStore(RecordDict())
    assert store.load() is None
    store.save(ClientState.initial(LAYOUT))
    store.save(pending_state())
    loaded = store.load()
    assert loaded is not None
    assert loaded.pending_round == 4
    if kind == "directory":
        assert [path.name for path in (tmp_path / "clients" / "3").iterdir()] == ["state.safetensors"]


def test_damaged_state_is_one_clear_error(tmp_path):
    store = DirectoryStore(tmp_path)
    store.save(pending_state())
    path = tmp_path / "state.safetensors"
    for damaged in (b"", path.read_bytes()[:40], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(SpatlError, match="the client's state is damaged"):
            store.load()


@pytest.mark.parametrize(("acknowledged", "value"), [(4, 2.0), (3, 1.0), (0, 1.0), (5, 1.0)])
def test_a_pending_update_is_committed_only_when_the_server_names_its_round(acknowledged, value):
    settled = pending_state().settle(acknowledged_round=acknowledged, server_round=5, half_life=None)
    assert settled.control.tolist() == [value] * 6
    assert settled.pending_round == 0
    again = settled.settle(acknowledged_round=acknowledged, server_round=6, half_life=None)
    assert torch.equal(again.control, settled.control)


def test_c_i_fades_with_the_rounds_that_passed():
    """Committed in round 4 at 2.0; in round 8, with a half-life of two rounds, 2.0 / 4."""
    settled = pending_state().settle(acknowledged_round=4, server_round=8, half_life=2.0)
    assert settled.control.tolist() == [0.5] * 6
    assert settled.control_round == 8
    assert settled.settle(acknowledged_round=4, server_round=8, half_life=2.0).control.tolist() == [0.5] * 6


def test_control_variates_start_at_zero_and_cover_trainable_parameters_only():
    layout = interleaved_layout([(1, 2), (3, 2)], statistics=4)
    state = ClientState.initial(layout)
    assert state.control.tolist() == [0.0] * layout.num_parameter_entries
    assert layout.num_parameter_entries == layout.num_entries - 4
