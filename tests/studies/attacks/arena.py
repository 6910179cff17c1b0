"""An arena for attacks: a federation in this process, without Flower, in which some clients' updates are replaced."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from spatl.config.experiment import ExperimentConfig
from spatl.errors import DivergedError, SpatlError, UpdateRejected
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.client import receive, train_round
from spatl.rounds.client_evaluation import evaluate_round, take_statistics_
from spatl.rounds.client_state import ClientState
from spatl.rounds.evaluation import arrived_state, open_evaluation
from spatl.rounds.federation import Federation
from spatl.rounds.members import choose_clients
from spatl.rounds.server import close_round, first_state, open_round, question_of
from spatl.rounds.server_state import ServerState
from spatl.rounds.weights import bounded_weights
from spatl.rounds.workplace import Workplace
from spatl.seeding import generator
from spatl.wire.download import Model, unpack_download
from spatl.wire.update import Update, pack_update, unpack_update
from tests.studies.attacks.situations import SITUATIONS, TARGET, bad_clients, config_of, with_mark, write_shares
from tests.studies.attacks.ways import ATTACKS, Attack, Scene


@dataclass
class Result:
    """Result of a federation.

    Attributes:
        accuracy: Of the honest clients, in the mean, on their validation splits; NaN where the run diverged.
        worst: Of the worst of them.
        backdoor: The share of the honest clients' marked images that are taken for the target.
        refused: How many updates of bad and of honest clients were refused, or not asked for after refusals.
        asked: How many there would have been.
    """

    accuracy: float = math.nan
    worst: float = math.nan
    backdoor: float = math.nan
    refused: dict[str, int] = field(default_factory=lambda: {"bad": 0, "honest": 0})
    asked: dict[str, int] = field(default_factory=lambda: {"bad": 0, "honest": 0})


def result_of(
    situation: str, server: Mapping[str, Any], attack: str, *, seed: int, rounds: int, sees: Any = None
) -> Result:
    """Run one federation.

    Args:
        situation: Of `SITUATIONS`.
        server: The section `server`.
        attack: Of `ATTACKS`.
        seed: Draws everything.
        rounds: How many.
        sees: Called with each round's outcome and state, for whoever wants to look.
    """
    found, bad = ATTACKS[attack], bad_clients(seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "shares.npz"
        write_shares(path, SITUATIONS[situation], seed=seed, bad=bad, poison=found.poison)
        config = config_of(SITUATIONS[situation], path, server, seed=seed, rounds=rounds)
        if found.sends_control and config.row.controls:
            sent = config.control.model_copy(update={"downlink": "sent"})
            config = config.model_copy(update={"control": sent})
        arena = Arena(config, bad, found, seed=seed)
        try:
            arena.run(sees)
        except SpatlError:
            return arena.result
        arena.evaluate()
    return arena.result


class Arena:
    """A federation of honest clients and of bad ones.

    Args:
        config: The run's.
        bad: Who cheats.
        attack: How.
        seed: Draws the attack.
    """

    def __init__(self, config: ExperimentConfig, bad: tuple[int, ...], attack: Attack, *, seed: int) -> None:
        self.result = Result()
        self._config, self._bad, self._attack, self._seed = config, bad, attack, seed
        self._blueprint = make_blueprint(config)
        self._workplace = Workplace(self._blueprint)
        number = config.partition.num_clients
        true = {client: self._workplace.num_examples(client) for client in range(number)}
        self._claimed = {client: n * (attack.claims if client in bad else 1) for client, n in true.items()}
        self._federation = Federation(self._blueprint, clients=frozenset(true))
        self._states = dict[int, ClientState | None].fromkeys(true)

    def run(self, sees: Any = None) -> None:
        """Do all rounds.

        Raises:
            DivergedError: The run cannot go on.
        """
        state = first_state(self._federation, self._claimed)
        if self._attack.claims > 1:  # as where the server has nothing but their word
            state = replace(state, weights=bounded_weights(self._claimed, self._config.server.max_weight))
        for server_round in range(1, self._config.rounds + 1):
            chosen, away = choose_clients(self._federation, state, server_round)
            state, downloads = open_round(self._federation, state, server_round, chosen)
            answers = self._answers(state, server_round, downloads)
            state, outcome = close_round(self._federation, state, server_round, answers.items())
            if sees is not None:
                sees(server_round, outcome, state)
            for client in (*chosen, *away):
                kind = "bad" if client in self._bad else "honest"
                self.result.asked[kind] += 1
                self.result.refused[kind] += client in outcome.rejected or client in away
            if outcome.ending is not None:
                raise outcome.ending
        self._state = state

    def _answers(
        self, state: ServerState, server_round: int, downloads: Mapping[int, bytes]
    ) -> dict[int, bytes | UpdateRejected]:
        answers: dict[int, bytes | UpdateRejected] = {}
        honest, own = dict[int, Update](), dict[int, Update]()
        for client, blob in downloads.items():
            try:
                received, settled = self._received(client, blob)
                answer, self._states[client] = train_round(self._workplace, client, received, settled)
            except DivergedError as error:
                answers[client] = UpdateRejected(str(error))
                continue
            answers[client] = answer
            question = question_of(self._federation, state, server_round, client)
            update = unpack_update(
                answer, self._blueprint.layout, self._blueprint.codecs.uplink,
                server_round=server_round, base_version=question.base_version, num_arrived=self._blueprint.num_arrived,
            )  # fmt: skip
            (own if client in self._bad else honest)[client] = update
        scene = Scene(
            progress=(server_round - 1) / self._config.rounds, server_round=server_round,
            layout=self._blueprint.layout, honest=honest, own=own,
            draws=generator(self._seed, "attack", server_round=server_round),
        )  # fmt: skip
        if own:
            for client, update in self._attack.way(scene).items():
                answers[client] = self._packed(state, server_round, client, update)
        return answers

    def _packed(self, state: ServerState, server_round: int, client: int, update: Update) -> bytes:
        """An update as the server expects it of whoever has so many examples as were claimed."""
        question = question_of(self._federation, state, server_round, client)
        assert update.report is not None
        told = update.report.__class__(**{**vars(update.report), "num_examples": question.num_examples})
        update = update.__class__(**{**vars(update), "report": told, "step_weight": question.step_weight})
        return pack_update(
            update, self._blueprint.layout, self._blueprint.codecs.uplink,
            generator=generator(self._seed, "packing", server_round=server_round, client=client),
        )  # fmt: skip

    def _received(self, client: int, blob: bytes) -> tuple[Model, ClientState]:
        download = unpack_download(blob, self._blueprint.layout, self._blueprint.codecs.downlink)
        return receive(self._workplace, download, self._states[client])

    def evaluate(self) -> None:
        """Enter what the honest clients make of the last encoder."""
        state = arrived_state(self._federation, self._state, self._config.rounds)
        honest = sorted(set(self._states) - set(self._bad))
        _, downloads = open_evaluation(self._federation, state, self._config.rounds, honest)
        accuracies, taken, marked = [], 0, 0
        for client, blob in downloads.items():
            received, settled = self._received(client, blob)
            report, _ = evaluate_round(self._workplace, client, received, settled)
            accuracies.append(report.accuracy)
            with self._workplace.prepared(client, received, settled) as own, torch.no_grad():
                take_statistics_(own)
                own.model.eval()
                images = own.data.validation.inputs[own.data.validation.targets != TARGET]
                brightest = float(self._workplace.client_data(client).train.inputs.max())
                found = own.model(with_mark(images, brightest)).argmax(1)
                taken, marked = taken + int((found == TARGET).sum()), marked + len(images)
        self.result.accuracy = sum(accuracies) / len(accuracies)
        self.result.worst = min(accuracies)
        self.result.backdoor = taken / max(1, marked)
