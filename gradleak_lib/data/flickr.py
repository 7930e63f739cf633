"""Users who photograph: OpenImages and PIPA, the two sets of Flickr photos that the linkability papers use."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from gradleak_lib.data.folder import read_images
from gradleak_lib.data.images import to_float
from gradleak_lib.data.root import CorruptData, MissingData
from gradleak_lib.data.users import CUT_SEED, Population, UserDataset, draw_users, hold_out

OPEN_IMAGES_CLASSES, PIPA_CLASSES = 18, 19
_SUBSETS = {"0": "leftover", "1": "train", "2": "val", "3": "test"}


@dataclass(frozen=True)
class _Photo:
    """A photo of a study; ``row`` is its place in the list of all photos."""

    row: int
    path: Path
    owner: str
    album: int
    time: float
    labels: frozenset[str]


def open_images(
    images: str | os.PathLike[str],
    metadata: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str],
    descriptions: str | os.PathLike[str],
    users: int | None = None,
    classes: Sequence[str] | None = None,
    min_images: int = 500,
    public_images: int = 20_000,
    size: int = 64,
    seed: int = 0,
) -> Population:
    """Load photos of OpenImages by photographer. Nothing is downloaded.

    Parameters
    ----------
    images
        Folder of the photos ``<ImageID>.jpg`` in their original files: smaller copies have lost the time.
    metadata
        Table of the photos (CSV): of its columns ImageID, AuthorProfileURL are read. It lists the study: every
        photo must be there, so cut the published table down to the photos that you have.
    labels
        Table of image-level labels (CSV with ImageID, LabelName, Confidence). A confidence of 0 says that a label
        was found absent. Photos that ``metadata`` does not list are passed over.
    descriptions
        Table of the classes (CSV with LabelName, DisplayName).
    users
        Number of users, drawn by ``seed``; None takes all photographers with enough photos.
    classes
        Display names of the labels to predict. None: the 18 most frequent ones. The paper chose 18 that hardly
        overlap (car, person, building) and does not list the rest; the most frequent ones do overlap.
    min_images
        Photos that a user has at least, 2 or more; the paper's number by default.
    public_images
        At most this many photos of all other people, the same ones for every seed.
    size
        Height and width in pixels, at least 1: the centre of a photo, scaled down.
    seed
        Seed of the draw, 0 or more.

    Returns
    -------
    Population
        Images ``[N, 3, size, size]``, multi-hot targets, none set for photos without any of the labels. ``times``
        are seconds by the camera's clock (EXIF DateTimeOriginal; DateTime, which a program for editing may have
        set, does not count), ``albums`` are days. Photos without that time are left out, as in the paper. ``items``
        and ``sources`` are rows of ``metadata``. Names of users are pseudonyms. A photo takes ``15 * size ** 2``
        bytes while it is read (60 KiB at 64 pixels) and ``12 * size ** 2`` afterwards, twice that while a fifth of
        each user's is held out: about 31 GB at the peak for the paper's 317,000 photos of 327 users.

    Raises
    ------
    ValueError
        If an argument is out of range, or a class has no description.
    MissingData
        If a file is not there.
    CorruptData
        If a table lacks a column, a row is broken, a label has no description, or a photo cannot be read.

    References
    ----------
    Orekondy et al. 2018, Sec. 7.2 and Table 2 (OpenImages); Kuznetsova et al. 2020 (The Open Images Dataset V4).
    """
    _check(min_images, public_images, size)
    name_of = {
        row["LabelName"]: row["DisplayName"] for _, row in _table(descriptions, "LabelName", "DisplayName")
    }
    listed: dict[str, tuple[str, int]] = {}
    for line, row in _table(metadata, "ImageID", "AuthorProfileURL"):
        if row["ImageID"] in listed:
            raise CorruptData(f"{metadata}: line {line}: {row['ImageID']!r} is listed twice")
        listed[row["ImageID"]] = (row["AuthorProfileURL"], line)
    seen = _open_images_labels(labels, descriptions, name_of, set(listed))
    photos = []
    for number, (image, (owner, line)) in enumerate(listed.items()):
        path = Path(images) / f"{image}.jpg"
        when = _taken(path, f"{metadata}: line {line}")
        if when is not None:
            seconds = (when - datetime(1970, 1, 1)).total_seconds()
            found = frozenset(seen.get(image, ()))
            photos.append(_Photo(number, path, owner, when.toordinal(), seconds, found))
    kinds = _classes(photos, classes, set(name_of.values()), OPEN_IMAGES_CLASSES)
    return _population(photos, kinds, users, min_images, public_images, size, seed, "OpenImages")


def pipa(
    folder: str | os.PathLike[str],
    *,
    owners: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    users: int | None = None,
    classes: Sequence[str] | None = None,
    min_images: int = 100,
    public_images: int = 20_000,
    size: int = 64,
    seed: int = 0,
) -> Population:
    """Load photos of PIPA (People In Photo Albums) by owner. Nothing is downloaded.

    PIPA names neither owners nor objects: two tables must be made beside it, as the paper's authors did.

    Parameters
    ----------
    folder
        Folder of PIPA: ``index.txt``, and photos ``train|val|test|leftover/<photoset>_<photo>.jpg``. A row of the
        index is a head; all rows of a photo count as one.
    owners
        Table (CSV with photoset_id, owner): who owns each photoset on Flickr. None: ``owners.csv`` in ``folder``.
    labels
        Table (CSV with photo_id, label): a row for each object in a photo, by its name in COCO, such as the output
        of a COCO detector. A photo without any has no row. None: ``labels.csv`` in ``folder``.
    users, public_images, size, seed
        See `open_images`, also for the memory.
    classes
        Names of the objects to predict. None: the 19 most frequent ones, the paper's number.
    min_images
        Photos that a user has at least, 2 or more; the paper's number by default.

    Returns
    -------
    Population
        As `open_images` returns it, but albums are photosets, and times are numbers of photos: Flickr counts them
        up as they are uploaded, which stands in for the time of exposure that PIPA's files have lost. A photo of
        two photosets belongs to the first. ``items`` and ``sources`` are places of photos in the index.

    Raises
    ------
    ValueError
        If an argument is out of range, or a class is none of COCO's.
    MissingData
        If a file is not there.
    CorruptData
        If a table lacks a column, a row is broken, a photoset has no owner, a label is none of COCO's, or a photo
        cannot be read.

    References
    ----------
    Orekondy et al. 2018, Sec. 7.1 and Table 2 (PIPA); Zhang et al. 2015 (Beyond Frontal Faces).
    """
    _check(min_images, public_images, size)
    folder = Path(folder)
    owners, labels = Path(owners or folder / "owners.csv"), Path(labels or folder / "labels.csv")
    for path, what in ((owners, "photoset_id,owner"), (labels, "photo_id,label")):
        if not path.is_file():
            raise MissingData(
                f"pipa: {path} is missing: PIPA does not contain it, make a table with the columns {what} "
                "(owners of the photosets on Flickr; objects that a COCO detector finds)"
            )
    owner_of: dict[str, str] = {}
    for line, row in _table(owners, "photoset_id", "owner"):
        if owner_of.setdefault(row["photoset_id"], row["owner"]) != row["owner"]:
            raise CorruptData(f"{owners}: line {line}: photoset {row['photoset_id']} has another owner above")
    from gradleak_lib._torchvision import torchvision

    names = set(torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]) - {
        "__background__",
        "N/A",
    }
    seen = _pipa_labels(labels, names)
    photos: dict[str, _Photo] = {}
    for line, photoset, photo, subset in _heads(folder / "index.txt"):
        where = f"{folder / 'index.txt'}: line {line}"
        if photoset not in owner_of:
            raise CorruptData(f"{where}: photoset {photoset} has no owner in {owners}")
        if photo not in photos:
            path = folder / subset / f"{photoset}_{photo}.jpg"
            if not path.is_file():
                raise MissingData(f"{where}: {path} is missing")
            found = frozenset(seen.get(photo, ()))
            photos[photo] = _Photo(
                len(photos), path, owner_of[photoset], int(photoset), float(int(photo)), found
            )
    listed = list(photos.values())
    kinds = _classes(listed, classes, names, PIPA_CLASSES)
    return _population(listed, kinds, users, min_images, public_images, size, seed, "PIPA")


def _open_images_labels(
    labels: str | os.PathLike[str],
    descriptions: str | os.PathLike[str],
    name_of: dict[str, str],
    listed: set[str],
) -> dict[str, set[str]]:
    """Read the display names of the labels that each listed photo of OpenImages has."""
    seen: dict[str, set[str]] = {}
    for line, row in _table(labels, "ImageID", "LabelName", "Confidence"):
        if row["LabelName"] not in name_of:
            raise CorruptData(f"{labels}: line {line}: {row['LabelName']!r} is not in {descriptions}")
        if _number(row["Confidence"], labels, line, float) > 0 and row["ImageID"] in listed:
            seen.setdefault(row["ImageID"], set()).add(name_of[row["LabelName"]])
    return seen


def _pipa_labels(labels: Path, names: set[str]) -> dict[str, set[str]]:
    """Read the names of the objects in each photo of PIPA."""
    seen: dict[str, set[str]] = {}
    for line, row in _table(labels, "photo_id", "label"):
        if row["label"] not in names:
            raise CorruptData(f"{labels}: line {line}: {row['label']!r} is no class of COCO")
        seen.setdefault(row["photo_id"], set()).add(row["label"])
    return seen


def _check(min_images: int, public_images: int, size: int) -> None:
    """Raise ValueError at the first number that is out of range."""
    if min_images < 2 or public_images < 0 or size < 1:
        raise ValueError(
            "min_images must be 2 or more, public_images 0 or more and size 1 or more, got "
            f"min_images={min_images}, public_images={public_images}, size={size}"
        )


def _table(path: str | os.PathLike[str], *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the named columns of each row of a table, with the number of the line on which it ends."""
    if not Path(path).is_file():
        raise MissingData(
            f"{path} is missing: it must be a table (CSV) with the columns {', '.join(columns)}"
        )
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader, done = csv.reader(file, strict=True), 0
        try:
            header = next(reader, [])
            for column in columns:
                if column not in header:
                    raise CorruptData(f"{path}: line 1: there is no column {column}")
            places = [header.index(column) for column in columns]
            done = reader.line_num
            for row in reader:
                if row and len(row) != len(header):
                    raise CorruptData(
                        f"{path}: line {reader.line_num} has {len(row)} fields: the header has {len(header)}"
                    )
                if row:
                    yield reader.line_num, {column: row[i] for column, i in zip(columns, places, strict=True)}
                done = reader.line_num
        except (csv.Error, UnicodeDecodeError) as error:
            raise CorruptData(f"{path}: the row after line {done} cannot be read: {error}") from error


