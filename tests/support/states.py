"""States of clients whose tensors say which client and round they are of, and what a file of states holds."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from spatl.rounds.client_state import ClientState
from spatl.rounds.following import Held
from spatl.runs.files import CLIENTS_STATES
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])
NUM_CLIENTS = 3


def numbered(number: int, client: int = 0) -> ClientState:
    """A state of a round, which says of which client and round it is in more than one tensor."""
    return replace(
        ClientState.initial(LAYOUT), control_round=number, control=torch.full((6000,), float(number + 100 * client)),
        pending_round=number, pending_control=torch.full((6000,), number + 0.5), selector={"theta": torch.ones(2)},
        held=Held({number: torch.arange(6000, dtype=torch.int32) + number}),
    )  # fmt: skip


def num_tensors(run: Path) -> int:
    with closing(sqlite3.connect(run / CLIENTS_STATES)) as file:
        return int(file.execute("SELECT count(*) FROM tensors").fetchone()[0])
