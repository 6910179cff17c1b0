"""States of a simulation's clients: one SQLite file for all of them, in which equal tensors lie once.

Ten thousand clients would be thirty thousand files, and most of what they hold is the same: the versions of the
encoder, control variates that are 0. Each tensor lies under its SHA-256, and each state is a short head that names its
tensors and is sealed with a SHA-256 of its own, so that damage is noticed as in a sealed file (`spatl.sealed_files`).

SQLite's journal (WAL) makes a change whole or none whenever the process is killed. A process that has the run to
itself makes one change of all that a round's clients save (`gathered`): after a kill all states are of before the
round, or all of after it. Workers in processes of their own save one client's state at a time. Nobody waits for the
disk but the server, once a round (`States.settle`).
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from spatl.disk.writing import SYNCS_AT_ONCE, sync_files_below
from spatl.errors import DamagedState, SpatlError
from spatl.json_files import to_json
from spatl.rounds.client_state import FORMAT as STATE_FORMAT
from spatl.rounds.client_state import ClientState
from spatl.runs.files import CLIENTS_STATES
from spatl.runs.sqlite_errors import naming_errors
from spatl.runs.state_tensors import TABLES, StateTensors, digests_in

FORMAT: Final = 1
LARGEST_MODEL: Final = 1 << 20
"""Parameters of a model whose clients' states lie in one file; those of a larger one are read and written piece by
piece, each from a file of its own."""

_NEWEST, _BEFORE = 0, 1
_PAGE_BYTES: Final = 1 << 16  # SQLite's largest: a c_i fills hundreds of smaller ones, each summed up in the journal
_CACHE_BYTES: Final = 1 << 25  # of a change under way, before its pages go to the journal and are read back from there
_WAIT_SECONDS: Final = 60.0
_DIGEST_BYTES: Final = 32
_MOST_OPEN: Final = 4
_APPLICATION: Final = 0x73706174  # "spat", in the file's header
_TABLES: Final = """
CREATE TABLE states (client INTEGER, slot INTEGER, head BLOB NOT NULL, PRIMARY KEY (client, slot)) WITHOUT ROWID;
CREATE TABLE parts (client INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""


class States:
    """The states in a file, for this process.

    Args:
        path: The file.
        reads: Whether nothing of it may be changed.

    Raises:
        SpatlError: It is of another format, or damaged.
        OSError: The system refuses it.
    """

    def __init__(self, path: Path, *, reads: bool = False) -> None:
        self.path = path
        self.identity = _identity_of(path) or ()
        self._gathers = False
        self._broken = self._closed = False
        with self._naming():
            mode = "rw" if not reads else "ro&immutable=1" if _is_at_rest(path) else "ro"
            name = f"{path.absolute().as_uri()}?mode={mode}"
            self._file = sqlite3.connect(
                name, uri=True, isolation_level=None, timeout=_WAIT_SECONDS, check_same_thread=False
            )
            ((found,),) = self._file.execute("PRAGMA user_version")
            if not reads:
                self._file.execute("PRAGMA synchronous = NORMAL")
                self._file.execute(f"PRAGMA cache_size = {-_CACHE_BYTES // 1024}")
                # Debian's SQLite writes zeros over what is taken out, which is twice the work and hides nothing here.
                self._file.execute("PRAGMA secure_delete = OFF").fetchall()
        if found != FORMAT:
            self._file.close()
            if found == 0:
                raise DamagedState(f"the clients' states are damaged: there are none in {path}")
            raise SpatlError(f"the clients' states have format {found}, this version reads {FORMAT} ({path})")
        self._tensors = StateTensors(self._file)

    def read(self, client: int, *, before: bool = False) -> ClientState | None:
        """A client's state, or the one of the round before; None where there is none.

        Raises:
            DamagedState: It is damaged.
            SpatlError: It is of another format.
        """
        with self._naming():
            head = self._head(client, _BEFORE if before else _NEWEST)
            if head is None:
                return None
            opened = _opened(head)
            if (found := opened["header"]["format"]) != STATE_FORMAT:
                raise SpatlError(f"the client's state has format {found}, this version reads {STATE_FORMAT}")
            tensors = self._tensors.read_all(opened["tensors"])
        return ClientState.of_content(_apart(tensors), opened["header"])

    def write(self, client: int, state: ClientState) -> None:
        """Put a state in the place of the one before, which is kept if it is of an earlier round, and whole.

        Raises:
            OSError: The system refuses it.
        """
        tensors, header = state.content()
        with self._naming(), self._changing():
            newest = self._head(client, _NEWEST)
            entries = self._tensors.keep_all(tensors)
            if newest is not None and self._is_of_before(newest, state.control_round):
                self._drop(client, _BEFORE)
                self._file.execute(
                    "UPDATE states SET slot = ? WHERE client = ? AND slot = ?", (_BEFORE, client, _NEWEST)
                )
            else:
                self._drop(client, _NEWEST)
            head = to_json({"header": {"format": STATE_FORMAT, **header}, "tensors": entries}).encode()
            row = client, _NEWEST, hashlib.sha256(head).digest() + head
            self._file.execute("INSERT INTO states VALUES (?, ?, ?)", row)

    def part(self, client: int) -> bytes | None:
        """Part of its model that a client has left; None where it has left none.

        Raises:
            DamagedState: It is damaged.
        """
        with self._naming():
            row = self._file.execute("SELECT CAST(data AS BLOB) FROM parts WHERE client = ?", (client,)).fetchone()
        return None if row is None else _unsealed(row[0], f"the part of client {client}")

    def write_part(self, client: int, data: bytes) -> None:
        """Put what a client leaves of its model in the place of what it left before."""
        with self._naming(), self._changing():
            row = client, hashlib.sha256(data).digest() + data
            self._file.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", row)

    def with_parts(self) -> list[int]:
        """The clients that have left a part of a model, ascending."""
        with self._naming():
            return [client for (client,) in self._file.execute("SELECT client FROM parts ORDER BY client")]

    def check(self) -> None:
        """See that the file is whole: what a later round would change by it, too.

        Raises:
            DamagedState: It is not.
        """
        with self._naming():
            ((found, *_), *_) = self._file.execute("PRAGMA quick_check(1)")
            if found != "ok":
                raise DamagedState(f"the clients' states are damaged: {found} ({self.path})")
            used = Counter[str]()
            for (head,) in self._file.execute("SELECT CAST(head AS BLOB) FROM states"):
                used.update(digests_in(_opened(head)["tensors"]))
            if not self._tensors.are_used_as(used):
                raise DamagedState(f"the clients' states are damaged: their tensors are others ({self.path})")

    def settle(self) -> None:
        """Finish the change that is under way, and wait until the disk has all there is."""
        with self._naming():
            if self._file.in_transaction:
                self._file.execute("COMMIT")
            ((busy, _, _),) = self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:  # another process reads: what it may still need stays in the journal, which has to be on the disk too
            with self.path.with_name(f"{self.path.name}-wal").open("rb") as journal:
                os.fsync(journal.fileno())

    def gather(self, wanted: bool) -> None:
        """Have all changes be one until `settle`, or each one of its own."""
        self._gathers = wanted

    def close(self, *, finished: bool = False) -> None:
        """Let go of the file, and undo a change under way; one that is `finished` needs no journal beside it."""
        if self._closed:
            return
        self._closed = True
        with self._naming():
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            if finished:
                self._file.execute("PRAGMA busy_timeout = 0")
                with suppress(sqlite3.OperationalError):  # a worker of Ray has not ended: the journal stays, whole
                    self._file.execute("PRAGMA journal_mode = DELETE")
            self._file.close()

    def _head(self, client: int, slot: int) -> bytes | None:
        query = "SELECT CAST(head AS BLOB) FROM states WHERE client = ? AND slot = ?"
        row = self._file.execute(query, (client, slot)).fetchone()
        return None if row is None else bytes(row[0])

    def _is_of_before(self, head: bytes, number: int) -> bool:
        """Whether a state is of a round before one, and whole."""
        try:
            opened = _opened(head)
            self._tensors.read_all(opened["tensors"])
        except DamagedState:
            return False
        return bool(opened["header"]["control_round"] < number)

    def _drop(self, client: int, slot: int) -> None:
        """Take a state out of the file, and its tensors where no other state has them."""
        head = self._head(client, slot)
        if head is None:
            return
        self._file.execute("DELETE FROM states WHERE client = ? AND slot = ?", (client, slot))
        try:
            self._tensors.drop_all(_opened(head)["tensors"])
        except DamagedState:  # nobody knows which: they stay
            return

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Make a change of the file, whole or not at all; a part of one where changes are gathered."""
        if self._broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
        if not self._file.in_transaction:
            self._file.execute("BEGIN IMMEDIATE")
        self._file.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK TO one" if self._gathers else "ROLLBACK")
            else:  # SQLite has undone all of it, what other clients had saved too
                self._broken = self._gathers
            raise
        self._file.execute("RELEASE one")
        if not self._gathers:
            self._file.execute("COMMIT")

    def _naming(self) -> AbstractContextManager[None]:
        return naming_errors(self.path)


def make_states(run: Path, *, num_parameters: int, cluster: bool) -> None:
    """Make the file for the clients' states of a run, where it is to have one.

    It has none where clients have files of their own by now, nor for a large model (`LARGEST_MODEL`), nor on a cluster,
    whose nodes may share a disk over a network, where SQLite's journal cannot be.

    Args:
        run: The run's directory.
        num_parameters: Of the model.
        cluster: Whether its clients work on the nodes of a cluster.

    Raises:
        SpatlError: The run has such a file, and goes on on a cluster.
    """
    path = run / CLIENTS_STATES
    if cluster and path.exists():
        raise SpatlError(f"{path} is for the processes of one machine: go on with this run without a cluster")
    if not path.exists():
        if cluster or num_parameters > LARGEST_MODEL or _keeps_files(run):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.tmp")
        new.unlink(missing_ok=True)
        with naming_errors(path), closing(sqlite3.connect(new, isolation_level=None)) as file:
            file.execute("PRAGMA journal_mode = MEMORY")
            file.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            file.execute(f"PRAGMA application_id = {_APPLICATION}")
            file.execute(f"PRAGMA user_version = {FORMAT}")
            file.executescript(_TABLES + TABLES)
        os.replace(new, path)
    with naming_errors(path), closing(sqlite3.connect(path, isolation_level=None, timeout=_WAIT_SECONDS)) as file:
        file.execute("PRAGMA journal_mode = WAL")


def _keeps_files(run: Path) -> bool:
    """Return whether the clients of a run have directories of their own."""
    try:
        with os.scandir((run / CLIENTS_STATES).parent) as found:
            return any(each.name.isdigit() for each in found)
    except FileNotFoundError:
        return False


def states_of(run: Path) -> States | None:
    """The states of a run's clients, for whoever changes them; None where each has files of its own.

    One object for all calls of a process, for as long as the file is the same.
    """
    path = run / CLIENTS_STATES
    identity = _identity_of(path)
    if identity is None:
        return None
    if identity not in _OPEN:
        _OPEN[identity] = States(path)
        while len(_OPEN) > _MOST_OPEN:
            (process, *_), oldest = _OPEN.popitem(last=False)
            if process == os.getpid():
                oldest.close()
    return _OPEN[identity]


@contextmanager
def reading_states(run: Path) -> Iterator[States | None]:
    """Yield the states of a run's clients for reading, whoever has the run; None as of `states_of`."""
    path = run / CLIENTS_STATES
    identity = _identity_of(path)
    if identity is None:
        yield None
    elif identity in _OPEN:
        yield _OPEN[identity]
    else:
        states = States(path, reads=True)
        try:
            yield states
        finally:
            states.close()


@contextmanager
def kept_by(run: Path, *, alone: bool) -> Iterator[None]:
    """Keep the states of a run while a server works on it.

    Args:
        run: The run's directory.
        alone: Whether its clients work in this process, so that all that they save in a round is saved at once.
    """
    states = states_of(run)
    if states is None:
        yield
        return
    states.gather(alone)
    finished = False
    try:
        yield
        states.settle()
        finished = True
    finally:
        _OPEN.pop(states.identity, None)
        states.close(finished=finished)


def settle_states(run: Path) -> None:
    """Wait until the disk has what the clients of a simulation have saved in a round, of those with own files too."""
    if (states := states_of(run)) is not None:
        states.settle()
    elif SYNCS_AT_ONCE:
        sync_files_below(run)


_OPEN = OrderedDict[tuple[int, ...], States]()


def _opened(head: bytes) -> dict[str, Any]:
    opened: dict[str, Any] = json.loads(_unsealed(head, "the client's state"))
    return opened


def _unsealed(data: bytes, what: str) -> bytes:
    content = bytes(data[_DIGEST_BYTES:])
    if hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
        raise DamagedState(f"{what} is damaged: its SHA-256 is not as written")
    return content


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a state whose selector, which may be the user's and keep them, shares none with another."""
    return {name: each.clone() if name.startswith("selector/") else each for name, each in tensors.items()}


def _is_at_rest(path: Path) -> bool:
    """Whether nobody writes into a file, nor may this process: SQLite would want an index of the journal beside it."""
    beside = (path.with_name(f"{path.name}{ending}") for ending in ("-wal", "-journal"))
    return not os.access(path.parent, os.W_OK) and not any(each.exists() for each in beside)


def _identity_of(path: Path) -> tuple[int, ...] | None:
    """What tells a file from all others, in this process: a connection is not for one that was forked."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return os.getpid(), status.st_dev, status.st_ino
