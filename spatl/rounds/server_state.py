"""State of the server between two rounds: all it knows, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spatl.rounds.admission import Admission
from spatl.rounds.best import Best
from spatl.rounds.downlink import Versions
from spatl.rounds.server_optimizer import Moments
from spatl.wire.statistics import Statistics


@dataclass(frozen=True, eq=False)
class ServerState:
    """State of the server between two rounds.

    Attributes:
        encoder: float32 [N], x.
        control: float32 [P], c, or FedDyn's h; None where the method does not correct gradients.
        held_control: float32 [P], c as the clients hold it; None as above, and of an h, which no client holds.
        control_share: The share of all clients' weight that stood behind the last change of c, in [0, 1].
        versions: The encoder as the clients hold it, x_hat, and the changes that lead to it.
        folded: The last round of each client that is part of x and c.
        held: The version of x_hat that each client is known to hold, 0 for the initial one; once a client is sent
            something, the version that it starts from.
        control_staleness: An upper bound in [0, 1] on the stale share of the c that each client derives; 1 once it
            missed a version and was not sent the changes one by one.
        control_steps: Damping and step weight of the last changes of x_hat, as c was derived from them, the last one
            last; as many as a client may have missed (`control.catch_up`).
        num_examples: The training examples of each client that ever registered (n_i): c is the weighted sum over them.
        cannot_build: The clients whose initial encoder is another one than the server's.
        first_loss: The median training loss of the first round with an update, at least 1 and that of a guess among all
            classes; None before it.
        useless_rounds: How many rounds in a row had nothing usable.
        admission: What decides which updates are let in.
        forgotten: The clients whose control variate is lost, and still a part of c.
        control_since: The round in which c and all c_i began anew; 0 if they never did.
        statistics: BatchNorm statistics of all clients' data under the encoder after the last round; None before it.
        moments: Memory of the server's optimizer; None of plain SGD.
        weights: What those clients weigh whose word for their numbers of examples does not count in full.
        best: The best round so far by the clients' validation splits; None before they have told of one.
        sampling_seed: A secret from which each round's clients are drawn; None for the run's seed, which clients know.
    """

    encoder: Tensor
    control: Tensor | None
    held_control: Tensor | None
    control_share: float
    versions: Versions
    folded: Mapping[int, int]
    held: Mapping[int, int]
    control_staleness: Mapping[int, float]
    num_examples: Mapping[int, int]
    cannot_build: frozenset[int] = frozenset()
    first_loss: float | None = None
    useless_rounds: int = 0
    admission: Admission = field(default_factory=Admission)
    forgotten: frozenset[int] = frozenset()
    control_since: int = 0
    statistics: Statistics | None = None
    moments: Moments | None = None
    weights: Mapping[int, int] = field(default_factory=dict)
    best: Best | None = None
    sampling_seed: int | None = None
    control_steps: tuple[tuple[float, float], ...] = ()

    @property
    def shares(self) -> Mapping[int, int]:
        """Weight of each client, of which p_i is its share: its number of examples, unless that is bounded."""
        return {**self.num_examples, **self.weights}
