"""Tables as rows of numbers in [0, 1], and the way back to the rows a person can read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gradleak_lib.data.images import row_index
from gradleak_lib.data.root import corrupt, data_root, missing, staged
from gradleak_lib.data.torchvision_sets import md5_of
from gradleak_lib.show import summary

if TYPE_CHECKING:
    import pandas as pd

_SPLITS = ("train", "test")

_ADULT_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/"
_ADULT_FILES = {
    "adult.data": "5d7c39d7b8804f071cdd1f2a7c460872",
    "adult.test": "35238206dfdf7f1fe215bbb874adecdc",
}
_ADULT_COLUMNS = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
]


@dataclass(frozen=True)
class TabularDataset:
    """Rows of a table with labels.

    Parameters
    ----------
    features
        float32 ``[N, F]``: numeric columns scaled so that the training file spans [0, 1] (a row of the test
        file may lie just outside), categorical ones one-hot.
    labels
        int64 ``[N]``.
    columns
        Names of the F columns: ``"age"``, or ``"workclass=Private"`` for one value of a category.
    classes
        Names of the classes.
    name
        Name of the table.
    low, high
        What 0 and 1 stand for in each column, in its own unit.
    whole
        Names of the numeric columns that hold whole numbers.
    """

    features: Tensor
    labels: Tensor
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    whole: tuple[str, ...] = ()

    __repr__ = summary

    def __post_init__(self) -> None:
        rows, width = self.features.shape
        if len(self.labels) != rows:
            raise ValueError(f"labels has {len(self.labels)} entries: it must have one per row, {rows}")
        for field in ("columns", "low", "high"):
            if len(getattr(self, field)) != width:
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries: features has {width} columns"
                )

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, indices: Tensor | Sequence[int]) -> "TabularDataset":
        """Return the rows at ``indices`` (int64 ``[M]`` or bool ``[N]``), in that order."""
        index = row_index(indices, len(self))
        return replace(self, features=self.features[index], labels=self.labels[index])

    def decode(self, features: Tensor) -> "pd.DataFrame":
        """Turn rows of numbers back into rows in the original units.

        Parameters
        ----------
        features
            ``[M, F]``, as in ``features`` or reconstructed, any float type. Finite.

        Returns
        -------
        pandas.DataFrame
            One column per column of the table: a category is the value with the largest entry; whole numbers
            are rounded.

        Raises
        ------
        ValueError
            If the shape is not ``[M, F]``, or a number is not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.columns):
            raise ValueError(
                f"features has shape {tuple(features.shape)}: it must be [M, {len(self.columns)}]"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features holds NaN or infinity: every number must be finite")
        rows = features.detach().cpu().double().numpy()
        table: dict[str, np.ndarray] = {}
        for column, group in groupby(
            range(len(self.columns)), key=lambda i: self.columns[i].partition("=")[0]
        ):
            first, *rest = group
            _, is_category, _ = self.columns[first].partition("=")
            if is_category:
                values = np.array([self.columns[i].partition("=")[2] for i in (first, *rest)], dtype=object)
                table[column] = values[rows[:, [first, *rest]].argmax(axis=1)]
            else:
                numbers = self.low[first] + rows[:, first] * (self.high[first] - self.low[first])
                table[column] = np.rint(numbers).astype(np.int64) if column in self.whole else numbers
        import pandas as pd

        return pd.DataFrame(table)


def load_tabular(
    name: str, *, split: str = "train", root: str | os.PathLike[str] | None = None
) -> TabularDataset:
    """Load a table by name.

    Parameters
    ----------
    name
        ``"breast-cancer"`` (569 rows, 30 columns; needs no download, has no splits) or ``"adult"`` (32,561
        rows for training and 16,281 for testing, of a census).
    split
        ``"train"`` or ``"test"``.
    root
        Data root; None: see `data_root`.

    Returns
    -------
    TabularDataset
        The rows, in the order of the file.

    Raises
    ------
    ValueError
        If a name or split is unknown.
    MissingData, CorruptData
        If a file is not on this machine, or damaged.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r}: it must be one of {', '.join(_SPLITS)}")
    if name == "breast-cancer":
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer(as_frame=True)
        return _encode(bunch.data, bunch.data, bunch.target.to_numpy(), tuple(bunch.target_names), name)
    if name != "adult":
        raise ValueError(f"name={name!r}: it must be breast-cancer or adult")
    folder = data_root(root)
    train = _read_adult(folder / "adult" / "adult.data")
    rows = train if split == "train" else _read_adult(folder / "adult" / "adult.test")
    classes = ("<=50K", ">50K")
    # The test file ends its labels in a full stop.
    labels = (rows.pop("income").str.rstrip(".") == classes[1]).to_numpy().astype(np.int64)
    return _encode(rows, train.drop(columns="income", errors="ignore"), labels, classes, name)


def fetch_adult(root: Path) -> None:
    """Download the files of "adult" from UCI's repository unless they are there."""
    from gradleak_lib._torchvision import torchvision

    if all((root / "adult" / file).is_file() for file in _ADULT_FILES):
        return
    with staged("adult", root) as folder:
        for file, md5 in _ADULT_FILES.items():
            torchvision.datasets.utils.download_url(_ADULT_URL + file, str(folder / "adult"), file, md5)


def _read_adult(path: Path) -> "pd.DataFrame":
    """Read one file of "adult" as it stands; an unknown value is the category "?"."""
    if not path.is_file():
        raise missing("adult", path)
    if md5_of(path) != _ADULT_FILES[path.name]:
        raise corrupt("adult", path)
    # The first line of the test file starts with a bar.
    import pandas as pd

    return pd.read_csv(path, names=_ADULT_COLUMNS, skipinitialspace=True, comment="|", na_filter=False)


def _encode(
    rows: "pd.DataFrame", train: "pd.DataFrame", labels: np.ndarray, classes: tuple[str, ...], name: str
) -> TabularDataset:
    """Scale numbers and spread categories out, by the ranges and values of the training rows."""
    import pandas as pd

    columns: list[str] = []
    low: list[float] = []
    high: list[float] = []
    blocks: list[np.ndarray] = []
    for column in train.columns:
        if pd.api.types.is_numeric_dtype(train[column]):
            bottom, top = float(train[column].min()), float(train[column].max())
            blocks.append((rows[column].to_numpy(dtype=np.float64)[:, None] - bottom) / (top - bottom))
            columns, low, high = [*columns, column], [*low, bottom], [*high, top]
        else:
            values = sorted(train[column].unique())
            blocks.append(rows[column].to_numpy()[:, None] == np.array(values, dtype=object))
            columns += [f"{column}={value}" for value in values]
            low, high = low + [0.0] * len(values), high + [1.0] * len(values)
    features = torch.from_numpy(np.concatenate(blocks, axis=1, dtype=np.float32))
    whole = tuple(column for column in train.columns if pd.api.types.is_integer_dtype(train[column]))
    return TabularDataset(
        features=features,
        labels=torch.tensor(labels, dtype=torch.int64),
        columns=tuple(columns),
        classes=tuple(map(str, classes)),
        name=name,
        low=tuple(low),
        high=tuple(high),
        whole=whole,
    )
