"""Data sets by name, their partition into clients, and each client's splits and batches."""

from typing import TYPE_CHECKING

from spatl.data.datasets import DATASET_DOOR, DATASETS, DatasetEntry, is_read_from_path
from spatl.data.partitioners import OWN, PARTITIONER_DOOR, PARTITIONERS, PartitionerEntry, partition_settings
from spatl.extensions.late import late_names

if TYPE_CHECKING:
    from spatl.data.dataset import Dataset
    from spatl.data.shares import partition
    from spatl.data.sources import load_dataset
    from spatl.data.splits import ClientData, Examples, batches, client_data

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

_OF_TENSORS = {
    "ClientData": "spatl.data.splits",
    "Dataset": "spatl.data.dataset",
    "Examples": "spatl.data.splits",
    "batches": "spatl.data.splits",
    "client_data": "spatl.data.splits",
    "load_dataset": "spatl.data.sources",
    "partition": "spatl.data.shares",
}


__getattr__ = late_names(__name__, _OF_TENSORS)  # they come with PyTorch, and configs are read without
