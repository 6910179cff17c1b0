"""Findings of a client on the wire: what the model does on its validation split, in one blob of a known length.

Of F filters, K classes and D features it has 16 bytes a filter of moments, 32 a class of counts and losses, and 4 for
each number of a class profile and of a prototype. Moments and losses are binary64, because those of all clients are
merged exactly. The means of classes are binary32, as the client computes them: gradients span more powers of ten than
binary16 has, and prototypes are short beside profiles. The number of examples is not sent: it is the sum of the counts.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected
from spatl.saliency.findings import Findings, fault_of
from spatl.saliency.moments import Moments
from spatl.wire.blob import (
    CLASS_PROFILES,
    CLASSES,
    FINDINGS,
    MOMENTS,
    PROTOTYPES,
    check_all_read,
    open_gathered,
    pack_blob,
    take_section,
)
from spatl.wire.codec import Codec

FINDINGS_QUESTION: Final = "query.findings"
"""Flower's type of the message that asks for them."""


@dataclass(frozen=True)
class FindingsShape:
    """Numbers from which the length of findings follows; both sides know them from the network.

    Attributes:
        num_filters: F.
        num_classes: K.
        num_features: D; 0 where no prototypes are sent.
    """

    num_filters: int
    num_classes: int
    num_features: int


def pack_findings(findings: Findings, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int) -> bytes:
    """Pack what a client found out.

    Args:
        findings: The client's.
        layout: The encoder.
        codec: The codec of its updates, by which both sides know each other's config.
        server_round: The round that the question belongs to.
        version: The version of the encoder.
    """
    moments = findings.moments
    sections = {
        MOMENTS: _bytes("<f8", moments.means, moments.squares),
        CLASSES: _bytes("<i8", findings.counts, findings.correct, findings.labels) + _bytes("<f8", findings.losses),
        CLASS_PROFILES: _bytes("<f4", findings.class_profiles),
        PROTOTYPES: _bytes("<f4", findings.prototypes),
    }
    return pack_blob(FINDINGS, codec, server_round, layout, sections, version)


def unpack_findings(
    blob: bytes, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int, shape: FindingsShape
) -> Findings:
    """Check and read what `pack_findings` wrote.

    Args:
        blob: The received bytes.
        layout: As of `pack_findings`; so are the others.
        codec: Likewise.
        server_round: Likewise.
        version: Likewise.
        shape: What it must be of.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    sections = open_gathered(
        blob, FINDINGS, layout, codec, server_round=server_round, version=version, what="findings"
    )  # fmt: skip
    filters, classes, features = shape.num_filters, shape.num_classes, shape.num_features
    means, squares = _numbers(sections, MOMENTS, "<f8", (2, filters))
    of_classes = _section(sections, CLASSES, 32 * classes)
    counts, correct, labels = _read(of_classes[: 24 * classes], "<i8", (3, classes))
    losses = _read(of_classes[24 * classes :], "<f8", (classes,))
    class_profiles = _numbers(sections, CLASS_PROFILES, "<f4", (classes, filters))
    prototypes = _numbers(sections, PROTOTYPES, "<f4", (classes, features))
    check_all_read(sections)
    findings = Findings(
        Moments(_total(counts), means, squares), counts, losses, correct, class_profiles, prototypes, labels
    )
    if fault := fault_of(findings, num_filters=filters, num_classes=classes):
        raise UpdateRejected(fault)
    return findings


def _bytes(form: str, *tensors: Tensor) -> bytes:
    return b"".join(each.numpy().astype(form, copy=False).tobytes() for each in tensors)


def _numbers(sections: dict[int, memoryview], kind: int, form: str, shape: tuple[int, ...]) -> Tensor:
    return _read(_section(sections, kind, np.dtype(form).itemsize * math.prod(shape)), form, shape)


def _section(sections: dict[int, memoryview], kind: int, num_bytes: int) -> memoryview:
    data = take_section(sections, kind)
    if len(data) != num_bytes:
        raise UpdateRejected(f"expected {num_bytes} bytes of findings in section {kind}, got {len(data)}")
    return data


def _read(data: memoryview, form: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=form).astype(form[1:], copy=True).reshape(shape))


def _total(counts: Tensor) -> int:
    return sum(counts.tolist())  # of Python's integers, which do not overflow
