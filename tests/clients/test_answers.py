"""The answer that a device keeps: it goes out again for the same question, and only with the state that it led to."""

import os

import pytest

import clients.store
from clients.store import DirectoryStore
from spatl.errors import StateBusy
from spatl.rounds.client_state import ClientState
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])
ONE, OTHER = b"1" * 16, b"2" * 16


def test_the_answer_to_the_last_question_is_there_and_none_to_another(tmp_path):
    store = DirectoryStore(tmp_path)
    assert store.answer(ONE) is None
    store.save(ClientState.initial(LAYOUT), question=ONE, answer=b"update")
    assert (store.answer(ONE), store.answer(OTHER)) == (b"update", None)
    store.save(store.load())  # as an evaluation does, which changes the versions alone
    assert store.answer(ONE) == b"update"
    store.save(ClientState.initial(LAYOUT), question=OTHER, answer=b"next")
    assert (store.answer(ONE), store.answer(OTHER)) == (None, b"next")


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:20], lambda _: b""]
)
def test_a_damaged_answer_is_none(tmp_path, harm):
    store = DirectoryStore(tmp_path)
    store.save(ClientState.initial(LAYOUT), question=ONE, answer=b"update")
    path = tmp_path / "answer.bin"
    path.write_bytes(harm(path.read_bytes()))
    assert store.answer(ONE) is None


def test_an_answer_whose_state_was_not_written_does_not_count(tmp_path, monkeypatch):
    """The device dies between the two: with the answer would go a c_i that nobody has."""
    store = DirectoryStore(tmp_path)
    store.save(ClientState.initial(LAYOUT), question=ONE, answer=b"update")

    def dies(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clients.store.os, "replace", dies)
        patch.setattr(clients.store, "replace_file", lambda path, data: path.write_bytes(data))
        with pytest.raises(KeyboardInterrupt):
            store.save(ClientState.initial(LAYOUT), question=OTHER, answer=b"next")
    assert os.path.getsize(tmp_path / "answer.bin") == 32 + len(b"next")
    assert store.answer(OTHER) is None
    assert store.answer(ONE) is None  # it is gone, and worked out anew if it is asked for


def test_while_one_process_is_at_work_another_one_is_told_that_it_is_busy_and_then_finds_the_answer(tmp_path):
    one, other = DirectoryStore(tmp_path), DirectoryStore(tmp_path, wait=0.1)
    with one.locked():
        with pytest.raises(StateBusy, match="another process uses the client's state"), other.locked():
            pass
        one.save(ClientState.initial(LAYOUT), question=ONE, answer=b"update")
    with other.locked():
        assert other.answer(ONE) == b"update"
