"""Traffic: the bytes of one message on a deployment's socket, from its records alone; every engine counts the same.

A SuperNode fetches a message by one call that brings its metadata and the tree of its object ids (PullMessages), one
call per object (PullObject) and a confirmation; a reply leaves the same way (PushMessages, PushObject). Counted are
the protobuf bodies of these calls, made by Flower's own functions with ids of a fixed length in place of those it
draws. Of messages that differ in the length of their blob alone, and not in how many digits that has, one is
serialised; so is one of those whose values have the same names, kinds and lengths. Not counted is what no message
causes (polling, heartbeats, the app's download), and what carries the bodies: the HTTP headers (840 bytes up and 130
down per call on flwr 1.41, most of them the node's key and signature), TLS, TCP.
`tests/server/deployment/test_socket.py` compares the count with a real deployment's socket.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    Reconnect,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

from server.grids import SERVER_NODE_ID
from server.replies import blob_content
from spatl.channels.selection import select_all
from spatl.channels.vectors import give_back
from spatl.rounds.blueprint import Blueprint
from spatl.runs.ledger import Direction
from spatl.seeding import generator
from spatl.wire.blob import BLOB, RECORD
from spatl.wire.codecs import CODECS
from spatl.wire.reports import TrainReport
from spatl.wire.update import Update, pack_update

_DRAWN_ID = 1 << 63  # Flower draws 64 random bits for nodes, runs and tasks: ten bytes each, half of them need nine
_HASH = "0" * 64  # SHA-256 in hexadecimal
_SESSION_ID = "0" * 36  # a UUID
_ROOM = 1 << 10  # more than a message has beside its blob
_MOST_SHAPES = 4096
_SECONDS = 1.0  # any double that is not zero takes the same eight bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes of one message, in both directions.

    Attributes:
        num_bytes: Bodies that go the message's own way: metadata, object tree, objects.
        opposite: Bodies that go the other way: the requests for its objects, or the answers to their sender.
    """

    num_bytes: int
    opposite: int


_SHAPES: dict[tuple[object, ...], Traffic] = {}


def message_traffic(content: RecordDict, *, direction: Direction, message_type: str, group_id: str) -> Traffic:
    """Count a message between the server and a client.

    Args:
        content: The message's records.
        direction: `"downlink"` for the server's message, `"uplink"` for a client's reply.
        message_type: Flower's: `"query"`, `"train"` or `"evaluate"`.
        group_id: Flower's; the round.

    Returns:
        The bytes in both directions.
    """
    group_id = "0" * len(group_id.encode())  # of which the length counts; a round has no serialising of its own
    found = _blob_alone(content)
    if found is None:
        return _by_shape(content, direction, message_type, group_id)
    length = _alike(found) if _digits(found) == _digits(found + _ROOM) else found
    traffic = _of_blob(length, direction, message_type, group_id)
    return Traffic(traffic.num_bytes + found - length, traffic.opposite)


def _blob_alone(content: RecordDict) -> int | None:
    """The length of the blob in a message that carries nothing else; None for another message."""
    record = content.get(RECORD)
    if len(content) != 1 or not isinstance(record, ConfigRecord) or list(record) != [BLOB]:
        return None
    blob = record[BLOB]
    return len(blob) if isinstance(blob, bytes) else None


