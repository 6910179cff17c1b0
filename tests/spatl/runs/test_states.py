"""The states of many clients in one file are what each saved last, whoever is killed when."""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clients.shared_store import SharedStore
from spatl.errors import DamagedState, SpatlError, StateBusy
from spatl.rounds.client_state import ClientState
from spatl.rounds.following import Held
from spatl.runs.files import CLIENTS_LOCK, CLIENTS_STATES
from spatl.runs.state_tensors import StateTensors
from spatl.runs.states import States, kept_by, make_states, reading_states, states_of
from tests.support.states import NUM_CLIENTS, num_tensors, numbered


@pytest.fixture
def states(tmp_path: Path) -> Iterator[States]:
    make_states(tmp_path, num_parameters=10, cluster=False)
    found = states_of(tmp_path)
    assert found is not None
    yield found
    found.close()


def rounds_of(run: Path) -> list[int]:
    """The round of each client's state, by another connection than the one that writes; -1 where there is none."""
    other = States(run / CLIENTS_STATES, reads=True)
    found = [other.read(client) for client in range(NUM_CLIENTS)]
    other.close()
    for client, state in enumerate(found):
        if state is not None:
            assert state.to_bytes() == numbered(state.control_round, client).to_bytes()
    return [-1 if state is None else state.control_round for state in found]


def test_what_is_read_is_what_was_written_with_the_state_of_the_round_before(tmp_path: Path, states: States) -> None:
    whole = replace(
        numbered(4),
        private={"n": torch.tensor(7), "empty": torch.zeros(0), "half": torch.ones(2, 3, dtype=torch.bfloat16)},
        own_model={"same": torch.tensor([0.1]).expand(5)},
        held=Held({3: torch.zeros(2, dtype=torch.int32)}, base=torch.randn(9), control=torch.randn(4)),
        answered="ab",
    )
    states.write(2, numbered(3, 2))
    states.write(2, whole)
    for reader in (states, States(states.path, reads=True)):
        for before, expected in ((False, whole), (True, numbered(3, 2))):
            found = reader.read(2, before=before)
            assert found is not None
            assert found.to_bytes() == expected.to_bytes()
    states.write(2, whole)  # the same round again: the one before stays
    before = states.read(2, before=True)
    assert before is not None
    assert before.control_round == 3
    assert states.read(1) is None


def test_tensors_that_are_equal_lie_there_once_and_none_that_nobody_has(tmp_path: Path, states: States) -> None:
    """Of a round all clients hold the same encoder and pending c_i, and each a c_i of its own: 2 + 3.

    `theta` is the same for all, always. After a second round both are kept, after a third the last two.
    """
    for number, expected in ((1, 6), (2, 11), (3, 11), (4, 11)):
        for client in range(NUM_CLIENTS):
            states.write(client, numbered(number, client))
        assert num_tensors(tmp_path) == expected


def test_the_small_tensors_of_a_state_lie_together_whatever_numbers_they_are_of(tmp_path: Path, states: States) -> None:
    """Forty layers with three statistics and a counter each, and a network of few entries: what 160 rows were is one.

    What travels to all clients alike lies by itself, however small, and once.
    """
    draw = torch.Generator().manual_seed(5)
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
    private = {
        f"layer{number}.{name}": torch.randint(0, 2 + number, shape, generator=draw).to(kinds[number % len(kinds)])
        for number in range(40)
        for name, shape in {"mean": (1 + number,), "variance": (3, 5), "weight": (0, 2), "counter": ()}.items()
    }
    held = Held({1: torch.arange(7, dtype=torch.int32)})
    for client in range(NUM_CLIENTS):
        own = {"large": torch.ones(5000), **private, "own": torch.tensor([client]), "last": torch.ones(5000)}
        states.write(client, replace(numbered(1, client), private=own, control=torch.arange(3.0), held=held))
    assert num_tensors(tmp_path) == 3 + NUM_CLIENTS  # held, pending c_i, the large ones, and what each has together
    for reader in (states, States(states.path, reads=True)):
        found = reader.read(1)
        assert found is not None
        assert list(found.private) == ["large", *private, "own", "last"]
        for name, tensor in private.items():
            assert found.private[name].dtype == tensor.dtype
            assert torch.equal(found.private[name], tensor)
        assert found.private["own"].item() == 1


