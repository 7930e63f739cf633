"""The data sets by name, and `load`: one call for images of any."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gradleak_lib.data.corpora import read_blogs, read_shakespeare
from gradleak_lib.data.folder import list_folder, read_images
from gradleak_lib.data.images import ImageDataset, to_float
from gradleak_lib.data.photos import MAX_SIZE, load_photos, load_places
from gradleak_lib.data.root import data_root
from gradleak_lib.data.tabular import fetch_adult, load_tabular
from gradleak_lib.data.torchvision_sets import check_set, fetch_set, read_set
from gradleak_lib.data.writers import fetch_writers, mnist_writers

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """A data set that has a name.

    Parameters
    ----------
    about
        What it is, in a few words.
    cut
        ``cut(size=, n=, seed=)`` gives images that are cut at random out of others; None: they are not.
    read
        ``read(split, root)`` gives all images (uint8 ``[N, C, H, W]``), labels (int64 ``[N]``) and the
        names of the classes; None: there are no such images.
    fetch
        ``fetch(root)`` downloads what is missing; None: nothing can be downloaded.
    check
        ``check(root)`` raises MissingData or CorruptData; None: the data come with gradleak.
    """

    about: str
    cut: Callable[..., ImageDataset] | None = None
    read: Callable[..., tuple[Tensor, Tensor, tuple[str, ...]]] | None = None
    fetch: Callable[[Path], object] | None = None
    check: Callable[[Path], object] | None = None


def _published(name: str, about: str) -> Source:
    """A data set that torchvision reads; of its splits, the test split is looked at."""
    return Source(
        about,
        read=partial(read_set, name),
        fetch=partial(fetch_set, name),
        check=partial(check_set, name, "test"),
    )


def _read_digits(split: str, root: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The grey levels run from 0 to 16.
    images = torch.from_numpy(bunch.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    return images, torch.from_numpy(bunch.target), tuple(map(str, bunch.target_names))


SOURCES = {
    "photos": Source("crops of ten photographs", cut=load_photos),
    "places": Source("crops of 100 places in ten photographs", cut=load_places),
    "digits": Source("1,797 handwritten digits of 8 x 8 pixels", read=_read_digits),
    "cifar10": _published("cifar10", "60,000 small photographs of ten classes"),
    "cifar100": _published("cifar100", "60,000 small photographs of 100 classes"),
    "mnist": _published("mnist", "70,000 handwritten digits"),
    "fashion-mnist": _published("fashion-mnist", "70,000 pieces of clothing"),
    "breast-cancer": Source("a table of tumours"),
    "adult": Source(
        "a table of a census", fetch=fetch_adult, check=lambda root: load_tabular("adult", root=root)
    ),
    "qmnist": Source(
        "MNIST with the writers of its digits",
        fetch=fetch_writers,
        check=lambda root: mnist_writers(2, root=root),
    ),
    "blogs": Source("posts by blogger", check=lambda root: read_blogs(root / "blogs")),
    "shakespeare": Source("speeches by role", check=read_shakespeare),
}
# Those that `load` takes.
NAMES = tuple(name for name, source in SOURCES.items() if source.cut or source.read)


def load(
    name: str | os.PathLike[str],
    size: int | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
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
        If the data set is not on this machine: see `fetch`.
    CorruptData
        If a file of it is damaged.

    Examples
    --------
    >>> digits = load("digits", sample=100, seed=1)
    >>> digits.images.shape, digits.classes[int(digits.labels[0])]
    (torch.Size([100, 1, 8, 8]), '1')
    """
    _check_arguments(size, sample, seed, split)
    source = SOURCES[str(name)] if name in NAMES else None
    if not distinct and name != "photos":
        raise ValueError("distinct=False: only the crops of photos can overlap at will")
    if source and source.cut:
        given = {"size": size, "n": sample, "distinct": None if distinct else False}
        return source.cut(seed=seed, **{key: value for key, value in given.items() if value is not None})
    if source and source.read:
        images, labels, classes = source.read(split, data_root(root))
        chosen = _choose(name, len(images), sample, seed)
        return ImageDataset(to_float(images[chosen], size), labels[chosen], classes, str(name))
    folder = find_folder(name, root)
    paths, numbers, classes = list_folder(folder)
    chosen = _choose(name, len(paths), sample, seed)
    images = read_images([paths[i] for i in chosen.tolist()], size or MAX_SIZE)
    title = folder.resolve().name if Path(name).is_absolute() else str(name)
    return ImageDataset(to_float(images), torch.tensor(numbers)[chosen], classes, title)


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
    folder, source = data_root(root), SOURCES.get(name)
    if source is None or source.fetch is None:
        known = ", ".join(one for one, source in SOURCES.items() if source.fetch)
        why = f"it must be one of {known}"
        if source is not None and source.check is None:
            why = "these data come with gradleak and need no download"
        raise ValueError(f"name={name!r}: {why}")
    source.fetch(folder)
    return folder


def check(name: str, *, root: str | os.PathLike[str] | None = None) -> None:
    """Look whether a data set is on this machine, whole, without keeping it.

    Parameters
    ----------
    name
        One of `SOURCES`, or a folder of images as for `load`. What comes with gradleak is always there.
    root
        Data root; None: see `data_root`.

    Raises
    ------
    MissingData, CorruptData
        If a file of it is not there, or damaged; of the sets that have splits, the test split is looked at.
    ValueError
        If there is no data set of that name, and no folder with images.
    """
    source = SOURCES.get(name)
    if source is None:
        list_folder(find_folder(name, root))
    elif source.check is not None:
        source.check(data_root(root))


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
    known = ", ".join(f"{one} ({SOURCES[one].about})" for one in NAMES)
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise ValueError(
        f"name={str(name)!r}: it must be one of {known}, or the path of a folder of images "
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
