"""Strategy of all methods: Flower's messages in and out around `spatl.rounds.server`.

Flower's own `start` drives it. What changes from round to round is one value, `ServerState`. After a round everything
is on disk, and a strategy made with a checkpoint goes on from there; Flower, which counts from 1, is asked for the
rounds that are left.
"""

import hashlib
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.best import check_rounds_left, keep_best, last_round_after, watched
from server.exchange import Exchange, contents
from server.findings import ask_for_findings
from server.global_accuracy import measure_arrived, measure_final
from server.grids import FederationGrid
from server.membership import Membership
from server.recorder import Recorder
from server.replies import blob_of, error_traceback
from server.waiting import Rest, await_clients
from spatl.errors import DivergedError, SpatlError, UpdateRejected
from spatl.rounds.evaluation import arrived_state, close_statistics, evaluated, open_evaluation
from spatl.rounds.federation import Federation
from spatl.rounds.members import choose_clients, rejoined, without_answer
from spatl.rounds.server import close_round, first_state, open_round
from spatl.rounds.server_state import ServerState
from spatl.runs.checkpoint import Checkpoint, save_checkpoint
from spatl.runs.records import HistoryRow
from spatl.runs.states import settle_states
from spatl.wire.statistics import STATISTICS_QUESTION

logger = logging.getLogger(__name__)

_SECRET_BITS = 128


