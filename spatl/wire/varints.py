"""Whole numbers in as few bytes as they need: seven bits a byte, the lowest first, the top bit set where more follow.

A number has one way to be written: no last byte is 0 but that of 0 itself.
"""

from typing import Final

from spatl.errors import UpdateRejected

_MOST_BYTES: Final = 9  # numbers below 2^63


def varint(number: int) -> bytes:
    """Write a number from 0 to 2^63 - 1."""
    if not 0 <= number < 1 << 7 * _MOST_BYTES:
        raise ValueError(f"a number must lie in [0, 2^63) to be written, got {number}")
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def read_varint(data: bytes | memoryview, place: int, *, most: int = (1 << 7 * _MOST_BYTES) - 1) -> tuple[int, int]:
    """Read a number that begins at a place of some bytes; return it, and where what follows begins.

    Raises:
        UpdateRejected: It runs over the end, is longer than it needs to be, or above the `most`.
    """
    number = 0
    for position, byte in enumerate(data[place : place + _MOST_BYTES]):
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if (byte == 0 and position) or number > most:
                raise UpdateRejected(f"a number at byte {place} is above {most} or longer than it needs to be")
            return number, place + position + 1
    raise UpdateRejected(f"a number at byte {place} does not end")
