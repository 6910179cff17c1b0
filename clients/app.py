"""Flower's ClientApp: takes a message apart, has `clients.round` do the work, puts the reply together."""

import logging
from functools import lru_cache, wraps
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients.round import Workplace
from clients.state import ContextStore, DirectoryStore, StateStore
from spatl.config import config_from_run, parse_budget
from spatl.errors import ConfigError, DivergedError, SpatlError, UpdateRejected
from spatl.federation import cached_blueprint
from spatl.protocol import CLIENT_DIVERGED, CLIENT_REFUSED, Model, pack_saliency, unpack_model
from spatl.selection.budget import BUDGET_KINDS, Budget

logger = logging.getLogger(__name__)

app = ClientApp()


def _reporting(handle: ClientAppCallable) -> ClientAppCallable:
    """Answer with an error that says why, in one line, where the work cannot be done; a bug keeps its traceback."""

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handle(message, context)
        except SpatlError as error:
            code = CLIENT_DIVERGED if isinstance(error, DivergedError) else CLIENT_REFUSED
            return Message(Error(code=code, reason=str(error)), reply_to=message)

    return answer


@app.query()
@_reporting
def register(message: Message, context: Context) -> Message:
    """Say which partition this node holds, how many examples it trains on, and what model it would build."""
    workplace = _workplace(context)
    client = _client(context)
    own = _own_budget(context)
    if workplace.budget(client, own) is None and own is not None:  # an impossible one is refused here, before any work
        logger.warning("client %d: this run sends whole updates, its budget of %s is not kept", client, own)
    metrics = MetricRecord({"partition-id": client, "num-examples": workplace.num_examples(client)})
    fingerprint = ConfigRecord({"fingerprint": workplace.blueprint.layout.fingerprint})
    content = RecordDict({"metrics": metrics, "config": fingerprint})
    if workplace.config.row.static_mask:
        content["arrays"] = _blob_record(pack_saliency(workplace.saliency(client)))
    return Message(content, reply_to=message)


@app.train()
@_reporting
def train(message: Message, context: Context) -> Message:
    """Train one round and send the update."""
    workplace, client, store = _workplace(context), _client(context), _store(context)
    blob, report, state = workplace.train(
        client,
        _received(message, workplace),
        store.load(),
        acknowledged_round=_acknowledged(message),
        budget=_own_budget(context),
    )
    store.save(state)
    content = RecordDict({"arrays": _blob_record(blob), "metrics": MetricRecord({**report.to_metrics()})})
    return Message(content, reply_to=message)


@app.evaluate()
@_reporting
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the encoder that was sent, under this client's own predictor."""
    workplace, client, store = _workplace(context), _client(context), _store(context)
    report, state = workplace.evaluate(
        client, _received(message, workplace), store.load(), acknowledged_round=_acknowledged(message)
    )
    store.save(state)
    return Message(RecordDict({"metrics": MetricRecord({**report.to_metrics()})}), reply_to=message)


def _received(message: Message, workplace: Workplace) -> Model:
    try:
        blob = message.content.array_records["arrays"]["blob"].data
    except KeyError as error:
        raise UpdateRejected(f"the server's message lacks {error}") from error
    model = unpack_model(blob, workplace.blueprint.layout)
    if (model.selection is not None) != workplace.config.row.static_mask:
        raise UpdateRejected("the server's model and this method disagree on whether only some channels are trained")
    return model


def _blob_record(blob: bytes) -> ArrayRecord:
    """Written out, so that the bytes are the blob's own and not wrapped in an array format."""
    return ArrayRecord({"blob": Array("uint8", (len(blob),), "spatl.blob", blob)})


def _acknowledged(message: Message) -> int:
    value = message.content.config_records["config"]["acknowledged-round"]
    assert isinstance(value, int)
    return value


def _client(context: Context) -> int:
    client = context.node_config.get("partition-id")
    if not isinstance(client, int) or client < 0:
        raise ConfigError(f"the node's config must give its partition-id, an integer from 0, got {client!r}")
    return client


def _own_budget(context: Context) -> Budget | None:
    """The budget that the node's own config sets: keep-ratio, flops-ratio or uplink-bytes."""
    own = context.node_config
    values: dict[str, object] = {kind: own[key] for kind in BUDGET_KINDS if (key := kind.replace("_", "-")) in own}
    try:
        return parse_budget(values)
    except ConfigError as error:
        raise ConfigError(f"the node's config: {error}") from None


def _store(context: Context) -> StateStore:
    directory = str(context.run_config.get("out", ""))
    if directory:
        return DirectoryStore(Path(directory) / "clients" / str(_client(context)))
    return ContextStore(context.state)


def _workplace(context: Context) -> Workplace:
    return _cached_workplace(config_from_run(context.run_config).to_json())


@lru_cache(maxsize=2)
def _cached_workplace(config_json: str) -> Workplace:
    return Workplace(cached_blueprint(config_json))
