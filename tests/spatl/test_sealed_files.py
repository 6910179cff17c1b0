"""A sealed file is a safetensors file, written and read a piece at a time."""

import hashlib
import json
import os
import threading

import pytest
import torch
from safetensors.torch import save

from spatl import sealed_files
from spatl.disk.locks import alone_in, is_locked
from spatl.errors import DamagedState, SpatlError
from spatl.sealed_files import StoredTensor, as_tensor, identity_of, read_sealed, seal, some_of, unseal, write_sealed

TENSORS = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "long": torch.arange(3),
    "matrix": torch.arange(12.0).view(3, 4).t(),
    "none": torch.zeros(0),
    "number": torch.tensor([7.0]).expand(1, 1),
    "one": torch.tensor(2.5),
    "zeros": torch.zeros(1).expand(1000),
    "int": torch.arange(4, dtype=torch.int32),
    "byte": torch.arange(4, dtype=torch.uint8),
}
HEADER = {"round": 3, "named": {"a": 1.5}}


def sealed_at(path):
    write_sealed(path, TENSORS, HEADER, version=7)
    return path


def test_the_bytes_are_those_of_the_safetensors_package(tmp_path):
    data = seal(TENSORS, HEADER, version=7)
    place = sealed_files.seal_place(data)
    digits = data[place : place + 64].decode()
    metadata = {"spatl": json.dumps({"format": 7, "seal": digits, **HEADER})}
    assert data == save({name: each.contiguous().clone() for name, each in TENSORS.items()}, metadata=metadata)
    assert digits == hashlib.sha256(data[:place] + data[place + 64 :]).hexdigest()
    assert sealed_at(tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("piece", [1 << 20, 3])
def test_what_is_written_is_read_from_the_file_and_from_memory(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_files, "PIECE_BYTES", piece)
    path = sealed_at(tmp_path / "file")
    stored, header = read_sealed(path, version=7, what="it")
    held, same_header = unseal(path.read_bytes(), version=7, what="it")
    assert {name: header[name] for name in HEADER} == HEADER
    assert header == same_header
    for name, tensor in TENSORS.items():
        assert isinstance(stored[name], StoredTensor)
        for found in (as_tensor(stored[name]), held[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def test_a_stored_tensor_goes_from_file_to_file(tmp_path):
    stored, _ = read_sealed(sealed_at(tmp_path / "one"), version=7, what="it")
    write_sealed(tmp_path / "other", stored, HEADER, version=7)
    assert (tmp_path / "other").read_bytes() == (tmp_path / "one").read_bytes()


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_a_changed_byte_is_noticed_before_anything_is_used(place, tmp_path):
    path = sealed_at(tmp_path / "file")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedState, match="it is damaged"):
        read_sealed(path, version=7, what="it")


@pytest.mark.parametrize("length", [0, 4, 8, 100])
def test_a_file_that_ends_too_early_is_damaged(length, tmp_path):
    path = sealed_at(tmp_path / "file")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedState, match="it is damaged"):
        read_sealed(path, version=7, what="it")


def test_another_version_is_told_from_damage(tmp_path):
    with pytest.raises(SpatlError, match="it has format 7, this version reads 8"):
        read_sealed(sealed_at(tmp_path / "file"), version=8, what="it")


def test_a_file_that_is_known_is_not_hashed_and_another_is(tmp_path):
    path = sealed_at(tmp_path / "file")
    before = identity_of(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))  # whatever the clock's steps are, it is another one
    with pytest.raises(DamagedState, match="SHA-256"):
        read_sealed(path, version=7, what="it", known=before)
    read_sealed(path, version=7, what="it", known=identity_of(path))


def test_some_of_a_stored_tensor_is_read_as_it_lies(tmp_path):
    numbers = torch.arange(1000, dtype=torch.int32)
    write_sealed(tmp_path / "file", {"numbers": numbers, **TENSORS}, HEADER, version=7)
    stored, _ = read_sealed(tmp_path / "file", version=7, what="it")
    for part in (slice(0, 1000), slice(7, 19), slice(999, 1000), slice(3, 3)):
        assert torch.equal(some_of(stored["numbers"], part), numbers[part])
        assert torch.equal(some_of(numbers, part), numbers[part])


def test_a_tensor_of_a_file_that_was_replaced_is_not_read(tmp_path):
    path = sealed_at(tmp_path / "file")
    stored, _ = read_sealed(path, version=7, what="it")
    write_sealed(tmp_path / "new", {**TENSORS, "more": torch.zeros(2)}, HEADER, version=7)
    (tmp_path / "new").replace(path)
    with pytest.raises(DamagedState, match="was replaced while it was in use"):
        stored["matrix"].read()
    path.unlink()
    with pytest.raises(DamagedState, match="cannot read"):
        stored["matrix"].read()


def test_whoever_looks_whether_a_lock_is_held_keeps_nobody_out(tmp_path):
    """A look holds it for an instant, again and again here."""
    lock, over = tmp_path / ".lock", threading.Event()
    lock.touch()

    def look() -> None:
        while not over.is_set():
            is_locked(lock)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(2000):
            with alone_in(lock, otherwise=SpatlError("another is in")):
                pass
    finally:
        over.set()
        looker.join()
