"""Table of augmentations, by the name in a config; what they are is imported when a batch is augmented."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from spatl.errors import ConfigError
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from spatl.training import augmentation
else:
    augmentation = LateModule("spatl.training.augmentation")

AUGMENTATION_DOOR: Final = Door(
    "augmentation", "training.augmentation", "package.module:augment", error=ConfigError,
    expected="a function of a batch's inputs and a torch.Generator that returns inputs of the same shapes",
)  # fmt: skip
AUGMENTATIONS: Final[Mapping[str, Callable[["Tensor", "Generator"], "Tensor"]]] = {
    "crop": augmentation.crop,
    "flip": augmentation.flip,
    "noise": augmentation.noise,
}
"""Those that are built in: functions of inputs `[B, ...]` and a generator that return inputs."""
