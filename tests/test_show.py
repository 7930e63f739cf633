"""What a result looks like at the end of a cell."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradleak_lib import data, metrics
from gradleak_lib.show import summary


@dataclass(frozen=True)
class Record:
    value: Any
    __repr__ = summary


def test_tensors_and_arrays_show_their_shape():
    for value, expected in (
        (torch.zeros(2, 3), "float32[2, 3]"),
        (torch.tensor(True), "bool[]"),
        (np.zeros(4), "float64[4]"),
        ({"a": torch.zeros(2, dtype=torch.int64), "b": 1, "c": 2}, "{'a': int64[2], 'b': 1, 'c': 2}"),
        ({"a": 1}, "{'a': 1}"),
        ({}, "{}"),
        (0.25, "0.25"),
        (None, "None"),
        ("gradient", "'gradient'"),
    ):
        assert repr(Record(value)) == f"Record(value={expected})"


def test_long_values_are_cut():
    assert len(repr(Record(tuple(map(str, range(1000)))))) < 60
    images = data.load("digits", 12, sample=200).images
    assert len(repr(metrics.score(images, images))) < 120
