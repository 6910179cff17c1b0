"""Exported models for tests: a description of a network, and directories that are written once."""

from pathlib import Path

import torch
from torch import Tensor, nn

from spatl.artifacts.bundle import Export, write_export
from spatl.artifacts.description import ModelDescription
from spatl.data import Examples
from spatl.data.normalisation import Normalisation
from spatl.models import build_model

CLASSES = ("cat", "dog", "elk")
MEANS, DEVIATIONS = (120.0, 110.0, 100.5), (60.0, 50.0, 40.25)


def description(**changes: object) -> ModelDescription:
    """The description of a network of three classes, of 8-bit colour images of 16 x 16."""
    return ModelDescription(
        factory="resnet8", options={"width": 1}, seed=1, cut=("fc",), residual=False, predictor="shared",
        class_names=CLASSES, input_shape=(3, 16, 16), normalisation=Normalisation(MEANS, DEVIATIONS), offset=None,
        statistics="aggregated", lacks=(), method="spatl", data="synthetic", round=3, client=None, accuracy=None,
        versions={}, encoder="",
    ).named(**changes)  # fmt: skip


def network(seed: int = 1) -> nn.Module:
    """The network of `description`, in eval mode, with statistics that are not those it begins with."""
    made, _ = build_model("resnet8", num_classes=3, in_channels=3, image_size=16, options={"width": 1}, seed=seed)
    with torch.no_grad():
        for _ in range(3):
            made.train()(normalised(images(64, seed=seed)))
    return made.eval()


def images(number: int, *, seed: int = 0) -> Tensor:
    """uint8 [N, 3, 16, 16]."""
    return torch.randint(0, 256, (number, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """float32, as the network takes them."""
    return torch.from_numpy(Normalisation(MEANS, DEVIATIONS).apply(pixels.numpy()))


def labelled(number: int, *, seed: int = 0) -> Examples:
    """Examples with labels that mean nothing."""
    return Examples(normalised(images(number, seed=seed)), torch.arange(number) % 3)


def write(directory: Path, *, offset: Tensor | None = None, int8: bool = True, seconds: float = 0.0) -> Path:
    """Write the network with a calibration on images of seed 0; return the directory."""
    calibration = normalised(images(32)) if int8 else None
    write_export(
        directory,
        Export(
            network(), description(), offset=offset, calibration=calibration, test=labelled(20, seed=5), seconds=seconds
        ),
    )
    return directory
