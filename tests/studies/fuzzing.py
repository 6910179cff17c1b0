"""Coverage-guided fuzzing of everything that decodes bytes from a peer.

`python -m tests.studies.fuzzing TARGET[,TARGET...] CORPUS [libFuzzer options]` writes valid messages into a directory
of CORPUS for each target and mutates them until the options say stop. A decoder that raises anything but
`UpdateRejected`, or returns what is not finite or of another length, ends it with a status other than 0. Each target
has a forked process of its own, as libFuzzer ends the one it runs in: it is the instrumented imports that take long.
What a target says is in CORPUS/TARGET.log.
"""

import math
import os
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import atheris

with atheris.instrument_imports(include=["spatl"]):
    import numpy as np
    import torch

    from spatl.channels.layout import Places
    from spatl.channels.selection import Selection
    from spatl.errors import UpdateRejected
    from spatl.rounds.following import Held, follow
    from spatl.saliency.findings import fault_of
    from spatl.tasks.targets import TASKS
    from spatl.wire.blob import DIGEST_BYTES, with_digest
    from spatl.wire.download import unpack_download
    from spatl.wire.entropy import LARGEST_INTEGER, decode_integers, encode_integers
    from spatl.wire.findings import unpack_findings
    from spatl.wire.reports import ROUNDING, TrainReport
    from spatl.wire.statistics import unpack_statistics
    from spatl.wire.varints import read_varint, varint
    from tests.support.blobs import INITIAL, NUM_STATISTICS, SHAPE, Sent, downloads, findings, statistics, updates
    from tests.support.measured import judging_of, told
    from tests.support.messages import CODECS_BY_NUMBER, LAYOUT, REPORT, codec_of, unpack

HEADER = 12
OWN_HEADER = {1: (4, 8), 2: (2, 8), 3: (2, 0), 4: (2, 0)}
"""By kind, how many whole numbers stand behind the header, and how many bytes behind these."""


def with_whole_payload(data: bytes) -> bytes:
    """The bytes, with promised lengths and digest made right: few mutations would get past them otherwise."""
    if len(data) < HEADER or data[5] not in OWN_HEADER:
        return data
    body, place, last, lengths = data[:-DIGEST_BYTES], HEADER, 0, [0]
    num_numbers, num_bytes = OWN_HEADER[data[5]]
    try:
        for _ in range(num_numbers):
            _, place = read_varint(body, place)
        place += num_bytes
        for _ in range(data[7]):
            last = place + 1
            length, place = read_varint(body, last)
            lengths.append(length)
    except UpdateRejected:
        return with_digest(body)
    rest = len(body) - place - sum(lengths[:-1])
    if last and rest >= 0:
        body = body[:last] + varint(rest) + body[place:]
    return with_digest(body)


def seeds_of(sent: Callable[[], Iterator[Sent]]) -> list[bytes]:
    return [each.blob for each in sent()]


def decode_update(data: bytes) -> None:
    update = unpack(with_whole_payload(data), codec_of(data))
    assert torch.isfinite(update.values).all()
    assert len(update.values) == len(update.selection.entries(LAYOUT))
    assert 0 < update.step_weight < float("inf")


def follow_download(data: bytes) -> None:
    """By a client that holds versions 2 and 3; what the bytes lead to is taken for the right encoder."""
    download = unpack_download(with_whole_payload(data), LAYOUT, codec_of(data))
    num_values = len(entries_of(download.selection))
    offsets = {version: torch.arange(num_values, dtype=torch.int32) << version for version in (2, 3)}
    held = Held(offsets, control=torch.ones(LAYOUT.num_parameter_entries), control_version=3)
    with patch("spatl.rounds.following.check_of", lambda encoder: download.check):
        encoder, after = follow(download, held, INITIAL, LAYOUT, fading=0.5)
    assert len(encoder) == LAYOUT.num_entries
    assert torch.isfinite(encoder).all()
    assert all(len(each) == num_values and each.dtype == torch.int32 for each in after.offsets.values())
    assert after.control is None or torch.isfinite(after.control).all()