def test_a_client_that_was_only_evaluated_is_a_short_line(tmp_path: Path, states: States) -> None:
    """It never trained: its c_i is 0, and it holds the encoder that all hold, so that no tensor of its is written."""
    held = Held({1: torch.arange(50_000, dtype=torch.int32)})
    nothing = ClientState(private={}, control=torch.zeros(50_000), held=held)
    states.write(0, nothing)
    states.settle()
    before = states.path.stat().st_size
    for client in range(1, 100):
        states.write(client, nothing)
    states.settle()
    assert num_tensors(tmp_path) == 3
    assert states.path.stat().st_size - before < 99 * 1000


def test_a_round_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    make_states(tmp_path, num_parameters=10, cluster=False)
    with suppress(KeyboardInterrupt), kept_by(tmp_path, alone=True):
        states = states_of(tmp_path)
        assert states is not None
        for number in (1, 2):
            for client in range(NUM_CLIENTS):
                states.write(client, numbered(number, client))
                own = states.read(client)
                assert own is not None
                assert own.control_round == number  # this process goes on from it
                assert rounds_of(tmp_path) == [number - 1 or -1] * NUM_CLIENTS
            states.settle()
            assert rounds_of(tmp_path) == [number] * NUM_CLIENTS
        states.write(0, numbered(3))
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "clients").iterdir()] == ["states.sqlite"]
    assert rounds_of(tmp_path) == [2, 2, 2]


