"""What a simulation remembers of the states that it wrote is what the files say, and no more than the files say."""

import hashlib
import os
from dataclasses import replace

import torch

from clients import remembered
from clients.remembered import Remembered
from clients.store import DirectoryStore
from spatl.rounds.client_state import ClientState
from spatl.rounds.following import Held
from spatl.runs.files import STATE
from spatl.sealed_files import as_tensor
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])


def numbered(number: int) -> ClientState:
    state = ClientState.initial(LAYOUT)
    return replace(
        state, control_round=number, control=torch.full((6,), float(number)), selector={"theta": torch.ones(2)}
    )


def test_a_state_is_read_from_memory_while_its_file_is_the_one_written(tmp_path, monkeypatch):
    store = DirectoryStore(tmp_path, synced=False)
    store.save(numbered(1))
    store.save(numbered(2))
    with monkeypatch.context() as patch:
        patch.setattr(ClientState, "read", lambda path: 1 / 0)
        newest, before = store.load(), store.load(before=2)
    assert newest is not None
    assert before is not None
    assert (newest.control_round, before.control_round) == (2, 1)
    # Another store of the same directory, as another process has, reads the same from the files.
    state = ClientState.read(tmp_path / "state.safetensors")
    assert torch.equal(state.control, newest.control)


def test_a_file_that_somebody_else_wrote_counts_and_not_what_is_remembered(tmp_path):
    store = DirectoryStore(tmp_path, synced=False)
    store.save(numbered(1))
    other = tmp_path / "other"
    numbered(7).write(other)
    os.replace(other, tmp_path / "state.safetensors")
    state = store.load()
    assert state is not None
    assert state.control_round == 7
    (tmp_path / "state.safetensors").unlink()
    assert store.load() is None


def test_a_selector_that_changes_its_tensors_changes_nothing_that_is_remembered(tmp_path):
    store, saved = DirectoryStore(tmp_path, synced=False), numbered(1)
    store.save(saved)
    saved.selector["theta"].zero_()
    loaded = store.load()
    assert loaded is not None
    assert loaded.selector["theta"].tolist() == [1.0, 1.0]
    loaded.selector["theta"].zero_()
    again = store.load()
    assert again is not None
    assert again.selector["theta"].tolist() == [1.0, 1.0]


def test_a_state_of_an_earlier_process_is_gone_on_with(tmp_path):
    """What was read from a file keeps the versions of the encoder in it, and the file is replaced twice."""
    store = DirectoryStore(tmp_path, synced=False)
    offsets = torch.arange(6, dtype=torch.int32)
    with_held = replace(numbered(1), held=Held({1: offsets}))
    with_held.write(tmp_path / "state.safetensors")
    for number in (2, 3):
        state = store.load()
        assert state is not None
        held = Held({**state.held.offsets, number: offsets + number})
        store.save(replace(numbered(number), held=held))
    for kept in (store.load(), ClientState.read(tmp_path / "state.safetensors")):
        assert kept is not None
        found = {version: as_tensor(each).tolist() for version, each in kept.held.offsets.items()}
        assert found == {1: [0, 1, 2, 3, 4, 5], 2: [2, 3, 4, 5, 6, 7], 3: [3, 4, 5, 6, 7, 8]}


def test_a_device_remembers_nothing(tmp_path, monkeypatch):
    store = DirectoryStore(tmp_path)
    store.save(numbered(1))
    read = []
    whole = ClientState.read
    monkeypatch.setattr(ClientState, "read", lambda path, *, known: read.append(known) or whole(path, known=known))
    assert store.load() is not None
    assert read == [None]  # so that it is hashed as well


def test_a_state_that_is_too_large_to_be_remembered_is_not_hashed_again_while_its_file_is_the_one_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(remembered, "STATE_BYTES", 0)
    hashed, sha256 = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *begins: hashed.append(1) or sha256(*begins))
    store, path = DirectoryStore(tmp_path, synced=False), tmp_path / STATE
    for number in (1, 2):
        store.save(numbered(number))
    assert len(hashed) == 2  # as they were written
    for before, number in ((None, 2), (2, 1)):
        state = store.load(before=before)
        assert state is not None
        assert as_tensor(state.control).tolist() == [float(number)] * 6
    assert len(hashed) == 2
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))  # whatever the clock's steps are, it is another one
    state = store.load()
    assert len(hashed) == 3
    assert state is not None
    assert state.control_round == 1  # the damaged one is not used


def test_the_oldest_is_forgotten_beyond_so_many_bytes(tmp_path):
    """A state has two vectors of 6 and one of 2 float32 (c_i, the selector's): 32 bytes; of three, two have room."""
    known, paths = Remembered(64), [tmp_path / str(number) for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(b"a file")
        known.keep(path, path, numbered(number))
    found = [known.of(path) for path in paths]
    assert [each and each.control_round for each in found] == [None, 1, 2]
    known.move(paths[1], paths[0])
    os.replace(paths[1], paths[0])
    moved = known.of(paths[0])
    assert moved is not None
    assert (moved.control_round, known.of(paths[1])) == (1, None)
