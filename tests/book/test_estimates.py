"""Estimates with their intervals, and the verdicts that follow."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradleak_lib.book import estimates
from gradleak_lib.book.estimates import Estimand, Rule, estimate, judge


def normal(count=40, mean=0.0, deviation=1.0, seed=0, **columns):
    values = np.random.default_rng(seed).normal(mean, deviation, count)
    return pd.DataFrame({"unit": range(count), "value": values, **columns})


def of(holds, **more):
    return Estimand(holds, "value", **({"unit": "unit"} | more))


def rule(*estimands, **more):
    return Rule({str(number): one for number, one in enumerate(estimands)}, "why", **more)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-5, 5), st.sampled_from(["mean", "median"]))
def test_the_interval_holds_the_estimate_and_moves_with_the_rows(seed, shift, statistic):
    rows = normal(seed=seed)
    first = estimate(of((0, None), statistic=statistic), rows)
    moved = estimate(of((0, None), statistic=statistic), rows.assign(value=rows.value + shift))
    assert first.low <= first.value <= first.high
    assert first.units == 40
    assert moved.value == pytest.approx(first.value + shift)
    assert moved.low == pytest.approx(first.low + shift, abs=1e-6)


def test_the_bootstrap_agrees_with_student_where_the_values_are_normal():
    rows = normal(200, mean=3)
    low, high = stats.t.interval(0.95, 199, loc=rows.value.mean(), scale=stats.sem(rows.value))
    found = estimate(of((0, None)), rows)
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_several_rows_of_a_unit_count_as_their_mean():
    rows = normal(30)
    twice = pd.concat([rows.assign(value=rows.value + 1), rows.assign(value=rows.value - 1)])
    assert estimate(of((0, None)), twice) == estimate(of((0, None)), rows)


def test_a_share_has_the_binomial_interval():
    rows = pd.DataFrame({"unit": range(100), "value": [1] * 37 + [0] * 63})
    found = estimate(of((0, 1), statistic="share"), rows)
    exact = stats.binomtest(37, 100).proportion_ci()
    assert (found.value, found.low, found.high) == (0.37, exact.low, exact.high)
    with pytest.raises(ValueError, match="0 or 1"):
        estimate(of((0, 1), statistic="share"), rows.assign(value=0.5))


def test_sides_are_compared_unit_by_unit():
    rows = normal(50, deviation=10)
    both = pd.concat([rows.assign(side="a"), rows.assign(side="b", value=rows.value + 2)])
    sides = {"rows": "side == 'b'", "against": "side == 'a'"}
    found = estimate(of((0, None), **sides), both)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))  # whatever the units are
    doubled = pd.concat([rows.assign(side="a", value=7.0), rows.assign(side="b", value=14.0)])
    assert estimate(of((0, None), compare="ratio", **sides), doubled).value == 2
    missing = both[~((both.side == "a") & (both.unit < 10))]
    assert estimate(of((0, None), **sides), missing).units == 40


def test_expressions_and_exact_numbers():
    rows = pd.DataFrame({"unit": range(25), "value": [4.0] * 25, "whole": [8] * 25})
    assert estimate(Estimand((50, 50), "100 * value / whole", unit="unit"), rows).value == 50
    one = estimate(Estimand((1, 5), "value", statistic="exact"), rows[:1])
    assert (one.value, one.units, one.place) == (4, 0, "inside")
    with pytest.raises(ValueError, match="must be one"):
        estimate(Estimand((1, 5), "value", statistic="exact"), rows)


@pytest.mark.parametrize(
    ("holds", "place"),
    [
        ((2, 4), "inside"),
        ((None, 2), "outside"),
        ((4, None), "outside"),
        ((3.01, 9), "across"),
        ((0, None), "inside"),
    ],
)
def test_where_an_interval_lies(holds, place):
    assert estimate(of(holds), normal(100, mean=3)).place == place


def test_what_would_decide():
    """The number of units at which the interval would just miss the border."""
    rows = normal(100, mean=3)
    found = estimate(of((None, 3.2)), rows)
    assert found.place == "across"
    more = pd.concat([rows] * math.ceil(found.would_decide / 100 * 1.2)).reset_index(drop=True)
    assert estimate(of((None, 3.2)), more.assign(unit=more.index)).place == "inside"
    few = estimate(of((None, 100)), normal(5))
    assert (few.place, few.would_decide) == ("across", estimates.FEWEST)
    nothing = estimate(of((0, None)), normal(10)[:0])
    assert nothing.place == "across"


@pytest.mark.parametrize(
    ("holds", "more", "grade"),
    [
        ([(2, 4), (0, None)], {}, "reproduced"),
        ([(2, 4), (5, None)], {}, "contradicted"),
        ([(2, 4), (5, None)], {"reduced": "size"}, "not reproduced"),
        ([(2, 4), (3.01, None)], {}, "undecided"),
        ([(3.01, None), (5, None)], {}, "contradicted"),
        ([(2, 4)], {"controls": {"c": (5, None)}}, "undecided"),
        ([(5, None)], {"controls": {"c": (5, None)}}, "undecided"),
        ([(2, 4)], {"controls": {"c": (2, None)}}, "reproduced"),
    ],
)
def test_grades(holds, more, grade):
    more = dict(more)
    if "controls" in more:
        more["controls"] = {name: of(one) for name, one in more["controls"].items()}
    verdict = judge(rule(*map(of, holds), **more), normal(100, mean=3))
    assert verdict.grade == grade
    assert bool(verdict.would_decide) == (grade == "undecided")


def test_fewer_than_twenty_units_decide_nothing():
    verdict = judge(rule(of((2, 4))), normal(19, mean=3, deviation=0.01))
    assert verdict.grade == "undecided"
    assert "20 units" in verdict.would_decide


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3))
def test_a_changed_row_changes_its_verdict(shift):
    rows = normal(50)
    entry = rule(of((-10, 10)))
    assert judge(entry, rows.assign(value=rows.value + shift)).grade == "reproduced"
    assert judge(entry, rows.assign(value=rows.value + shift + 100)).grade == "contradicted"


@pytest.mark.parametrize(
    "wrong",
    [
        {"holds": (None, None)},
        {"holds": (2, 1)},
        {"holds": (0, 1), "statistic": "mode"},
        {"holds": (0, 1), "unit": ""},
        {"holds": (0, 1), "statistic": "share", "against": "value > 0"},
    ],
)
def test_rules_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"must|could|only"):
        Estimand(**({"value": "value", "unit": "unit"} | wrong))
    with pytest.raises(ValueError, match="0: "):
        judge(rule(Estimand((0, 1), "no_such_column", unit="unit")), normal(30))
