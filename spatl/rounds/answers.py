"""Answers of clients to what a round asked them: read, checked against the question, and refused with a reason."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from spatl.channels.vectors import mean_square
from spatl.errors import SpatlError, UpdateRejected
from spatl.rounds.admission import (
    Admission,
    Size,
    UpdateTooLarge,
    Usual,
    check_size,
    check_trust,
    clip_update,
    low_of,
    median_of,
    size_of,
)
from spatl.rounds.federation import Federation
from spatl.rounds.judging import most_tested
from spatl.rounds.opened_control import knows_control
from spatl.rounds.robust import agreements
from spatl.rounds.server_state import ServerState
from spatl.rounds.shared_statistics import StatisticsBounds, has_statistics
from spatl.tasks.task import Measure
from spatl.wire.reports import TrainReport
from spatl.wire.statistics import Arrival
from spatl.wire.update import Update, unpack_update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A client's question in a round, as far as its answer can be checked against it.

    Attributes:
        server_round: The round.
        base_version: The version of x_hat that the client trains from.
        num_examples: The training examples it registered (n_i).
        step_weight: What its local training adds up to (a_i).
        corrected: Whether its gradients are corrected by control variates.
        most_tested: How many examples it is evaluated on, at most; None where nobody asks.
    """

    server_round: int
    base_version: int
    num_examples: int
    step_weight: float
    corrected: bool
    most_tested: int | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """An update to be folded in, unless others speak against it.

    Attributes:
        client: Whose it is.
        update: The update, decoded, checked, and scaled down where it was clipped.
        report: What came with it.
        size: Its size before it may have been clipped.
        clipped: Whether it was.
    """

    client: int
    update: Update
    report: TrainReport
    size: Size
    clipped: bool


