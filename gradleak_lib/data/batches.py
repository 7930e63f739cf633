"""Batches with a given composition of labels."""

import torch
from torch import Tensor

from gradleak_lib.data.images import ImageDataset


def draw_labels(
    samples: int, classes: int, *, balanced: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the labels of a batch.

    Parameters
    ----------
    samples
        Batch size n, at least 1.
    classes
        Number of classes K, at least 1, and at least 2 for an unbalanced batch.
    balanced
        True: uniform and independent. False: half of the batch is of one random class, a quarter of another, both
        rounded down, and the rest uniform.
    generator
        Source of randomness; None: torch's global one.

    Returns
    -------
    Tensor
        int64 ``[samples]``, shuffled.

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    Wainakh et al. 2022, code (IID and non-IID batches).
    """
    if samples < 1 or classes < (1 if balanced else 2):
        raise ValueError(
            f"samples must be 1 or more, classes 1 or more (2 if unbalanced), got {samples}, {classes}"
        )
    labels = torch.randint(classes, (samples,), generator=generator)
    if not balanced:
        most, second = torch.randperm(classes, generator=generator)[:2]
        labels[: samples // 2] = most
        labels[samples // 2 : samples // 2 + samples // 4] = second
    return labels[torch.randperm(samples, generator=generator)]


def draw_images(
    dataset: ImageDataset, labels: Tensor, *, generator: torch.Generator | None = None
) -> ImageDataset:
    """Draw one image for each label, another each time as long as there is one.

    Parameters
    ----------
    dataset
        Images with class labels.
    labels
        int64 ``[n]``.
    generator
        Source of randomness; None: torch's global one.

    Raises
    ------
    ValueError
        If there is no image of some label.
    """
    wanted, there = labels.cpu(), dataset.labels.cpu()
    rows = torch.empty(len(labels), dtype=torch.int64)
    for label in wanted.unique():
        places = (wanted == label).nonzero().flatten()
        members = (there == label).nonzero().flatten()
        if len(members) == 0:
            raise ValueError(f"{dataset.name} has no image of class {int(label)}")
        shuffled = members[torch.randperm(len(members), generator=generator)]
        rows[places] = shuffled.repeat(-(-len(places) // len(members)))[: len(places)]
    return dataset.subset(rows)
