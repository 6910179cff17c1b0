"""Flower's ClientApp: takes a message apart, has `spatl.rounds.client` do the work, puts the reply together."""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from pydantic import ValidationError

import spatl
from clients.store import ContextStore, DirectoryStore, StateStore
from spatl.artifacts.model_files import LABEL_OFFSET, describe_model
from spatl.channels.costs import BUDGET_KINDS, Budget
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_run, on_device, parse_budget, with_agreement
from spatl.config.sections import AgreedConfig
from spatl.data.own import Agreement
from spatl.deployment.sites import NO_FINDINGS
from spatl.errors import (
    ConfigError,
    DivergedError,
    ReferenceLost,
    SpatlError,
    StateBusy,
    UpdateRejected,
    from_outside,
    system_fault,
    told,
    traceback_of,
)
from spatl.rounds.blueprint import cached_blueprint
from spatl.rounds.client import receive, train_round
from spatl.rounds.client_data import data_digest, describe_own
from spatl.rounds.client_evaluation import ClientModel, arrived, evaluate_round, gather_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.findings import find_round
from spatl.rounds.offsets import check_of
from spatl.rounds.workplace import Workplace
from spatl.wire.blob import (
    BLOB,
    CLIENT_BUSY,
    CLIENT_DIVERGED,
    CLIENT_FAILED,
    CLIENT_LOST,
    CLIENT_MACHINE,
    CLIENT_REFUSED,
    RECORD,
)
from spatl.wire.download import Download, Model, unpack_download
from spatl.wire.registration import RegistrationAnswer, RegistrationQuestion, pack_saliency
from spatl.wire.reports import EvaluateReport

logger = logging.getLogger(__name__)

app = ClientApp()

_PATH = re.compile(r'File "[^"\n]*[/\\](?=[^"\n]*")')
_CODES: dict[type[SpatlError], int] = {
    DivergedError: CLIENT_DIVERGED, ReferenceLost: CLIENT_LOST, StateBusy: CLIENT_BUSY,
}  # fmt: skip


def reporting(handle: ClientAppCallable) -> ClientAppCallable:
    """Answer with an error that says why, in one line, where the work cannot be done.

    What the model or a bug raised goes on with its traceback, for the server's `log.jsonl`; a device's own log has it
    too.
    """

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handle(message, context)
        except Exception as error:
            own = CLIENT_REFUSED if isinstance(error, SpatlError) else CLIENT_FAILED
            if system_fault(error) is not None and not _is_device(context):
                own = CLIENT_MACHINE
            code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), own)
            reason, detailed = told(error), from_outside(error)
            if _is_device(context):  # its owner sees nothing of what the server says
                logger.error("this device could not do what it was asked for (%s): %s", message.metadata.message_type,
                             reason, exc_info=error if detailed else None)  # fmt: skip
            if detailed:
                found = traceback_of(error)
                # A device's paths are its own affair.
                reason += "\n" + (_PATH.sub('File "', found) if _is_device(context) else found)
            return Message(Error(code=code, reason=reason), reply_to=message)

    return answer


@app.query()
@reporting
def register(message: Message, context: Context) -> Message:
    """Say which partition this node holds, how many examples it trains on, and what model it would build.

    A device with data of its own is asked twice: first what its data are like, and then, with what the clients have
    agreed on, for the rest. Why it cannot take part goes with its partition, so that the server can name it.
    """
    client = _client(context)
    try:
        answer = _registration(message, context, client)
    except SpatlError as error:
        if _is_device(context):
            logger.error("client %d takes no part in this run: %s", client, error,
                         exc_info=error if from_outside(error) else None)  # fmt: skip
        elif from_outside(error):  # the server's log is to have the traceback
            raise
        answer = RegistrationAnswer(client, refused=str(error))
    numbers, fields = MetricRecord(dict(answer.numbers())), ConfigRecord(dict(answer.fields()))
    return Message(RecordDict({"metrics": numbers, RECORD: fields}), reply_to=message)


