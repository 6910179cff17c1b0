"""Command `spatl predict MODEL INPUT...`: classes of images by an exported model, with ONNX Runtime and no PyTorch."""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from spatl.console.arguments import Parser
from spatl.errors import ConfigError, DataError
from spatl.extensions.late import LateModule
from spatl.json_files import to_json
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spatl.artifacts import inputs
    from spatl.artifacts.loader import Classifier
else:  # which the parser of the command line does without
    np, inputs = LateModule("numpy"), LateModule("spatl.artifacts.inputs")

_SHOWN = 3  # classes of an image
_FEW = 64  # images that take no time worth showing


def make_predict_parser() -> Parser:
    """Return the parser of `spatl predict ...`, without those of all other commands, which need what reads configs."""
    parser = Parser(prog="spatl", description="Federated learning with salient parameters (SPATL).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("predict")
    add_predict_arguments(command)
    parser.set_defaults(debug=False)
    for each in (parser, command):
        each.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="print the traceback of every error"
        )
    return parser


def add_predict_arguments(parser: Parser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Name the likeliest classes of images with a model that `spatl export` wrote. It needs onnxruntime, NumPy and, "
        "for image files, Pillow."
    )
    parser.add_argument("model", metavar="MODEL", help="the exported directory, or a .onnx file in it")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="an image, an .npy or .npz file of pixels, or a folder of them"
    )
    parser.add_argument("--int8", action="store_true", help="take the 8-bit model")
    parser.add_argument("--batch", metavar="N", type=_positive, default=16, help="images at once (%(default)s)")
    parser.add_argument("--threads", metavar="N", type=_positive, default=1, help="threads for a batch (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, a line each, instead")
    parser.set_defaults(command=_predict_on_a_console)


def predict(options: argparse.Namespace, console: Console) -> None:
    """Print the likeliest classes of images.

    Images that cannot be used are named on the way, and the others are predicted.

    Raises:
        ConfigError: There is no such model, or ONNX Runtime is not installed.
        DataError: An input is not there, or an image could not be used.
    """
    classifier = _classifier(options)
    files = inputs.input_files(options.inputs)
    items = inputs.read_inputs(files, classifier.input_shape)
    table = Table("image", *(f"class {rank}" for rank in range(1, _ranks(classifier) + 1)))
    unusable, num_images, beside = 0, 0, Screen(stderr=True)
    for row in _watched(_predictions(classifier, items, options.batch), inputs.count_inputs(files), beside):
        num_images += 1
        unusable += "error" in row
        if options.json:
            print(to_json(row), flush=True)
        elif "error" not in row:
            likely = (f"{each['class']} {100 * each['probability']:.1f} %" for each in row["classes"])
            table.add_row(Text(row["image"]), *map(Text, likely))
        else:
            print_line(beside, f"spatl: {row['image']}: {row['error']}")
    if not options.json and table.row_count:
        print_table(console, table)
    if unusable:
        raise DataError(f"{unusable} of {num_images} images could not be used; the others were predicted")


def _predict_on_a_console(options: argparse.Namespace) -> None:
    predict(options, Screen())


def _predictions(classifier: "Classifier", items: "Iterator[inputs.Item]", batch: int) -> Iterator[dict[str, Any]]:
    """Yield what is said of each image, in order, computing so many at once."""
    while some := list(islice(items, batch)):
        usable = [item.pixels for item in some if item.pixels is not None]
        shares = iter(classifier.probabilities(np.stack(usable)) if usable else ())
        for item in some:
            if item.pixels is None:
                yield {"image": item.name, "error": item.error}
                continue
            found: NDArray[np.float64] = next(shares)
            order = np.argsort(-found, kind="stable")[: _ranks(classifier)]
            classes = [{"class": classifier.class_names[each], "probability": float(found[each])} for each in order]
            yield {"image": item.name, "classes": classes}


def _ranks(classifier: "Classifier") -> int:
    return min(_SHOWN, len(classifier.class_names))


def _watched(rows: Iterable[dict[str, Any]], total: int | None, watching: Console) -> Iterator[dict[str, Any]]:
    """Yield rows, with a bar on a terminal where there may be many."""
    if not watching.is_terminal or (total is not None and total <= _FEW):
        yield from rows
        return
    with Progress(console=watching, transient=True) as progress:
        yield from progress.track(rows, total=total, description="predicting")


def _classifier(options: argparse.Namespace) -> "Classifier":
    place = Path(options.model)
    try:
        from spatl.artifacts.loader import INT8_MODEL, MODEL, Classifier
    except ImportError as error:
        raise ConfigError(
            f"predicting needs onnxruntime ({error.name} is missing): pip install onnxruntime, or 'spatl[export]'"
        ) from error
    int8 = options.int8
    if place.name in (MODEL, INT8_MODEL):
        place, int8 = place.parent, int8 or place.name == INT8_MODEL
    if not place.is_dir():
        raise ConfigError(f"{place} is no directory: expected one that `spatl export` wrote, or {MODEL} in it")
    try:
        return Classifier(place, int8=int8, threads=options.threads)
    except (OSError, ValueError) as error:
        advice = "; export with --int8" if int8 and isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{error}{advice}") from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number
