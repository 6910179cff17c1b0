"""Tasks: what a target is, the loss that is trained, and the metrics by which a model is judged."""
