"""Loader of an exported model: pixels in, class probabilities out. It imports NumPy and ONNX Runtime alone.

`spatl export` puts a copy beside every model as `predict.py`, so that a device needs neither PyTorch nor this package:

    from predict import Classifier
    classifier = Classifier(".")
    probabilities = classifier.probabilities(pixels)  # [N, C, H, W] as read: an 8-bit image counts from 0 to 255
    names = [classifier.class_names[each] for each in probabilities.argmax(1)]

From a shell, `python predict.py pixels.npy` prints the likeliest class of each image.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MODEL = "model.onnx"
"""Name of the file of the float32 model."""
INT8_MODEL = "model-int8.onnx"
"""Name of the file of the 8-bit model."""
DESCRIPTION = "model.json"
"""Name of the file that says what goes in and what comes out."""


class Classifier:
    """Classifier of images, in ONNX Runtime on the CPU.

    Args:
        directory: Where the exported files lie.
        int8: Whether to take the 8-bit model.
        threads: How many threads one batch may use.

    Attributes:
        class_names: The names of the K classes, in the order of the outputs.
        input_shape: C, H and W of an image.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: A file is damaged.
    """

    def __init__(self, directory: str | Path, *, int8: bool = False, threads: int = 1) -> None:
        place = Path(directory)
        model = place / (INT8_MODEL if int8 else MODEL)
        for path in (place / DESCRIPTION, model):
            if not path.is_file():
                raise FileNotFoundError(f"{place} holds no exported model of this kind: {path.name} is not there")
        try:
            content = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
            channels, height, width = (int(side) for side in content["input_shape"])
            self.class_names: tuple[str, ...] = tuple(str(name) for name in content["class_names"])
            self.input_shape = (channels, height, width)
            self._scale = _scale_of(content["normalisation"], channels)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{place / DESCRIPTION} does not describe a model: {error!r}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only
        try:
            self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package raises classes of its own
            raise ValueError(f"{model} cannot be read: {str(error).splitlines()[0]}") from error
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    def logits(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits [N, K] of images.

        Args:
            pixels: [N, C, H, W], numbers as they were read, in the units of the training data: an 8-bit image counts
                from 0 to 255.

        Raises:
            ValueError: They are of another shape, or not finite.
        """
        if pixels.ndim != 4 or pixels.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise ValueError(f"images must be [N, {wanted}], got {list(pixels.shape)}")
        images = self.normalised(pixels)
        if not np.isfinite(images).all():
            raise ValueError("images must be finite, got NaN or infinity")
        found: NDArray[np.float32] = self._session.run([self._output], {self._input: images})[0]
        return found

    def probabilities(self, pixels: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of each class, [N, K], of images as `logits` takes them."""
        logits = self.logits(pixels).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def normalised(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return pixels as the network takes them: in float64, then rounded to float32, as in training."""
        if self._scale is None:
            return np.ascontiguousarray(pixels, dtype=np.float32)
        means, deviations = self._scale
        images: NDArray[np.float32] = ((pixels.astype(np.float64) - means) / deviations).astype(np.float32)
        return images


def _scale_of(content: Any, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return mean and deviation of each channel, [C, 1, 1]; None where images are taken as they are."""
    if content is None:
        return None
    means, deviations = (
        np.array(content[name], dtype=np.float64).reshape(channels, 1, 1) for name in ("means", "deviations")
    )
    return means, deviations


def _main(arguments: list[str]) -> int:
    """Write the likeliest class and its probability for each image of an array in a file."""
    files = [each for each in arguments if not each.startswith("--")]
    if len(files) != 1 or set(arguments) - {*files, "--int8"}:
        sys.stderr.write("usage: python predict.py PIXELS.npy [--int8]; PIXELS is [N, C, H, W]\n")
        return 2
    try:
        classifier = Classifier(Path(__file__).parent, int8="--int8" in arguments)
        path = files[0]
        pixels = np.load(path, allow_pickle=False)
        for start in range(0, len(pixels), 64):
            for shares in classifier.probabilities(pixels[start : start + 64]):
                best = int(shares.argmax())
                sys.stdout.write(f"{classifier.class_names[best]}\t{shares[best]:.4f}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"predict.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
