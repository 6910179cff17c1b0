"""Ledger: bytes per message, direction, client and round, as they were serialised, never as a formula says.

`values`, `indices` and `control` are the sections of the packed blob; `other` is everything else a message puts on a
deployment's socket but for HTTP's headers: names, metrics, Flower's metadata, object ids and requests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Direction = Literal["uplink", "downlink"]


@dataclass(frozen=True)
class Entry:
    """Entry of the ledger: the bytes of one message.

    Attributes:
        server_round: The round it belongs to.
        client: The client at the other end.
        direction: `"uplink"` to the server, `"downlink"` to the client.
        phase: Flower's message type: `"query"` (registration), `"train"`, `"query.statistics"` or `"evaluate"`.
        values: Bytes of encoded values.
        indices: Bytes that say which values they are.
        control: Bytes of control variates.
        other: All other bytes of the message.
        opposite: Bytes that fetching or delivering it sends the opposite way.
    """

    server_round: int
    client: int
    direction: Direction
    phase: str
    values: int
    indices: int
    control: int
    other: int
    opposite: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole message, in its own direction."""
        return self.values + self.indices + self.control + self.other

    def to_json(self) -> dict[str, int | str]:
        """Return the entry as an object of `ledger.jsonl`."""
        values = dict(vars(self))
        return {"round": values.pop("server_round"), **values, "bytes": self.num_bytes}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Entry":
        """Read what `to_json` gave."""
        return cls(row["round"], **{field.name: row[field.name] for field in fields(cls) if field.name in row})


def entry(
    *,
    server_round: int,
    client: int,
    direction: Direction,
    phase: str,
    num_bytes: int,
    opposite: int,
    sections: Mapping[str, int],
) -> Entry:
    """Make an entry from a message's serialised lengths and the section lengths of its blob (empty without a blob)."""
    parts = {name: sections.get(name, 0) for name in ("values", "indices", "control")}
    other = num_bytes - sum(parts.values())
    return Entry(server_round, client, direction, phase, **parts, other=other, opposite=opposite)


def total(entries: Iterable[Entry], direction: Direction) -> dict[str, int]:
    """Sum what went in one direction: `values`, `indices`, `control`, `other` and their sum `bytes`."""
    sums = dict.fromkeys(("values", "indices", "control", "other", "bytes"), 0)
    for item in entries:
        if item.direction == direction:
            for part in ("values", "indices", "control", "other"):
                sums[part] += getattr(item, part)
            sums["bytes"] += item.num_bytes
        else:
            sums["other"] += item.opposite
            sums["bytes"] += item.opposite
    return sums
