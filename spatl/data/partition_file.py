"""Partition that a file says: whose each training example is, as CSV or JSON.

A CSV file has two columns, `index` and `client`; a JSON file an object from index to client, or a list with a client
for each example. An index is an example's place among the training examples, from 0. Clients are numbers below how many
there are, or names, such as of hospitals, each of which makes a client. Nothing (null in JSON) leaves an example out.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from spatl.data.checks import one_line
from spatl.data.labels import class_order, listed
from spatl.data.partition_request import NOBODY, Integers
from spatl.errors import DataError

_LARGEST: Final = 1 << 28
_LONGEST_NAME: Final = 200

Entry = tuple[str, Any, Any]
"""Where something is said, and of which index which client."""


@dataclass(frozen=True, eq=False)
class FiledPartition:
    """Partition that a file says.

    Attributes:
        owners: `[N]`, the client of each example, or `NOBODY`.
        names: The clients' names in the order of their numbers; empty where the file has numbers.
    """

    owners: Integers
    names: tuple[str, ...] = ()


def read_partition(path: str | Path, *, num_examples: int, num_clients: int) -> FiledPartition:
    """Return the partition of a file.

    Args:
        path: Ends in `.csv` or `.json`.
        num_examples: N, of the training examples.
        num_clients: How many clients there are to be.

    Raises:
        DataError: It is not there or no such file; an index is missing, there twice or out of range; a client has no
            example, or there are more or fewer.
    """
    where = f"partition.path: {path}"
    owners = np.full(num_examples, NOBODY, dtype=np.int64)
    said: dict[int, str] = {}
    clients: list[int | str | None] = [None] * num_examples
    for place, index, client in _entries(where, Path(path), num_examples):
        number = _whole(index)
        if number is None or not 0 <= number < num_examples:
            raise DataError(f"{where}, {place}: index must be one of {num_examples} training examples, from 0 to "
                            f"{num_examples - 1}, got {index!r:.40}")  # fmt: skip
        if number in said:
            raise DataError(f"{where}, {place}: an example goes to one client, and {number} stands there twice, "
                            f"first in {said[number]}")  # fmt: skip
        said[number] = place
        clients[number] = _client(where, place, client)
    if len(said) < num_examples:
        first = next(index for index in range(num_examples) if index not in said)
        raise DataError(
            f"{where} says nothing of {num_examples - len(said)} of {num_examples} training examples, the first of them"
            f" {first}: give each its client, or an empty one (null in JSON) to leave it out"
        )
    names = _names(where, {each for each in clients if each is not None}, num_clients)
    number_of = {name: place for place, name in enumerate(names)}
    for index, client in enumerate(clients):
        if client is not None:
            owners[index] = number_of[str(client)] if names else client
    return FiledPartition(owners, names)


def _entries(where: str, path: Path, num_examples: int) -> Iterator[Entry]:
    """Yield what a file says, one example after another."""
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{where} has {path.stat().st_size:,} bytes, at most {_LARGEST:,} are read")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text in UTF-8: {one_line(error)}") from error
    match path.suffix.lower():
        case ".csv":
            yield from _of_csv(where, text)
        case ".json":
            yield from _of_json(where, text, num_examples)
        case _:
            raise DataError(f"{where} must end in .csv or .json")


def _of_csv(where: str, text: str) -> Iterator[Entry]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for line, row in enumerate(rows, start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (line == 1 and cells == ["index", "client"]):
                continue
            if len(cells) != 2:
                raise DataError(f"{where}, line {line}: expected index,client, got {','.join(row)!r:.60}")
            yield f"line {line}", cells[0], cells[1] or None
    except csv.Error as error:
        raise DataError(f"{where} is no CSV: {one_line(error)}") from error


def _of_json(where: str, text: str, num_examples: int) -> Iterator[Entry]:
    try:
        content = json.loads(text, object_pairs_hook=list)  # a dict would drop what stands twice
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {one_line(error)}") from error
    if text.lstrip().startswith("{"):
        yield from ((f"entry {index!r:.40}", index, client) for index, client in content)
        return
    if not isinstance(content, list):
        raise DataError(f"{where} must hold an object from index to client, or a list of clients")
    if len(content) != num_examples:
        raise DataError(f"{where} lists the clients of {len(content)} examples, there are {num_examples} for training")
    yield from ((f"place {index}", index, client) for index, client in enumerate(content))


def _whole(value: object) -> int | None:
    """Return a whole number, also one that is written as a text; None for anything else."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _client(where: str, place: str, client: object) -> int | str | None:
    if client is None or ((number := _whole(client)) is not None and number >= 0):
        return None if client is None else number
    if isinstance(client, str) and number is None and 0 < len(client) <= _LONGEST_NAME and client.isprintable():
        return client
    raise DataError(f"{where}, {place}: a client must be a number from 0, or a name, got {client!r:.60}")


def _names(where: str, clients: set[int | str], num_clients: int) -> tuple[str, ...]:
    """Return the clients' names in their order; none where they are numbers."""
    numbers = {client for client in clients if isinstance(client, int)}
    if numbers == clients and all(number < num_clients for number in numbers):
        if missing := [str(client) for client in range(num_clients) if client not in numbers]:
            raise DataError(
                f"{where} gives no example to {len(missing)} of {num_clients} clients, {listed(missing)}: lower "
                "partition.num_clients, or give them some"
            )
        return ()
    names = class_order({str(client) for client in clients})
    if len(names) != num_clients:
        raise DataError(
            f"{where} names {len(names)} clients, {listed(names)}, and partition.num_clients is {num_clients}: make it "
            f"{len(names)}"
        )
    return tuple(names)
