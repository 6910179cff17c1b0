"""Examples in a program's memory as the data of a run."""

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import Dataset
from spatl.data.brought import are_of_clients, dataset_of
from spatl.data.datasets import IN_MEMORY
from spatl.data.memory import keep_in_memory
from spatl.errors import ConfigError


def with_data(config: ExperimentConfig, data: object, *, deployed: bool = False) -> ExperimentConfig:
    """Return a config with examples of this program's memory in place of those it names.

    Where they are one data set for each client, these are the clients, unless the config names a partition.

    Args:
        config: The run's.
        data: What `spatl.run` takes; None for the config as it is.
        deployed: Whether clients are devices.

    Raises:
        SpatlError: They are nothing that a run can have as data, or other processes would have to read them.
    """
    if data is None:
        return config
    if deployed or config.engine != "inline":
        raise ConfigError(
            "data in memory are in this process alone; take engine: inline, or write them to a file and name it in data"
        )
    dataset = _read(config, data)
    values = config.model_dump()
    values["data"] |= {"name": IN_MEMORY, "options": {"key": keep_in_memory(dataset)}}
    given = config.partition.model_fields_set if "partition" in config.model_fields_set else set[str]()
    if dataset.groups is not None and are_of_clients(data) and "name" not in given:
        sizes = dataset.groups.bincount()
        suits = {"num_clients": len(sizes), "min_examples": min(config.partition.min_examples, int(sizes.min()))}
        values["partition"] |= {"name": "natural", **{key: each for key, each in suits.items() if key not in given}}
    return parse_config(values)


def check_same_data(config: ExperimentConfig, data: object) -> None:
    """Keep the examples that a run began with in memory, so that it can go on.

    Raises:
        ConfigError: The run has other data.
    """
    if config.data.name != IN_MEMORY:
        raise ConfigError(f"the run reads its data itself ({config.data.name}); leave data out")
    if keep_in_memory(_read(config, data)) != config.data.options["key"]:
        raise ConfigError("the run began with other examples than these; hand over the same ones")


def _read(config: ExperimentConfig, data: object) -> Dataset:
    return dataset_of(data, name=IN_MEMORY, where="run(data=...)", task=config.task.name)
