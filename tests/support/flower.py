"""What Flower does, for tests of what is said to it: an app, an error and the bytes of records."""

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from server.grids import SERVER_NODE_ID

echo = ClientApp()


@echo.query()
@echo.train()
def answer(message, context):
    """An empty answer to anything that is asked."""
    return Message(RecordDict(), reply_to=message)


def flowers_error(message, *, says_which=True, code=ErrorCode.NODE_UNAVAILABLE):
    """What a SuperLink answers in place of a node that is gone."""
    asked = message.metadata
    metadata = Metadata(
        run_id=1, message_id="error", src_node_id=SERVER_NODE_ID, dst_node_id=SERVER_NODE_ID,
        reply_to_message_id=asked.message_id if says_which else "", group_id=asked.group_id if says_which else "",
        created_at=1.0, ttl=1.0, message_type=asked.message_type if says_which else "system",
    )  # fmt: skip
    return make_message(metadata=metadata, error=Error(code=code, reason="Error: Node Unavailable"))


def record_bytes(records: RecordDict) -> int:
    """The bytes of records, as Flower writes them."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(records).values())
