"""Every bit of every kind of blob, flipped: how many altered blobs are taken, with the digest and without one.

`python -m tests.studies.alterations` flips each bit of the blobs of `tests.support.blobs` in turn and has its receiver
read the result: as it came, and with the digest made anew, which is what a format without one would take.
"""

from spatl.errors import UpdateRejected
from spatl.wire.blob import DIGEST_BYTES
from tests.support.blobs import KINDS, Sent
from tests.support.messages import forged


def main() -> None:
    """Print a row for each kind of blob."""
    print(f"{'kind':>12}  {'blobs':>6}  {'flipped bits':>12}  {'taken':>6}  {'taken without a digest':>22}")
    for kind, sent in KINDS.items():
        blobs = list(sent())
        flips = [flipped(each, bit) for each in blobs for bit in range(8 * len(each.blob))]
        taken, bare = (sum(column) for column in zip(*flips, strict=True))
        print(f"{kind:>12}  {len(blobs):6}  {len(flips):12}  {taken:6}  {bare:22}")


def flipped(sent: Sent, bit: int) -> tuple[bool, bool]:
    """Return whether a blob is taken with one of its bits flipped, as it is and with a digest that is made anew."""
    altered = bytearray(sent.blob)
    altered[bit // 8] ^= 1 << bit % 8
    inside = bit // 8 < len(altered) - DIGEST_BYTES
    return is_taken(sent, bytes(altered)), inside and is_taken(sent, forged(bytes(altered), bytes))


def is_taken(sent: Sent, blob: bytes) -> bool:
    """Return whether a receiver takes a blob."""
    try:
        sent.take(blob)
    except UpdateRejected:
        return False
    return True


if __name__ == "__main__":
    main()
