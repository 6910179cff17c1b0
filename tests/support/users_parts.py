"""Parts of each kind as users write them, and the ways in which they can be wrong."""

import itertools
import random
import sys

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.selection import Selection, select_all
from spatl.data import Dataset
from spatl.methods import METHODS, Method
from spatl.rounds.aggregation import Aggregator
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.wire.codec import Codec, check_length
from spatl.wire.quantised import Int8

A_NUMBER = 3


def by_norm(request: SelectionRequest) -> Tensor:
    """The energy of each channel's weights."""
    layout = request.costs.layout
    return torch.zeros(layout.num_channels).index_add_(0, layout.owner, request.weights.square())


class Counting:
    """A selector with a state: it knows how often its client was asked."""

    def __call__(self, request: SelectionRequest) -> Choice:
        asked = request.state.get("asked", torch.zeros(1)) + 1
        groups = request.costs.layout.groups
        mask = torch.zeros(request.costs.layout.num_channels, dtype=torch.bool)
        mask[[group.first for group in groups]] = True
        return Choice(Selection(mask), state={"asked": asked})


class Demanding:
    def __init__(self, size: int) -> None: ...


class NotCallable: ...


def everything(request: SelectionRequest) -> Choice:
    return Choice(select_all(request.costs.layout))


def nothing(request: SelectionRequest) -> Choice:
    return Choice(Selection(torch.zeros(request.costs.layout.num_channels, dtype=torch.bool)))


def closed(request: SelectionRequest) -> Choice:
    return Choice(Selection(select_all(request.costs.layout).mask, closed=True))


def too_short(request: SelectionRequest) -> Tensor:
    return torch.ones(3)


def not_a_number(request: SelectionRequest) -> Tensor:
    return torch.full((request.costs.layout.num_channels,), torch.nan)


def a_list(request: SelectionRequest) -> list[int]:
    return [1, 2]


def numbers_as_mask(request: SelectionRequest) -> Choice:
    return Choice(Selection(torch.ones(request.costs.layout.num_channels)))


def odd_state(request: SelectionRequest) -> Choice:
    return Choice(Counting()(request).selection, state={"asked": 3})  # type: ignore[dict-item]  # what is refused


def divides(request: SelectionRequest) -> Tensor:
    return torch.ones(1) * (1 // 0)


def changes_the_model(request: SelectionRequest) -> Tensor:
    with torch.no_grad():
        next(request.model.parameters()).zero_()
    return by_norm(request)


def stripes(seed: int, *, num_examples: int = 200, slant: float = 0.5) -> tuple[Tensor, Tensor]:
    """Two classes of 8x8 images, of which one has brighter upper rows; drawn from each of the global generators."""
    labels = torch.tensor([random.randrange(2) for _ in range(num_examples)])
    images = torch.rand(num_examples, 8, 8) + torch.from_numpy(np.random.rand(num_examples, 1, 1))
    images[labels == 1, :4] += slant
    return images, labels


def whole(seed: int) -> Dataset:
    images, labels = stripes(seed)
    return Dataset("stripes", images[:, None].float(), labels, num_classes=3, class_names=("low", "high", "none"))


def from_a_path(*, path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return content["images"], content["labels"]


def images_alone(seed: int) -> Tensor:
    return stripes(seed)[0]


def uneven(seed: int) -> tuple[Tensor, Tensor]:
    images, labels = stripes(seed)
    return images, labels[1:]


def broken(seed: int) -> Dataset:
    raise KeyError("pixels")


def leaves(seed: int) -> Dataset:
    """Ends the program, as a script does that is done."""
    sys.exit()


def by_turns(labels: Tensor, num_clients: int) -> list[Tensor]:
    """Every client its turn."""
    return [torch.arange(client, len(labels), num_clients) for client in range(num_clients)]


def shuffled(labels: Tensor, num_clients: int, seed: int) -> tuple[np.ndarray, ...]:
    """Equal shares, drawn from NumPy's global generator."""
    return tuple(np.array_split(np.random.permutation(len(labels)), num_clients))


def by_label(labels: Tensor, num_clients: int, alpha: float) -> list[list[int]]:
    """A client for each remainder of the label; alpha is read and does nothing."""
    return [(labels % num_clients == client).nonzero().squeeze(1).tolist() for client in range(num_clients)]


def one_too_few(labels: Tensor, num_clients: int) -> list[Tensor]:
    return by_turns(labels, num_clients)[1:]


def shared(labels: Tensor, num_clients: int) -> list[Tensor]:
    return [torch.arange(20)] * num_clients


def doubled(labels: Tensor, num_clients: int) -> list[Tensor]:
    first, *others = by_turns(labels, num_clients)
    return [torch.cat([first, first[:1]]), *others]


def beyond(labels: Tensor, num_clients: int) -> list[Tensor]:
    return [*by_turns(labels, num_clients)[:-1], torch.arange(10, 10 + len(labels))]


def fractions(labels: Tensor, num_clients: int) -> list[Tensor]:
    return [part.float() for part in by_turns(labels, num_clients)]


def small_first(labels: Tensor, num_clients: int) -> list[Tensor]:
    first, *others = by_turns(labels, num_clients)
    return [first[:3], *others]


def wants_more(labels: Tensor, clients: int) -> list[Tensor]:
    return by_turns(labels, clients)


def fails_to_split(labels: Tensor, num_clients: int) -> list[Tensor]:
    raise IndexError("out of examples")


def leaves_early(labels: Tensor, num_clients: int) -> list[Tensor]:
    sys.exit(0)


ROW = Method(
    title="Half FedAvg", source="a test", shares="all", selects=True, keep_ratio=0.5,
    defaults={"training": {"learning_rate": 0.03}, "selection": {"selector": "update"}},
)  # fmt: skip
AS_FEDAVG = METHODS["fedavg"]
WRONG_DEFAULTS = Method(title="Typo", source="a test", shares="all", defaults={"training": {"learning_rat": 0.03}})


class Halves(Codec):
    """Two bytes a value, rounded to nearest."""

    relative = False

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return 2 * num_values

    def encode(self, values: Tensor, places: Places, **settings: object) -> bytes:
        return values.detach().cpu().numpy().astype("<f2").tobytes()

    def decode(self, data: memoryview, places: Places) -> Tensor:
        check_length(data, 2 * len(places), "half")
        return torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float32))


