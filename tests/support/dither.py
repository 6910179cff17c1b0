"""Dither as its generator's paper has it, in Python's own whole numbers."""

import itertools
from collections.abc import Iterator


def splitmix(seed: int) -> Iterator[int]:
    """Outputs of SplitMix64 (Steele, Lea and Flood 2014, figure 17)."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield z ^ z >> 31


def numbers(seed: int, number: int) -> list[int]:
    """Numbers of the dither of a seed."""
    outputs = itertools.islice(splitmix(next(splitmix(seed))), (number + 1) // 2)
    halves = itertools.chain.from_iterable((output % 2**32, output >> 32) for output in outputs)
    return [half >> 8 for half in halves][:number]
