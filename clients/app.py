"""Flower's ClientApp: takes a message apart, has `spatl.rounds.client` do the work, puts the reply together."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

import spatl
from clients.node import (
    agreement_of,
    budget_of,
    check_same_run,
    client_of,
    config_of,
    directory_of,
    is_device,
    sent_config,
    store_of,
    tells_findings,
    workplace_of,
)
from clients.owner import Owner, governed, owner_of, without_places
from clients.pinned import check_last, check_not_over, pin
from clients.store import StateStore
from spatl.artifacts.model_files import describe_model
from spatl.artifacts.names import LABEL_OFFSET
from spatl.channels.costs import Budget
from spatl.config.loading import with_agreement
from spatl.data.own import Agreement, alone
from spatl.errors import (
    ControlLost,
    DivergedError,
    NotNow,
    NotRegistered,
    ReferenceLost,
    SpatlError,
    StateBusy,
    SystemFault,
    UpdateRejected,
    from_outside,
    system_fault,
    told,
    traceback_of,
)
from spatl.rounds.client import receive, train_round, with_its_control
from spatl.rounds.client_data import data_digest, describe_own
from spatl.rounds.client_evaluation import ClientModel, arrived, evaluate_round, gather_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.demands import (
    check_binding,
    check_chosen,
    check_demands,
    check_enough,
    check_kept,
    check_mask,
)
from spatl.rounds.findings import find_round
from spatl.rounds.workplace import Workplace
from spatl.wire.blob import (
    BLOB,
    CLIENT_BUSY,
    CLIENT_DIVERGED,
    CLIENT_FAILED,
    CLIENT_FORGOT,
    CLIENT_LOST,
    CLIENT_MACHINE,
    CLIENT_NOT_NOW,
    CLIENT_REFUSED,
    CLIENT_UNREGISTERED,
    RECORD,
)
from spatl.wire.download import Download, Model, unpack_download
from spatl.wire.registration import RegistrationAnswer, RegistrationQuestion, pack_saliency
from spatl.wire.reports import EvaluateReport

logger = logging.getLogger(__name__)

app = ClientApp()

_PATH = re.compile(r'File "[^"\n]*[/\\](?=[^"\n]*")')
_CODES: dict[type[SpatlError], int] = {
    DivergedError: CLIENT_DIVERGED, ReferenceLost: CLIENT_LOST, StateBusy: CLIENT_BUSY, NotNow: CLIENT_NOT_NOW,
    ControlLost: CLIENT_FORGOT, NotRegistered: CLIENT_UNREGISTERED,
}  # fmt: skip


def reporting(handle: ClientAppCallable) -> ClientAppCallable:
    """Answer with an error that says why, in one line, where the work cannot be done.

    What the model or a bug raised goes on with its traceback, for the server's `log.jsonl`; a device's own log has it
    too. On a device, the work is done under the rules of its owner.
    """

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        try:
            with governed(context, message.metadata.message_type):
                return handle(message, context)
        except (Exception, SystemExit) as error:  # a program of the user's may end itself, but not this client
            own = CLIENT_REFUSED if isinstance(error, SpatlError) else CLIENT_FAILED
            refused_by_system = system_fault(error) is not None or isinstance(error, SystemFault)
            if refused_by_system and not is_device(context):
                own = CLIENT_MACHINE
            code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), own)
            reason, detailed = told(error), from_outside(error)
            if is_device(context):  # its owner sees nothing of what the server says
                logger.error("this device could not do what it was asked for (%s): %s", message.metadata.message_type,
                             reason, exc_info=error if detailed else None)  # fmt: skip
                reason = reason.replace(f"{Path(str(context.node_config['state-dir'])).parent}{os.sep}", "")
            if detailed:
                found = traceback_of(error)
                # A device's paths are its own affair.
                reason += "\n" + (_PATH.sub('File "', found) if is_device(context) else found)
            return Message(Error(code=code, reason=without_places(context, reason)), reply_to=message)

    return answer


@app.query()
@reporting
def register(message: Message, context: Context) -> Message:
    """Say which partition this node holds, how many examples it trains on, and what model it would build.

    A device with data of its own is asked twice: first what its data are like, and then, with what the clients have
    agreed on, for the rest. Why it cannot take part goes with its partition, so that the server can name it.
    """
    client = client_of(context)
    try:
        answer = _registration(message, context, client)
    except SpatlError as error:
        if is_device(context):
            logger.error("client %d takes no part in this run: %s", client, error,
                         exc_info=error if from_outside(error) else None)  # fmt: skip
        elif from_outside(error):  # the server's log is to have the traceback
            raise
        answer = RegistrationAnswer(client, refused=without_places(context, str(error)))
    return Message(RecordDict({RECORD: ConfigRecord(dict(answer.fields()))}), reply_to=message)


def _registration(message: Message, context: Context, client: int) -> RegistrationAnswer:
    """Return what a client says of itself."""
    if is_device(context):
        directory_of(context)  # a state that has no place is refused before any work
    check_same_run(context, sent_config(context), registering=True)
    config = config_of(context)
    agreed: str | None = None
    agreement: Agreement | None = None
    if config.has_own_data and config.data.agreed is None:
        agreed = RegistrationQuestion.of_fields(message.content.config_records[RECORD]).agreed
        if agreed is None:
            description = describe_own(config, client)
            if is_device(context):  # its owner's limits, before anything of its data leaves it
                agreement = alone(description, num_tokens=config.data.num_tokens)
                workplace = workplace_of(context, registering=True, agreement=agreement)
                _check_demands(context, workplace, description.num_examples)
            return RegistrationAnswer(client, description.num_examples, description=description.to_bytes())
        agreement = agreement_of(agreed)
    workplace = workplace_of(context, registering=True, agreement=agreement)
    num_examples = workplace.num_examples(client)
    _check_demands(context, workplace, num_examples)
    blueprint, masked = workplace.blueprint, workplace.config.row.static_mask
    answer = RegistrationAnswer(
        client,
        num_examples,
        fingerprint=blueprint.layout.fingerprint,
        initial=workplace.initial_check,
        rest=b"".join(blueprint.rest.values()) or None,
        saliency=pack_saliency(workplace.saliency(client)) if masked else None,
        digest=data_digest(config) if is_device(context) and config.shares_data_on_disk else None,
    )
    if is_device(context):
        sent = sent_config(context)
        pin(directory_of(context), sent if agreement is None else with_agreement(sent, agreement))
    if agreed is not None:
        store_of(context).save_agreed(agreed)
    return answer


def _check_demands(context: Context, workplace: Workplace, num_examples: int) -> None:
    """Raise where the run goes beyond the limits of a device, or does not keep a client's own budget.

    Raises:
        NotAllowed: A device's owner lets no such run take place.
        BudgetError: No selection meets the budget.
    """
    owner, client, budget = owner_of(context), client_of(context), budget_of(context)
    if owner is not None:
        check_demands(workplace.blueprint, client, num_examples, owner.rules.limits)
        if workplace.config.has_own_data:
            check_enough(num_examples, owner.rules.leaves.least_examples, "training")
        if not owner.rules.leaves.whole_updates:
            check_chosen(workplace.blueprint, client, budget)
        if budget is not None:
            check_binding(workplace.blueprint, client, budget, source="budget")
    elif workplace.budget(client, budget) is None and budget is not None:  # an impossible one is refused by now
        logger.warning("client %d: this run sends whole updates, its budget of %s is not kept", client, budget)


@app.train()
@reporting
def train(message: Message, context: Context) -> Message:
    """Train one round and send the update."""
    workplace, client, store = workplace_of(context), client_of(context), store_of(context)
    owner, budget = owner_of(context), budget_of(context)
    if owner is not None:  # whose file may say less by now than at registration
        _check_demands(context, workplace, workplace.num_examples(client))
    download, question = _download(message, context, workplace), _question(message, context, workplace)
    with store.locked():
        if question and (answer := store.answer(question)) is not None:
            logger.warning("round %d: asked again; the answer that was made goes out once more", download.server_round)
            return Message(_content(answer), reply_to=message)
        if owner is not None:
            check_not_over(directory_of(context), download.server_round, workplace.config.rounds)
        # Not by a name of its own: what the settled state does not hold any more is to be gone before training.
        model, state = receive(workplace, download, _state_before(store, download, workplace, context))
        if owner is not None:
            _check_channels(owner, workplace, model, budget)
            owner.begin_round(directory_of(context).parent)  # what cannot be trained from is no round of the day
        blob, state = train_round(workplace, client, model, state, budget=budget)
        if owner is not None:
            owner.check_length(len(blob), "upload_megabytes")
        store.save(state, question=question, answer=blob if question else b"")
    return Message(_content(blob), reply_to=message)


def _check_channels(owner: Owner, workplace: Workplace, model: Model, budget: Budget | None) -> None:
    """Raise where the channels that a server has chosen for all are more than a device's owner allows.

    Raises:
        NotAllowed: They are, or cost more than the budget.
    """
    if model.selection is None:
        return
    if not owner.rules.leaves.whole_updates:
        check_mask(workplace.blueprint, model.selection)
    if budget is not None:
        check_kept(workplace.blueprint, model.selection, budget, source="budget")


def _state_before(store: StateStore, download: Download, workplace: Workplace, context: Context) -> ClientState | None:
    """The state to train from, with the c_i that the server's c contains."""
    before = store.load(before=download.server_round)
    if before is None and download.acknowledged_round and is_device(context):
        logger.warning(
            "round %d: there is no state in %s, though the server has folded in round %d of this device: it was "
            "emptied, renamed or never put back; what this client kept for itself begins anew",
            download.server_round, directory_of(context), download.acknowledged_round,
        )  # fmt: skip
    return with_its_control(workplace, download, before)


