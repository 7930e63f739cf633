"""What every image data set is loaded into, and resizing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from gradleak_lib.show import summary


@dataclass(frozen=True)
class ImageDataset:
    """Images with labels.

    Parameters
    ----------
    images
        float32 ``[N, C, H, W]`` in [0, 1].
    labels
        int64 ``[N]``, or multi-hot float ``[N, K]``.
    classes
        Names of the K classes.
    name
        Name of the data set.

    Raises
    ------
    ValueError
        If the lengths disagree, or ``images`` is not 4-dimensional.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    __repr__ = summary

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"images has shape {tuple(self.images.shape)}: it must be [N, C, H, W]")
        if len(self.labels) != len(self.images):
            raise ValueError(
                f"labels has {len(self.labels)} entries: it must have one per image, {len(self.images)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageDataset":
        """Return the images at ``indices`` (int64 ``[M]`` or bool ``[N]``), in that order."""
        index = row_index(indices, len(self))
        return replace(self, images=self.images[index], labels=self.labels[index])


def row_index(indices: Tensor | Sequence[int], length: int) -> Tensor:
    """Return int64 row numbers, on the CPU, from row numbers, or from a mask of ``length`` booleans.

    Raises
    ------
    ValueError
        If an index is out of range, or the mask has another length.
    """
    index = torch.as_tensor(indices, device="cpu")
    if index.dtype == torch.bool:
        if index.shape != (length,):
            raise ValueError(f"indices is a mask of shape {tuple(index.shape)}: it must be [{length}]")
        return index.nonzero().flatten()
    if index.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if index.is_floating_point() or index.ndim != 1:
        raise ValueError(f"indices={indices!r}: it must be a flat sequence of row numbers")
    if int(index.min()) < -length or int(index.max()) >= length:
        raise ValueError(
            f"indices run from {int(index.min())} to {int(index.max())}: there are {length} rows"
        )
    return index.long()


def to_float(images: Tensor, size: int | None = None) -> Tensor:
    """Return uint8 images as float32 in [0, 1], resized where ``size`` is given.

    Parameters
    ----------
    images
        uint8 ``[N, C, H, W]``.
    size
        Height and width in pixels; None keeps those of ``images``.

    Returns
    -------
    Tensor
        float32 ``[N, C, size, size]``. Bilinear with antialiasing, which stays in [0, 1].
    """
    scaled = images.float().div_(255)
    if size is None or scaled.shape[-2:] == (size, size):
        return scaled
    resized = functional.interpolate(
        scaled, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.clamp_(0, 1)
