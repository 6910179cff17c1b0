"""Networks, and the cut of each into a shared encoder and a predictor."""

from spatl.models.build import MODEL_DOOR, MODELS, ModelEntry, build_model
from spatl.models.residual import add_residual_
from spatl.models.split import Split, make_split

__all__ = ["MODELS", "MODEL_DOOR", "ModelEntry", "Split", "add_residual_", "build_model", "make_split"]
