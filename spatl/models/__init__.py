"""Networks, and the cut of each into a shared encoder and a predictor."""

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import a name that comes with PyTorch when it is first asked for: configs are read without."""
    if name in _OF_TENSORS:
        return getattr(importlib.import_module(_OF_TENSORS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
