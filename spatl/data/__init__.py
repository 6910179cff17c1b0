"""Data sets by name, their partition into clients, and each client's splits and batches."""

from spatl.data.dataset import Dataset
from spatl.data.own import OWN
from spatl.data.partition import PARTITIONERS, PartitionerEntry, partition, partition_settings
from spatl.data.sources import DATASETS, DatasetEntry, is_read_from_path, load_dataset
from spatl.data.splits import ClientData, Examples, batches, client_data
from spatl.data.users import DATASET_DOOR, PARTITIONER_DOOR

__all__ = [
    "DATASETS",
    "DATASET_DOOR",
    "OWN",
    "PARTITIONERS",
    "PARTITIONER_DOOR",
    "ClientData",
    "Dataset",
    "DatasetEntry",
    "Examples",
    "PartitionerEntry",
    "batches",
    "client_data",
    "is_read_from_path",
    "load_dataset",
    "partition",
    "partition_settings",
]