def _digits(length: int) -> tuple[int, int]:
    """In how many bytes a length is written: in protobuf seven bits each, in the head of an object a decimal each."""
    return -(-length.bit_length() // 7), len(str(length))


def _alike(length: int) -> int:
    """The shortest blob whose length is written in as many bytes, either way; so is what contains it."""
    sevens, decimals = _digits(length)
    return int(max(1 << 7 * (sevens - 1), 10 ** (decimals - 1)))


@lru_cache(maxsize=256)
def _of_blob(length: int, direction: Direction, message_type: str, group_id: str) -> Traffic:
    """Count a message of a blob of some length, which is all that the count depends on."""
    return _counted(blob_content(bytes(length)), direction, message_type, group_id)


def _by_shape(content: RecordDict, direction: Direction, message_type: str, group_id: str) -> Traffic:
    """Count a message of single values by what their lengths follow from; of others by serialising it."""
    shape = _shape_of(content)
    if shape is None:
        return _counted(content, direction, message_type, group_id)
    key = shape, direction, message_type, group_id
    if key not in _SHAPES:
        if len(_SHAPES) >= _MOST_SHAPES:
            _SHAPES.clear()
        _SHAPES[key] = _counted(content, direction, message_type, group_id)
    return _SHAPES[key]


def _shape_of(content: RecordDict) -> tuple[object, ...] | None:
    """What the length of a message's values follows from: their names, kinds and lengths; None of lists and arrays."""
    found: list[object] = []
    for name, record in content.items():
        if not isinstance(record, ConfigRecord | MetricRecord):
            return None
        found += [name, type(record)]
        for key, value in record.items():
            if isinstance(value, bool | float):
                found.append((key, type(value), bool(value)))
            elif isinstance(value, int):  # written in seven bits a byte, of its two's complement or its zigzag
                found.append((key, int, value.bit_length(), value & (value - 1) == 0, value < 0))
            elif isinstance(value, str | bytes):
                found.append((key, type(value), len(value.encode() if isinstance(value, str) else value)))
            else:
                return None
    return tuple(found)


def _counted(content: RecordDict, direction: Direction, message_type: str, group_id: str) -> Traffic:
    with no_object_id_recompute():
        message = make_message(_metadata(direction, message_type, group_id), content=content)
        return _fetched(message) if direction == "downlink" else _sent(message)


def _metadata(direction: Direction, message_type: str, group_id: str) -> Metadata:
    is_reply = direction == "uplink"
    return Metadata(
        run_id=_DRAWN_ID,
        message_id=_HASH,
        src_node_id=_DRAWN_ID if is_reply else SERVER_NODE_ID,
        dst_node_id=SERVER_NODE_ID if is_reply else _DRAWN_ID,
        reply_to_message_id=_HASH if is_reply else "",
        group_id=group_id,
        created_at=_SECONDS,
        ttl=_SECONDS,
        message_type=message_type,
        src_task_id=None if is_reply else _DRAWN_ID,
        dst_task_id=_DRAWN_ID if is_reply else None,
    )


def _fetched(message: Message) -> Traffic:
    """Count what a SuperNode asks (up) and gets (down) to fetch a message."""
    node = Node(node_id=_DRAWN_ID)
    down = PullMessagesResponse(
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[get_object_tree(message)],
    ).ByteSize()
    up = PullMessagesRequest(node=node).ByteSize()
    for item in get_all_nested_objects(message).values():
        content = item.deflate()
        down += PullObjectResponse(object_found=True, object_available=True, object_content=content).ByteSize()
        up += PullObjectRequest(node=node, run_id=_DRAWN_ID, object_id=_HASH).ByteSize()
    up += ConfirmMessageReceivedRequest(node=node, run_id=_DRAWN_ID, message_object_id=_HASH).ByteSize()
    return Traffic(num_bytes=down, opposite=up)


def _sent(message: Message) -> Traffic:
    """Count what a SuperNode sends (up) and is answered (down) to deliver a reply."""
    node = Node(node_id=_DRAWN_ID)
    objects = get_all_nested_objects(message)
    up = PushMessagesRequest(
        node=node,
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[get_object_tree(message)],
        clientapp_runtime_list=[_SECONDS],
    ).ByteSize()
    down = PushMessagesResponse(
        reconnect=Reconnect(reconnect=5),
        results={_HASH: 0},
        objects_to_push=[_HASH] * len(objects),
        session_id=_SESSION_ID,
    ).ByteSize()
    for item in objects.values():
        up += PushObjectRequest(
            node=node, run_id=_DRAWN_ID, object_id=_HASH, object_content=item.deflate(), session_id=_SESSION_ID
        ).ByteSize()
        down += PushObjectResponse(stored=True).ByteSize()
    return Traffic(num_bytes=up, opposite=down)


def whole_update_bytes(blueprint: Blueprint, num_examples: int) -> int:
    """Return the bytes of a reply that sends every entry in float32: packed and serialised for real, and measured.

    Args:
        blueprint: The federation.
        num_examples: The most training examples that a client has.
    """
    layout = blueprint.layout
    report = TrainReport(
        num_examples=num_examples,
        accuracy=1.0,
        loss=1.0,
        train_loss=1.0,
        keep_ratio=1.0,
        flops_ratio=1.0,
        budget_kind=0,
        budget_limit=1.0,
        validation_gain=0.0,
        training_seconds=1.0,
        selection_seconds=1.0,
        decision_seconds=0.0,
        seconds=1.0,
    )
    update = Update(1, 0, select_all(layout), torch.zeros(layout.num_entries), 1.0, report=report)
    draws = generator(blueprint.config.seed, "measure")
    blob = pack_update(update, layout, CODECS["float32"], generator=draws, judging=blueprint.judging)
    give_back(layout.num_entries)
    traffic = message_traffic(blob_content(blob), direction="uplink", message_type=MessageType.TRAIN, group_id="1")
    return traffic.num_bytes