class FederationStrategy(Strategy):
    """Runs a federation, whichever row of the method table it is.

    Args:
        federation: What holds for all rounds.
        members: The clients, with Flower's node id of each.
        num_examples: Training examples of each client (n_i).
        recorder: Where rounds are written.
        grid: What carries the messages.
        cannot_build: The clients whose initial encoder is another one than the server's, so that it is sent to them.
        checkpoint: Where to go on from.
        simulated: Whether clients are of this machine: what it refuses them ends the run.

    Attributes:
        federation: As given.
        state: The server's state.
        last_round: The round that is the last, as far as is known.
    """

    def __init__(
        self,
        federation: Federation,
        *,
        members: Membership,
        num_examples: Mapping[int, int],
        recorder: Recorder,
        grid: FederationGrid,
        cannot_build: Sequence[int] = (),
        checkpoint: Checkpoint | None = None,
        simulated: bool = False,
    ) -> None:
        self.federation = federation
        self._config = federation.blueprint.config
        self._members = members
        self._recorder = recorder
        self._simulated = simulated
        self._grid = grid
        self._exchange = Exchange(members.nodes, recorder, grid, simulated=simulated)
        self._done = 0
        self._unregistered = frozenset[int]()
        if checkpoint is None:
            self.state = first_state(federation, num_examples, cannot_build=cannot_build)
        else:
            self._done = checkpoint.server_round
            self.state = rejoined(
                checkpoint.state, num_examples, cannot_build=cannot_build, max_weight=federation.max_weight
            )
        if not simulated and self.state.sampling_seed is None:
            self.state = replace(self.state, sampling_seed=secrets.randbits(_SECRET_BITS))
        self._before: ServerState | None = None  # kept while the same round may be asked for again: it is large
        self._rest = Rest(self._done, self._config.server, run=recorder.directory)
        self.last_round = last_round_after(self.state, self._done, self._config)

    @property
    def num_rounds_left(self) -> int:
        """Number of rounds that Flower is to be asked for."""
        return max(0, self.last_round - self._done)

    def summary(self) -> None:
        """Say nothing: the config stands in the run's directory."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the round's clients and address the packed model to each."""
        number = self._done + server_round
        check_rounds_left(number, self.last_round)
        silent = self._changed_members(number)
        self._before = None if self._simulated else self.state  # clients of a simulation never rest
        self._rest = Rest(number, self._config.server, run=self._recorder.directory)
        return self._ask(grid, number, without=silent)

    def _ask(self, grid: Grid, number: int, *, without: Collection[int]) -> Iterable[Message]:
        clients, left_out = choose_clients(self.federation, self.state, number, without=without)
        self._recorder.round.participants, self._recorder.round.left_out = clients, tuple(sorted(left_out))
        connected = self._await(grid, clients, number)
        try:
            self.state, downloads = open_round(self.federation, self.state, number, clients)
        except DivergedError as error:
            self._stop(error)
        self._recorder.round.control_anew = self.state.control_since == number
        return self._exchange.ask(downloads, number, MessageType.TRAIN, connected)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, fold the good ones in as they come, and move x and c.

        Where the owners of so many devices let them rest that no round can come of it, the same round is asked for
        until one does.
        """
        number = self._done + server_round
        while True:
            asked = self._exchange.answers(replies, number, f"round {number}")
            closed, outcome = close_round(self.federation, self.state, number, contents(asked))
            over, before, self._before = self._rest.is_over(outcome), self._before, None
            self.state = without_answer(self.federation, closed if over else before or closed, number, self._silent())
            if over:
                break
            self._before = self.state
            admitted = self.state.admission.admitted(self.federation.clients, number)
            resting = self._rest.wait(outcome, self._recorder.round.participants, admitted)
            timeout = self._config.server.round_timeout_seconds
            replies = self._grid.send_and_receive(self._ask(self._grid, number, without=resting), timeout=timeout)
        self._recorder.round.outcome, self._unregistered = outcome, frozenset(outcome.unregistered)
        keep_best(self._recorder.directory, self.federation, self.state, number - 1, outcome.arrivals)
        self.state = watched(self.federation, self.state, number - 1, outcome.arrivals)
        self.last_round = last_round_after(self.state, number, self._config)
        measure_arrived(self._recorder.round, self.federation, self.state, outcome.arrivals)
        if outcome.ending is not None:
            self._stop(outcome.ending)
        return None, None

    def _silent(self) -> set[int]:
        """Return the devices for whose answers a round waited to its end, though they are there."""
        if self._simulated or self._config.server.patience is not None:
            return set()
        return set(self._members.connected({each: self._members.nodes[each] for each in self._recorder.round.silent}))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last round, hand the final encoder to every client; before it, evaluation needs no message.

        Where BatchNorm statistics are aggregated, it comes with a question for each client's own, and the messages that
        ask for the evaluation bring those of all.
        """
        number = self._done + server_round
        if number < self.last_round:
            self._ask_for_findings(grid, self.state, number, arrived=False)
            return self._exchange.ask({}, number, MessageType.EVALUATE, set())
        clients = sorted(self._members.nodes)
        self._await(grid, clients, number)
        try:
            state = arrived_state(self.federation, self.state, number)
        except DivergedError as error:
            self._stop(error)
        if self.federation.blueprint.asks_after_the_rounds:
            state, downloads = open_evaluation(self.federation, state, number, clients)
            questions = self._exchange.ask(downloads, number, STATISTICS_QUESTION, set(grid.get_node_ids()))
            replies = grid.send_and_receive(questions, timeout=self._config.server.round_timeout_seconds)
            asked = contents(self._exchange.answers(replies, number, "BatchNorm statistics"))
            state, told = close_statistics(self.federation, state, number, asked)
            self.state = replace(self.state, statistics=state.statistics)
            keep_best(self._recorder.directory, self.federation, state, number, told)
        self._ask_for_findings(grid, state, number, arrived=True)
        _, downloads = open_evaluation(self.federation, state, number, clients)
        return self._exchange.ask(downloads, number, MessageType.EVALUATE, set(grid.get_node_ids()))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect the final accuracies, close the round, and put it on disk."""
        number, record = self._done + server_round, self._recorder.round
        for client, reply in self._exchange.answers(replies, number, "the final evaluation"):
            try:
                record.final[client] = evaluated(self.federation, client, blob_of(reply))
            except UpdateRejected as error:
                found = error_traceback(reply.error) if reply.has_error() else ""
                logger.warning("the final evaluation of client %s failed: %s", client, error,
                               extra={"client": client, **({"traceback": found} if found else {})})  # fmt: skip
        measure_final(record, self.federation, self.state, last_round=self.last_round)
        row = self._recorder.finish_round(encoder_fingerprint=_fingerprint_of(self.state))
        if number == self.last_round and not record.final:
            raise SpatlError(
                "no client could evaluate the encoder after the last round; the rounds themselves are written"
            )
        if self._simulated:
            settle_states(self._recorder.directory)  # which did not wait for the disk
        # What is written before a checkpoint is written again if the run is killed in between.
        save_checkpoint(Checkpoint(number, self.state), self._recorder.directory)
        return _shown(row)

    def _changed_members(self, number: int) -> set[int]:
        """Take in who has come, let go who was retired, and have those register again who said that they know nothing.

        Returns:
            Those that did not register again though they are there, who are not asked to train.
        """
        if self._simulated:
            return set()
        self.federation, self.state = self._members.before_round(self.federation, self.state, number)
        self._exchange.meet(self._members.nodes)
        self.state, silent = self._members.register_again(self.federation, self.state, self._unregistered, number)
        return silent

    def _await(self, grid: Grid, clients: Iterable[int], number: int) -> set[int]:
        """Wait for as many of some clients as a round needs replies; return the nodes that are connected."""
        run = None if self._simulated else self._recorder.directory
        nodes = {client: self._members.nodes[client] for client in clients}
        everyone = self._members.nodes.values()
        return await_clients(grid, nodes, self._config.server, number, run=run, everyone=everyone)

    def _ask_for_findings(self, grid: Grid, state: ServerState, number: int, *, arrived: bool) -> None:
        ask_for_findings(
            self._exchange, grid, self.federation, state, number, arrived=arrived, run=self._recorder.directory
        )

    def _stop(self, error: SpatlError) -> NoReturn:
        """Write the round as far as it went, then raise."""
        self._recorder.finish_round(encoder_fingerprint=_fingerprint_of(self.state))
        raise error


def _shown(row: HistoryRow) -> MetricRecord | None:
    """What Flower shows of a round."""
    shown = {key: value for key in ("accuracy", "score", "loss") if (value := getattr(row, key)) is not None}
    return MetricRecord(dict(shown)) if shown else None


def _fingerprint_of(state: ServerState) -> str:
    return hashlib.blake2b(state.encoder.numpy().data, digest_size=16).hexdigest()
