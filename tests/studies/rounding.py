"""How much of a round's progress is left when its updates are rounded, for some ways to round, by their bits a value.

`python -m tests.studies.rounding CONFIG [--rounds 6] [--seeds 11,12] [--replies N] [--set section.key=value ...]` runs
a federation whose messages are exact, and in every second round rounds what its clients would send. Printed is the
share that is kept of the decrease of the clients' mean loss, each under BatchNorm statistics of its own, on its
training split. Neither squared errors nor cosines tell that: at one error, what is wrong in the same way at every
client costs progress, and what averages out does not.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.config.loading import parse_config, read_config
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.client import train_round
from spatl.rounds.client_evaluation import take_statistics_
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.seeding import generator
from spatl.training.evaluate import evaluate
from spatl.wire import adaptive, dithered
from spatl.wire.download import Model
from spatl.wire.update import Update, unpack_update

Encode = Callable[[Tensor, Places, torch.Generator], bytes | None]


class Way(NamedTuple):
    """How values are rounded, and read."""

    encode: Encode
    decode: Callable[[memoryview, Places], Tensor] = adaptive.decode


def at_random(multiple: float) -> Way:
    """Rounding at random, with a step of so many root mean squares."""
    return Way(
        lambda values, places, draws: adaptive.encode_rounded(
            values, places, step=multiple * adaptive.root_mean_square(values), generator=draws
        )
    )


def dither(multiple: float) -> Way:
    """Rounding under subtractive dither likewise."""
    return Way(
        lambda values, places, draws: dithered.encode_dithered(
            values, places, step=multiple * adaptive.root_mean_square(values), seed=draws.initial_seed() % 2**32
        ),
        dithered.decode_dithered,
    )


WAYS: Final[Mapping[str, Way]] = {
    "at random, 3 rms": at_random(3),
    "at random, 4 rms": at_random(4),
    "dither, 3.5 rms": dither(3.5),
    "dither, 4 rms": dither(4),
    "dither, 4.5 rms": dither(4.5),
    "dither, 5 rms": dither(5),
    "as a fine change of the server's": Way(lambda values, places, draws: adaptive.encode_change(values, places)),
}


@dataclass(frozen=True, eq=False)
class Round:
    """Round of exact updates: the encoder before it, who answered, and what is needed to judge another encoder."""

    workplace: Workplace
    number: int
    encoder: Tensor
    updates: Sequence[tuple[Update, int]]
    states: Mapping[int, ClientState]

    def loss(self, encoder: Tensor) -> float:
        """The clients' mean loss on their training splits, weighted by their examples."""
        total = number = 0.0
        for client, state in self.states.items():
            settled = state.settle(acknowledged_round=0, server_round=self.number + 1, half_life=None)
            received = Model(self.number + 1, 0, encoder, None)
            with self.workplace.prepared(client, received, settled) as own:
                take_statistics_(own)
                found = evaluate(own.model, own.data.train, task=own.blueprint.task)
                total, number = total + found.loss * len(own.data.train), number + len(own.data.train)
        return total / number

    def moved(self, decoded: Sequence[Tensor]) -> Tensor:
        """The encoder after a round of these values: index-based averaging."""
        layout = self.workplace.blueprint.layout
        total = torch.zeros(layout.num_entries, dtype=torch.float64)
        weight = torch.zeros(layout.num_entries, dtype=torch.float64)
        for (update, examples), values in zip(self.updates, decoded, strict=True):
            entries = update.selection.entries(layout)
            total[entries] += examples * values.double()
            weight[entries] += examples
        encoder = self.encoder + (total / weight.clamp(min=1)).float()
        for variance in layout.variances:
            encoder[variance] = encoder[variance].clamp(min=0)
        return encoder

    def rounded(self, way: Way) -> tuple[Tensor, float]:
        """The encoder after a round of rounded values, and the bits that a value takes."""
        layout, decoded, num_bytes = self.workplace.blueprint.layout, [], 0
        for place, (update, _) in enumerate(self.updates):
            places, draws = layout.places(update.selection), generator(place, "rounding", server_round=self.number)
            data = way.encode(update.values, places, draws) or at_random(3).encode(update.values, places, draws) or b""
            decoded.append(way.decode(memoryview(data), places))
            num_bytes += len(data)
        return self.moved(decoded), 8 * num_bytes / sum(map(len, decoded))


def exact_rounds(config: Mapping[str, Any], num_rounds: int, num_replies: int) -> Iterator[Round]:
    """Rounds of a federation whose messages are exact, each with so many replies (0: all clients')."""
    workplace = Workplace(make_blueprint(parse_config(config)))
    blueprint, layout = workplace.blueprint, workplace.blueprint.layout
    states = {client: ClientState.initial(layout) for client in range(blueprint.config.partition.num_clients)}
    encoder, draw = blueprint.initial_encoder().clone(), generator(blueprint.config.seed, "study")
    for number in range(1, num_rounds + 1):
        received = Model(number, 0, encoder, torch.zeros(layout.num_parameter_entries))
        updates = []
        for client in sorted(torch.randperm(len(states), generator=draw)[: num_replies or len(states)].tolist()):
            state = states[client].settle(acknowledged_round=0, server_round=number, half_life=None)
            blob, states[client] = train_round(workplace, client, received, state)
            update = unpack_update(
                blob, layout, blueprint.codecs.uplink, server_round=number, base_version=0,
                num_arrived=blueprint.num_arrived, judging=blueprint.judging,
            )  # fmt: skip
            updates.append((update, workplace.num_examples(client)))
        finished = Round(workplace, number, encoder, updates, dict(states))
        yield finished
        encoder = finished.moved([update.values for update, _ in updates])


def main() -> None:
    """Print what each way to round keeps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--replies", type=int, default=0)
    parser.add_argument("--seeds", default="11")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    kept, bits = defaultdict(list), defaultdict(list)
    for seed in given.seeds.split(","):
        values = read_config(given.config, [*given.overrides, f"seed={seed}"])
        for section, own in values.pop("bench", {}).get("methods", {}).get("spatl", {}).items():
            values[section] = {**values.get(section, {}), **own}
        wire = {"uplink": "float32", "downlink": "float32"}
        for each in exact_rounds({**values, "wire": wire}, given.rounds, given.replies):
            if each.number % 2:
                continue
            before = each.loss(each.encoder)
            decrease = before - each.loss(each.moved([update.values for update, _ in each.updates]))
            print(f"seed {seed}, round {each.number}: the loss {before:.3f} decreases by {decrease:.3f}", flush=True)
            for name, way in WAYS.items():
                encoder, length = each.rounded(way)
                kept[name].append(((before - each.loss(encoder)), decrease))
                bits[name].append(length)
    for name in WAYS:
        left, exact = np.array(kept[name]).sum(0)
        print(f"{name:28} {np.mean(bits[name]):.2f} bits a value, {100 * left / exact:.0f} % of the decrease kept")


if __name__ == "__main__":
    main()