class ClientFailed(UpdateRejected):
    """An error that a client reported in place of an update.

    Args:
        reason: One line.
        traceback: What it told beyond that; empty for nothing.
        diverged: Whether its local training left the finite numbers.
        lost: Whether it does not hold what the server's changes start from.
        forgot: Whether it does not have the control variate that the server's contains.
        not_now: Whether its owner lets it do nothing at this time.
        unregistered: Whether it keeps nothing of its registration.
    """

    def __init__(
        self, reason: str, *, traceback: str = "", diverged: bool = False, lost: bool = False, forgot: bool = False,
        not_now: bool = False, unregistered: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.traceback, self.diverged, self.lost, self.forgot = traceback, diverged, lost, forgot
        self.not_now, self.unregistered = not_now, unregistered


Answer = tuple[int, bytes | UpdateRejected]
"""A client, and the blob that it sent or why there is none."""
Told = TypeVar("Told")


def read_answers(
    answers: Iterable[Answer], read: Callable[[int, bytes], Told]
) -> tuple[dict[int, Told], dict[int, UpdateRejected]]:
    """Read what clients told beside their updates.

    Args:
        answers: Each client that answered, once, in any order.
        read: Returns what a client's blob tells, or raises `UpdateRejected`.

    Returns:
        What was told, and why the rest cannot be used, by client.
    """
    told, refused = dict[int, Told](), dict[int, UpdateRejected]()
    for client, answer in answers:
        try:
            if isinstance(answer, UpdateRejected):
                raise answer
            told[client] = read(client, answer)
        except UpdateRejected as error:
            refused[client] = error
    return told, refused


@dataclass
class Outcome:
    """Outcome of a round.

    Attributes:
        trained: The report of each client whose update was folded in.
        measures: What its evaluation was measured by, where that is told.
        arrivals: What it told of the encoder that had arrived, where that was asked for.
        kept: How many channels of each group it sent, in the layout's order, where clients choose.
        cosines: Cosine of its update with the sum of the others' (`spatl.rounds.cosines`); None where there is none.
        rejected: Why each other one was refused.
        tracebacks: What a client that failed told beyond that.
        diverged: The clients whose local training diverged, or whose update was too large.
        lost: The clients that do not hold what the server's changes start from.
        forgot: The clients that do not have the control variate that the server's contains.
        not_now: The clients whose owner lets them do nothing at this time.
        unregistered: The clients that keep nothing of their registration.
        errors: The clients that answered with an error.
        skipped: Whether there were fewer usable updates than the round needs, so that it changed nothing.
        ending: Why the run cannot go on; None where it can.
    """

    trained: dict[int, TrainReport] = field(default_factory=dict)
    measures: dict[int, tuple[Measure, ...]] = field(default_factory=dict)
    arrivals: dict[int, Arrival] = field(default_factory=dict)
    kept: dict[int, tuple[int, ...]] = field(default_factory=dict)
    cosines: dict[int, float | None] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    tracebacks: dict[int, str] = field(default_factory=dict)
    diverged: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    forgot: set[int] = field(default_factory=set)
    not_now: set[int] = field(default_factory=set)
    unregistered: set[int] = field(default_factory=set)
    errors: set[int] = field(default_factory=set)
    skipped: bool = False
    ending: SpatlError | None = None


def question_of(federation: Federation, state: ServerState, server_round: int, client: int) -> Question:
    """Return what a client is asked in a round that is open."""
    number = state.num_examples[client]
    return Question(
        server_round=server_round,
        base_version=state.versions.version,
        num_examples=number,
        step_weight=federation.step_weight(client, number, server_round),
        corrected=state.control is not None and knows_control(federation, state, client),
        most_tested=most_tested(federation.blueprint, client),
    )


def admit(federation: Federation, blob: bytes, question: Question) -> tuple[Update, TrainReport]:
    """Return the update in a blob, decoded, and its report, once they are seen to answer the question.

    Raises:
        UpdateRejected: The blob is damaged, or answers another question.
    """
    update = unpack_update(
        blob, federation.blueprint.layout, federation.blueprint.codecs.uplink,
        server_round=question.server_round, base_version=question.base_version,
        num_arrived=federation.blueprint.num_arrived, judging=federation.blueprint.judging,
        most_examples=question.most_tested,
    )  # fmt: skip
    report = update.report
    if report is None:
        raise UpdateRejected("the update has no report")
    if report.num_examples != question.num_examples:
        raise UpdateRejected(f"num-examples is {report.num_examples}, the client registered {question.num_examples}")
    if update.corrected != question.corrected:
        raise UpdateRejected("the update and the server disagree on whether gradients were corrected")
    agreed, sent = federation.agreed, update.selection
    parts = federation.blueprint.config.trains_parts
    if sent.closed != (agreed is not None or parts) or (agreed is not None and not torch.equal(sent.mask, agreed.mask)):
        whose = "of a part of the network" if parts else "of the channels that all clients agreed on"
        raise UpdateRejected(f"the update is not {whose}")
    if not math.isclose(update.step_weight, question.step_weight, rel_tol=1e-9):
        raise UpdateRejected(
            f"the step weight is {update.step_weight:g}, this training adds up to {question.step_weight:g}"
        )
    return update, report


def usual_sizes(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> tuple[Usual | None, Iterable[Answer]]:
    """Return what a round's updates are measured by, None where nothing is known; and the answers, all still to come.

    Where no round before says what is large, they wait, as they came, until all are in.
    """
    largest, recent = state.admission.largest, state.admission.recent
    server = federation.blueprint.config.server
    if largest is None and (federation.norm_bound is not None or server.clip is not None):
        answers = list(answers)
        layout = federation.blueprint.layout
        sizes = [size_of(update, layout) for _, update in _readable(federation, state, server_round, answers)]
        largest, recent = (low_of(sizes), median_of(sizes)) if sizes else (None, None)
    if largest is None or recent is None:
        return None, answers
    parameters = state.encoder[: federation.blueprint.layout.num_parameter_entries]
    return Usual.of(largest, recent, encoder_rms=math.sqrt(mean_square(parameters))), answers


def statistics_bounds(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> tuple[StatisticsBounds | None, Iterable[Answer]]:
    """Return what bounds the statistics of a round's updates, None where none travel; and the answers, as they came.

    With privacy, what becomes of an update must not depend on another's, and its clip bounds statistics as well.
    """
    layout = federation.blueprint.layout
    if not has_statistics(layout) or federation.blueprint.config.privacy.noise_multiplier is not None:
        return None, answers
    answers = list(answers)
    before = federation.reference(state).encoder
    exact = federation.blueprint.config.wire.uplink == "float32"
    updates = _readable(federation, state, server_round, answers)
    return StatisticsBounds.of(updates, before, layout, exact=exact), answers


def checked_candidates(
    federation: Federation,
    state: ServerState,
    server_round: int,
    answers: Iterable[Answer],
    usual: Usual | None,
    outcome: Outcome,
    bounds: StatisticsBounds | None = None,
) -> Iterator[Candidate]:
    """Open the answers as they come, and pass on the updates that can be used and are not too large."""
    for client, content in answers:
        try:
            candidate = _candidate(federation, state, server_round, client, content, usual, bounds)
        except UpdateRejected as error:
            refuse_(outcome, client, error, server_round)
            continue
        yield candidate
        del candidate, content  # as large as the encoder, and another client may train before the next one is here


def _candidate(
    federation: Federation,
    state: ServerState,
    server_round: int,
    client: int,
    content: bytes | UpdateRejected,
    usual: Usual | None,
    bounds: StatisticsBounds | None,
) -> Candidate:
    update, report = _opened(federation, state, server_round, client, content)
    if bounds is not None:
        update = bounds.bounded(client, update, federation.blueprint.layout)
    size = size_of(update, federation.blueprint.layout)
    check_size(size, usual.bounded if usual else None, federation.norm_bound)
    factor = federation.blueprint.config.server.clip
    clipped = clip_update(update, size, usual.clipped if usual else None, factor)
    return Candidate(client, clipped, report, size, clipped is not update)


def agreeing_candidates(
    federation: Federation, admission: Admission, candidates: list[Candidate], server_round: int, outcome: Outcome
) -> tuple[Iterator[Candidate], Admission]:
    """Compare a round's updates: return those of the clients that are trusted, and what is remembered of all."""
    trusted = [admission.trusts(each.client) for each in candidates]
    found = agreements([each.update for each in candidates], trusted, federation.blueprint.layout)
    admission = admission.judged({each.client: agreement for each, agreement in zip(candidates, found, strict=True)})
    agreeing = []
    for each in candidates:
        try:
            check_trust(admission.trust[each.client])
        except UpdateRejected as error:
            refuse_(outcome, each.client, error, server_round)
        else:
            agreeing.append(each)
    return iter(agreeing), admission


def refuse_(outcome: Outcome, client: int, error: UpdateRejected, server_round: int) -> None:
    """Enter that and why an update is not used, and say so."""
    found = error.traceback if isinstance(error, ClientFailed) else ""
    logger.warning(
        "round %d: refused the update of client %d: %s", server_round, client, error,
        extra={"round": server_round, "client": client, **({"traceback": found} if found else {})},
    )  # fmt: skip
    if found:
        outcome.tracebacks[client] = found
    outcome.rejected[client] = str(error)
    if isinstance(error, ClientFailed):
        outcome.errors.add(client)
    if isinstance(error, UpdateTooLarge) or (isinstance(error, ClientFailed) and error.diverged):
        outcome.diverged.add(client)
    if isinstance(error, ClientFailed) and error.lost:
        outcome.lost.add(client)
    if isinstance(error, ClientFailed) and error.forgot:
        outcome.forgot.add(client)
    if isinstance(error, ClientFailed) and error.not_now:
        outcome.not_now.add(client)
    if isinstance(error, ClientFailed) and error.unregistered:
        outcome.unregistered.add(client)


def _readable(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> Iterator[tuple[int, Update]]:
    """The updates that can be read, by client."""
    for client, content in answers:
        try:
            update, _ = _opened(federation, state, server_round, client, content)
        except UpdateRejected:
            continue
        yield client, update


def _opened(
    federation: Federation, state: ServerState, server_round: int, client: int, content: bytes | UpdateRejected
) -> tuple[Update, TrainReport]:
    if isinstance(content, UpdateRejected):
        raise content
    return admit(federation, content, question_of(federation, state, server_round, client))