@app.evaluate()
@reporting
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the encoder that was sent, under this client's own predictor."""
    workplace = workplace_of(context)
    with _visited(message, context, workplace) as (store, model, state):
        report, own = evaluate_round(workplace, client_of(context), model, state, whole=is_device(context))
        _save_model(store, context, workplace, model, report, own)
        del model, state, own  # before the state is read again
    return Message(_content(report.to_bytes(workplace.blueprint.judging)), reply_to=message)


@app.query("statistics")
@reporting
def statistics(message: Message, context: Context) -> Message:
    """Estimate BatchNorm statistics on this client's data, under the encoder that was sent."""
    workplace = workplace_of(context)
    with _visited(message, context, workplace) as (_, model, state):
        blob = gather_round(workplace, client_of(context), model, state)
        del model, state
    return Message(_content(blob), reply_to=message)


@app.query("findings")
@reporting
def findings(message: Message, context: Context) -> Message:
    """Say what the model that was sent does on this client's validation split; nothing is kept of it."""
    if not tells_findings(context):
        raise SpatlError("its owner says that it tells none (--no-findings)")
    workplace, store, owner = workplace_of(context), store_of(context), owner_of(context)
    download = _download(message, context, workplace)
    with store.locked():
        if is_device(context) and workplace.config.may_be_last(download.server_round):
            check_last(directory_of(context), download.server_round, workplace.config)
        model, state = receive(workplace, download, store.load())
        least = 1 if owner is None or not workplace.config.has_own_data else owner.rules.leaves.least_examples
        blob = find_round(workplace, client_of(context), model, state, least_examples=least)
    return Message(_content(blob), reply_to=message)


