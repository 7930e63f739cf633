"""Any folder of images: a copy of ImageNet, or a reader's own pictures."""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gradleak_lib.data.root import CorruptData

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def list_folder(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Find the images of a folder and their classes.

    Parameters
    ----------
    folder
        A folder of images (one class, named after it), or of subfolders with images at any depth (a class
        each). Names that start with a dot are passed over.

    Returns
    -------
    tuple
        Paths in alphabetical order, the class number of each, and the names of the classes.

    Raises
    ------
    ValueError
        If there is no image, or there are images both in the folder and in subfolders of it.
    """
    flat = _images([path for path in folder.iterdir() if path.is_file()], folder)
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    inside = {path.name: found for path in subfolders if (found := _images(list(path.rglob("*")), path))}
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
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise CorruptData(
            f"cannot be read as images: {', '.join(broken[:5])}{more}; mend them, or move them out of the folder"
        )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _images(paths: list[Path], top: Path) -> list[Path]:
    """Return the image files among ``paths`` in alphabetical order, without hidden ones under ``top``."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
    )


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; 16-bit grey is scaled first, as Pillow would cut it off at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
