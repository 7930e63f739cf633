"""Users who write: MNIST's digits by the people whose hand they are in."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradleak_lib.data.images import to_float
from gradleak_lib.data.root import corrupt, data_root, missing, staged
from gradleak_lib.data.torchvision_sets import fetch_set, read_set
from gradleak_lib.data.users import Population, UserDataset, draw_users, hold_out

ALBUMS = 10
_LABELS = "qmnist-train-labels-idx2-int"
_MAGIC, _COLUMNS = 0x0C02, 8  # 32-bit integers on two axes
_CLASS, _WRITER, _PLACE = 0, 2, 3


def mnist_writers(
    users: int = 53,
    *,
    size: int = 14,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    min_digits: int = 100,
) -> Population:
    """Load MNIST's training digits by writer.

    People with at least ``min_digits`` digits are cut once for all seeds: 70% of them can be drawn as users, and
    the digits of everybody else are public, so that nobody is public under one seed and a user under another.

    Parameters
    ----------
    users
        Number of writers, at least 1. There are 308 to draw from with 100 digits or more.
    size
        Height and width in pixels, at least 1; the digits are scaled down from 28.
    root
        Data root; None: see `gradleak_lib.data.data_root`. It holds ``MNIST/raw`` and, in ``QMNIST/raw``, the
        labels ``qmnist-train-labels-idx2-int`` (or the ``.gz`` of them).
    seed
        Seed of the draw of the users, 0 or more.
    min_digits
        Digits that a user has written at least, 10 or more; a fifth of them is held out.

    Returns
    -------
    Population
        Images ``[N, 1, size, size]`` in [0, 1], ten classes. ``items`` and ``sources`` are row numbers of MNIST's
        training file, ``times`` the place of a digit among all that its writer wrote. The forms bear no dates:
        ``albums`` are ten consecutive parts of a writer's digits, as equal in number as can be.

    Raises
    ------
    ValueError
        If an argument is out of range.
    MissingData
        If a file is not on this machine.
    CorruptData
        If a file is damaged, or the two label files disagree.

    References
    ----------
    Yadav & Bottou 2019 (Cold Case: The Lost MNIST Digits, NeurIPS).
    """
    if size < 1 or min_digits < ALBUMS:
        raise ValueError(
            f"size must be 1 or more and min_digits {ALBUMS} or more, got size={size}, min_digits={min_digits}"
        )
    folder = data_root(root)
    images, labels, classes = read_set("mnist", "train", folder)
    table = _read_labels(folder, labels)
    writers, counts = np.unique(table[:, _WRITER], return_counts=True)
    drawn, others = draw_users(writers[counts >= min_digits], users, seed=seed)
    others = np.sort(np.concatenate([others, writers[counts < min_digits]]))
    private = _digits(images, labels, table, drawn, size, classes)
    public = _digits(images, labels, table, others, size, classes, names=False)
    train, test = hold_out(private)
    return Population(train, test, public)


def fetch_writers(root: Path) -> None:
    """Download MNIST and the labels that name its writers, unless they are there."""
    fetch_set("mnist", root)
    if any(path.is_file() for path in _places(root)):
        return
    from gradleak_lib._torchvision import torchvision

    address, md5 = torchvision.datasets.QMNIST.resources["train"][1]
    with staged("qmnist", root) as folder:
        torchvision.datasets.utils.download_and_extract_archive(
            address, str(folder / "QMNIST" / "raw"), md5=md5
        )


def _places(root: Path) -> tuple[Path, Path]:
    """Where the labels may lie, as they are and compressed."""
    path = root / "QMNIST" / "raw" / _LABELS
    return path, path.with_name(f"{_LABELS}.gz")


def _read_labels(root: Path, labels: Tensor) -> np.ndarray:
    """Read QMNIST's table (int64 ``[N, 8]``) and compare its classes with MNIST's labels (int64 ``[N]``)."""
    path, archive = _places(root)
    if not path.is_file():
        if not archive.is_file():
            raise missing("qmnist", path)
        path = archive
    try:
        content = gzip.decompress(path.read_bytes()) if path == archive else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise corrupt("qmnist", path) from error
    if len(content) < 12 or len(content) % 4:
        raise corrupt("qmnist", path)
    numbers = np.frombuffer(content, dtype=">i4").astype(np.int64)
    if tuple(numbers[:3]) != (_MAGIC, len(labels), _COLUMNS) or len(numbers) != 3 + len(labels) * _COLUMNS:
        raise corrupt("qmnist", path)
    table = numbers[3:].reshape(-1, _COLUMNS)
    # Rows stand in MNIST's order: a class that differs means that the files do not belong together.
    if not np.array_equal(table[:, _CLASS], labels.numpy()):
        raise corrupt("qmnist", path)
    return table


def _digits(
    images: Tensor,
    labels: Tensor,
    table: np.ndarray,
    people: np.ndarray,
    size: int,
    classes: tuple[str, ...],
    *,
    names: bool = True,
) -> UserDataset:
    """Digits of some writers, writer by writer, as they were written; without names, they belong to nobody."""
    rows, owners, albums = [], [], []
    for number, writer in enumerate(people):
        mine = np.flatnonzero(table[:, _WRITER] == writer)
        rows.append(mine[np.argsort(table[mine, _PLACE], kind="stable")])
        owners.append(np.full(len(mine), number if names else -1))
        albums.append(np.arange(len(mine)) * ALBUMS // len(mine))
    none = [np.empty(0, dtype=np.int64)]
    index = torch.from_numpy(np.concatenate(rows or none))
    return UserDataset(
        inputs=to_float(images[index], size),
        targets=labels[index],
        users=torch.from_numpy(np.concatenate(owners or none)),
        items=index,
        albums=torch.from_numpy(np.concatenate(albums or none)),
        times=torch.from_numpy(table[index.numpy(), _PLACE].astype(np.float64)),
        sources=index[:, None],
        classes=classes,
        user_names=tuple(f"writer {writer}" for writer in people) if names else (),
        name="MNIST writers",
    )
