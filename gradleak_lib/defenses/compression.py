"""Sending only the larger part of an update."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gradleak_lib.defenses.composition import UpdateDefense
from gradleak_lib.federated.update import Update, check_finite

Tensors = dict[str, Tensor]


def compress(share: float, *, within: Literal["update", "tensor"] = "update") -> UpdateDefense:
    """Set the entries of smallest magnitude to zero.

    Parameters
    ----------
    share
        theta in [0, 1]: the part that is not sent, rounded down to whole entries.
    within
        ``"update"``: the smallest of the whole update. ``"tensor"``: the smallest of each tensor, as in deep gradient
        compression.

    Raises
    ------
    ValueError
        If the share is out of range; when it is used, if the update holds NaN or infinity.

    References
    ----------
    Lin et al. 2018 (deep gradient compression); Zhu et al. 2019, Sec. 5; Wainakh et al. 2022.
    """
    if within not in ("update", "tensor"):
        raise ValueError(f"within must be 'update' or 'tensor', got {within!r}")

    def drop(update: Update) -> Tensors:
        if within == "tensor":
            return {name: _without_smallest(tensor, share) for name, tensor in update.tensors.items()}
        parts = _without_smallest(update.flat(), share).split([t.numel() for t in update.tensors.values()])
        return {
            name: part.reshape(tensor.shape).to(tensor)
            for part, (name, tensor) in zip(parts, update.tensors.items(), strict=True)
        }

    return _defense(share, drop)


def compress_classes(share: float, layer: str) -> UpdateDefense:
    """Set the rows of the classes with the smallest gradients to zero, in the last layer alone.

    Parameters
    ----------
    share
        theta in [0, 1]: the part of the classes that is not sent, rounded down to whole classes.
    layer
        Name of the last layer; a class's gradient is the sum of its row of the weights.

    References
    ----------
    A reading of Wainakh et al. 2022 in which a class is what is compressed.
    """

    def drop(update: Update) -> Tensors:
        lost = _smallest_classes(update, layer, share)
        return {
            name: tensor.index_fill(0, lost, 0) if name.startswith(f"{layer}.") else tensor
            for name, tensor in update.tensors.items()
        }

    return _defense(share, drop)


def compress_as_released(share: float, layer: str) -> UpdateDefense:
    """Compress as the released code of LLG does: it takes the number of a class for the number of a tensor.

    The classes with the smallest gradients are found as in `compress_classes`. Then the i-th *tensor* of the update
    is set to zero for each such class i. If the last layer's weight is the seventh tensor and the seventh class has a
    small gradient, nothing remains that the attack could read.

    Parameters
    ----------
    share, layer
        As for `compress_classes`.

    References
    ----------
    Code of Wainakh et al. 2022, ``defenses.py``. Where the share is less than one class, that code drops every class;
    here it drops none.
    """

    def drop(update: Update) -> Tensors:
        lost = set(_smallest_classes(update, layer, share).tolist())
        return {
            name: torch.zeros_like(tensor) if number in lost else tensor
            for number, (name, tensor) in enumerate(update.tensors.items())
        }

    return _defense(share, drop)


def _defense(share: float, drop: Callable[[Update], Tensors]) -> UpdateDefense:
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")

    def defense(update: Update) -> Update:
        check_finite(update.tensors)
        return replace(update, tensors=drop(update))

    return defense


def _rounded_down(share: float, count: int) -> int:
    """Whole part of a share; 0.29 of 100 is 29, although the product is a little less in binary."""
    return math.floor(share * count + 1e-9)


def _without_smallest(tensor: Tensor, share: float) -> Tensor:
    lost = (
        tensor.abs().flatten().topk(_rounded_down(share, tensor.numel()), largest=False, sorted=False).indices
    )
    return tensor.flatten().index_fill(0, lost, 0).reshape(tensor.shape)


def _smallest_classes(update: Update, layer: str, share: float) -> Tensor:
    gradients = update.layer(layer)["weight"].sum(1).abs()
    return gradients.argsort()[: _rounded_down(share, len(gradients))]