def _registration(message: Message, context: Context, client: int) -> RegistrationAnswer:
    """Return what a client says of itself."""
    store = _store(context)  # a state that has no place is refused before any work
    config = _config(context)
    if config.has_own_data and config.data.agreed is None:
        agreed = RegistrationQuestion.of_fields(message.content.config_records[RECORD]).agreed
        if agreed is None:
            description = describe_own(config, client)
            return RegistrationAnswer(client, description.num_examples, description=description.to_bytes())
        with_agreement(config, _agreement(agreed))
        store.save_agreed(agreed)
    workplace = workplace_of(context)
    budget = _own_budget(context)
    if workplace.budget(client, budget) is None and budget is not None:  # an impossible one is refused, before any work
        logger.warning("client %d: this run sends whole updates, its budget of %s is not kept", client, budget)
    blueprint, masked = workplace.blueprint, workplace.config.row.static_mask
    return RegistrationAnswer(
        client,
        workplace.num_examples(client),
        fingerprint=blueprint.layout.fingerprint,
        initial=check_of(blueprint.initial_encoder()),
        rest=b"".join(blueprint.rest.values()) or None,
        saliency=pack_saliency(workplace.saliency(client)) if masked else None,
        digest=data_digest(config) if _is_device(context) and config.shares_data_on_disk else None,
    )


@app.train()
@reporting
def train(message: Message, context: Context) -> Message:
    """Train one round and send the update."""
    workplace, client, store = workplace_of(context), _client(context), _store(context)
    download, question = _download(message, workplace), _question(message, context, workplace)
    with store.locked():
        if question and (answer := store.answer(question)) is not None:
            logger.warning("round %d: asked again; the answer that was made goes out once more", download.server_round)
            return Message(_content(answer), reply_to=message)
        # Not by a name of its own: what the settled state does not hold any more is to be gone before training.
        model, state = receive(workplace, download, _load(store, download, workplace, before=download.server_round))
        blob, state = train_round(workplace, client, model, state, budget=_own_budget(context))
        store.save(state, question=question, answer=blob if question else b"")
    return Message(_content(blob), reply_to=message)


@app.evaluate()
@reporting
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the encoder that was sent, under this client's own predictor."""
    workplace = workplace_of(context)
    with _visited(message, context, workplace) as (store, model, state):
        report, own = evaluate_round(workplace, _client(context), model, state, whole=_is_device(context))
        _save_model(store, context, workplace, model, report, own)
        del model, state, own  # before the state is read again
    return Message(_content(report.to_bytes()), reply_to=message)


@app.query("statistics")
@reporting
def statistics(message: Message, context: Context) -> Message:
    """Estimate BatchNorm statistics on this client's data, under the encoder that was sent."""
    workplace = workplace_of(context)
    with _visited(message, context, workplace) as (_, model, state):
        blob = gather_round(workplace, _client(context), model, state)
        del model, state
    return Message(_content(blob), reply_to=message)


@app.query("findings")
@reporting
def findings(message: Message, context: Context) -> Message:
    """Say what the model that was sent does on this client's validation split; nothing is kept of it."""
    if context.node_config.get("findings") == NO_FINDINGS:
        raise SpatlError("its owner says that it tells none (--no-findings)")
    workplace, store = workplace_of(context), _store(context)
    download = _download(message, workplace)
    with store.locked():
        model, state = receive(workplace, download, _load(store, download, workplace))
        blob = find_round(workplace, _client(context), model, state)
    return Message(_content(blob), reply_to=message)


@contextmanager
def _visited(
    message: Message, context: Context, workplace: Workplace
) -> Iterator[tuple[StateStore, Model, ClientState]]:
    """Yield the client's store, model and settled state for work that is no training: then only the encoder is kept."""
    store, download = _store(context), _download(message, workplace)
    with store.locked():
        # The state before is read twice: it has control variates that settling drops, each as long as the encoder.
        model, settled = receive(workplace, download, _load(store, download, workplace))
        yield store, model, settled
        held = settled.held
        del model, settled
        store.save(arrived(_load(store, download, workplace), held, workplace.blueprint.layout))