class Changes(Halves):
    """The same of what changed."""

    relative = True


class Inherited(Int8):
    """One of ours under another name."""


AN_OBJECT = Changes()


class Sizeless(Halves):
    def __init__(self, size: int) -> None: ...


class Unfinished(Codec):
    relative = False


class Silent(Halves):
    relative = None  # type: ignore[assignment]  # what is refused


class FedBack(Halves):
    """What it loses of an update goes into the next."""

    feeds_back = True


class Unsure(Halves):
    feeds_back = None  # type: ignore[assignment]  # what is refused


class TooLong(Halves):
    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return num_values


class Negative(Halves):
    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return -1


class Text(Halves):
    def encode(self, values: Tensor, places: Places, **settings: object) -> str:  # type: ignore[override]  # likewise
        return "text"


class Doubles(Halves):
    def decode(self, data: memoryview, places: Places) -> Tensor:
        return super().decode(data, places).double()


class Fickle(Halves):
    calls = itertools.count()

    def decode(self, data: memoryview, places: Places) -> Tensor:
        return super().decode(data, places) + next(self.calls)


class Breaking(Halves):
    def encode(self, values: Tensor, places: Places, **settings: object) -> bytes:
        raise IndexError("out of bits")


class Trusting(Halves):
    def decode(self, data: memoryview, places: Places) -> Tensor:
        return super().decode(data, places) if data[1] < 256 else torch.zeros(0)


class Drifting(Changes):
    def decode(self, data: memoryview, places: Places) -> Tensor:
        return super().decode(data, places) + 1


def middle(updates: Tensor) -> Tensor:
    """The median of what was sent."""
    return updates.nanmedian(dim=0).values


def like_the_mean(updates: Tensor, num_examples: Tensor) -> Tensor:
    """The weighted mean, as ours but for rounding."""
    weights = num_examples[:, None] * ~updates.isnan()
    return (updates.nan_to_num().double() * weights).sum(dim=0) / weights.sum(dim=0)


class Halfway(Aggregator):
    """A class that moves half as far as ours."""

    def encoder(self) -> Tensor:
        return (super().encoder() + self.encoder_before) / 2


def a_mean_of_all(updates: Tensor) -> Tensor:
    return updates.mean(dim=0)


def one_number(updates: Tensor) -> Tensor:
    return updates.nanmean()


def no_tensor(updates: Tensor) -> list[float]:
    return [0.0]


def stumbles(updates: Tensor) -> Tensor:
    raise IndexError("nobody is here")


def leaves_later(updates: Tensor) -> Tensor:
    """Ends the program with five clients, not with the three of the rehearsal."""
    if len(updates) > 3:
        sys.exit(0)
    return updates.nanmean(dim=0)


def stumbles_later(updates: Tensor) -> Tensor:
    """Fails with five clients, not with the three of the rehearsal."""
    if len(updates) > 3:
        raise IndexError("too many")
    return updates.nanmean(dim=0)


def wants_ages(updates: Tensor, ages: Tensor) -> Tensor:
    return updates.nanmean(dim=0)


class OfDoubles(Aggregator):
    def encoder(self) -> Tensor:
        return super().encoder().double()


class InPlace(Aggregator):
    def encoder(self) -> Tensor:
        return self.encoder_before.add_(1)


class WithoutAnswer(Aggregator):
    def encoder(self) -> Tensor: ...  # type: ignore[empty-body]  # likewise


class WithAges(Aggregator):
    def __init__(self, ages: Tensor, **settings: object) -> None: ...
