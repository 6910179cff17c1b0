"""Augmentation of training batches: rows of a table, or functions of the user's, drawn from the client's generator.

It is done wherever a client trains and nowhere else: not where statistics are gathered, channels chosen or models
evaluated. An example is another one in each epoch, and the same one in each run of the same seed.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from spatl.errors import DataError, ModelError, SpatlError, told
from spatl.extensions.references import is_reference, resolve, row_of
from spatl.tensors.inputs import Inputs, NamedInputs, shapes_of
from spatl.training.augmentations import AUGMENTATION_DOOR, AUGMENTATIONS

Augmentation = Callable[[Inputs, torch.Generator], Inputs]
"""`augmentation(inputs, generator)` returns other inputs of the same shapes; the generator is on the CPU."""

_MARGIN: Final = 8
_NOISE: Final = 0.1


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images `[B, C, H, W]` moved by up to an eighth of their sides, at least a pixel; zeros come in."""
    height, width = images.shape[2:]
    tall, wide = max(1, height // _MARGIN), max(1, width // _MARGIN)
    padded = F.pad(images, (wide, wide, tall, tall))
    down = _drawn(len(images), 2 * tall, generator)[:, None] + torch.arange(height)
    right = _drawn(len(images), 2 * wide, generator)[:, None] + torch.arange(width)
    places = (
        torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None],
        down[:, None, :, None], right[:, None, None, :],
    )  # fmt: skip
    return padded[tuple(each.to(images.device) for each in places)]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images `[B, C, H, W]`, each with even chances mirrored from left to right."""
    mirrored = _drawn(len(images), 1, generator).bool().to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return inputs `[B, ...]` with Gaussian noise of a tenth of a standardised value's deviation."""
    drawn = torch.randn(inputs.shape, generator=generator)
    return inputs + _NOISE * drawn.to(inputs.device, inputs.dtype)


_OF_IMAGES: Final = ("crop", "flip")


def make_augmentation(names: Sequence[str]) -> Augmentation | None:
    """Return augmentations one after the other; None for none.

    Args:
        names: Keys of `AUGMENTATIONS`, or `"package.module:augment"` for functions of the user's.

    Raises:
        ConfigError: There is none of a name.
    """
    if not names:
        return None
    steps = [_users(name) if is_reference(name) else _built_in(name) for name in names]

    def augmented(inputs: Inputs, generator: torch.Generator) -> Inputs:
        for step in steps:
            inputs = step(inputs, generator)
        return inputs

    return augmented


def _built_in(name: str) -> Augmentation:
    function = row_of(name, AUGMENTATIONS, AUGMENTATION_DOOR)

    def augmented(inputs: Inputs, generator: torch.Generator) -> Inputs:
        images = name in _OF_IMAGES
        if isinstance(inputs, NamedInputs) or not inputs.is_floating_point() or (images and inputs.dim() != 4):
            what = "images [B, C, H, W]" if images else "inputs of one tensor of numbers"
            raise DataError(f"training.augmentation: {name} is for {what}, got {shapes_of(inputs)}")
        return function(inputs, generator)

    return augmented


def _users(name: str) -> Augmentation:
    function: Augmentation = resolve(name, AUGMENTATION_DOOR, accepts=callable)

    def augmented(inputs: Inputs, generator: torch.Generator) -> Inputs:
        try:
            found = function(inputs, generator)
        except SpatlError:
            raise
        except Exception as error:
            raise ModelError(f"augmentation {name!r} failed on {shapes_of(inputs)}: {told(error)}") from error
        if not isinstance(found, Tensor | NamedInputs) or shapes_of(found) != shapes_of(inputs):
            came = shapes_of(found) if isinstance(found, Tensor | NamedInputs) else type(found).__name__
            raise ModelError(f"augmentation {name!r} must return inputs like {shapes_of(inputs)}, got {came}")
        return found

    return augmented


def _drawn(number: int, most: int, generator: torch.Generator) -> Tensor:
    """Return whole numbers from 0 to `most`."""
    return torch.randint(most + 1, (number,), generator=generator)
