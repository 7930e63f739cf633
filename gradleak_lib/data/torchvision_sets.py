"""Data sets that torchvision knows, checked file by file before they are read."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradleak_lib.data.root import corrupt, missing, staged

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, MNIST

    Dataset = type[CIFAR10] | type[MNIST]

# By our name that of torchvision's class.
SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def dataset_class(name: str) -> "Dataset":
    """Return torchvision's class of a key of ``SETS``."""
    from gradleak_lib._torchvision import torchvision

    return getattr(torchvision.datasets, SETS[name])


def read_set(name: str, split: str, root: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split of a data set.

    Parameters
    ----------
    name
        A key of ``SETS``.
    split
        ``"train"`` or ``"test"``; the files of the other one need not be there.
    root
        Data root.

    Returns
    -------
    tuple
        Images (uint8 ``[N, C, H, W]``), labels (int64 ``[N]``), and the names of the classes.

    Raises
    ------
    MissingData, CorruptData
        If a file of the split is not there, or damaged.
    """
    check_set(name, split, root)
    data = _one_split(dataset_class(name), split)(str(root), train=split == "train")
    colour = _is_cifar(type(data))
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2) if colour else data.data.unsqueeze(1)
    labels = torch.as_tensor(data.targets, dtype=torch.int64)
    # The idx files of the MNIST family carry no checksum: at least they must agree with each other.
    if len(labels) != len(images) or int(labels.max()) >= len(data.classes):
        raise corrupt(name, _files(dataset_class(name), split, root)[-1][0])
    return images, labels, tuple(data.classes)


def fetch_set(name: str, root: Path) -> None:
    """Download a data set unless every file of it is there; damaged files are left for the reader."""
    dataset = dataset_class(name)
    if all(path.is_file() for split in ("train", "test") for path, _ in _files(dataset, split, root)):
        return
    with staged(name, root) as folder:
        dataset(str(folder), download=True)


def check_set(name: str, split: str, root: Path) -> None:
    """Raise MissingData or CorruptData at the first file of a split that is missing or damaged."""
    files = _files(dataset_class(name), split, root)
    for path, _ in files:
        if not path.is_file():
            raise missing(name, path)
    for path, md5 in files:
        if not (_is_idx(path) if md5 is None else md5_of(path) == md5):
            raise corrupt(name, path)


def md5_of(path: Path) -> str:
    """Checksum of a file, as the publishers of data sets give it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _is_cifar(dataset: "Dataset") -> bool:
    """Whether a class is CIFAR-10's or one of its children's; the others are of the MNIST family."""
    return hasattr(dataset, "train_list")


def _files(dataset: "Dataset", split: str, root: Path) -> list[tuple[Path, str | None]]:
    """Return the files of a split with their md5 sums (None where torchvision has none)."""
    if _is_cifar(dataset):
        batches = dataset.train_list if split == "train" else dataset.test_list
        listed = [*batches, [dataset.meta["filename"], dataset.meta["md5"]]]
        return [(root / dataset.base_folder / file, md5) for file, md5 in listed]
    # torchvision's sums are those of the archives, of which only the content is kept.
    raw = root / dataset.__name__ / "raw"
    return [(raw / Path(archive).stem, None) for archive, _ in _resources(dataset, split)]


def _resources(dataset: "Dataset", split: str) -> list[tuple[str, str]]:
    """Return the archives (name, md5) of a split of the MNIST family."""
    start = {"train": "train", "test": "t10k"}[split]
    return [(archive, md5) for archive, md5 in dataset.resources if archive.startswith(start)]


def _one_split(dataset: "Dataset", split: str) -> "Dataset":
    """Return a subclass that asks for the files of one split alone; torchvision's own asks for both."""
    body: dict[str, object]
    if _is_cifar(dataset):
        body = {"test_list" if split == "train" else "train_list": []}
    else:
        body = {"resources": _resources(dataset, split)}
    # The name stays: the MNIST family takes its folder from it.
    return type(dataset.__name__, (dataset,), body)


def _is_idx(path: Path) -> bool:
    """Say whether a file of unsigned bytes in the idx format is whole: magic number, shape and length agree.

    The file starts with 0, 0, 8 (unsigned bytes) and the number of axes, then the axes' lengths as
    big-endian 32-bit integers.
    """
    axes = 3 if "images" in path.name else 1
    with path.open("rb") as file:
        head = file.read(4 + 4 * axes)
    if len(head) != 4 + 4 * axes or head[:4] != bytes((0, 0, 8, axes)):
        return False
    length = 1
    for axis in range(axes):
        length *= int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big")
    return length > 0 and os.path.getsize(path) == len(head) + length