def entries_of(selection: Selection | None) -> torch.Tensor:
    return torch.arange(LAYOUT.num_entries) if selection is None else selection.entries(LAYOUT)


def decode_report(data: bytes) -> None:
    report = TrainReport.from_bytes(data)
    assert repr(TrainReport.from_bytes(report.to_bytes())) == repr(report)  # NaN is not equal to itself
    untested = math.isnan(report.accuracy) and math.isnan(report.loss)  # both, or neither: no test examples
    read = {name: value for name, value in vars(report).items() if name != "keep_ratio"}  # which is not sent
    for (name, value), sent in zip(read.items(), TrainReport._struct().unpack(data), strict=True):
        if not (untested and name in ("accuracy", "loss")):
            # A share off by rounding is its bound; float16 and float32 are read as the shortest decimals that are them.
            with np.errstate(over="ignore"):
                assert sent in (value, np.float32(value), np.float16(value)) or abs(sent - value) <= ROUNDING
    assert all(0 <= share <= 1 for share in (report.keep_ratio, report.flops_ratio))
    assert untested or (0 <= report.accuracy <= 1 and report.loss >= 0)


def report_seeds() -> list[bytes]:
    return [REPORT.to_bytes(), replace(REPORT, num_examples=1, budget_limit=float("inf"), loss=0.0).to_bytes()]


def places_of(num_values: int, num_channels: int) -> Places:
    """Channels that lie in up to four tensors, as the fuzzer's bytes ask for."""
    channels = torch.arange(num_values) % num_channels
    return Places(channels, channels % 4)


def decode_values(data: bytes) -> None:
    """The first three bytes are the codec's number, and how many values of how many channels are expected."""
    if len(data) < 3 or data[0] not in CODECS_BY_NUMBER:
        return
    values = CODECS_BY_NUMBER[data[0]].decode(memoryview(data)[3:], places_of(data[1], 1 + data[2]))
    assert len(values) == data[1]
    assert data[0] < 2 or torch.isfinite(values).all()


def values_seeds() -> list[bytes]:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)) * torch.arange(200)
    return [
        bytes([number, num_values, num_channels - 1])
        + codec.encode(values[:num_values], places_of(num_values, num_channels), generator=torch.Generator())
        for number, codec in CODECS_BY_NUMBER.items()
        for num_values, num_channels in ((0, 1), (1, 1), (200, 1), (200, 15))
    ]


def places_by_rows(num_channels: int, per_channel: int) -> Places:
    """A tensor of channels that are rows, and a vector of one value for each."""
    rows = torch.arange(num_channels)
    channels = torch.cat([rows.repeat_interleave(per_channel), rows])
    return Places(channels, (torch.arange(len(channels)) >= num_channels * per_channel).long())


def decode_matrices(data: bytes) -> None:
    """As `decode_values`, of a matrix and a vector; the second and third byte are the rows' number and length."""
    if len(data) < 3 or data[0] not in CODECS_BY_NUMBER:
        return
    places = places_by_rows(data[1] % 32, data[2] % 32)
    values = CODECS_BY_NUMBER[data[0]].decode(memoryview(data)[3:], places)
    assert len(values) == len(places)
    assert data[0] < 2 or torch.isfinite(values).all()


