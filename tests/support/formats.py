"""Small files in the true formats of the data sets."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def random_pixels(num_examples: int, *shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (num_examples, *shape), dtype=np.uint8)


def cifar_bytes(pixels: np.ndarray[Any, Any], *labels: np.ndarray[Any, Any]) -> bytes:
    """Records of label bytes and three planes of 32 x 32."""
    columns = [np.asarray(each, dtype=np.uint8).reshape(-1, 1) for each in labels]
    return np.concatenate([*columns, pixels.reshape(len(pixels), -1)], axis=1).tobytes()


def write_cifar10(directory: Path, per_file: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Write the six files, record i of all with label i % 10, and return all pixels, those of the test file last."""
    directory.mkdir(parents=True, exist_ok=True)
    pixels = random_pixels(per_file * len(CIFAR10_FILES), 3, 32, 32)
    for position, file in enumerate(CIFAR10_FILES):
        rows = np.arange(position * per_file, (position + 1) * per_file)
        (directory / file).write_bytes(cifar_bytes(pixels[rows], rows % 10))
    return pixels


def write_cifar100(directory: Path, num_train: int = 100, num_test: int = 20) -> None:
    """Record i of each file has fine label i % 100 and coarse label i % 20."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, number in (("train.bin", num_train), ("test.bin", num_test)):
        rows = np.arange(number)
        content = cifar_bytes(random_pixels(number, 3, 32, 32, seed=number), rows % 20, rows % 100)
        (directory / file).write_bytes(content)


def idx_bytes(values: np.ndarray[Any, Any]) -> bytes:
    """The bytes of an IDX file with these numbers."""
    kinds = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    kind = values.dtype.str[1:]
    header = bytes([0, 0, kinds[kind], values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_idx(
    directory: Path, num_train: int = 40, num_test: int = 20, *, size: int = 8, prefix: str = "", first: int = 0
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Write gzipped training and test files, example i with label i % 10 + first, and return all pixels."""
    directory.mkdir(parents=True, exist_ok=True)
    pixels = random_pixels(num_train + num_test, size, size)
    for name, start, end in (("train", 0, num_train), ("t10k", num_train, num_train + num_test)):
        labels = (np.arange(end - start) % 10 + first).astype(np.uint8)
        for what, values in (("images-idx3", pixels[start:end]), ("labels-idx1", labels)):
            (directory / f"{prefix}{name}-{what}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values), mtime=0))
    return pixels


def leaf_user(num_examples: int, seed: int) -> dict[str, Any]:
    pixels = random_pixels(num_examples, 784, seed=seed)
    return {"x": (pixels / 255).tolist(), "y": [(seed + i) % 62 for i in range(num_examples)]}


def write_leaf(file: Path, users: dict[str, dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"users": list(users), "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
    file.write_text(json.dumps(content))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def write_folder(directory: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 3, size: int = 8) -> None:
    pixels = random_pixels(per_class * len(classes), size, size, 3)
    for position, image in enumerate(pixels):
        file = directory / classes[position // per_class] / f"{position:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))


def write_parquet(file: Path, num_examples: int = 6, seed: int = 0) -> None:
    """Write a table as the hub serves it: encoded images with named labels, and an owner of each."""
    import datasets

    file.parent.mkdir(parents=True, exist_ok=True)
    images = random_pixels(num_examples, 8, 8, 3, seed=seed)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "eel"]),
            "owner": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": png(image), "path": None} for image in images],
        "label": [i % 2 for i in range(num_examples)],
        "owner": [f"owner {i % 3}" for i in range(num_examples)],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
