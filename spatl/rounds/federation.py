"""A federation as its server knows it: what holds for all rounds of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from spatl.channels.selection import Selection
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.downlink import Reference
from spatl.rounds.server_state import ServerState
from spatl.rounds.weights import largest_share
from spatl.training.step_weight import accumulated_step_weight
from spatl.wire.download import MOST_STEPS

_CAUGHT_UP: Final = 8  # rounds, where each client is asked in every one
_REMEMBERED: Final = 100_000  # step weights of clients with other numbers of examples, and of rounds


@dataclass(frozen=True, eq=False)
class Federation:
    """A federation as its server knows it: what holds for all rounds of a run.

    Attributes:
        blueprint: What every side builds from the config.
        clients: Who takes part.
        agreed: The channels that all clients train and send, for a method that agrees on them; the rest is zero.
        of_devices: Whether clients are machines of their own, which come back: rounds without an answer end no run.
    """

    blueprint: Blueprint
    clients: frozenset[int]
    agreed: Selection | None = None
    of_devices: bool = False
    _step_weights: dict[tuple[int | None, int, float], float] = field(default_factory=dict, repr=False)

    @cached_property
    def derives_control(self) -> bool:
        """True where clients derive c from the encoder's changes instead of being sent it."""
        config = self.blueprint.config
        wanted = config.control.downlink
        # The encoder's change says how c moved only where it is a multiple of the averaged update.
        return (
            config.row.controls
            and config.server_optimizer.name == "sgd"
            and (wanted == "derived" or (wanted == "auto" and self.blueprint.codecs.downlink.relative))
        )

    @cached_property
    def most_missed(self) -> int:
        """Rounds that a client may have missed so that it is sent their changes one by one, for c to follow from."""
        config = self.blueprint.config
        wanted = config.control.catch_up
        if not self.derives_control:
            return 0
        if wanted is None:
            return _CAUGHT_UP if config.server.fraction_train == 1 else 0
        return min(wanted, MOST_STEPS - 1)

    @property
    def norm_bound(self) -> float | None:
        """Bound on an update's size, in usual ones; None where it must not depend on another client's."""
        config = self.blueprint.config
        return None if config.privacy.noise_multiplier is not None else config.server.norm_bound

    @property
    def max_weight(self) -> float:
        """The largest share that a client can have in all averages; 1 where the server knows who has how much."""
        return largest_share(self.blueprint.config)

    @property
    def notes_choices(self) -> bool:
        """True where the channels that each client chose are written down: not where they are a client's secret."""
        config = self.blueprint.config
        return config.chooses_channels and config.privacy.noise_multiplier is None

    def step_weight(self, client: int, num_examples: int, server_round: int) -> float:
        """The accumulated step weight a_i of a client with so many training examples in a round; common knowledge."""
        config = self.blueprint.config
        rate = config.training.in_round(server_round, config.rounds).learning_rate
        like = (client if client in config.training.clients else None, num_examples, rate)
        if like not in self._step_weights:
            if len(self._step_weights) >= _REMEMBERED:
                self._step_weights.clear()
            training = config.training_of(client, server_round)
            self._step_weights[like] = accumulated_step_weight(training, num_examples)
        return self._step_weights[like]

    def mean_step_weight(self, num_examples: Mapping[int, int], weights: Mapping[int, int], server_round: int) -> float:
        """sum_i p_i a_i in a round over clients with so many training examples each, and with these weights."""
        weighted = math.fsum(
            weights[client] * self.step_weight(client, number, server_round) for client, number in num_examples.items()
        )
        return weighted / sum(weights.values())

    def reference(self, state: ServerState) -> Reference:
        """The encoder as the clients hold it."""
        blueprint = self.blueprint
        return Reference(
            blueprint.initial_encoder(), blueprint.layout, blueprint.codecs.downlink, selection=self.agreed,
            versions=state.versions,
        )  # fmt: skip


def remarks_on_control(blueprint: Blueprint) -> list[str]:
    """Return what a user should know of how clients come to know c, a line each.

    Where some clients are drawn in each round, the others miss its change of the encoder, and cannot derive c from it.
    Under the calibrated predictor that costs nothing that was found (docs/benchmarks.md).
    """
    config = blueprint.config
    federation = Federation(blueprint, frozenset())
    drawn = config.num_participants < config.partition.num_clients
    if not drawn or not federation.derives_control or federation.most_missed or config.predictor_mode == "calibrated":
        return []
    kept = (
        "" if config.control.half_life is None else ", and control.half_life: null keeps what they learn of each other"
    )
    return [
        f"{config.num_participants} of {config.partition.num_clients} clients take part in a round, and who misses one "
        f"cannot derive c: few updates are corrected by control variates (control.downlink: sent sends c{kept})"
    ]
