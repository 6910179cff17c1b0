"""Tests of the tensors that states of clients share: written once, read as they were written."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatl.rounds.client_state import ClientState
from spatl.runs.files import CLIENTS_STATES
from spatl.runs.state_tensors import StateTensors
from spatl.runs.states import States, make_states, states_of
from tests.support.states import LAYOUT, num_tensors, numbered


@pytest.fixture
def written_states(tmp_path: Path) -> Iterator[States]:
    make_states(tmp_path, num_parameters=10, cluster=False)
    found = states_of(tmp_path)
    assert found is not None
    yield found
    found.close()


def test_a_control_variate_is_written_once_and_fades_where_it_lies(tmp_path: Path, written_states: States) -> None:
    """What is pending in one round is c_i in the next: a round adds what was sent in it, and takes away the oldest."""
    state: ClientState | None = ClientState.initial(LAYOUT)
    sent = []
    for number in range(1, 6):
        assert state is not None
        state = state.settle(acknowledged_round=max(0, number - 1), server_round=number, half_life=2.0)
        if sent:
            assert torch.equal(torch.as_tensor(state.control), sent[-1] * 0.5**0.5)
        sent.append(torch.full((6000,), float(number)))
        written_states.write(0, replace(state, pending_round=number, pending_control=sent[-1]))
        # c_i and what is pending, of this round and of the one before: three of four, for one is both.
        assert num_tensors(tmp_path) == min(number + 1, 3)
        state = written_states.read(0)


def test_what_was_changed_in_place_is_written_as_it_is(tmp_path: Path, written_states: States) -> None:
    values = torch.ones(6000)
    written_states.write(0, replace(numbered(1), pending_control=values))
    values.fill_(7.0)
    written_states.write(0, replace(numbered(2), control=values, pending_control=torch.zeros(6000)))
    written_states.close()
    other = States(tmp_path / CLIENTS_STATES, reads=True)
    found = other.read(0)
    other.close()
    assert found is not None
    assert torch.equal(torch.as_tensor(found.control), torch.full((6000,), 7.0))


def test_a_selectors_tensor_without_a_version_is_kept_too(written_states: States) -> None:
    with torch.inference_mode():
        kept = torch.arange(6000.0)
    state = replace(numbered(1), selector={"kept": kept})
    for _ in range(2):
        written_states.write(0, state)
        read = written_states.read(0)
        assert read is not None
        assert torch.equal(read.selector["kept"], torch.arange(6000.0))


def test_what_is_forgotten_is_written_and_read_as_before(tmp_path: Path, written_states: States) -> None:
    """One object that is written, changed and written again, and more than a process remembers after it."""
    with closing(sqlite3.connect(tmp_path / CLIENTS_STATES, isolation_level=None)) as file:
        tensors = StateTensors(file, num_bytes=60_000)
        values = torch.ones(6000)
        first = tensors.keep_all({"pending_control": values})
        values.add_(1.0)
        second = tensors.keep_all({"control": values, "pending_control": torch.zeros(0)})
        for number in range(5):
            tensors.keep_all({"control": torch.full((6000,), 3.0 + number)})
        again = tensors.keep_all({"control": values})
        assert again["control"] == second["control"] != first["pending_control"]
        other = StateTensors(file)
        assert torch.equal(other.read_all(first)["pending_control"], torch.ones(6000))
        assert torch.equal(other.read_all(second)["control"], torch.full((6000,), 2.0))
