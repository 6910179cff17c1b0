"""Loss decrease that a codec keeps of a round: `python -m tests.studies.codecs [SEED ...]` prints it, and bits a value.

Ten clients on the digits train for some rounds by FedAvg in float32, Dirichlet 0.5. In each round every codec writes
the same updates, without what it lost of others, and the server's encoder is moved by the mean of what arrives instead.
Kept is how much less the loss on all training examples gets thereby, over how much less the exact updates make it,
summed over the rounds. It is cheap, alike for all, and tells bias from noise.

Codecs that feed back write the updates once more with what is left of those before. What has arrived after the last
round is then the encoder less the mean of what is left, and the last column how much of the whole decrease that has.
None of it is what a run with this codec does, which goes another way from the second round on.
"""

import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from flwr.app import RecordDict
from torch import Tensor

from spatl.channels.selection import select_all
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import Examples
from spatl.rounds.blueprint import Blueprint, load_encoder_
from spatl.rounds.feedback import Feedback
from spatl.seeding import generator
from spatl.training.evaluate import evaluate
from spatl.wire.codecs import CODECS
from tests.support.federations import blob_of, blueprint_of, opened, run_tiny, tampering

ROUNDS = 10
NAMES = ("int4-entropy", "adaptive", "qsgd", "eden", "signsgd", "powersgd", "powersgd-rank1", "topk")


def config_of(seed: int) -> ExperimentConfig:
    """A CNN on the digits, its BatchNorm statistics averaged so that the encoder is all of the model."""
    return parse_config(
        {
            "seed": seed, "rounds": ROUNDS, "method": "fedavg", "data": {"name": "digits"},
            "partition": {"num_clients": 10, "alpha": 0.5},
            "model": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
            "training": {
                "local_epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9, "batch_norm": "shared",
                "device": "cpu",
            },
        }
    )  # fmt: skip


def updates_of(config: ExperimentConfig) -> Iterator[dict[int, tuple[Tensor, int]]]:
    """By round, each client's update and how many examples it has."""
    layout = blueprint_of(config).layout
    rounds: dict[int, dict[int, tuple[Tensor, int]]] = defaultdict(dict)

    def noted(client: int, content: RecordDict) -> RecordDict:
        update = opened(blob_of(content), layout)
        assert update.report is not None
        rounds[update.server_round][client] = (update.values, update.report.num_examples)
        return content

    with tempfile.TemporaryDirectory() as scratch:
        run_tiny(config, Path(scratch) / "run", app=tampering(noted))
    yield from (rounds[number] for number in sorted(rounds))


def moved(encoder: Tensor, updates: Mapping[int, tuple[Tensor, int]]) -> Tensor:
    """The encoder after the weighted mean of updates."""
    total = sum(number for _, number in updates.values())
    return encoder + sum(values * (number / total) for values, number in updates.values())


def loss_of(blueprint: Blueprint, examples: Examples, encoder: Tensor) -> float:
    """Mean loss on all training examples."""
    load_encoder_(blueprint.model, blueprint.layout, encoder)
    return evaluate(blueprint.model, examples).loss


def measured(seed: int) -> dict[str, tuple[float, float, float]]:
    """Bits a value, the share of the loss decrease kept, and the share that has arrived in the end, by codec."""
    config = config_of(seed)
    blueprint = blueprint_of(config)
    layout, everything = blueprint.layout, select_all(blueprint.layout)
    encoder, places = blueprint.initial_encoder().clone(), layout.places()
    own = [blueprint.client_data(client).train for client in range(config.partition.num_clients)]
    inputs = torch.cat([each.inputs for each in own])  # type: ignore[arg-type]  # images alone
    examples = Examples(inputs, torch.cat([each.targets for each in own]))
    left: dict[tuple[str, int], Feedback] = defaultdict(Feedback.none)
    bits, kept = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    losses, weights = [loss_of(blueprint, examples, encoder)], dict[int, int]()
    for number, updates in enumerate(list(updates_of(config)), start=1):
        weights = {client: weight for client, (_, weight) in updates.items()}
        for name in NAMES:
            codec, arrived = CODECS[name], dict[int, tuple[Tensor, int]]()
            for client, (values, weight) in updates.items():
                before = left[name, client]
                draws = generator(seed, "rounding", server_round=number, client=client)
                data, _ = codec.encode_with_memory(values, places, generator=draws, memory=before.memory)
                arrived[client] = (codec.decode(memoryview(data), places), weight)
                bits[name].append(8 * len(data) / len(values))
                if codec.feeds_back:
                    wanted = before.wanted(values, everything, layout)
                    data, memory = codec.encode_with_memory(wanted, places, generator=draws, memory=before.memory)
                    sent = codec.decode(memoryview(data), places)
                    left[name, client] = before.after(wanted, sent, everything, layout, memory)
            kept[name].append(losses[-1] - loss_of(blueprint, examples, moved(encoder, arrived)))
        encoder = moved(encoder, updates)
        losses.append(loss_of(blueprint, examples, encoder))
    whole, found = losses[0] - losses[-1], {}
    for name in NAMES:
        lacking = {client: (-left[name, client].residual, weight) for client, weight in weights.items()}
        there = encoder if not CODECS[name].feeds_back else moved(encoder, lacking)
        share = (losses[0] - loss_of(blueprint, examples, there)) / whole
        found[name] = (statistics.fmean(bits[name]), sum(kept[name]) / whole, share)
    return found


def main() -> None:
    """Print a line per codec: means over the seeds, with the lowest and the highest."""
    seeds = [int(text) for text in sys.argv[1:]] or [1, 2, 3]
    found = [measured(seed) for seed in seeds]
    print(f"| codec | bits a value | kept of a round | arrived after {ROUNDS} rounds |")
    print("|---|---:|---:|---:|")
    for name in NAMES:
        bits, *shares = zip(*(each[name] for each in found), strict=True)
        kept, there = (f"{statistics.fmean(each):.0%} ({min(each):.0%} to {max(each):.0%})" for each in shares)
        fed = there if CODECS[name].feeds_back else "not fed back"
        print(f"| `{name}` | {statistics.fmean(bits):.2f} | {kept} | {fed} |")


if __name__ == "__main__":
    main()
