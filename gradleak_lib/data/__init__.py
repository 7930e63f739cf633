"""Named data sets as plain dataclasses: images, table rows, and users with their devices."""

from gradleak_lib.data.batches import draw_images, draw_labels
from gradleak_lib.data.datasets import NAMES, fetch, load
from gradleak_lib.data.flickr import open_images, pipa
from gradleak_lib.data.images import ImageDataset
from gradleak_lib.data.root import CorruptData, MissingData, data_root
from gradleak_lib.data.scenes import digit_scenes
from gradleak_lib.data.tabular import TabularDataset, load_tabular
from gradleak_lib.data.texts import blogs, shakespeare, yelp
from gradleak_lib.data.users import ClientData, Population, UserDataset, hold_out, split_clients, unowned
from gradleak_lib.data.writers import mnist_writers

__all__ = [
    "NAMES",
    "ClientData",
    "CorruptData",
    "ImageDataset",
    "MissingData",
    "Population",
    "TabularDataset",
    "UserDataset",
    "blogs",
    "data_root",
    "digit_scenes",
    "draw_images",
    "draw_labels",
    "fetch",
    "hold_out",
    "load",
    "load_tabular",
    "mnist_writers",
    "open_images",
    "pipa",
    "shakespeare",
    "split_clients",
    "unowned",
    "yelp",
]
