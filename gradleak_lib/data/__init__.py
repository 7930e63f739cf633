"""Named data sets as plain records: images or table rows in [0, 1], with labels and class names."""

from gradleak_lib.data.datasets import NAMES, fetch, load
from gradleak_lib.data.images import ImageDataset
from gradleak_lib.data.root import CorruptData, MissingData, data_root
from gradleak_lib.data.tabular import TABLES, TabularDataset, load_tabular

__all__ = [
    "NAMES",
    "TABLES",
    "CorruptData",
    "ImageDataset",
    "MissingData",
    "TabularDataset",
    "data_root",
    "fetch",
    "load",
    "load_tabular",
]
