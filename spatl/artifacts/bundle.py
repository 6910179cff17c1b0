"""Directory of an exported model: its weights, its graphs for other runtimes, a loader, and a card that describes them.

It is written under another name and renamed when it is whole. No file holds an image, or any part of one: images are
looked at to choose the ranges of 8-bit numbers and to report an accuracy, and forgotten.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from spatl.artifacts import loader
from spatl.artifacts.card import CARD, CARD_TEXT, Card, card_text, sizes_of
from spatl.artifacts.description import ModelDescription
from spatl.artifacts.graphs import (
    WithOffset,
    check_packages,
    exported_program,
    onnx_of,
    onnx_session,
    quantised,
    run_session,
)
from spatl.artifacts.names import WEIGHTS
from spatl.artifacts.runtimes import EAGER, FLOAT32, INT8, Forms, measure_forms
from spatl.data import Examples
from spatl.errors import ConfigError, ModelError
from spatl.json_files import write_json
from spatl.models.frozen import modes_kept
from spatl.models.weights import packed, state_of

PROGRAM: Final = "model.pt2"
LOADER: Final = "predict.py"
LABEL_OFFSET: Final = "label_offset"
"""Key, among what an export did (`ModelDescription.export`), of what is added to the logits: K numbers, or null."""
CUT: Final = "cut"
"""Key, likewise, of the cut: counts and kept indices by channel group; null for a network that is not cut."""

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Export:
    """Export of a network: what is written, and what its card tells.

    Attributes:
        network: In eval mode, on the CPU: float32 [N, C, H, W] to logits [N, K]; without a client's offset.
        description: What it is.
        offset: float32 [K], added to the logits in every graph; None for nothing.
        dense: The network before it was cut, likewise; None where it is not cut.
        cut: What was cut, as JSON values; None where nothing was.
        calibration: float32 [N, C, H, W], normalised training images to choose the ranges of 8-bit numbers on; None
            for no 8-bit model.
        test: Examples to report accuracies on; None for none.
        notes: Lines for the card.
        seconds: How long latencies are measured for each batch size.
    """

    network: nn.Module
    description: ModelDescription
    offset: Tensor | None = None
    dense: nn.Module | None = None
    cut: Mapping[str, Any] | None = None
    calibration: Tensor | None = None
    test: Examples | None = None
    notes: tuple[str, ...] = field(default=())
    seconds: float = 2.0


def check_room(directory: Path) -> None:
    """Raise unless a directory is new, or there and empty.

    Raises:
        ConfigError: Something is there.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty: give a new directory (--out)")


def write_export(directory: Path, export: Export, *, progress: Callable[[str], None] | None = None) -> Card:
    """Write the directory of an exported model, whole or not at all.

    Args:
        directory: New, or empty.
        export: What to write.
        progress: Told what is being done, one line at a time.

    Returns:
        What its card says.

    Raises:
        ConfigError: The directory is not empty, or a package of the extra `export` is missing.
        ModelError: The network cannot be exported, or a graph computes something else than the network.
    """
    check_room(directory)
    check_packages()
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        card = _write_files(temporary, export, progress or _silent)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except OSError as error:
        raise ConfigError(f"cannot write {directory}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return card


def _write_files(place: Path, export: Export, tell: Callable[[str], None]) -> Card:
    shape = export.description.image_shape(what="spatl export")
    forms = {"cut" if export.dense is not None else "dense": _forms(export.network, export, tell, program_file=place)}
    if export.dense is not None:
        tell("converting the dense network, to compare with")
        forms = {"dense": _forms(export.dense, export, _silent), **forms}
    written = forms["cut" if export.dense is not None else "dense"]
    (place / loader.MODEL).write_bytes(written.float32)
    if written.int8 is not None:
        (place / loader.INT8_MODEL).write_bytes(written.int8)
    _write_weights(place, export)
    (place / LOADER).write_text(Path(loader.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    tell("measuring accuracy" if export.test is not None else "measuring latency")
    accuracies = {} if export.test is None else {name: _accuracies(form, export.test) for name, form in forms.items()}
    if export.test is not None:
        tell("measuring latency")
    card = Card(
        description=export.description,
        sizes={name: sizes_of(form.network, shape) for name, form in forms.items()},
        files={path.name: _facts(path) for path in sorted(place.iterdir())},
        latencies=tuple(measure_forms(forms, shape, seconds=export.seconds)),
        accuracies=accuracies,
        num_tested=0 if export.test is None else len(export.test),
        whole=dict((export.cut or {}).get("whole", {})),
        notes=export.notes,
    )
    write_json(place / CARD, card.to_json())
    (place / CARD_TEXT).write_text(card_text(card), encoding="utf-8")
    return card


def _forms(
    network: nn.Module, export: Export, tell: Callable[[str], None], *, program_file: Path | None = None
) -> Forms:
    """Return a network, with its offset, in all its forms, each checked; the program is written where asked."""
    shape = export.description.image_shape(what="spatl export")
    whole = network if export.offset is None else WithOffset(network, export.offset)
    with modes_kept(whole):
        whole.eval()
        tell("exporting to PyTorch")
        program = exported_program(whole, shape)
        if program_file is not None:
            _save_program(program, program_file / PROGRAM)
        tell("exporting to ONNX")
        float32 = onnx_of(program, whole, shape)
        int8 = None
        if export.calibration is not None:
            tell(f"quantising to 8 bits on {len(export.calibration)} images")
            int8 = quantised(float32, export.calibration.numpy())
    return Forms(whole, float32, int8)


def _save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program by way of memory: PyTorch's own writer of files ends the process where the disk is full."""
    content = BytesIO()
    try:
        torch.export.save(program, content)
    except Exception as error:  # what it cannot write, it tells in many ways
        raise ModelError(f"torch.export cannot write the network: {error}") from error
    path.write_bytes(content.getbuffer())


def _write_weights(place: Path, export: Export) -> None:
    """Write the named weights, and the description with the offset and the cut."""
    data = packed(state_of(export.network))
    (place / WEIGHTS).write_bytes(data)
    offset = None if export.offset is None else export.offset.tolist()
    done = {LABEL_OFFSET: offset, CUT: None if export.cut is None else dict(export.cut)}
    export.description.named(sha256=hashlib.sha256(data).hexdigest(), export=done).write(place)


def _accuracies(form: Forms, test: Examples) -> dict[str, float]:
    """Return the share of examples that each form of a network classifies as labelled."""
    runs: dict[str, Callable[[Tensor], Tensor]] = {EAGER: form.network}
    for name, model in ((FLOAT32, form.float32), (INT8, form.int8)):
        if model is not None:
            runs[name] = _runner(model)
    found = {}
    with modes_kept(form.network), torch.no_grad():
        form.network.eval()
        for name, run in runs.items():
            correct = 0
            for start in range(0, len(test), _CHUNK):
                images, labels = test.images[start : start + _CHUNK], test.targets[start : start + _CHUNK]
                correct += int((run(images).argmax(1) == labels).sum())
            found[name] = correct / len(test)
    return found


def _runner(model: bytes) -> Callable[[Tensor], Tensor]:
    session = onnx_session(model)
    return lambda images: torch.from_numpy(run_session(session, images.numpy()))


def _facts(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _silent(line: str) -> None:
    del line
