"""Data sets by name, their partition into clients, and each client's splits and batches."""

from spatl.data.dataset import Dataset
from spatl.data.own import OWN
from spatl.data.partition import PARTITIONERS, PartitionerEntry, partition
from spatl.data.sources import DATASETS, DatasetEntry, load_dataset
from spatl.data.splits import ClientData, Examples, batches, client_data

__all__ = [
    "DATASETS",
    "OWN",
    "PARTITIONERS",
    "ClientData",
    "Dataset",
    "DatasetEntry",
    "Examples",
    "PartitionerEntry",
    "batches",
    "client_data",
    "load_dataset",
    "partition",
]