def test_a_write_that_fails_changes_nothing_and_the_others_of_the_round_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_states(tmp_path, num_parameters=10, cluster=False)
    truly = StateTensors.keep_all

    def fails(self: StateTensors, tensors: dict[str, torch.Tensor]) -> object:
        truly(self, {name: each for name, each in tensors.items() if name != "pending_control"})
        raise OSError("the disk is gone")

    with kept_by(tmp_path, alone=True):
        states = states_of(tmp_path)
        assert states is not None
        states.write(0, numbered(1, 0))
        with monkeypatch.context() as patch:
            patch.setattr(StateTensors, "keep_all", fails)
            with pytest.raises(OSError, match="gone"):
                states.write(1, numbered(1, 1))
        states.write(2, numbered(1, 2))
    assert rounds_of(tmp_path) == [1, -1, 1]
    assert num_tensors(tmp_path) == 2 + 1 + 2


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE states SET head = substr(head, 2) WHERE client = 1 AND slot = 0",
        "UPDATE states SET head = head || x'00' WHERE client = 1 AND slot = 0",
        "UPDATE tensors SET data = zeroblob(length(data)) WHERE tensor = (SELECT max(tensor) FROM tensors)",
        "DELETE FROM tensors WHERE tensor = (SELECT max(tensor) FROM tensors)",
        "DELETE FROM states WHERE client = 1 AND slot = 0",
    ],
)
def test_a_damaged_state_is_noticed_and_the_one_before_is_gone_on_with(
    tmp_path: Path, states: States, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        states.write(1, numbered(number, 1))
    states.close()
    with closing(sqlite3.connect(states.path)) as file:
        file.execute(change)
        file.commit()
    again = States(states.path)
    found = SharedStore(tmp_path, again, 1).load()
    assert found is not None
    assert found.to_bytes() == numbered(1, 1).to_bytes()
    assert "going on from the one before it, of round 1" in caplog.text
    again.write(1, numbered(3, 1))  # the damaged one does not become the state before
    before = again.read(1, before=True)
    assert before is not None
    assert before.control_round == 1
    again.close()


def test_a_file_that_is_damaged_or_of_another_format_is_refused_in_one_line(tmp_path: Path, states: States) -> None:
    for client in range(NUM_CLIENTS):
        states.write(client, numbered(1, client))
    states.close()
    whole = states.path.read_bytes()
    for damaged in (b"", b"x" * 5000, whole[: len(whole) // 3]):
        states.path.write_bytes(damaged)
        with pytest.raises(DamagedState, match="the clients' states are damaged: "):
            rounds_of(tmp_path)
    states.path.write_bytes(whole)
    with closing(sqlite3.connect(states.path)) as file:
        file.execute("PRAGMA user_version = 9")
    with pytest.raises(SpatlError, match=r"^the clients' states have format 9, this version reads 1 \("):
        States(states.path)


def test_a_state_of_another_format_is_refused(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("spatl.runs.states.STATE_FORMAT", 9)
        states.write(0, numbered(1))
    with pytest.raises(SpatlError, match=r"^the client's state has format 9, this version reads 7$"):
        states.read(0)


def test_clients_keep_files_of_their_own_where_they_have_them_or_are_large_or_far_away(tmp_path: Path) -> None:
    (tmp_path / "older" / "clients" / "7").mkdir(parents=True)
    for name, num_parameters, cluster in (("older", 10, False), ("large", 1 << 21, False), ("far", 10, True)):
        make_states(tmp_path / name, num_parameters=num_parameters, cluster=cluster)
        assert states_of(tmp_path / name) is None
        with reading_states(tmp_path / name) as states, kept_by(tmp_path / name, alone=True):
            assert states is None
    make_states(tmp_path / "near", num_parameters=10, cluster=False)
    with pytest.raises(SpatlError, match="is for the processes of one machine: go on with this run without a cluster"):
        make_states(tmp_path / "near", num_parameters=10, cluster=True)


def test_a_file_that_was_put_back_counts_and_not_what_this_process_knows(tmp_path: Path, states: States) -> None:
    states.write(0, numbered(1))
    states.settle()
    copy = tmp_path / "copy"
    shutil.copy(states.path, copy)
    states.write(0, numbered(2))
    states.settle()
    os.replace(copy, states.path)
    found = states_of(tmp_path)
    assert found is not None
    assert found is not states
    state = found.read(0)
    assert state is not None
    assert state.control_round == 1


def test_states_of_a_run_that_was_stopped_are_read_where_nothing_may_be_written(
    tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its journal, which the last process takes away; SQLite would make one to read."""
    states.write(0, numbered(1))
    place = tmp_path / "other" / CLIENTS_STATES
    states.settle()
    place.parent.mkdir(parents=True)
    shutil.copy(states.path, place)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with reading_states(tmp_path / "other") as found:
        assert found is not None
        state = found.read(0)
        assert list(place.parent.iterdir()) == [place]
    assert state is not None
    assert state.to_bytes() == numbered(1).to_bytes()


def test_a_part_of_a_model_is_replaced_and_its_damage_noticed(tmp_path: Path, states: States) -> None:
    for client, data in ((2, b"old"), (0, b"zero"), (2, b"new")):
        states.write_part(client, data)
    assert (states.with_parts(), states.part(2), states.part(1)) == ([0, 2], b"new", None)
    with closing(sqlite3.connect(states.path)) as file:
        file.execute("UPDATE parts SET data = ? WHERE client = 2", (hashlib.sha256(b"new").digest() + b"not",))
        file.commit()
    with pytest.raises(DamagedState, match="the part of client 2 is damaged"):
        states.part(2)


SAVER = """
import os, sys
from pathlib import Path
from clients.shared_store import SharedStore
from spatl.runs.states import kept_by, states_of
from tests.support.states import NUM_CLIENTS, numbered
run, alone = Path(sys.argv[1]), sys.argv[2] == "alone"
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        number = int(line)
        with kept_by(run, alone=alone):
            states = states_of(run)
            with SharedStore(run, states, 0).locked():
                os.write(1, f"{os.getpid()}\\n".encode())
                while True:
                    number += 1
                    for client in range(NUM_CLIENTS):
                        states.write(client, numbered(number, client))
                    states.settle()
                    os.write(1, f"{number}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks and locks")
@pytest.mark.parametrize("kind", ["alone", "one of many"])
def test_a_process_killed_at_any_instant_leaves_states_of_before_a_round_or_after_it(tmp_path: Path, kind: str) -> None:
    """Thirty times. A worker of many saves client by client: then each is of before or after; the lock is free."""
    make_states(tmp_path, num_parameters=10, cluster=False)
    draw, last = random.Random(3), 0
    command = [sys.executable, "-c", SAVER, str(tmp_path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(30):
            saver.stdin.write(f"{last}\n")
            pid = int(saver.stdout.readline())
            with reading_states(tmp_path) as states:
                assert states is not None
                store = SharedStore(tmp_path, states, 0, wait=0)
                with pytest.raises(StateBusy, match="another process works for client 0"), store.locked():
                    pass
                with SharedStore(tmp_path, states, 1, wait=0).locked():
                    pass
            time.sleep(draw.uniform(0, 0.1))
            os.kill(pid, signal.SIGKILL)
            while (line := saver.stdout.readline()) != "dead\n":
                last = int(line)
            found = rounds_of(tmp_path)
            if kind == "alone":
                assert found in ([last or -1] * NUM_CLIENTS, [last + 1] * NUM_CLIENTS)
            else:
                assert sorted(found, reverse=True) == found
                assert set(found) <= {last or -1, last + 1}
            last = max(0, *found)
            if kind != "alone" and last:
                for client in range(NUM_CLIENTS):  # as a repeated round does
                    with closing(States(tmp_path / CLIENTS_STATES)) as again:
                        again.write(client, numbered(last, client))
        saver.stdin.close()
    assert last > 5
    assert (tmp_path / CLIENTS_LOCK).exists()