@contextmanager
def _visited(
    message: Message, context: Context, workplace: Workplace
) -> Iterator[tuple[StateStore, Model, ClientState]]:
    """Yield the client's store, model and settled state for work that is no training: then only the encoder is kept."""
    store, download = store_of(context), _download(message, context, workplace)
    with store.locked():
        if is_device(context):
            check_last(directory_of(context), download.server_round, workplace.config)
        # The state before is read twice: it has control variates that settling drops, each as long as the encoder.
        model, settled = receive(workplace, download, store.load())
        yield store, model, settled
        held = settled.held
        del model, settled
        store.save(arrived(store.load(), held, workplace.blueprint.layout))


def _save_model(
    store: StateStore, context: Context, workplace: Workplace, received: Model, report: EvaluateReport, own: ClientModel
) -> None:
    """Leave a client's model: on a device all of it, elsewhere what is the client's own, for the run has the rest."""
    private = {} if own.offset is None else {LABEL_OFFSET: own.offset}
    if not is_device(context):
        store.save_model(None, {**own.tensors, **private}, {})
        return
    description = describe_model(
        workplace.blueprint, statistics=received.statistics, encoder=received.start(), accuracy=report.accuracy,
        version=spatl.__version__, client=client_of(context),
    )  # fmt: skip
    store.save_model(description, own.tensors, private)


def _question(message: Message, context: Context, workplace: Workplace) -> bytes:
    """What names a question, so that a copy of it is known; empty where no message is lost on its way."""
    if not is_device(context):
        return b""
    blob = message.content[RECORD][BLOB]  # of a download that was read
    assert isinstance(blob, bytes)
    terms = f"{workplace.config.to_json()} {budget_of(context)}"
    return hashlib.blake2b(terms.encode() + blob, digest_size=16).digest()


def _download(message: Message, context: Context, workplace: Workplace) -> Download:
    record = message.content.get(RECORD)  # `config_records` would make a cycle, and keep it until the next collection
    if not isinstance(record, ConfigRecord):
        raise UpdateRejected(f"the server's message lacks {RECORD!r}")
    try:
        blob = record[BLOB]
    except KeyError as error:
        raise UpdateRejected(f"the server's message lacks {error}") from error
    if not isinstance(blob, bytes):
        raise UpdateRejected(f"the server's blob must be bytes, got {type(blob).__name__}")
    blueprint, owner = workplace.blueprint, owner_of(context)
    if owner is not None:
        owner.check_length(len(blob), "download_megabytes")
    return unpack_download(blob, blueprint.layout, blueprint.codecs.downlink, num_statistics=blueprint.num_statistics)


def _content(blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({BLOB: blob})})
