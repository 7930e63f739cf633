"""How records of the library look in a notebook."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def summary(record: Any) -> str:
    """Write a dataclass in a line: tensors and arrays as ``dtype[shape]``, mappings by their first entry.

    Used as ``__repr__ = summary`` in the dataclass, whose own would print every number.
    """
    parts = (f"{field.name}={_short(getattr(record, field.name))}" for field in fields(record) if field.repr)
    return f"{type(record).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}".removeprefix("torch.") + f"[{', '.join(map(str, value.shape))}]"
    if isinstance(value, Mapping) and value:
        name, first = next(iter(value.items()))
        return f"{{{name!r}: {_short(first)}{f', and {len(value) - 1} more' if len(value) > 1 else ''}}}"
    return f"{value:.4g}" if isinstance(value, float) else reprlib.repr(value)
