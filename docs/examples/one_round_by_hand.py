"""One round of SPATL by hand: two clients and the server in one process, without Flower.

`python docs/examples/one_round_by_hand.py` prints what each of them does; `docs/algorithm.md` has the equations. What
`server/strategy.py` and `clients/app.py` add to it is Flower's messages, files and accounts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatl import parse_config
from spatl.rounds.blueprint import Blueprint, cached_blueprint
from spatl.rounds.client import receive, train_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.federation import Federation
from spatl.rounds.server import admit, close_round, first_state, open_round, question_of
from spatl.rounds.server_state import ServerState
from spatl.rounds.workplace import Workplace
from spatl.wire.download import unpack_download
from spatl.wire.update import Update

CONFIG = {
    "rounds": 1,
    "data": {"name": "synthetic", "options": {"num_examples": 200, "image_size": 8}},
    "partition": {"num_clients": 2, "alpha": 0.5},
    "model": {"name": "cnn"},
    "training": {"local_steps": 4, "device": "cpu"},
    "selection": {"selector": "update", "keep_ratio": 0.5},
}


@dataclass(frozen=True)
class Round:
    """What a round began with, what the clients sent, and what came of it."""

    blueprint: Blueprint
    num_examples: dict[int, int]
    before: ServerState
    updates: dict[int, Update]
    after: ServerState
    clients: dict[int, ClientState]


def one_round() -> Round:
    """Do one round: the server opens it, each client trains and answers, the server closes it."""
    blueprint = cached_blueprint(parse_config(CONFIG).to_json())
    workplace, layout = Workplace(blueprint), blueprint.layout
    num_examples = {client: workplace.num_examples(client) for client in range(2)}  # n_i
    federation = Federation(blueprint, clients=frozenset(num_examples))
    before = first_state(federation, num_examples)
    print(f"The encoder x has {layout.num_entries:,} entries in {layout.num_channels} channels; c is zero.")

    opened, downloads = open_round(federation, before, 1, num_examples)
    blobs, states, updates = {}, {}, {}
    for client, blob in downloads.items():
        received, state = receive(workplace, unpack_download(blob, layout, blueprint.codecs.downlink), None)
        blobs[client], states[client] = train_round(workplace, client, received, state)
        # The server does this inside `close_round`, too; here it shows what travels.
        update, report = admit(federation, blobs[client], question_of(federation, opened, 1, client))
        updates[client] = update
        print(
            f"Client {client} was sent {len(blob):,} bytes and trained on {report.num_examples} examples (loss "
            f"{report.train_loss:.2f}, a_i = {update.step_weight:.3f}). It sends {int(update.selection.mask.sum())} "
            f"channels, {len(update.values):,} values, in {len(blobs[client]):,} bytes."
        )

    after, outcome = close_round(federation, opened, 1, blobs.items())
    print(f"The server folded in clients {sorted(outcome.trained)} and refused {sorted(outcome.rejected)}.")
    return Round(blueprint, num_examples, before, updates, after, states)


def by_hand(done: Round) -> tuple[Tensor, Tensor]:
    """Return x and c after the round as their equations say, entry by entry over the clients that sent it."""
    layout, config = done.blueprint.layout, done.blueprint.config
    moved, weight = torch.zeros(2, layout.num_entries, dtype=torch.float64)
    for client, update in done.updates.items():  # x_j += eta_g sum_i p_i D_ij / sum_i p_i
        entries = update.selection.entries(layout)
        moved[entries] += done.num_examples[client] * update.values.double()
        weight[entries] += done.num_examples[client]
    encoder = done.before.encoder + config.server.learning_rate * moved / weight.clamp(min=1)
    control = torch.zeros(layout.num_parameter_entries, dtype=torch.float64)
    for client, state in done.clients.items():  # c = sum_i p_i c_i, each c_i as the server's acknowledgement settles it
        settled = state.settle(acknowledged_round=1, server_round=1, half_life=config.control.half_life)
        control += done.num_examples[client] / sum(done.num_examples.values()) * settled.control.double()
    return encoder.float(), control.float()


if __name__ == "__main__":
    result = one_round()
    x, c = by_hand(result)
    print(f"x moved by up to {float((result.after.encoder - result.before.encoder).abs().max()):.4f}.")
    print(f"x differs from the weighted mean by hand by at most {float((result.after.encoder - x).abs().max()):.1e},")
    print(f"c from the sum of p_i c_i by at most {float((result.after.control - c).abs().max()):.1e}.")
