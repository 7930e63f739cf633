"""Any folder of images: a copy of ImageNet, or a reader's own pictures."""

import struct
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gradleak_lib.data.root import CorruptData

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Pictures of phones and cameras that Pillow does not read by itself.
_OTHERS = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)
# A JPEG larger than this, and eight times larger than what is wanted of it, is decoded at a smaller scale, four times
# larger than wanted or more: that changes a photograph by a sixth of a grey level on average (56 dB).
_LARGE, _MUCH_LARGER, _ENOUGH = 1000, 8, 4


def list_folder(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Find the images of a folder and their classes, without opening them.

    Parameters
    ----------
    folder
        A folder of images (one class, named after it), or of subfolders with images at any depth (a class
        each). Names that start with a dot are passed over. Pictures in formats that cannot be read here, such as
        HEIC, are left out with a warning that names them.

    Returns
    -------
    tuple
        Paths in alphabetical order, the class number of each, and the names of the classes.

    Raises
    ------
    ValueError
        If there is no image, or there are images both in the folder and in subfolders of it.
    """
    top = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    there = {path.name: _files(path) for path in top if path.is_dir()}
    single = [path for path in top if path.is_file()]
    left_out = [path for path in chain(single, *there.values()) if path.suffix.lower() in _OTHERS]
    if left_out:
        warnings.warn(
            f"left out, since they cannot be read here: {_first(left_out)}; save them as JPEG", stacklevel=3
        )
    flat = [path for path in single if path.suffix.lower() in SUFFIXES]
    images = {
        name: [path for path in files if path.suffix.lower() in SUFFIXES] for name, files in there.items()
    }
    inside = {name: found for name, found in images.items() if found}
    if flat and inside:
        raise ValueError(
            f"name={str(folder)!r}: images lie both in the folder ({flat[0].name}) and in its subfolders "
            f"({next(iter(inside))}): keep either one folder per class or a single folder"
        )
    if not flat and not inside:
        raise ValueError(
            f"name={str(folder)!r}: there is no image in this folder ({', '.join(sorted(SUFFIXES))})"
        )
    if flat:
        return flat, [0] * len(flat), (folder.resolve().name,)
    paths = [path for found in inside.values() for path in found]
    labels = [label for label, found in enumerate(inside.values()) for _ in found]
    return paths, labels, tuple(inside)


def read_images(paths: list[Path], size: int) -> Tensor:
    """Read images as RGB: the shorter side resized to ``size``, the centre cut out.

    A JPEG whose shorter side has more than 1,000 pixels, and more than ``8 * size``, is decoded at a smaller scale,
    of ``4 * size`` or more, in a third of the time.

    Parameters
    ----------
    paths
        Image files; an orientation stored by a camera is applied.
    size
        Height and width in pixels.

    Returns
    -------
    Tensor
        uint8 ``[N, 3, size, size]``.

    Raises
    ------
    CorruptData
        If files cannot be read as images; it names them.
    """
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    broken = []
    for row, path in zip(pixels, paths, strict=True):
        try:
            with Image.open(path) as image:
                if min(image.size) > max(_LARGE, _MUCH_LARGER * size):
                    image.draft(image.mode, (_ENOUGH * size, _ENOUGH * size))  # nothing, unless it is a JPEG
                upright = ImageOps.exif_transpose(image)
                row[:] = np.asarray(ImageOps.fit(_rgb(upright), (size, size), Image.Resampling.BILINEAR))
        except (
            OSError,
            ValueError,
            SyntaxError,
            EOFError,
            struct.error,
            Image.DecompressionBombError,
        ) as error:
            broken.append(f"{path} ({' '.join(str(error).split())})")
    if broken:
        raise CorruptData(
            f"cannot be read as images: {_first(broken)}; mend them, or move them out of the folder"
        )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _files(folder: Path) -> list[Path]:
    """Return the files under a folder in alphabetical order, without what is hidden in it."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _first(names: Sequence[object]) -> str:
    """The first five of many names, and the number of the rest."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; 16-bit grey is scaled first, as Pillow would cut it off at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
