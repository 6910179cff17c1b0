"""Table of models, by the name in a config: facts, and the factory of each, which is imported when it is called."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spatl.errors import ModelError
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door

if TYPE_CHECKING:
    from torch import nn

    from spatl.models import cnn, mlp, mobilenet, resnet, vgg
else:
    cnn, mlp, mobilenet, resnet, vgg = (
        LateModule(f"spatl.models.{name}") for name in ("cnn", "mlp", "mobilenet", "resnet", "vgg")
    )

Factory = Callable[..., "nn.Module"]

MODEL_DOOR: Final = Door(
    "model", "model.name", "package.module:factory", error=ModelError,
    expected="a class or function that builds the network",
)  # fmt: skip


@dataclass(frozen=True)
class ModelEntry:
    """Entry of `MODELS`.

    Attributes:
        factory: Called with those of the data's sizes that it names (`sizes_of_data`), and the row's own options.
        cut: The submodules that form the predictor unless the user says otherwise.
        description: One line for `spatl show models`.
        source: The paper the network comes from.
    """

    factory: Factory
    cut: tuple[str, ...]
    description: str
    source: str

    @property
    def takes_images(self) -> bool:
        """Return whether its inputs must be images `[N, C, H, W]`."""
        return "in_channels" in inspect.signature(self.factory).parameters


def _resnet(factory: Factory, *, blocks: str) -> ModelEntry:
    return ModelEntry(
        factory=factory,
        cut=("fc",),
        description=f"residual network, {blocks} per stage; options: width",
        source="He et al. 2016, arXiv 1512.03385, section 4.2, with projection shortcuts",
    )


MODELS: dict[str, ModelEntry] = {
    "cnn": ModelEntry(
        factory=cnn.cnn,
        cut=("classifier",),
        description="two 5x5 convolutions and a hidden layer; options: channels, hidden",
        source="McMahan et al. 2017, arXiv 1602.05629; LEAF, arXiv 1812.01097, with hidden 2048",
    ),
    "resnet8": _resnet(resnet.resnet8, blocks="1 block"),
    "resnet20": _resnet(resnet.resnet20, blocks="3 blocks"),
    "resnet32": _resnet(resnet.resnet32, blocks="5 blocks"),
    "resnet56": _resnet(resnet.resnet56, blocks="9 blocks"),
    "vgg11": ModelEntry(
        factory=vgg.vgg11,
        cut=("classifier",),
        description="eight 3x3 convolutions with BatchNorm; options: width",
        source="Simonyan and Zisserman 2015, arXiv 1409.1556, configuration A, with BatchNorm",
    ),
    "mlp": ModelEntry(
        factory=mlp.mlp,
        cut=("classifier",),
        description="hidden layers with ReLU, for tables and other numbers of any shape; options: hidden",
        source="Rumelhart, Hinton and Williams 1986, Nature 323",
    ),
    "mobilenet": ModelEntry(
        factory=mobilenet.mobilenet,
        cut=("classifier",),
        description="stem and six depthwise separable blocks; options: width",
        source="Howard et al. 2017, arXiv 1704.04861",
    ),
}
