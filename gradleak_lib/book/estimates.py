"""What a table of measurements says of a claim: an estimate with its 95 % interval, and the verdict that follows.

An interval is taken over units (batches, images, rounds, seeds) that were drawn independently; several rows of one
unit count as their mean. No grade counts settings.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

Statistic = Literal["mean", "median", "share", "exact"]
Place = Literal["inside", "outside", "across"]

FEWEST = 20  # units that can decide anything
RESAMPLES = 9_999


@dataclass(frozen=True)
class Estimand:
    """What is to be estimated from the rows of a study, and where it has to lie for the claim to hold.

    Parameters
    ----------
    holds
        Closed interval; None for an open end.
    value
        A column, or an expression of columns as `pandas.DataFrame.eval` takes it.
    rows
        Which rows, as `pandas.DataFrame.query` takes it; empty: all.
    unit
        Column that tells the units apart; empty for ``"exact"``.
    statistic
        ``"mean"`` or ``"median"`` over units, with a bootstrap interval (BCa); ``"share"`` of units with the value 1
        among 0 and 1, with the binomial interval of Clopper and Pearson; ``"exact"``: one number that nothing random
        enters, such as a count of parameters.
    against
        Rows to compare with, unit by unit; empty: nothing. Only units that both sides have are compared.
    compare
        ``"difference"`` from them, or ``"ratio"`` of the two means.
    """

    holds: tuple[float | None, float | None]
    value: str
    rows: str = ""
    unit: str = ""
    statistic: Statistic = "mean"
    against: str = ""
    compare: Literal["difference", "ratio"] = "difference"

    def __post_init__(self) -> None:
        """Check what can be checked without rows."""
        low, high = self.holds
        if low is None and high is None:
            raise ValueError("holds must have at least one end, or nothing could speak against the claim")
        if low is not None and high is not None and low > high:
            raise ValueError(f"holds must ascend, got {self.holds}")
        if self.statistic not in ("mean", "median", "share", "exact"):
            raise ValueError(f"statistic must be mean, median, share or exact, got {self.statistic!r}")
        if self.compare not in ("difference", "ratio"):
            raise ValueError(f"compare must be difference or ratio, got {self.compare!r}")
        if (self.unit == "") != (self.statistic == "exact"):
            raise ValueError("unit must name a column, except where the statistic is exact")
        if self.against and self.statistic not in ("mean", "median"):
            raise ValueError("only a mean or a median can be compared with other rows")


@dataclass(frozen=True)
class Estimate:
    """One estimand, estimated.

    Parameters
    ----------
    estimand
        What was estimated.
    value, low, high
        The estimate and its interval; NaN where there are no units.
    units
        How many units stand behind it; 0 for an exact number.
    """

    estimand: Estimand
    value: float
    low: float
    high: float
    units: int

    @property
    def place(self) -> Place:
        """Where the interval lies: inside that of the claim, outside, or across a border (or on too few units)."""
        least, most = self.estimand.holds
        if math.isnan(self.value) or (self.estimand.statistic != "exact" and self.units < FEWEST):
            return "across"
        if (least is not None and self.high < least) or (most is not None and self.low > most):
            return "outside"
        if (least is None or self.low >= least) and (most is None or self.high <= most):
            return "inside"
        return "across"

    @property
    def would_decide(self) -> int | None:
        """Units that would decide at this spread, where these do not; None where no number can be given."""
        if self.place != "across":
            return None
        borders = [end for end in self.estimand.holds if end is not None and self.low <= end <= self.high]
        needed = FEWEST
        for border in borders:
            distance = abs(self.value - border)
            if distance == 0:
                return None
            width = self.value - self.low if border < self.value else self.high - self.value
            needed = max(needed, math.ceil(self.units * (width / distance) ** 2))
        return None if math.isnan(self.value) and borders else needed


def estimate(estimand: Estimand, rows: pd.DataFrame) -> Estimate:
    """Estimate one estimand from the rows of a study.

    Raises
    ------
    ValueError
        If the rows have not the columns that it names, a share is taken of other numbers than 0 and 1, or an exact
        number is not one number.
    """
    first = _by_unit(estimand, rows, estimand.rows)
    if estimand.statistic == "exact":
        if len(first) != 1:
            raise ValueError(f"{estimand.value}: an exact number must be one, got {len(first)}")
        value = float(first[0])
        return Estimate(estimand, value, value, value, 0)
    sides = [first]
    if estimand.against:
        both = pd.concat([first, _by_unit(estimand, rows, estimand.against)], axis=1, join="inner")
        sides = [both.iloc[:, 0], both.iloc[:, 1]]
    arrays = [side.to_numpy(dtype=float) for side in sides]
    units = len(arrays[0])
    if units == 0:
        return Estimate(estimand, math.nan, math.nan, math.nan, 0)
    if estimand.statistic == "share":
        if not np.isin(arrays[0], (0, 1)).all():
            raise ValueError(f"{estimand.value}: a share is of units with 0 or 1; take the mean instead")
        hits = int(arrays[0].sum())
        interval = stats.binomtest(hits, units).proportion_ci()
        return Estimate(estimand, hits / units, float(interval.low), float(interval.high), units)
    middle = np.mean if estimand.statistic == "mean" else np.median
    if estimand.against and estimand.compare == "difference":
        arrays = [arrays[0] - arrays[1]]

    def statistic(*samples: np.ndarray, axis: int = -1) -> Any:
        found = [middle(sample, axis=axis) for sample in samples]
        with np.errstate(divide="ignore", invalid="ignore"):
            return found[0] if len(found) == 1 else found[0] / found[1]

    value = float(statistic(*arrays))
    low, high = _bootstrap(arrays, statistic)
    return Estimate(estimand, value, low, high, units)


def _bootstrap(arrays: Sequence[np.ndarray], statistic: Any) -> tuple[float, float]:
    """BCa interval; a point where all units agree, and none where there is one unit."""
    if len(arrays[0]) < 2:
        return math.nan, math.nan
    options = {"paired": len(arrays) > 1, "n_resamples": RESAMPLES, "vectorized": True, "batch": 1000}
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # Where nearly all units agree, BCa has no answer, says so, and the quantiles themselves are taken.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.bootstrap(arrays, statistic, method=method, rng=0, **options).confidence_interval
        if not math.isnan(found.low + found.high):
            break
    return float(found.low), float(found.high)


def _by_unit(estimand: Estimand, rows: pd.DataFrame, which: str) -> pd.Series:
    """The value of each unit among some rows; rows without a value are left out."""
    some = rows.query(which) if which else rows
    values = some.eval(estimand.value)
    if not isinstance(values, pd.Series):
        values = pd.Series(values, index=some.index)
    values = values.astype(float)
    if estimand.unit:
        values = values.groupby(some[estimand.unit]).mean()
    return values.dropna()


@dataclass(frozen=True)
class Rule:
    """How a study decides a claim, written before its numbers are known.

    Parameters
    ----------
    estimands
        By name; all must agree.
    why
        Where the intervals come from: the paper's own spread, or our reading of a sentence.
    reduced
        In what the set-up is smaller than the paper's; empty: it is faithful.
    controls
        By name: what must hold for the claim to have a meaning at all.
    """

    estimands: Mapping[str, Estimand]
    why: str
    reduced: str = ""
    controls: Mapping[str, Estimand] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a rule makes of the rows of a study."""

    rule: Rule
    estimates: Mapping[str, Estimate]
    controls: Mapping[str, Estimate]

    @property
    def grade(self) -> str:
        """One of `GRADES`."""
        places = [one.place for one in self.estimates.values()]
        if any(one.place != "inside" for one in self.controls.values()):
            return "undecided"
        if "outside" in places:
            return "not reproduced" if self.rule.reduced else "contradicted"
        return "reproduced" if all(place == "inside" for place in places) else "undecided"

    @property
    def would_decide(self) -> str:
        """What it would take to decide, in words; empty where it is decided."""
        if self.grade != "undecided":
            return ""
        failed = [name for name, one in self.controls.items() if one.place != "inside"]
        if failed:
            return f"The control did not hold: {', '.join(failed)}."
        numbers = [one.would_decide for one in self.estimates.values() if one.place == "across"]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return "The estimate lies on the border: no number of units is known that would decide."
        return f"About {max(known):,} units would decide at this spread."


GRADES = {
    "reproduced": "every 95 % interval lies inside the interval of the claim",
    "contradicted": "an interval lies outside, and the set-up is the paper's",
    "not reproduced": "an interval lies outside, at a set-up that is reduced; it says in what",
    "undecided": "an interval lies across the border, there are fewer than "
    f"{FEWEST} units, or a control failed; it says how many units would decide",
    "not testable here": "data or weights cannot be had; the number is the paper's own",
}


def judge(rule: Rule, rows: pd.DataFrame) -> Verdict:
    """Judge one claim by the rows of a study.

    Raises
    ------
    ValueError
        As `estimate` does, with the name of the estimand before it.
    """

    def of(estimands: Mapping[str, Estimand]) -> dict[str, Estimate]:
        found = {}
        for name, one in estimands.items():
            try:
                found[name] = estimate(one, rows)
            except (ValueError, KeyError, SyntaxError, pd.errors.UndefinedVariableError) as error:
                raise ValueError(f"{name}: {error}") from error
        return found

    return Verdict(rule, of(rule.estimands), of(rule.controls))