def _heads(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Give line, photoset, photo and the folder of the subset for each row of PIPA's index."""
    if not path.is_file():
        raise MissingData(f"pipa: {path} is missing: name the folder that holds PIPA with its index.txt")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, row in enumerate(file, 1):
            fields = row.split()
            if not fields:
                continue
            if len(fields) != 8 or fields[7] not in _SUBSETS:
                raise CorruptData(
                    f"{path}: line {line} is no row of eight numbers that end in a subset from 0 to 3"
                )
            for field in fields[:7]:
                _number(field, path, line, int)
            yield line, fields[0], fields[1], _SUBSETS[fields[7]]


def _number(text: str, path: str | os.PathLike[str], line: int, kind: Callable[[str], float]) -> float:
    """Read a number, or say where it is none."""
    try:
        return kind(text)
    except ValueError as error:
        raise CorruptData(f"{path}: line {line}: {text!r} is no number") from error


def _taken(path: Path, where: str) -> datetime | None:
    """Return when a photo was taken, by its EXIF data; None where they do not say."""
    if not path.is_file():
        raise MissingData(f"{where}: {path} is missing")
    try:
        image = Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptData(f"{where}: {path} cannot be read as an image") from error
    with image:
        try:
            written = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
            return datetime.strptime(str(written).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        except Exception:  # Pillow raises anything at broken EXIF data
            return None


def _classes(
    photos: list[_Photo], classes: Sequence[str] | None, known: set[str], count: int
) -> tuple[str, ...]:
    """Check the names of the labels to predict, or take the most frequent ones."""
    if classes is None:
        frequency = Counter(label for photo in photos for label in photo.labels)
        if not frequency:
            raise CorruptData("no label belongs to any of the photos: do the tables name photos alike?")
        return tuple(sorted(frequency, key=lambda label: (-frequency[label], label))[:count])
    if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes={classes!r}: it must be a sequence of different names, or None")
    for label in classes:
        if label not in known:
            raise ValueError(f"classes: {label!r} is not the name of a label")
    return tuple(classes)


def _population(
    photos: list[_Photo],
    classes: tuple[str, ...],
    users: int | None,
    min_images: int,
    public_images: int,
    size: int,
    seed: int,
    name: str,
) -> Population:
    """Draw the users, then read their photos and other people's."""
    # Photos of an unknown owner have nothing in common.
    counts = Counter(photo.owner for photo in photos if photo.owner)
    eligible = sorted(owner for owner, count in counts.items() if count >= min_images)
    drawn, _ = draw_users(np.arange(len(eligible)), users, seed=seed, share=1)
    number_of = {eligible[index]: number for number, index in enumerate(drawn)}
    mine = [photo for photo in photos if photo.owner in number_of]
    possible = set(eligible)
    others = [photo for photo in photos if photo.owner not in possible]
    order = np.random.default_rng(CUT_SEED).permutation(len(others))[:public_images]
    pseudonyms = tuple(f"photographer {index}" for index in drawn)
    owned = [number_of[photo.owner] for photo in mine]
    train, test = hold_out(_read(mine, owned, classes, pseudonyms, size, name))
    public = [others[index] for index in np.sort(order)]
    return Population(train, test, _read(public, [-1] * len(public), classes, (), size, name))


def _read(
    photos: list[_Photo],
    owned: list[int],
    classes: tuple[str, ...],
    names: tuple[str, ...],
    size: int,
    title: str,
) -> UserDataset:
    """Read the pixels of photos into a data set."""
    column = {label: index for index, label in enumerate(classes)}
    targets = torch.zeros(len(photos), len(classes))
    for row, photo in enumerate(photos):
        targets[row, [column[label] for label in photo.labels if label in column]] = 1
    rows = torch.tensor([photo.row for photo in photos], dtype=torch.int64)
    return UserDataset(
        inputs=to_float(read_images([photo.path for photo in photos], size)),
        targets=targets,
        users=torch.tensor(owned, dtype=torch.int64),
        items=rows,
        albums=torch.tensor([photo.album for photo in photos], dtype=torch.int64),
        times=torch.tensor([photo.time for photo in photos], dtype=torch.float64),
        sources=rows[:, None].clone(),
        classes=classes,
        user_names=names,
        name=title,
    )
