"""Ways to cheat: what bad clients send in place of their updates, knowing all that the honest ones send.

Sources: a little is enough (Baruch et al. 2019, arXiv 1902.06156), inner product manipulation (Xie et al. 2020,
arXiv 1903.03936), min-max and min-sum (Shejwalkar and Houmansadr, NDSS 2021), with the deviation of the honest updates,
inverted, as their direction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.wire.update import Update

FIRST_SLEEPLESS = 0.5
"""The share of the rounds in which sleepers are honest."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What those who cheat know in a round.

    Attributes:
        progress: The share of the rounds that are over, in [0, 1).
        server_round: The round, from 1.
        layout: The encoder.
        honest: The updates of the honest clients in this round.
        own: What each bad client's training gave.
        draws: Their random numbers.
    """

    progress: float
    server_round: int
    layout: EncoderLayout
    honest: Mapping[int, Update]
    own: Mapping[int, Update]
    draws: torch.Generator

    def dense(self, update: Update) -> Tensor:
        """An update on all entries, float64 [N], 0 where nothing was sent."""
        vector = torch.zeros(self.layout.num_entries, dtype=torch.float64)
        vector[update.selection.entries(self.layout)] = update.values.double()
        return vector

    @property
    def all_honest(self) -> Tensor:
        """float64 [K, N]: the honest updates; of those that cheat, where nobody honest was asked."""
        return torch.stack([self.dense(each) for each in (self.honest or self.own).values()])

    @property
    def usual_rms(self) -> float:
        """The median root mean square of the honest updates' parameters."""
        return float(torch.tensor([self.rms(each) for each in (self.honest or self.own).values()]).median())

    def rms(self, update: Update) -> float:
        """The root mean square of an update's parameters."""
        number = update.selection.num_entries(self.layout, self.layout.num_parameter_entries)
        return float(update.values[:number].double().square().mean().sqrt())

    def whole(self, update: Update, vector: Tensor) -> Update:
        """The update that sends a vector [N] on all channels."""
        return replace(update, selection=select_all(self.layout), values=vector.float())


Way = Callable[[Scene], Mapping[int, Update]]


def _as_trained(scene: Scene) -> Mapping[int, Update]:
    return scene.own


def _times(factor: float) -> Way:
    return lambda scene: {client: _scaled(each, factor) for client, each in scene.own.items()}


def _scaled(update: Update, factor: float) -> Update:
    return replace(update, values=update.values * factor)


def _as_one(vector_of: Callable[[Scene], Tensor]) -> Way:
    def way(scene: Scene) -> Mapping[int, Update]:
        vector = vector_of(scene)
        return {client: scene.whole(each, vector) for client, each in scene.own.items()}

    return way


def _noise(scene: Scene) -> Mapping[int, Update]:
    return {
        client: replace(each, values=3 * scene.usual_rms * torch.randn(len(each.values), generator=scene.draws))
        for client, each in scene.own.items()
    }


def _little(scene: Scene) -> Tensor:
    """ALIE: the mean less one and a half deviations. (Its own count of deviations is 0 for two of ten.)"""
    return scene.all_honest.mean(0) - 1.5 * scene.all_honest.std(0, correction=0)


def _against_the_mean(factor: float) -> Way:
    return _as_one(lambda scene: -factor * scene.all_honest.mean(0))


def _farthest(allowed: Callable[[Tensor, Tensor], bool]) -> Way:
    """The mean less as many deviations as are allowed, of the distances [K] to the honest, and theirs [K, K]."""

    def vector(scene: Scene) -> Tensor:
        honest = scene.all_honest
        mean, away, among = honest.mean(0), honest.std(0, correction=0), torch.cdist(honest, honest)
        gamma, step = 0.0, 25.0
        while step > 1e-2:
            if allowed((honest - (mean - (gamma + step) * away)).norm(dim=1), among):
                gamma += step
            step /= 2
        return mean - gamma * away

    return _as_one(vector)


