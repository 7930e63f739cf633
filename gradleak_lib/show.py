"""Dataclasses of tensors in one line."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

_SHOWN = 3


def summary(instance: Any) -> str:
    """Return one line for a dataclass: tensors by dtype and shape, the first of many entries and their number.

    Parameters
    ----------
    instance
        A dataclass; fields with ``repr=False`` are left out.

    Examples
    --------
    >>> import torch
    >>> from gradleak_lib.data import ImageDataset
    >>> print(summary(ImageDataset(torch.rand(8, 3, 32, 32), torch.arange(8), ("cat", "dog"), "pets")))
    ImageDataset(images=float32[8, 3, 32, 32], labels=int64[8], classes=('cat', 'dog'), name='pets')
    """
    shown = [field.name for field in dataclasses.fields(instance) if field.repr]
    fields = ", ".join(f"{name}={_short(getattr(instance, name))}" for name in shown)
    return f"{type(instance).__name__}({fields})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, Mapping):
        return "{" + _first([f"{key!r}: {_short(each)}" for key, each in value.items()]) + "}"
    if isinstance(value, tuple | list):
        return "(" + _first([_short(each) for each in value]) + ")"
    return repr(value)


def _first(shown: list[str]) -> str:
    more = [f"… {len(shown)} in all"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more)
