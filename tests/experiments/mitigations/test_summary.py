"""Fronts, matched utility, and what is left of a leak."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.experiments.mitigations import at_utility, leak_left, pareto_front

# Few values, so that ties are common; infinities and NaN among them.
values = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 1e308, -1e308, math.inf, -math.inf, math.nan])
points = st.lists(st.tuples(values, values), max_size=12)


def beats(first, second):
    return first[0] <= second[0] and first[1] >= second[1] and (first[0] < second[0] or first[1] > second[1])


@settings(max_examples=300, deadline=None)
@given(points, st.randoms(use_true_random=False))
def test_the_front_is_what_nothing_beats(drawn, random):
    leak, utility = ([point[axis] for point in drawn] for axis in (0, 1))
    front = pareto_front(leak, utility)
    assert front.shape == (len(drawn),)
    assert front.dtype == bool
    on = [point for point, here in zip(drawn, front, strict=True) if here]
    for point, here in zip(drawn, front, strict=True):
        if any(map(math.isnan, point)):
            assert not here
        elif here:
            assert not any(beats(other, point) for other in drawn)
        else:
            assert any(beats(other, point) for other in on)
    order = list(range(len(drawn)))
    random.shuffle(order)
    assert (
        pareto_front([leak[i] for i in order], [utility[i] for i in order]).tolist() == front[order].tolist()
    )


def test_front_by_hand():
    assert pareto_front([0.1, 0.2, 0.2, 0.3, 0.05], [0.5, 0.9, 0.8, 0.9, 0.1]).tolist() == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert pareto_front([1.0, 1.0], [2.0, 2.0]).tolist() == [True, True]  # equals do not beat each other
    assert pareto_front([math.inf, math.inf], [1.0, 2.0]).tolist() == [False, True]
    assert pareto_front([], []).tolist() == []
    for bad in (([1.0], [1.0, 2.0]), (1.0, 1.0), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match=r"leak and utility must both be \[N\], got"):
            pareto_front(*bad)


@settings(max_examples=200, deadline=None)
@given(points, values)
def test_the_least_leak_that_keeps_a_utility(drawn, least):
    leak, utility = ([point[axis] for point in drawn] for axis in (0, 1))
    found = at_utility(leak, utility, least)
    kept = [one for one, other in drawn if other >= least and not math.isnan(one)]
    assert (math.isnan(found) and not kept) or found == min(kept)


def test_matched_utility_by_hand():
    leak, utility = [0.9, 0.5, 0.1], [1.0, 0.8, 0.3]
    assert [at_utility(leak, utility, least) for least in (0.0, 0.8, 0.9)] == [0.1, 0.5, 0.9]
    assert math.isnan(at_utility(leak, utility, 1.1))
    assert at_utility([math.nan, 0.5], [1.0, 1.0], 0.9) == 0.5
    with pytest.raises(ValueError, match=r"leak and utility must both be \[N\], got"):
        at_utility([0.1], [1.0, 2.0], 0.5)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 2), st.floats(0, 1), st.floats(1e-3, 1))
def test_what_is_left_of_a_leak(score, chance, lead):
    undefended = chance + lead
    left = leak_left(score, undefended, chance)
    assert left >= 0
    assert (left == 0) == (score <= chance) or abs(score - chance) < 1e-300
    assert leak_left(undefended, undefended, chance) == 1
    assert leak_left(chance, undefended, chance) == 0
    assert leak_left(score, undefended, chance) <= leak_left(score + 0.1, undefended, chance)
    if score > chance:
        assert chance + left * (undefended - chance) == pytest.approx(score)


def test_what_is_not_measured_is_not_stopped():
    assert math.isnan(leak_left(math.nan, 0.9, 0.1))
    for undefended, chance in ((0.1, 0.1), (0.1, 0.2), (math.nan, 0.1), (0.9, math.nan)):
        with pytest.raises(ValueError, match=f"the attack scores {undefended}, and chance {chance}"):
            leak_left(0.5, undefended, chance)
    assert isinstance(leak_left(np.float64(0.5), 0.9, 0.1), float)
