"""The one strategy of all methods: Flower's FedAvg with sampling, messages and averaging by the method's row.

Flower's own `start` drives it. What changes from round to round is one value, `ServerState`; replies are checked and
folded in as the grid yields them. After a round everything is on disk, and a strategy made with a checkpoint goes on
from there; Flower, which counts from 1, is asked for the rounds that are left.
"""

import contextlib
import hashlib
import logging
import math
import re
import secrets
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from server.checkpoint import Checkpoint, ServerState, save_checkpoint
from server.questions import Questions, is_lost
from server.recorder import Recorder
from server.traffic import message_traffic
from spatl.channels.selection import Selection, select_all
from spatl.channels.vectors import all_finite, mean_square
from spatl.errors import DivergedError, SpatlError, UpdateRejected, printable
from spatl.rounds.admission import (
    Admission,
    Size,
    UpdateTooLarge,
    Usual,
    check_size,
    check_trust,
    clip_update,
    median_of,
    size_of,
)
from spatl.rounds.aggregation import Aggregator, PrivateAggregator, RobustAggregator, agreements
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.control import fading, followed_control
from spatl.rounds.downlink import Reference
from spatl.rounds.sampling import sample_clients
from spatl.runs.ledger import Direction, Entry, entry
from spatl.seeding import generator
from spatl.wire.blob import BLOB, CLIENT_DIVERGED, CLIENT_LOST, CLIENT_REFUSED, RECORD, section_bytes
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, download_overhead, pack_download
from spatl.wire.reports import EvaluateReport, TrainReport
from spatl.wire.update import Update, pack_update, unpack_update

logger = logging.getLogger(__name__)

