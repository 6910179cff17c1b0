"""Small federations of tasks other than classification."""

from typing import Any

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config

TASKS: dict[str, dict[str, Any]] = {
    "regression": {
        "data": {"name": "tests.support.users_tasks:linear"}, "task": {"name": "regression"},
        "model": {"name": "mlp", "options": {"hidden": [16]}}, "training": {"learning_rate": 0.03},
    },
    "multi-label": {
        "data": {"name": "tests.support.users_tasks:labels"}, "task": {"name": "multi-label"},
        "model": {"name": "mlp", "options": {"hidden": [16]}},
    },
    "next-token": {
        "data": {"name": "tests.support.users_tasks:steps"}, "task": {"name": "next-token"},
        "model": {"name": "tests.support.users_tasks:Bigram", "cut": ["head"]},
    },
}  # fmt: skip


def task_config(task: str, **sections: Any) -> ExperimentConfig:
    values: dict[str, Any] = {
        "seed": 3, "rounds": 8, "partition": {"name": "natural", "num_clients": 4},
        "training": {"local_epochs": 3, "batch_size": 8, "learning_rate": 0.1, "device": "cpu"},
    }  # fmt: skip
    for key, value in [*TASKS[task].items(), *sections.items()]:
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_config(values)