def _save_model(
    store: StateStore, context: Context, workplace: Workplace, received: Model, report: EvaluateReport, own: ClientModel
) -> None:
    """Leave a client's model: on a device all of it, elsewhere what is the client's own, for the run has the rest."""
    private = {} if own.offset is None else {LABEL_OFFSET: own.offset}
    if not _is_device(context):
        store.save_model(None, {**own.tensors, **private}, {})
        return
    description = describe_model(
        workplace.blueprint, statistics=received.statistics, encoder=received.start(), accuracy=report.accuracy,
        version=spatl.__version__, client=_client(context),
    )  # fmt: skip
    store.save_model(description, own.tensors, private)


def _question(message: Message, context: Context, workplace: Workplace) -> bytes:
    """What names a question, so that a copy of it is known; empty where no message is lost on its way."""
    if not _is_device(context):
        return b""
    blob = message.content[RECORD][BLOB]  # of a download that was read
    assert isinstance(blob, bytes)
    terms = f"{workplace.config.to_json()} {_own_budget(context)}"
    return hashlib.blake2b(terms.encode() + blob, digest_size=16).digest()


def _download(message: Message, workplace: Workplace) -> Download:
    record = message.content.get(RECORD)  # `config_records` would make a cycle, and keep it until the next collection
    if not isinstance(record, ConfigRecord):
        raise UpdateRejected(f"the server's message lacks {RECORD!r}")
    try:
        blob = record[BLOB]
    except KeyError as error:
        raise UpdateRejected(f"the server's message lacks {error}") from error
    if not isinstance(blob, bytes):
        raise UpdateRejected(f"the server's blob must be bytes, got {type(blob).__name__}")
    blueprint = workplace.blueprint
    return unpack_download(blob, blueprint.layout, blueprint.codecs.downlink, num_statistics=blueprint.num_statistics)


def _load(
    store: StateStore, download: Download, workplace: Workplace, *, before: int | None = None
) -> ClientState | None:
    """The client's state; an older one only where no control variate is lost by it."""
    folded_round = download.acknowledged_round if workplace.config.row.controls else 0
    return store.load(before=before, folded_round=folded_round)


def _content(blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({BLOB: blob})})


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
    """A deployed client's state lies in its own device's directory, whatever the server says."""
    own = context.node_config.get("state-dir")
    if own is not None:
        run = str(context.run_config.get("run", "")) or str(context.run_id)
        if not re.fullmatch(r"[0-9A-Za-z-]+", run):
            raise ConfigError(f"the run's name must be letters, digits and hyphens, got {run!r}")
        return DirectoryStore(Path(str(own)) / run)
    directory = str(context.run_config.get("out", ""))
    if directory:
        return DirectoryStore(Path(directory) / "clients" / str(_client(context)))
    return ContextStore(context.state)


def workplace_of(context: Context) -> Workplace:
    """Workplace that the run's config describes, on the device and with the data that the node's own config names.

    Raises:
        SpatlError: It does not work out, or this device does not know what the clients have agreed on.
    """
    config = _config(context)
    if config.has_own_data and config.data.agreed is None:
        agreed = _store(context).agreed()
        if agreed is None:
            raise SpatlError("this device has not registered, or lost what the clients have agreed on")
        config = with_agreement(config, _agreement(agreed))
    return _cached_workplace(config.to_json())


def _config(context: Context) -> ExperimentConfig:
    """The run's config, as the node's own config has it."""
    device, data = (context.node_config.get(key) for key in ("device", "data-dir"))
    try:
        config = config_from_run(context.run_config)
        return on_device(
            config.without_weights() if _is_device(context) else config,
            device=None if device is None else str(device),
            data=None if data is None else str(data),
        )
    except ConfigError as error:
        raise ConfigError(f"the node's config: {error}") from None


def _agreement(text: str) -> Agreement:
    try:
        return AgreedConfig.model_validate_json(text).agreement()
    except ValidationError as error:
        raise ConfigError(f"what the clients have agreed on does not hold: {error.errors()[0]['msg']}") from None


def _is_device(context: Context) -> bool:
    """Return whether this is a machine of its own, with a place for its state, and no part of a simulation."""
    return "state-dir" in context.node_config


@lru_cache(maxsize=2)
def _cached_workplace(config_json: str) -> Workplace:
    return Workplace(cached_blueprint(config_json))
