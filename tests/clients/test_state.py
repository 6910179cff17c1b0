"""A client's state survives being written and read, and settles its pending update exactly once."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from clients.store import ContextStore, DirectoryStore
from spatl.errors import DamagedState, SpatlError
from spatl.rounds.client_state import ClientState
from spatl.sealed_files import as_tensor
from tests.support.layouts import interleaved_layout

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
        names = sorted(path.name for path in (tmp_path / "clients" / "3").iterdir())
        assert names == ["previous.safetensors", "state.safetensors"]


def test_damaged_state_is_one_clear_error(tmp_path):
    store = DirectoryStore(tmp_path)
    store.save(pending_state())
    path = tmp_path / "state.safetensors"
    for damaged in (b"", path.read_bytes()[:40], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(SpatlError, match="the client's state is damaged"):
            store.load()


WHOLE = pending_state().to_bytes()


@given(place=st.integers(0, len(WHOLE) - 1), change=st.integers(1, 255))
def test_every_byte_that_is_not_as_written_is_noticed(place, change):
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    with pytest.raises(DamagedState):
        ClientState.from_bytes(bytes(damaged))


@pytest.mark.parametrize("change", [0x01, 0x20, 0x80])
def test_every_byte_of_the_seal_and_around_it_matters(change):
    """Hypothesis may miss these: the mark, the format before it and the digits."""
    start = WHOLE.index(b"format") - 2
    for place in range(start, WHOLE.index(b"seal") + 80):
        damaged = bytearray(WHOLE)
        damaged[place] ^= change
        with pytest.raises(DamagedState):
            ClientState.from_bytes(bytes(damaged))


@given(length=st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_noticed(length):
    with pytest.raises(DamagedState):
        ClientState.from_bytes(WHOLE[:length])


def test_a_state_of_another_format_is_refused_in_one_line(tmp_path, monkeypatch):
    """Of a later version, sealed, and of the one before, which had no seal; neither is replaced by the state before."""
    store = DirectoryStore(tmp_path)
    store.save(pending_state())
    with monkeypatch.context() as patch:
        patch.setattr("spatl.rounds.client_state.FORMAT", 9)
        store.save(pending_state())
    with pytest.raises(SpatlError, match=r"^the client's state has format 9, this version reads 7$"):
        store.load()
    old = WHOLE.replace(rb"\"format\": 7", rb"\"format\": 2").replace(b"seal", b"leas")
    (tmp_path / "state.safetensors").write_bytes(old)
    with pytest.raises(SpatlError, match=r"^the client's state has format 2, this version reads 7$"):
        store.load()


def numbered(number: int) -> ClientState:
    return replace(ClientState.initial(LAYOUT), control_round=number, control=torch.full((20_000,), float(number)))


def number_in(directory: Path) -> int:
    state = DirectoryStore(directory).load()
    if state is None:
        return 0
    assert torch.equal(state.control, numbered(state.control_round).control)
    return state.control_round


def break_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [break_file, Path.unlink])
def test_the_state_before_is_used_where_the_newest_cannot_be(tmp_path, caplog, damage):
    store = DirectoryStore(tmp_path)
    store.save(numbered(1))
    store.save(numbered(2))
    damage(tmp_path / "state.safetensors")
    with caplog.at_level(logging.WARNING):
        loaded = store.load()
    assert loaded is not None
    assert loaded.control_round == 1
    assert len(caplog.records) == 1
    assert "going on from the one before it, of round 1" in caplog.text
    store.save(numbered(3))  # the damaged one does not become the state before
    break_file(tmp_path / "state.safetensors")
    assert number_in(tmp_path) == 1


def test_two_damaged_states_are_one_clear_error(tmp_path):
    store = DirectoryStore(tmp_path)
    store.save(numbered(1))
    store.save(numbered(2))
    for name in ("state", "previous"):
        break_file(tmp_path / f"{name}.safetensors")
    with pytest.raises(DamagedState, match="and so is the one before it"):
        store.load()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_save_that_fails_at_any_step_leaves_a_whole_state(tmp_path, monkeypatch, step, nth):
    store = DirectoryStore(tmp_path)
    store.save(numbered(1))
    store.save(numbered(2))
    calls, truly = [], getattr(os, step)

    def fails(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError("the disk is gone")
        return truly(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises(OSError, match="gone"):
            store.save(numbered(3))
    # Once the names are there, only the directory's sync is missing.
    assert number_in(tmp_path) == (3 if (step, nth) == ("fsync", 2) else 2)
    store.save(numbered(4))
    assert number_in(tmp_path) == 4


def test_a_state_that_is_not_synced_waits_for_no_disk_and_is_whole_with_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("it waited for the disk"))
    store = DirectoryStore(tmp_path, synced=False)
    for number in (1, 2, 3):
        store.save(numbered(number))
    monkeypatch.undo()
    assert number_in(tmp_path) == 3
    break_file(tmp_path / "state.safetensors")  # as a machine without power may leave it
    assert number_in(tmp_path) == 2


SAVER = """
import os, sys
from pathlib import Path
from clients.store import DirectoryStore
from tests.clients.test_state import numbered
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        number = int(line)
        store = DirectoryStore(Path(sys.argv[1]), synced=number % 2 == 0)
        with store.locked():
            os.write(1, f"{os.getpid()}\\n".encode())
            while True:
                number += 1
                store.save(numbered(number))
                os.write(1, f"{number}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks and locks")
