"""Coverage-guided fuzzing of everything that decodes bytes from a peer.

`python -m tests.fuzz.decoders TARGET CORPUS [libFuzzer options]` writes valid messages into CORPUS and mutates them
until the options say stop. A decoder that raises anything but `UpdateRejected`, or returns what is not finite or of
another length, ends it with a status other than 0. It needs a process of its own, as libFuzzer ends the one it runs in.
"""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["spatl.codec", "spatl.entropy", "spatl.protocol", "spatl.selection"]):
    import numpy as np
    import torch

    from spatl.codec import CODECS, CODECS_BY_NUMBER
    from spatl.entropy import LARGEST_INTEGER, decode_integers, encode_integers
    from spatl.errors import UpdateRejected
    from spatl.protocol import Model, pack_model, pack_update, unpack_model, unpack_update
    from spatl.selection.selection import Selection
    from tests.layouts import interleaved_layout, make_update

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
MASKS = ([True] * LAYOUT.num_channels, [True, False] * 6 + [True])


def with_whole_payload(data: bytes) -> bytes:
    """The bytes, with the lengths that a header promises made right: few mutations would get past them otherwise."""
    if len(data) < 60 or not 1 <= data[7] <= 4:
        return data
    payload = len(data) - 40 - 5 * data[7]
    before = sum(struct.unpack_from("<I", data, 41 + 5 * section)[0] for section in range(data[7] - 1))
    blob = bytearray(data)
    struct.pack_into("<Q", blob, 32, payload)
    struct.pack_into("<I", blob, 36 + 5 * data[7], max(0, payload - before))
    return bytes(blob)


def decode_update(data: bytes) -> None:
    update = unpack_update(with_whole_payload(data), LAYOUT, server_round=1, base_version=0)
    assert torch.isfinite(update.values).all()
    assert len(update.values) == len(update.selection.entries(LAYOUT))


def update_seeds() -> list[bytes]:
    difference = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(0))
    return [
        pack_update(make_update(LAYOUT, mask, difference * scale), LAYOUT, codec, generator=torch.Generator())
        for codec in CODECS.values()
        for mask in MASKS
        for scale in (0.0, 0.1)
    ]


def decode_model(data: bytes) -> None:
    model = unpack_model(with_whole_payload(data), LAYOUT)
    assert torch.isfinite(model.encoder).all()
    assert len(model.encoder) == LAYOUT.num_entries
    assert model.control is None or torch.isfinite(model.control).all()


def model_seeds() -> list[bytes]:
    encoder = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(0))
    control = encoder[: LAYOUT.num_parameter_entries] / 10
    selection = Selection(torch.tensor(MASKS[1]))
    models = (Model(1, 0, encoder, control), Model(1, 0, encoder, None), Model(1, 0, encoder, control, selection))
    return [
        pack_model(model, LAYOUT, codec, generator=torch.Generator()) for codec in CODECS.values() for model in models
    ]


def decode_values(data: bytes) -> None:
    """The first three bytes are the codec's number, and how many values of how many channels are expected."""
    if len(data) < 3 or data[0] not in CODECS_BY_NUMBER:
        return
    channels = torch.arange(data[1]) % (1 + data[2])
    values = CODECS_BY_NUMBER[data[0]].decode(memoryview(data)[3:], channels)
    assert len(values) == len(channels)
    assert data[0] < 2 or torch.isfinite(values).all()


def values_seeds() -> list[bytes]:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)) * torch.arange(200)
    return [
        bytes([number, num_values, num_channels - 1])
        + codec.encode(values[:num_values], torch.arange(num_values) % num_channels, generator=torch.Generator())
        for number, codec in CODECS_BY_NUMBER.items()
        for num_values, num_channels in ((0, 1), (1, 1), (200, 1), (200, 15))
    ]


def decode_integers_of_many(data: bytes) -> None:
    """The first two bytes say how many integers are expected, and of how many contexts."""
    if len(data) < 2:
        return
    contexts = (np.arange(data[0]) % (1 + data[1] % 8)).astype(np.uint8)
    integers = decode_integers(memoryview(data)[2:], contexts)
    assert len(integers) == len(contexts)
    assert not len(integers) or np.abs(integers).max() <= LARGEST_INTEGER + 1


def integers_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    seeds = []
    for num_values, num_contexts, width in ((0, 0, 1), (1, 0, 1), (200, 5, 1), (255, 2, 90), (100, 7, 1000)):
        contexts = (np.arange(num_values) % (1 + num_contexts)).astype(np.uint8)
        values = np.rint(rng.laplace(size=num_values) * width).astype(np.int32)
        seeds.append(bytes([num_values, num_contexts]) + encode_integers(values, contexts))
    return seeds


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "update": (decode_update, update_seeds),
    "model": (decode_model, model_seeds),
    "values": (decode_values, values_seeds),
    "integers": (decode_integers_of_many, integers_seeds),
}


def main(target: str, corpus: Path, options: list[str]) -> None:
    decode, seeds = TARGETS[target]
    corpus.mkdir(parents=True, exist_ok=True)
    for position, seed in enumerate(seeds()):
        (corpus / f"seed-{position}").write_bytes(seed)

    def one_input(data: bytes) -> None:
        try:
            decode(data)
        except UpdateRejected:
            return

    torch.set_num_threads(1)
    atheris.Setup([sys.argv[0], str(corpus), *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
