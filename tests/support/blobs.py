"""Blobs of every kind that travels, each with the reader that takes it as its receiver would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spatl.channels.selection import Selection
from spatl.rounds.downlink import Reference
from spatl.rounds.following import Held, follow
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, pack_download, unpack_download
from spatl.wire.findings import FindingsShape, pack_findings, unpack_findings
from spatl.wire.reports import EvaluateReport
from spatl.wire.statistics import Arrival, Statistics, pack_statistics, unpack_statistics
from spatl.wire.update import pack_update, unpack_update
from tests.support.findings import drawn_findings
from tests.support.layouts import make_update
from tests.support.messages import LAYOUT, REPORT

MASKS = ([True] * LAYOUT.num_channels, [True, False] * 6 + [True])
INITIAL = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(1))
NUM_STATISTICS = 5
SHAPE = FindingsShape(num_filters=2, num_classes=3, num_features=2)


@dataclass(frozen=True)
class Sent:
    """A blob, and what takes it or raises `UpdateRejected`."""

    blob: bytes
    take: Callable[[bytes], object]


def updates() -> Iterator[Sent]:
    """Yield updates of all codecs, of all and of some channels, with a report and without."""
    difference = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(0))
    drawn = [make_update(LAYOUT, mask, difference * scale) for mask in MASKS for scale in (0.0, 0.1)]
    for codec in CODECS.values():
        for update in drawn:
            for report in (None, REPORT):
                yield Sent(
                    pack_update(replace(update, report=report), LAYOUT, codec, generator=torch.Generator()),
                    partial(unpack_update, layout=LAYOUT, codec=codec, server_round=1, base_version=0),
                )


def downloads() -> Iterator[Sent]:
    """Yield downloads of all codecs to clients that hold nothing, an older version and the last but one."""
    for codec in CODECS.values():
        for selection in (None, Selection(torch.tensor(MASKS[1]))):
            draw = torch.Generator().manual_seed(0)
            reference = Reference(INITIAL, LAYOUT, codec, selection=selection)
            offsets: dict[int, Tensor] = {}
            for _ in range(4):
                difference = 0.1 * torch.randn(LAYOUT.num_entries, generator=draw)
                reference, _ = reference.advance(reference.encoder + difference, generator=draw)
                offsets[reference.version] = reference.versions.offsets
            for held in (0, 2, 3):
                download = reference.download(
                    held, server_round=5, acknowledged_round=3, cannot_build=held == 0 and selection is None
                )
                client = Held({held: offsets[held]} if held else {}, control=torch.ones(LAYOUT.num_parameter_entries))
                take = partial(_follow, codec=codec, held=client)
                yield Sent(pack_download(download, LAYOUT), take)
                yield Sent(pack_download(replace(download, derived=DerivedControl(0.5, 0.25, True)), LAYOUT), take)
            if codec.relative and len(reference.versions.changes) > 1:
                missed = reference.download(
                    2, server_round=5, acknowledged_round=3, cannot_build=False, one_by_one=True
                )
                derived = DerivedControl(0.5, 0.25, True, ((0.5, 0.125),))
                behind = replace(take.keywords["held"], offsets={2: offsets[2]}, control_version=2)
                yield Sent(
                    pack_download(replace(missed, derived=derived), LAYOUT), partial(_follow, codec=codec, held=behind)
                )
            if codec.relative:
                snapshot = replace(download, values=(), snapshot=reference.versions.offsets)
                yield Sent(pack_download(snapshot, LAYOUT), take)


def _follow(blob: bytes, *, codec: object, held: Held) -> object:
    return follow(unpack_download(blob, LAYOUT, codec), held, INITIAL, LAYOUT, fading=0.5)


def statistics() -> Iterator[Sent]:
    """Yield statistics of all codecs."""
    draw = torch.Generator().manual_seed(0)
    means, variances = torch.randn(NUM_STATISTICS, generator=draw), torch.ones(NUM_STATISTICS)
    told = Statistics(means, torch.cat([variances[:-1], torch.tensor([2.0])]))  # whose last byte is 0x40
    for codec in CODECS.values():
        yield Sent(
            pack_statistics(Arrival(told), LAYOUT, codec, server_round=7, version=6),
            partial(
                unpack_statistics, layout=LAYOUT, codec=codec, server_round=7, version=6, num_channels=NUM_STATISTICS
            ),
        )


def findings() -> Iterator[Sent]:
    """Yield findings of three clients."""
    codec = CODECS["float32"]
    for seed in range(3):
        drawn = drawn_findings(seed, num_filters=2, num_classes=3, num_features=2)
        yield Sent(
            pack_findings(drawn, LAYOUT, codec, server_round=7, version=6),
            partial(unpack_findings, layout=LAYOUT, codec=codec, server_round=7, version=6, shape=SHAPE),
        )


def evaluations() -> Iterator[Sent]:
    """Yield the report of a final evaluation."""
    yield Sent(EvaluateReport(num_examples=20, accuracy=0.75, loss=0.5).to_bytes(), EvaluateReport.from_bytes)


KINDS: dict[str, Callable[[], Iterator[Sent]]] = {
    "updates": updates,
    "downloads": downloads,
    "statistics": statistics,
    "findings": findings,
    "evaluations": evaluations,
}