def matrices_seeds() -> list[bytes]:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    return [
        bytes([number, rows, columns])
        + codec.encode(values[: rows * (columns + 1)], places_by_rows(rows, columns), generator=torch.Generator())
        for number, codec in CODECS_BY_NUMBER.items()
        for rows, columns in ((1, 1), (6, 9), (12, 8))
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


def decode_statistics(data: bytes) -> None:
    asked = len(data) > DIGEST_BYTES and data[-1 - DIGEST_BYTES] % 2 == 1
    read = unpack_statistics(
        with_whole_payload(data), LAYOUT, codec_of(data), server_round=7, version=6, num_channels=NUM_STATISTICS,
        with_accuracy=asked,
    )  # fmt: skip
    assert torch.isfinite(read.statistics.means).all()
    assert (read.statistics.variances >= 0).all()


def decode_findings(data: bytes) -> None:
    read = unpack_findings(
        with_whole_payload(data), LAYOUT, codec_of(data), server_round=7, version=6, shape=SHAPE
    )  # fmt: skip
    assert fault_of(read, num_filters=SHAPE.num_filters, num_classes=SHAPE.num_classes) is None
    assert read.prototypes.shape == (SHAPE.num_classes, SHAPE.num_features)


def decode_measures(data: bytes) -> None:
    """The first byte is the task, the next eight the score; what is read adds up with what four examples have."""
    if len(data) < 9:
        return
    judging = judging_of(tuple(TASKS)[data[0] % len(TASKS)])
    (score,) = struct.unpack_from("<d", data, 1)
    measures = judging.from_bytes(memoryview(data)[9:], score=score, most_examples=100)
    assert judging.from_bytes(judging.to_bytes(measures), score=score) is not None
    for metric, own, other in zip(judging.task.metrics, measures, told(judging), strict=True):
        assert all(map(math.isfinite, own.sums))
        if metric.sums is not None:
            pooled = metric.of_sums(torch.tensor(own.sums) + torch.tensor(other.sums), judging.task.deviations)
            assert math.isnan(pooled) or metric.lowest - 1e-6 <= pooled <= metric.highest + 1e-6


def measures_seeds() -> list[bytes]:
    judged = [judging_of(task) for task in TASKS]
    return [
        bytes([number]) + struct.pack("<d", told(judging)[0].value) + judging.to_bytes(told(judging))
        for number, judging in enumerate(judged)
    ] + [bytes([number]) + struct.pack("<d", math.nan) + judging.to_bytes(()) for number, judging in enumerate(judged)]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "update": (decode_update, partial(seeds_of, updates)),
    "download": (follow_download, partial(seeds_of, downloads)),
    "statistics": (decode_statistics, partial(seeds_of, statistics)),
    "findings": (decode_findings, partial(seeds_of, findings)),
    "measures": (decode_measures, measures_seeds),
    "report": (decode_report, report_seeds),
    "values": (decode_values, values_seeds),
    "matrices": (decode_matrices, matrices_seeds),
    "integers": (decode_integers_of_many, integers_seeds),
}


LONGEST = {"measures": 6000}  # counts of scores are many
MOST_BYTES = 600
"""The longest input of a target, and of all others, where no option `-max_len` says another."""


def fuzz(target: str, corpus: Path, options: list[str]) -> None:
    """Mutate valid messages of a target; never comes back."""
    decode, seeds = TARGETS[target]
    corpus.mkdir(parents=True, exist_ok=True)
    for position, seed in enumerate(seeds()):
        decode(seed)  # what is valid is not refused
        (corpus / f"seed-{position}").write_bytes(seed)

    def one_input(data: bytes) -> None:
        try:
            decode(data)
        except UpdateRejected:
            return

    longest = f"-max_len={LONGEST.get(target, MOST_BYTES)}"
    atheris.Setup([sys.argv[0], str(corpus), longest, *options], one_input)  # of two, the last counts
    atheris.Fuzz()


def main(targets: list[str], corpus: Path, options: list[str]) -> int:
    """Fuzz one target after the other, and return the highest status of all."""
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    corpus.mkdir(parents=True, exist_ok=True)
    statuses = []
    for target in targets:
        child = os.fork()
        if child == 0:
            try:
                log = os.open(corpus / f"{target}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                fuzz(target, corpus / target, options)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(f"{target}: status {statuses[-1]}, see {corpus / target}.log", flush=True)
    return max(map(abs, statuses))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].split(","), Path(sys.argv[2]), sys.argv[3:]))
