"""Networks, and the cut of each into a shared encoder and a predictor."""

from typing import TYPE_CHECKING

from spatl.extensions.late import late_names
from spatl.models.table import MODEL_DOOR, MODELS, ModelEntry

if TYPE_CHECKING:
    from spatl.models.build import build_model
    from spatl.models.residual import add_residual_
    from spatl.models.split import Split, make_split

__all__ = ["MODELS", "MODEL_DOOR", "ModelEntry", "Split", "add_residual_", "build_model", "make_split"]

_OF_TENSORS = {
    "Split": "spatl.models.split",
    "add_residual_": "spatl.models.residual",
    "build_model": "spatl.models.build",
    "make_split": "spatl.models.split",
}


__getattr__ = late_names(__name__, _OF_TENSORS)  # they come with PyTorch, and configs are read without
