"""Crops of the photographs that lie in the wheels of scikit-learn and scikit-image: no download."""

import math
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gradleak_lib.data.images import ImageDataset, to_float
from gradleak_lib.data.root import MissingData

# Name of the class: (package, path inside it).
_SOURCES = {
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "immunohistochemistry": ("skimage", "data/ihc.png"),
}
PHOTOGRAPHS = tuple(_SOURCES)

MIN_SIZE, MAX_SIZE = 8, 224
MIN_STD = 0.03
MIN_RMS = 0.03
_THUMB = 8
_TILE = 90  # of the smallest photograph, 451 x 300

Window = tuple[int, int, int]
Pixels = NDArray[np.uint8]


def load_photos(size: int = MAX_SIZE, n: int = 64, *, seed: int = 0, distinct: bool = True) -> ImageDataset:
    """Cut ``n`` square crops out of ten photographs.

    Each crop comes from a photograph drawn uniformly among the ten. Its window is reduced to ``size`` pixels
    by area averaging, never enlarged. Windows with next to no content (standard deviation of a colour
    channel below 0.03: the black corners of the retina) are passed over.

    Parameters
    ----------
    size
        Height and width in pixels, 8 to 224.
    n
        Number of crops. The first n crops are the same for every larger n.
    seed
        Seed, 0 or more.
    distinct
        True: no near-duplicates. Two windows of one photograph overlap with an intersection over union of at
        most 1/3, and two crops of one photograph differ by at least 0.03 root mean square. The sides of the
        windows are ``size`` (times at most 1.16, by the seed) times powers of the square root of 3, each
        scale as likely as the others until it is used up. A photograph with no room left is left out, and
        the others fill up; so the largest n consist mostly of small windows of the large photographs.
        False: independent windows, the side log-uniform between ``size`` and the photograph's shorter side,
        the position uniform, with no limit to n.

    Returns
    -------
    ImageDataset
        ``images`` ``[n, 3, size, size]``; ``labels`` number the photographs; ``classes`` name them.

    Raises
    ------
    ValueError
        If ``size`` is out of range, or fewer than ``n`` distinct crops fit.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size={size}: photos come in sizes from {MIN_SIZE} to {MAX_SIZE} pixels")
    cutter = _distinct_crops if distinct else _independent_crops
    rng, *streams = np.random.default_rng(seed).spawn(1 + len(PHOTOGRAPHS))
    sources = [
        cutter(photograph(name), size, stream) for name, stream in zip(PHOTOGRAPHS, streams, strict=True)
    ]
    left = list(range(len(sources)))
    crops: list[Pixels] = []
    labels: list[int] = []
    while len(crops) < n and left:
        label = left[int(rng.integers(len(left)))]
        crop = next(sources[label], None)
        if crop is None:
            left.remove(label)
            continue
        crops.append(crop)
        labels.append(label)
    if len(crops) < n:
        raise ValueError(
            f"sample={n}: only {len(crops)} distinct photos of {size}x{size} fit; ask for fewer, "
            "for a smaller size, or for distinct=False"
        )
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(to_float(pixels), torch.tensor(labels), PHOTOGRAPHS, "photos")


def load_places(size: int = 32, n: int = 1000, *, seed: int = 0) -> ImageDataset:
    """Cut ``n`` square crops out of 100 places: ten photographs, each cut into ten tiles.

    A task with many classes: where does this crop come from? Most places are easy to tell from each other; some have
    little in them (a tile of sky), and their crops are near-duplicates. Crops with next to no content are passed
    over, as in `load_photos`.

    Parameters
    ----------
    size
        Height and width in pixels, 8 to 90, the shorter side of the smallest tile.
    n
        Number of crops, from places drawn uniformly. They are independent, and may overlap.
    seed
        Seed, 0 or more.

    Returns
    -------
    ImageDataset
        ``images`` ``[n, 3, size, size]``; ``labels`` number the places; ``classes`` name them, as in ``"coffee 3"``.

    Raises
    ------
    ValueError
        If ``size`` is out of range.
    """
    if not MIN_SIZE <= size <= _TILE:
        raise ValueError(f"size={size}: places come in sizes from {MIN_SIZE} to {_TILE} pixels")
    tiles = [tile for name in PHOTOGRAPHS for tile in _tiles(photograph(name))]
    rng, *streams = np.random.default_rng(seed).spawn(1 + len(tiles))
    sources = [_independent_crops(tile, size, stream) for tile, stream in zip(tiles, streams, strict=True)]
    labels = rng.integers(len(tiles), size=n)
    pixels = torch.from_numpy(np.stack([next(sources[label]) for label in labels])).permute(0, 3, 1, 2)
    classes = tuple(
        f"{name} {number}" for name in PHOTOGRAPHS for number in range(len(tiles) // len(PHOTOGRAPHS))
    )
    return ImageDataset(to_float(pixels.contiguous()), torch.from_numpy(labels), classes, "places")


def _tiles(photo: Image.Image) -> list[Image.Image]:
    """Cut a photograph into five columns and two rows."""
    width, height = photo.width // 5, photo.height // 2
    return [
        photo.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(2)
        for column in range(5)
    ]


@cache
def photograph(name: str) -> Image.Image:
    """Return one of the ten photographs (RGB) by the name of its class."""
    package, path = _SOURCES[name]
    try:
        with files(package).joinpath(path).open("rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise MissingData(
            f"photos: {package} is installed without its {path}: install its wheel from PyPI"
        ) from error


def window_grids(width: int, height: int, size: int, rng: np.random.Generator) -> list[list[Window]]:
    """Lay square windows over a photograph, at several scales, no two with an IoU over 1/3.

    A lattice packs several times as many as windows drawn at random, each kept where it fits. Within a scale
    of side s, windows stand s/2 apart in a row, rows s/3 apart, and every other row is shifted by s/4. Both
    kinds of neighbours, at (s/2, 0) and (s/4, s/3), share half of a window: an IoU of 1/3. Between scales
    the side grows by the square root of 3: a window inside another has at most a third of its area.

    Parameters
    ----------
    width, height
        Size of the photograph in pixels, at least ``size``.
    size
        Smallest side of a window in pixels.
    rng
        Draws the first side, the offset of each grid, and the order of its windows.

    Returns
    -------
    list of lists of windows
        A list for each scale of (left, top, side), shuffled.
    """
    shorter = min(width, height)
    # Larger steps away from `size` would leave out too many of the smallest windows.
    slack = min(0.15, math.log(shorter / size) % (math.log(3) / 2))
    side = min(shorter, round(size * math.exp(rng.random() * slack)))
    grids = []
    while side <= shorter:
        quarter, third = -(-side // 4), -(-side // 3)
        left = int(rng.integers(min(2 * quarter, width - side + 1)))
        top = int(rng.integers(min(third, height - side + 1)))
        windows = []
        for row, y in enumerate(range(top, height - side + 1, third)):
            first = (left + quarter * (row % 2)) % (2 * quarter)
            windows += [(x, y, side) for x in range(first, width - side + 1, 2 * quarter)]
        grids.append([windows[i] for i in rng.permutation(len(windows))])
        side = math.ceil(side * math.sqrt(3))
    return grids


def _distinct_crops(photo: Image.Image, size: int, rng: np.random.Generator) -> Iterator[Pixels]:
    """Yield crops that are no near-duplicates, until the photograph is used up."""
    grids = window_grids(*photo.size, size, rng)
    crops: list[Pixels] = []
    thumbs = np.empty((sum(map(len, grids)), 3 * _THUMB**2), dtype=np.float32)
    norms = np.empty(len(thumbs), dtype=np.float32)
    while grids:
        scale = int(rng.integers(len(grids)))
        window = grids[scale].pop()
        if not grids[scale]:
            del grids[scale]
        crop = _cut(photo, window, size)
        if not _has_content(crop):
            continue
        small = Image.fromarray(crop).resize((_THUMB, _THUMB), Image.Resampling.BOX)
        thumb = np.asarray(small, dtype=np.float32).ravel() / 255
        # Averaging never makes two images differ more: only crops whose thumbnails are close (with room for
        # their rounding) need the comparison in full.
        count = len(crops)
        squared = norms[:count] + thumb @ thumb - thumbs[:count] @ (2 * thumb)
        near = np.flatnonzero(squared < (MIN_RMS + 1 / 255) ** 2 * thumb.size)
        if any(_rms(crop, crops[i]) < MIN_RMS for i in near):
            continue
        thumbs[count], norms[count] = thumb, thumb @ thumb
        crops.append(crop)
        yield crop


def _independent_crops(photo: Image.Image, size: int, rng: np.random.Generator) -> Iterator[Pixels]:
    """Yield crops of independent windows, without end."""
    width, height = photo.size
    shorter = min(width, height)
    while True:
        side = round(size * (shorter / size) ** rng.random())
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        crop = _cut(photo, (left, top, side), size)
        if _has_content(crop):
            yield crop


def _cut(photo: Image.Image, window: Window, size: int) -> Pixels:
    """Return a window reduced to ``[size, size, 3]`` by area averaging."""
    left, top, side = window
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), Image.Resampling.BOX, box=box))


def _has_content(crop: Pixels) -> bool:
    """Say whether the colours vary across the crop."""
    return bool(np.sqrt(crop.reshape(-1, 3).var(axis=0).mean()) >= MIN_STD * 255)


def _rms(one: Pixels, other: Pixels) -> float:
    """Return the root mean square difference of two crops, in units of the full range."""
    # Sums of squares of whole numbers are exact in float64, so that no machine decides otherwise.
    difference = np.subtract(one, other, dtype=np.float64).ravel()
    return math.sqrt(difference @ difference / difference.size) / 255