def _backdoor(scene: Scene) -> Mapping[int, Update]:
    """As large as the largest honest update: no bound on sizes can tell."""
    largest = max(scene.rms(each) for each in (scene.honest or scene.own).values())
    return {client: _scaled(each, max(1.0, largest / scene.rms(each))) for client, each in scene.own.items()}


def _sleeper(scene: Scene) -> Mapping[int, Update]:
    return scene.own if scene.progress < FIRST_SLEEPLESS else _times(-3.0)(scene)


def _growing(scene: Scene) -> Mapping[int, Update]:
    """Flipped, and by a third larger from round to round: what is usual is to grow with it."""
    return _times(-0.3 * 1.33**scene.server_round)(scene)


def _rarest(scene: Scene, number: int) -> Tensor:
    """bool [C]: the channels that the fewest honest clients send."""
    senders = torch.zeros(scene.layout.num_channels)
    for each in scene.honest.values():
        senders += each.selection.mask
    rarest = torch.zeros(scene.layout.num_channels, dtype=torch.bool)
    rarest[senders.argsort(stable=True)[:number]] = True
    return rarest


def _own_channels(scene: Scene) -> Mapping[int, Update]:
    """Nothing but channels that few others send, each entry nine times as large as is usual."""
    selection = Selection(_rarest(scene, 3))
    values = torch.full((selection.num_entries(scene.layout),), 9 * scene.usual_rms)
    return {client: replace(each, selection=selection, values=values) for client, each in scene.own.items()}


def _covered(scene: Scene) -> Mapping[int, Update]:
    """Flipped, covered by channels that few others send, each entry of which is twenty times as large as is usual."""
    covered = _rarest(scene, 1)
    sent = {}
    for client, each in scene.own.items():
        vector = -scene.dense(each)
        selection = Selection(each.selection.mask | covered)
        vector[Selection(covered).entries(scene.layout)] = 20 * scene.usual_rms
        sent[client] = replace(each, selection=selection, values=vector[selection.entries(scene.layout)].float())
    return sent


def _poisoned_statistics(scene: Scene) -> Mapping[int, Update]:
    """Parameters as trained, and statistics a thousand times as far from where they were."""
    sent = {}
    for client, each in scene.own.items():
        factor = torch.where(each.selection.entries(scene.layout) < scene.layout.num_parameter_entries, 1.0, -1e3)
        sent[client] = replace(each, values=each.values * factor)
    return sent


@dataclass(frozen=True)
class Attack:
    """One row of `ATTACKS`.

    Attributes:
        way: What is sent.
        poison: What the bad clients' data suffer, of `write_shares`.
        claims: By how much they multiply their numbers of examples.
        sends_control: Whether c is sent, so that what the server makes of it reaches the clients.
    """

    way: Way = _as_trained
    poison: str = ""
    claims: int = 1
    sends_control: bool = False


ATTACKS: dict[str, Attack] = {
    "none": Attack(),
    "sign flip": Attack(_times(-1.0)),
    "times 10": Attack(_times(10.0)),
    "noise": Attack(_noise),
    "ALIE": Attack(_as_one(_little)),
    "IPM 0.1": Attack(_against_the_mean(0.1)),
    "IPM 10": Attack(_against_the_mean(10.0)),
    "min-max": Attack(_farthest(lambda away, among: float(away.max()) <= float(among.max()))),
    "min-sum": Attack(_farthest(lambda away, among: float(away.square().sum()) <= float(among.square().sum(1).max()))),
    "label flip": Attack(poison="labels"),
    "backdoor": Attack(_backdoor, poison="backdoor"),
    "sleeper": Attack(_sleeper),
    "slow growth": Attack(_growing),
    "free riders": Attack(_times(1e-3)),
    "own channels": Attack(_own_channels),
    "covered flip": Attack(_covered),
    "false counts": Attack(_times(-1.0), claims=100),
    "poisoned c": Attack(_times(-8.0), sends_control=True),
    "statistics": Attack(_poisoned_statistics),
}
"""What is tried; the first is what the others are compared with."""
