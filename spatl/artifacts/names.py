"""Names of a model's files and directories, in that of a run or of a device's state."""

from typing import Final

MODEL: Final = "model"
"""Directory of the federation's model, in that of a run; of a device's own, in that of its state."""
BEST: Final = "best"
"""Directory, in that one, of the best model by the clients' validation splits (`report.best`)."""
WEIGHTS: Final = "model.safetensors"
"""Weights by the network's own names."""
PRIVATE: Final = "private.safetensors"
"""The part of a model that is one client's own."""
LABEL_OFFSET: Final = "spatl.label_offset"
"""Name, among a client's own tensors, of what it adds to the logits, float32 [K]."""