def test_a_process_killed_while_it_saves_leaves_a_whole_state_and_no_lock(tmp_path):
    """Thirty times, at random instants, waiting for the disk or not; while it lives, nobody else gets the state."""
    draw = random.Random(5)
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(30):
            last = number_in(tmp_path)
            saver.stdin.write(f"{last}\n")
            pid = int(saver.stdout.readline())
            with (
                pytest.raises(SpatlError, match="another process uses the client's state"),
                DirectoryStore(tmp_path, wait=0).locked(),
            ):
                pass
            time.sleep(draw.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            while (line := saver.stdout.readline()) != "dead\n":
                last = int(line)
            # Between its last rename and its telling, a save is done as well.
            assert number_in(tmp_path) in (last, last + 1)
            with DirectoryStore(tmp_path).locked():
                assert not (tmp_path / "state.tmp").exists()
        saver.stdin.close()
    assert last > 5


@pytest.mark.skipif(sys.platform == "win32", reason="locks")
def test_the_lock_is_free_again_after_an_error_and_what_a_killed_process_left_is_cleared(tmp_path):
    store = DirectoryStore(tmp_path, wait=0)
    with pytest.raises(ValueError, match="diverged"), store.locked():
        raise ValueError("diverged")
    (tmp_path / "state.tmp").write_bytes(WHOLE[:50])
    with store.locked():
        assert not (tmp_path / "state.tmp").exists()
        store.save(pending_state())
    assert store.load() is not None


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


def test_a_state_that_corrects_nothing_takes_no_vector_of_zeros(tmp_path):
    state = replace(ClientState.initial(LAYOUT), control=torch.zeros(1).expand(10**6))
    path = tmp_path / "state"
    state.write(path)
    assert path.stat().st_size < 2000
    assert ClientState.read(path).settle(acknowledged_round=0, server_round=1, half_life=None).control.tolist() == [0.0]


def test_control_variates_start_at_zero_and_cover_trainable_parameters_only():
    layout = interleaved_layout([(1, 2), (3, 2)], statistics=4)
    state = ClientState.initial(layout)
    assert state.control.tolist() == [0.0] * layout.num_parameter_entries
    assert layout.num_parameter_entries == layout.num_entries - 4


def in_round(number):
    return ClientState(private={}, control=torch.full((4,), float(number)), control_round=number)


@pytest.mark.parametrize(
    ("saved", "before", "expected"),
    [
        ([], 1, None),
        ([1], 2, 1),
        ([1], 1, None),  # its first round again
        ([1, 2], 2, 1),
        ([1, 2, 2, 2], 2, 1),  # however often it is repeated
        ([2, 5], 9, 5),
        ([1, 2], 1, 1),  # the server lost a round more: the update in this state is pending, and dropped
        ([1, 2, 3], 1, "lost"),
        ([4], 3, "lost"),
    ],
)
def test_a_repeated_round_starts_from_the_state_of_the_round_before(tmp_path, saved, before, expected):
    for store in (DirectoryStore(tmp_path), ContextStore(RecordDict())):
        for number in saved:
            store.save(in_round(number))
        if expected == "lost":
            with pytest.raises(SpatlError, match=rf"the server asks for round {before}, this client has been in round"):
                store.load(before=before)
            continue
        state = store.load(before=before)
        assert (None if state is None else state.control_round) == expected


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["folded", "lost", "written anew"])), max_size=14),
    st.sampled_from([None, 1.0, 2.0, 3.3]),
)
def test_c_i_is_what_fading_step_by_step_makes_of_it_however_it_is_kept(rounds, half_life):
    """And survives being written and read at any time, to the bit."""
    state, number, acknowledged = ClientState.initial(LAYOUT), 0, 0
    expected, settled_at = torch.zeros(LAYOUT.num_parameter_entries), 0
    pending = None
    for passed, what in rounds:
        number += passed
        if pending is not None and what == "folded":
            acknowledged, expected = pending
        if settled_at and half_life is not None:
            expected = expected * 0.5 ** ((number - settled_at) / half_life)
        state = state.settle(acknowledged_round=acknowledged, server_round=number, half_life=half_life)
        settled_at = number
        assert torch.equal(as_tensor(state.control), expected)
        if what == "written anew":
            state = ClientState.from_bytes(state.to_bytes())
            assert torch.equal(as_tensor(state.control), expected)
        moved = torch.randn(LAYOUT.num_parameter_entries, generator=torch.Generator().manual_seed(number))
        pending = number, moved
        state = replace(state, pending_round=number, pending_control=moved)
        state = ClientState.from_bytes(state.to_bytes())
