"""Settings that every run reads, whatever else it is given: those that `spatl.config.unread` has no rule for."""

from typing import Final

ALWAYS_READ: Final = frozenset({
    "seed", "rounds", "method", "engine",
    "data.name", "data.options", "data.normalisation", "data.num_tokens", "task.name", "task.loss", "task.metrics",
    "partition.name", "partition.num_clients", "partition.feature_noise",
    "model.name", "model.options", "model.weights", "model.weights_sha256",
    "training.local_steps", "training.batch_size", "training.optimizer", "training.learning_rate",
    "training.augmentation", "training.weight_decay", "training.clip_gradients", "training.schedule",
    "training.warmup_rounds", "training.clients", "training.device", "training.precision", "training.memory_format",
    "training.threads",
    "server.fraction_train", "server.min_replies", "server.max_failures", "server.rounds_away",
    "report.tensorboard", "report.split", "report.findings", "report.every",
})  # fmt: skip
"""Their names. (Options of data sets and models that do not fit are errors.)"""