_DIVERGED_LOSS_FACTOR = 10.0  # a median training loss this many times the first round's is not training any more
_USELESS_ROUNDS = 3  # so many rounds in a row with nothing usable end a run
_POLL_SECONDS = 0.5
_LONGEST_REASON = 500
_LONGEST_TRACEBACK = 16_000
_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r'\s*File "(.*)", line (\d+), in (.*)')
_FORGOTTEN = 1e-8  # c as a client derived it is c once what it missed counts less than this


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An update to be folded in, unless others speak against it; `size` is the one before it may have been clipped."""

    client: int
    update: Update
    report: TrainReport
    size: Size
    clipped: bool


class Federation(FedAvg):
    """Runs any row of the method table.

    Args:
        blueprint: The federation.
        nodes: Flower's node id of each client.
        num_examples: Training examples of each client (n_i).
        recorder: Where rounds are written.
        selection: The channels that all clients train and send, for a method that agrees on them; the rest is zero.
        cannot_build: The clients whose initial encoder is another one than the server's, so that it is sent to them.
        checkpoint: Where to go on from.
        kwargs: Flower's own settings.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        nodes: Mapping[int, int],
        num_examples: Mapping[int, int],
        recorder: Recorder,
        selection: Selection | None = None,
        cannot_build: Iterable[int] = (),
        checkpoint: Checkpoint | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._blueprint = blueprint
        self._config = blueprint.config
        self._nodes = nodes
        self._clients = {node: client for client, node in nodes.items()}
        # Of all that ever registered: who is away for a while has a share in c as before.
        known = dict(checkpoint.state.num_examples) if checkpoint is not None else {}
        self._num_examples = num_examples = {**known, **num_examples}
        self._recorder = recorder
        self._selection = selection
        self._sent = 0, b""
        self._questions = Questions()
        self._sent_entries: dict[int, Entry] = {}
        training = self._config.training.settings()
        self._step_weights = {client: training.step_weight(number) for client, number in num_examples.items()}
        layout = blueprint.layout
        controls = self._config.row.controls
        control = torch.zeros(layout.num_parameter_entries) if controls else None
        wire = self._config.wire
        self._reference = Reference(blueprint.initial_encoder(), layout, CODECS[wire.downlink], selection=selection)
        self._derives = controls and self._config.derives_control
        self._mean_step_weight = math.fsum(
            num_examples[client] * weight for client, weight in self._step_weights.items()
        ) / sum(num_examples.values())
        self.state = ServerState(
            encoder=self._reference.encoder,
            control=control,
            held_control=control,
            control_share=0.0,
            folded={},
            held=dict.fromkeys(num_examples, 0),
            astray=dict.fromkeys(num_examples, 0.0),
            cannot_build=frozenset(cannot_build),
            num_examples=num_examples,
        )
        self._done = 0
        if checkpoint is not None:
            self._done = checkpoint.server_round
            self._reference.restore(checkpoint.reference)
            before, control = checkpoint.state, checkpoint.state.control
            if control is not None and known:  # the c_i of one that is new is 0, and p_i is less for all others
                control = control * (sum(known.values()) / sum(num_examples.values()))
            self.state = replace(
                before, control=control, num_examples=num_examples,
                held={**self.state.held, **before.held},
                astray={**dict.fromkeys(num_examples, 1.0), **before.astray},
                cannot_build=before.cannot_build | self.state.cannot_build,
            )  # fmt: skip

    @property
    def num_rounds_left(self) -> int:
        """How many rounds Flower is to be asked for."""
        return max(0, self._config.rounds - self._done)

    def summary(self) -> None:
        """Say nothing: the config stands in the run's directory."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the round's clients and address the packed model to each."""
        server_round += self._done
        admitted = self.state.admission.admitted(self._nodes, server_round)
        self._recorder.round.left_out = tuple(sorted(set(self._nodes) - set(admitted)))
        clients = sample_clients(
            admitted, fraction=self._config.server.fraction_train, seed=self._config.seed,
            server_round=server_round,
        )  # fmt: skip
        self._recorder.round.participants = clients
        connected = self._await(grid, clients, server_round)
        if server_round > 1:
            self._open_round(server_round)
        return self._messages(clients, server_round, MessageType.TRAIN, connected)

    def _await(self, grid: Grid, clients: Sequence[int], server_round: int) -> set[int]:
        """Wait for a while until as many of the round's clients are connected as it needs replies; return who is."""
        needed = min(self._config.server.min_replies, len(clients))
        deadline = time.monotonic() + self._config.server.connect_timeout_seconds
        said = False
        while True:
            connected = set(grid.get_node_ids())
            if sum(self._nodes[client] in connected for client in clients) >= needed or time.monotonic() >= deadline:
                return connected
            if not said:
                logger.warning(
                    "round %d: waiting for clients to connect", server_round, extra={"round": server_round}
                )  # fmt: skip
                said = True
            time.sleep(_POLL_SECONDS)

    def _open_round(self, server_round: int) -> None:
        """Lead the clients' encoder towards the server's, and let control variates fade."""
        state = self.state
        change = self._advance(server_round)
        if state.control is None or state.held_control is None:
            return
        fade = fading(self._config.control.half_life, 1)
        control = state.control if fade == 1.0 else state.control * fade
        derived = self._derived_control(valid=True)
        held = control
        if self._derives:
            held = followed_control(state.held_control, change, derived, fading=fade)
        forgetting = fade * (1 - derived.damping)
        astray = {client: share * forgetting for client, share in state.astray.items()}
        self.state = replace(state, control=control, held_control=held, astray=astray)

    def _advance(self, server_round: int) -> Tensor:
        """What led the clients' encoder on, float32 [P]."""
        try:
            return self._reference.advance(
                self.state.encoder,
                generator=generator(self._config.seed, "rounding-server", server_round=server_round),
                max_bytes=self._room(),
            )
        except DivergedError as error:
            self._stop(error)

    def _room(self) -> int | None:
        """How long the change in a download may be, and c where it is sent beside it: as long; None for any length."""
        limit, controls = self._blueprint.message_bytes, self.state.control is not None
        if limit is None:
            return None
        room = limit - download_overhead(controls=controls)
        return room // 2 if controls and not self._derives else room

    def _derived_control(self, *, valid: bool) -> DerivedControl:
        """What the clients' c follows from; as float32, which is what they see of it."""
        damping = self._config.control.damping * self.state.control_share
        return DerivedControl(as_float32(damping), as_float32(self._mean_step_weight), valid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, fold the good ones in as they come, and move x and c."""
        server_round += self._done
        record = self._recorder.round
        config, state = self._config, self.state
        aggregator = self._aggregator()
        held = dict(state.held)
        sizes: dict[int, Size] = {}
        asked = self._asked_for(replies, server_round, f"round {server_round}")
        largest, recent = state.admission.largest, state.admission.recent
        if largest is None and (self._norm_bound() is not None or config.server.clip is not None):
            kept = list(asked)  # no round before says what is large: these wait, as they came, until all are in
            asked = iter(kept)
            largest = recent = self._median_of(kept, server_round)
        candidates = self._candidates(asked, self._usual(largest, recent), server_round)
        admission = state.admission
        if config.server.aggregation == "agreement":
            candidates, admission = self._agreeing(list(candidates), server_round)
        unclipped = set()
        for candidate in candidates:
            client = candidate.client
            try:
                aggregator.add(candidate.update, self._num_examples[client])
            except UpdateRejected as error:
                self._refuse(client, error, server_round)
                continue
            record.trained[client] = candidate.report
            held[client], sizes[client] = self._reference.version, candidate.size
            if not candidate.clipped:
                unclipped.add(client)
        encoder = aggregator.encoder()
        self._check_progress(server_round, aggregator.num_updates, encoder)
        state = self.state
        # A client that lost its way starts from the initial encoder; one that did so in vain cannot build that.
        cannot_build = state.cannot_build | {client for client in record.lost if held[client] == 0}
        held |= dict.fromkeys(record.lost, 0)
        admission = admission.after(
            server_round, folded=sizes, refused=record.rejected,
            max_failures=config.server.max_failures, rounds_away=config.server.rounds_away,
        )  # fmt: skip
        state = replace(state, held=held, cannot_build=cannot_build, control_share=0.0, admission=admission)
        if aggregator.num_updates >= config.server.min_replies:
            # One that was clipped is not acknowledged: c does not contain it, so that c_i must not either.
            folded = {**state.folded, **dict.fromkeys(sorted(unclipped), server_round)}
            share = aggregator.control_share()
            state = replace(state, encoder=encoder, control=aggregator.control(), folded=folded, control_share=share)
        else:
            record.skipped = True
            logger.warning(
                "round %d: %d usable replies, fewer than server.min_replies = %d; the round changes nothing",
                server_round, aggregator.num_updates, config.server.min_replies, extra={"round": server_round},
            )  # fmt: skip
        self.state = state
        return None, None

    def _asked_for(self, replies: Iterable[Message], server_round: int, about: str) -> Iterator[tuple[int, Message]]:
        """Pass on with its client what answers the questions that are out, once each, and count what was taken.

        Where Flower says in place of a client that it is gone, its reply is missing. Whoever did not answer is named.
        """
        record, waiting, gone = self._recorder.round, set(self._sent_entries), dict[int, str]()
        position, silent, facts = len(record.entries), "none came in time", {"round": server_round}
        for reply in replies:
            self._count(reply)
            node = self._questions.node_of(reply)
            client = None if node is None else self._clients.get(node)
            if is_lost(reply):
                if client in waiting:
                    gone[client] = error_line(reply.error)
                elif client is None:
                    silent = error_line(reply.error)
            elif client in waiting and client not in gone:
                waiting.discard(client)
                yield client, reply
            else:
                source = self._clients.get(reply.metadata.src_node_id)
                whose = "a reply" if source is None else f"a reply of client {source}"
                logger.warning("%s: ignored %s that nobody asked for, or that came late", about, whose, extra=facts)
                record.late += 1
        for client in sorted(waiting):
            reason = gone.get(client, silent)
            logger.warning("%s: no answer of client %d: %s", about, client, reason, extra=facts | {"client": client})
        taken = (
            sent for client, sent in self._sent_entries.items()
            if self._questions.was_taken(self._nodes[client], answered=client not in waiting)
        )  # fmt: skip
        record.entries[position:position] = taken

    def _candidates(
        self, asked: Iterable[tuple[int, Message]], usual: Usual | None, server_round: int
    ) -> Iterator[_Candidate]:
        """Open the replies as they come, and pass on the updates that can be used and are not too large."""
        for client, reply in asked:
            try:
                update, report = self._open_update(reply, client, server_round)
                size = size_of(update, self._blueprint.layout)
                check_size(size, usual.bounded if usual else None, self._norm_bound())
            except UpdateRejected as error:
                self._refuse(client, error, server_round, reply.error if reply.has_error() else None)
                continue
            clipped = clip_update(update, size, usual.clipped if usual else None, self._config.server.clip)
            yield _Candidate(client, clipped, report, size, clipped is not update)

    def _agreeing(self, candidates: list[_Candidate], server_round: int) -> tuple[Iterator[_Candidate], Admission]:
        """Compare a round's updates: return those of the clients that are trusted, and what is remembered of all."""
        admission = self.state.admission
        trusted = [admission.trusts(each.client) for each in candidates]
        found = agreements([each.update for each in candidates], trusted, self._blueprint.layout)
        admission = admission.judged(
            {each.client: agreement for each, agreement in zip(candidates, found, strict=True)}
        )
        agreeing = []
        for each in candidates:
            try:
                check_trust(admission.trust[each.client])
            except UpdateRejected as error:
                self._refuse(each.client, error, server_round)
            else:
                agreeing.append(each)
        return iter(agreeing), admission

    def _norm_bound(self) -> float | None:
        """How many times the usual size an update may be; any where it must not depend on another client's."""
        return None if self._config.privacy.noise_multiplier is not None else self._config.server.norm_bound

    def _refuse(self, client: int, error: UpdateRejected, server_round: int, reported: Error | None = None) -> None:
        """Say that and why an update is not used; `reported` is what a reply that is an error says."""
        record = self._recorder.round
        code = None if reported is None else reported.code
        found = "" if reported is None else error_traceback(reported)
        logger.warning(
            "round %d: refused the update of client %d: %s", server_round, client, error,
            extra={"round": server_round, "client": client, **({"traceback": found} if found else {})},
        )  # fmt: skip
        if found:
            record.tracebacks[client] = found
        record.rejected[client] = str(error)
        if code == CLIENT_DIVERGED or isinstance(error, UpdateTooLarge):
            record.diverged.add(client)
        if code == CLIENT_LOST:
            record.lost.add(client)

    def _aggregator(self) -> Aggregator:
        config = self._config
        settings: dict[str, Any] = {
            "held_control": self.state.held_control,
            "total_examples": sum(self._num_examples.values()),
            "learning_rate": config.server.learning_rate,
            "damping": config.control.damping,
            "normalizes": config.row.normalizes,
        }
        own = self._blueprint.layout, self.state.encoder, self.state.control
        privacy, rule = config.privacy, config.server.aggregation
        if privacy.noise_multiplier is not None:
            noise = np.random.default_rng(secrets.randbits(256))  # not the run's seed, which the clients know
            return PrivateAggregator(
                *own, **settings, clip=privacy.clip, noise_multiplier=privacy.noise_multiplier,
                num_expected=config.num_participants, noise=noise,
            )  # fmt: skip
        if rule in ("mean", "agreement"):
            return Aggregator(*own, **settings)
        return RobustAggregator(*own, **settings, rule=rule, trim_fraction=config.server.trim_fraction)

    def _median_of(self, replies: Iterable[tuple[int, Message]], server_round: int) -> Size | None:
        """The median size of these updates; None if none can be read."""
        sizes = []
        for client, reply in replies:
            with contextlib.suppress(UpdateRejected):
                sizes.append(size_of(self._open_update(reply, client, server_round)[0], self._blueprint.layout))
        return median_of(sizes)

    def _usual(self, largest: Size | None, recent: Size | None) -> Usual | None:
        """What this round's updates are measured by; None where nothing is known yet."""
        if largest is None or recent is None:
            return None
        parameters = self.state.encoder[: self._blueprint.layout.num_parameter_entries]
        return Usual.of(largest, recent, encoder_rms=math.sqrt(mean_square(parameters)))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last round, hand the final encoder to every client; before it, evaluation needs no message."""
        server_round += self._done
        if server_round < self._config.rounds:
            return self._messages((), server_round, MessageType.EVALUATE, set())
        self._advance(server_round + 1)
        return self._messages(tuple(sorted(self._nodes)), server_round, MessageType.EVALUATE, set(grid.get_node_ids()))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect the final accuracies, close the round, and put it on disk."""
        server_round += self._done
        record = self._recorder.round
        for client, reply in self._asked_for(replies, server_round, "the final evaluation"):
            try:
                record.final[client] = EvaluateReport.from_bytes(_blob(reply))
            except UpdateRejected as error:
                found = error_traceback(reply.error) if reply.has_error() else ""
                logger.warning("the final evaluation of client %s failed: %s", client, error,
                               extra={"client": client, **({"traceback": found} if found else {})})  # fmt: skip
        row = self._recorder.finish_round(encoder_fingerprint=self._fingerprint())
        if server_round == self._config.rounds and not record.final:
            raise SpatlError(
                "no client could evaluate the encoder after the last round; the rounds themselves are written"
            )
        # What is written before a checkpoint is written again if the run is killed in between.
        save_checkpoint(Checkpoint(server_round, self.state, self._reference.tensors()), self._recorder.directory)
        shown = {k: v for k, v in (("accuracy", row.accuracy), ("loss", row.loss)) if v is not None}
        return MetricRecord(dict(shown)) if shown else None

    def whole_update_bytes(self) -> int:
        """The records of a reply that sends every entry in float32: packed and serialised for real, and measured."""
        layout = self._blueprint.layout
        report = TrainReport(
            num_examples=max(self._num_examples.values()),
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
        blob = pack_update(
            Update(1, 0, select_all(layout), torch.zeros(layout.num_entries), 1.0, report=report),
            layout, CODECS["float32"], generator=generator(self._config.seed, "measure"),
        )  # fmt: skip
        content = blob_content(blob)
        return message_traffic(content, direction="uplink", message_type=MessageType.TRAIN, group_id="1").num_bytes

    def _messages(
        self, clients: tuple[int, ...], server_round: int, message_type: str, connected: set[int]
    ) -> list[Message]:
        messages = [
            Message(
                blob_content(self._packed(client, server_round, message_type)),
                dst_node_id=self._nodes[client],
                message_type=message_type,
                group_id=str(server_round),
            )
            for client in clients
        ]
        self._questions = Questions(messages, connected)
        self._sent_entries = {
            client: self._entry(client, message, "downlink") for client, message in zip(clients, messages, strict=True)
        }
        return messages

    def _packed(self, client: int, server_round: int, message_type: str) -> bytes:
        """What one client is sent."""
        state, reference, layout = self.state, self._reference, self._blueprint.layout
        download = reference.download(
            state.held[client],
            server_round=server_round,
            acknowledged_round=state.folded.get(client, 0),
            cannot_build=client in state.cannot_build and state.held[client] == 0,
        )
        if state.control is not None and message_type == MessageType.TRAIN:
            if self._derives:
                if reference.version > 0 and state.held[client] != reference.version - 1:
                    self.state = state = replace(state, astray={**state.astray, client: 1.0})
                valid = state.astray[client] < _FORGOTTEN
                download = replace(download, derived=self._derived_control(valid=valid))
            else:
                download = replace(download, control=self._sent_control(server_round))
        if download.base_version != state.held[client]:
            # The client keeps what it was led from and what it is led to, and nothing else.
            held = {**self.state.held, client: download.base_version}
            self.state = replace(self.state, held=held)
        return pack_download(download, layout)

    def _count(self, reply: Message) -> None:
        """Enter a reply into the ledger; one that is an error has no bytes that anyone counts."""
        client = self._clients.get(reply.metadata.src_node_id)
        if client is not None and reply.has_content():
            self._recorder.round.entries.append(self._entry(client, reply, "uplink"))

    def _entry(self, client: int, message: Message, direction: Direction) -> Entry:
        """What a message is in the ledger."""
        phase = str(message.metadata.message_type)
        traffic = message_traffic(
            message.content, direction=direction, message_type=phase, group_id=message.metadata.group_id
        )
        return entry(
            server_round=self._recorder.round.server_round,
            client=client,
            direction=direction,
            phase=phase,
            num_bytes=traffic.num_bytes,
            opposite=traffic.opposite,
            sections=_sections(message.content),
        )

    def _sent_control(self, server_round: int) -> bytes:
        """c, encoded; what the clients decode is what c moves from."""
        assert self.state.control is not None
        if self._sent[0] != server_round:
            codec, places = self._reference.codec, self._blueprint.layout.parameter_places
            rounding = generator(self._config.seed, "rounding-control", server_round=server_round)
            data = codec.encode(self.state.control, places, generator=rounding, max_bytes=self._room())
            self._sent = server_round, data
            self.state = replace(self.state, held_control=codec.decode(memoryview(data), places))
        return self._sent[1]

    def _open_update(self, reply: Message, client: int, server_round: int) -> tuple[Update, TrainReport]:
        update = unpack_update(
            _blob(reply), self._blueprint.layout, server_round=server_round, base_version=self._reference.version
        )
        report = update.report
        if report is None:
            raise UpdateRejected("the update has no report")
        if report.num_examples != self._num_examples[client]:
            raise UpdateRejected(
                f"num-examples is {report.num_examples}, the client registered {self._num_examples[client]}"
            )
        corrected = self.state.control is not None and (not self._derives or self.state.astray[client] < _FORGOTTEN)
        if update.corrected != corrected:
            raise UpdateRejected("the update and the server disagree on whether gradients were corrected")
        agreed, sent = self._selection, update.selection
        if sent.closed != (agreed is not None) or (agreed is not None and not torch.equal(sent.mask, agreed.mask)):
            raise UpdateRejected("the update is not of the channels that all clients agreed on")
        if not math.isclose(update.step_weight, self._step_weights[client], rel_tol=1e-9):
            raise UpdateRejected(
                f"the step weight is {update.step_weight:g}, this training adds up to {self._step_weights[client]:g}"
            )
        return update, report

    def _check_progress(self, server_round: int, num_updates: int, encoder: Tensor) -> None:
        """Raise when the run cannot go on: no usable update any more, or numbers that left all bounds."""
        record = self._recorder.round
        everyone_refused = len(record.rejected) == len(self._nodes) > 1
        useless_rounds = 0 if num_updates else self.state.useless_rounds + 1
        self.state = replace(self.state, useless_rounds=useless_rounds)
        if useless_rounds == _USELESS_ROUNDS and not record.rejected:
            self._stop(
                SpatlError(
                    f"round {server_round}: no client has answered for {useless_rounds} rounds; "
                    "when they are back, go on with --resume"
                )
            )
        if everyone_refused or useless_rounds == _USELESS_ROUNDS:
            client, reason = sorted(record.rejected.items())[0]
            told = (
                f"round {server_round}: no update could be used, {len(record.rejected)} were refused; "
                f"the first, of client {client}: {reason}"
            )
            diverged = record.diverged == set(record.rejected)
            ending = DivergedError(f"the run diverged in {told}") if diverged else SpatlError(told)
            if client in record.tracebacks:
                ending.add_note(record.tracebacks[client])
            self._stop(ending)
        if not num_updates:
            return
        # The median, so that one client's number neither stops a run nor hides that it should stop.
        loss = statistics.median(report.train_loss for report in record.trained.values())
        first_loss = self.state.first_loss
        if first_loss is None:
            # Clients of one class each start with next to no loss, and those of a later round with a guess's.
            first_loss = max(loss, 1.0, math.log(self._blueprint.dataset.num_classes))
        self.state = replace(self.state, first_loss=first_loss)
        finite = all_finite(encoder)
        if loss > _DIVERGED_LOSS_FACTOR * first_loss or not finite:
            what = f"the median training loss is {loss:.3g}" if finite else "the average is not finite"
            damping = " or control.damping" if self._config.row.controls else ""
            self._stop(
                DivergedError(
                    f"the run diverged in round {server_round}: {what}, the loss started at {first_loss:.3g}; "
                    f"lower training.learning_rate{damping}, or server.learning_rate if it is above 1"
                )
            )

    def _stop(self, error: SpatlError) -> NoReturn:
        """Write the round as far as it went, then raise."""
        self._recorder.finish_round(encoder_fingerprint=self._fingerprint())
        raise error

    def _fingerprint(self) -> str:
        return hashlib.blake2b(self.state.encoder.numpy(), digest_size=16).hexdigest()


def blob_content(blob: bytes) -> RecordDict:
    """The records of a message that carries a packed blob."""
    return RecordDict({RECORD: ConfigRecord({BLOB: blob})})


def as_float32(number: float) -> float:
    """A number as the other side reads it from four bytes."""
    return float(torch.tensor(number, dtype=torch.float32))


def error_line(error: Error) -> str:
    """The reason of a client's error in one line: its first, or what the traceback of another runtime ends in."""
    logger.debug("a client reported: %s", error.reason)
    lines = _lines(error)
    if not lines:
        return "the client reported an error without a reason"
    if error.code >= CLIENT_REFUSED or not any(line.strip().startswith(_TRACEBACK) for line in lines):
        return lines[0].strip()[:_LONGEST_REASON]
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    said = [line for line in lines[frames[-1] + 1 if frames else 0 :] if not line.startswith(" ")] or lines[-1:]
    found = [place for number in frames if (place := _FRAME.match(lines[number])) is not None]
    users = [place for place in found if not re.search(r"site-packages|lib[/\\]python", place[1])]
    told = said[0].strip()[:_LONGEST_REASON]
    if not found:
        return told
    place = (users or found)[-1]
    return f"{told} ({PurePath(place[1]).name}:{place[2]}, in {place[3]})"


def error_traceback(error: Error) -> str:
    """What a client's error says beyond one line: a traceback, made harmless to a terminal; empty for none."""
    lines = _lines(error)
    return "\n".join(lines)[:_LONGEST_TRACEBACK] if len(lines) > 1 else ""


def _lines(error: Error) -> list[str]:
    return [line.rstrip() for line in printable(error.reason or "").splitlines() if line.strip()]


def _blob(reply: Message) -> bytes:
    """The blob of a reply.

    Raises:
        UpdateRejected: The reply is an error, or has none.
    """
    if reply.has_error():
        raise UpdateRejected(error_line(reply.error))
    blob = _blob_of(reply.content)
    if blob is None:
        raise UpdateRejected(f"the reply has no {RECORD} record with a {BLOB} of bytes")
    return blob


def _blob_of(content: RecordDict) -> bytes | None:
    record = content.config_records.get(RECORD)
    blob = record.get(BLOB) if record is not None else None
    return blob if isinstance(blob, bytes) else None


def _sections(content: RecordDict) -> Mapping[str, int]:
    """Section lengths of the blob in a message; nothing for a message without one, or with one that is damaged."""
    try:
        return section_bytes(_blob_of(content) or b"")
    except UpdateRejected:
        return {}
