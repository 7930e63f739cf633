"""`load`: one call for every image data set."""

import os
from pathlib import Path

import torch
from torch import Tensor

from gradleak_lib.data.corpora import read_blogs, read_shakespeare
from gradleak_lib.data.folder import list_folder, read_images
from gradleak_lib.data.images import ImageDataset, to_float
from gradleak_lib.data.photos import MAX_SIZE, load_photos, load_places
from gradleak_lib.data.root import data_root
from gradleak_lib.data.tabular import TABLES, fetch_adult, load_tabular
from gradleak_lib.data.torchvision_sets import SETS, check_set, fetch_set, read_set
from gradleak_lib.data.writers import fetch_writers, mnist_writers

NAMES = ("photos", "places", "digits", *SETS)
SPLITS = ("train", "test")


def load(
    name: str | os.PathLike[str],
    size: int | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    distinct: bool = True,
) -> ImageDataset:
    """Load images by the name of a data set, or from a folder.

    Parameters
    ----------
    name
        ``"photos"`` (crops of ten photographs), ``"places"`` (crops of 100 places in them) or ``"digits"``
        (1,797 of 8 x 8 pixels), no download needed;
        ``"cifar10"``, ``"cifar100"``, ``"mnist"``, ``"fashion-mnist"``; or a folder of images, absolute,
        relative, or under the data root: its subfolders are the classes. A folder that bears one of the names
        is written ``./photos``.
    size
        Height and width in pixels. None: 224 for photos (which come in 8 to 224) and folders, 32 for places (8 to
        90), else the data set's own.
    sample
        How many images to draw at random, without replacement. None: all, in the order of the files; 64 for photos,
        1,000 for places, which are cut at random, too.
    seed
        Seed of the draw, 0 or more.
    split
        ``"train"`` or ``"test"``; photos, places, digits and folders have no splits and ignore it.
    root
        Data root; None: see `data_root`.
    download
        Whether to download what is missing.
    distinct
        For photos alone: False draws independent windows, as many as you like; see
        `gradleak_lib.data.photos.load_photos`.

    Returns
    -------
    ImageDataset
        Images in [0, 1], ``[N, C, H, W]``.

    Raises
    ------
    ValueError
        If an argument is not one of those allowed, or ``sample`` is more than there are.
    MissingData
        If the data set is not on this machine.
    CorruptData
        If a file of it is damaged.
    """
    _check_arguments(size, sample, seed, split)
    if name == "photos":
        return load_photos(size or MAX_SIZE, 64 if sample is None else sample, seed=seed, distinct=distinct)
    if name == "places":
        return load_places(size or 32, 1000 if sample is None else sample, seed=seed)
    if name == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # The grey levels run from 0 to 16.
        images = torch.from_numpy(bunch.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
        labels, classes = torch.from_numpy(bunch.target), tuple(map(str, bunch.target_names))
    elif name in SETS:
        images, labels, classes = read_set(str(name), split, data_root(root), download=download)
    else:
        folder = find_folder(name, root)
        paths, numbers, classes = list_folder(folder)
        chosen = _choose(name, len(paths), sample, seed)
        images = read_images([paths[i] for i in chosen.tolist()], size or MAX_SIZE)
        title = folder.resolve().name if Path(name).is_absolute() else str(name)
        return ImageDataset(to_float(images), torch.tensor(numbers)[chosen], classes, title)
    chosen = _choose(name, len(images), sample, seed)
    return ImageDataset(to_float(images[chosen], size), labels[chosen], classes, str(name))


def fetch(name: str, *, root: str | os.PathLike[str] | None = None) -> Path:
    """Download every file of a data set that is not there yet.

    Parameters
    ----------
    name
        ``"cifar10"``, ``"cifar100"``, ``"mnist"``, ``"fashion-mnist"``, ``"adult"``, or ``"qmnist"``: MNIST
        with the writers of its digits.
    root
        Data root; None: see `data_root`.

    Returns
    -------
    Path
        The data root.

    Raises
    ------
    ValueError
        If the name is unknown, or of a data set that needs no download.
    MissingData
        If the download fails; nothing of it is left behind.
    """
    folder = data_root(root)
    if name in SETS:
        fetch_set(name, folder)
    elif name == "adult":
        fetch_adult(folder)
    elif name == "qmnist":
        fetch_writers(folder)
    elif name in NAMES or name in TABLES:
        raise ValueError(f"name={name!r}: these data come with gradleak and need no download")
    else:
        raise ValueError(f"name={name!r}: it must be one of {', '.join(SETS)}, adult, qmnist")
    return folder


def check(name: str, *, root: str | os.PathLike[str] | None = None) -> None:
    """Look whether a data set is on this machine, whole, without keeping it.

    Parameters
    ----------
    name
        What `fetch` takes, ``"blogs"``, ``"shakespeare"``, or a folder of images as for `load`. What comes with
        gradleak is always there.
    root
        Data root; None: see `data_root`.

    Raises
    ------
    MissingData, CorruptData
        If a file of it is not there, or damaged; of the sets that have splits, the test split is looked at.
    ValueError
        If there is no data set of that name, and no folder with images.
    """
    folder = data_root(root)
    if name in SETS:
        check_set(name, "test", folder)
    elif name == "adult":
        load_tabular("adult", root=folder)
    elif name == "qmnist":
        mnist_writers(2, root=folder)
    elif name == "blogs":
        read_blogs(folder / "blogs")
    elif name == "shakespeare":
        read_shakespeare(folder)
    elif name not in (*NAMES, *TABLES):
        list_folder(find_folder(name, root))


def find_folder(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of images that `load` would read.

    Parameters
    ----------
    name
        An absolute path, or one relative to the current folder or, where there is none, to the data root.
    root
        Data root; None: see `data_root`.

    Raises
    ------
    ValueError
        If there is no such folder.
    """
    places = (Path(name).expanduser(), data_root(root) / name)
    for place in places:
        if str(name) and place.is_dir():
            return place
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise ValueError(
        f"name={str(name)!r}: it must be one of {', '.join(NAMES)}, or the path of a folder of images "
        f"(there is no folder {looked})"
    )


def _check_arguments(size: int | None, sample: int | None, seed: int, split: str) -> None:
    """Raise ValueError at the first argument of `load` that no data set allows."""
    if size is not None and size < 1:
        raise ValueError(f"size={size}: it must be at least 1 pixel, or None")
    if sample is not None and sample < 1:
        raise ValueError(f"sample={sample}: it must be at least 1, or None for all")
    if seed < 0:
        raise ValueError(f"seed={seed}: it must be 0 or more")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: it must be one of {', '.join(SPLITS)}")


def _choose(name: str | os.PathLike[str], available: int, sample: int | None, seed: int) -> Tensor:
    """Return the rows to take: all in order, or ``sample`` drawn without replacement (int64 ``[sample]``)."""
    if sample is None:
        return torch.arange(available)
    if sample > available:
        raise ValueError(f"sample={sample}: {name} has {available} images")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:sample]
