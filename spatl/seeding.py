"""Seeding: independent generators from one seed, one per purpose, round and client.

Every random draw in a run comes from a generator made here for a named purpose, so that no draw depends on what was
drawn before it: a dropped client, another engine or a different order of replies leaves all other draws as they were.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def derive(seed: int, purpose: str, *, server_round: int = 0, client: int = -1) -> int:
    """Return the 63-bit seed of one purpose.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, e.g. `"batches"`; different purposes never share a stream.
        server_round: The round, counted from 1; 0 when the purpose does not belong to a round.
        client: The client's partition id; -1 when the purpose does not belong to a client.

    Returns:
        A seed in [0, 2**63), a pure function of the arguments on every machine.
    """
    text = f"{seed}/{purpose}/{server_round}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *, server_round: int = 0, client: int = -1) -> torch.Generator:
    """Return a CPU `torch.Generator` for one purpose (arguments as in `derive`)."""
    return torch.Generator().manual_seed(derive(seed, purpose, server_round=server_round, client=client))


def numpy_generator(seed: int, purpose: str, *, server_round: int = 0, client: int = -1) -> np.random.Generator:
    """Return a NumPy generator for one purpose (arguments as in `derive`)."""
    return np.random.default_rng(derive(seed, purpose, server_round=server_round, client=client))


def random_bits(seed: int, number: int) -> NDArray[np.uint8]:
    """Return so many bits, 0 or 1, uint8: those of PCG64, which NumPy promises to be the same of all its versions."""
    words = np.random.PCG64(seed).random_raw(-(-number // 64)).astype("<u8")
    return np.unpackbits(words.view(np.uint8), bitorder="little", count=number)


@contextmanager
def seeded_globals(seed: int, purpose: str, *, server_round: int = 0, client: int = -1) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators inside the block, and put their states back after it.

    Layers draw their initial weights, and dropout its masks, from torch's: the one place where a generator cannot be
    passed in. A user's own layer may draw from the others. CUDA's generators are seeded, not put back.
    """
    states = global_states()
    number = derive(seed, purpose, server_round=server_round, client=client)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # the same for the CPU; for each device that is not there the former notes who called it, a millisecond
        torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    try:
        yield
    finally:
        set_global_states(states)


GlobalStates = tuple[torch.Tensor, Any, Any]
"""States of torch's, numpy's and Python's global generators; CUDA's are none of them."""


def global_states() -> GlobalStates:
    """Return the states of the global generators."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_global_states(states: GlobalStates) -> None:
    """Put the global generators into the states that they had."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
