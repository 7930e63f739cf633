"""The arithmetic of bins: exact formulas against brute force and against the paper's."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak_lib.attacks import occupancy


@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 4), (4, 5), (5, 3)])
def test_expectation_equals_brute_force_over_all_assignments(n, k):
    singles = [sum(np.bincount(bins, minlength=k) == 1) for bins in product(range(k), repeat=n)]
    assert occupancy.expected_recovered(n, k) == pytest.approx(np.mean(singles))


@pytest.mark.parametrize(("n", "k"), [(3, 4), (4, 5), (5, 7)])
def test_proposition_1_is_the_mean_over_equally_weighted_occupancies(n, k):
    vectors = [v for v in product(range(n + 1), repeat=k) if sum(v) == n]
    assert len(vectors) == comb(n + k - 1, k - 1)
    mean = np.mean([v.count(1) for v in vectors])
    assert occupancy.proposition_1(n, k, residual=False) == pytest.approx(mean)
    assert occupancy.proposition_1(n, k) == pytest.approx(mean - n / k)


def test_the_papers_156_bins_and_the_exact_92():
    assert occupancy.proposition_1(64, 156) == pytest.approx(32.004, abs=5e-4)
    assert occupancy.expected_recovered(64, 156) == pytest.approx(42.68, abs=5e-3)
    assert occupancy.bins_needed(64, 0.5, printed=True) == 156
    assert occupancy.bins_needed(64, 0.5) == 92


@given(n=st.integers(3, 60), extra=st.integers(1, 200))
def test_proposition_1_is_the_expectation_with_one_public_sample_per_edge(n, extra):
    k = n + extra
    exact = occupancy.expected_recovered(n, k, public=k - 1)
    assert occupancy.proposition_1(n, k, residual=False) == pytest.approx(exact, rel=1e-9)
    assert k * occupancy.one_shot_proposition_1(n, k) == pytest.approx(exact, rel=1e-9)


@given(n=st.integers(1, 300), k=st.integers(2, 300), public=st.integers(0, 5000))
def test_public_samples_never_beat_knowing_the_distribution(n, k, public):
    public += k - 1
    value = occupancy.expected_recovered(n, k, public=public)
    # Few samples in many bins is where uneven bins hurt; with n > 2k uneven bins can help.
    if n <= k:
        assert value <= occupancy.expected_recovered(n, k) + 1e-9
    assert 0 <= value <= min(n, k) + 1e-9


def test_many_public_samples_are_as_good_as_the_distribution():
    assert occupancy.expected_recovered(64, 128, public=10**7) == pytest.approx(
        occupancy.expected_recovered(64, 128), rel=1e-4
    )


@pytest.mark.parametrize("public", [None, 155, 1000])
def test_simulation_agrees_with_the_formula(public):
    counts = occupancy.simulate_recovered(64, 156, batches=4000, seed=3, public=public)
    error = counts.std(ddof=1) / len(counts) ** 0.5
    assert abs(counts.mean() - occupancy.expected_recovered(64, 156, public=public)) < 4 * error


@given(n=st.integers(2, 5000), factor=st.floats(0.01, 10))
def test_one_shot_is_best_at_one_over_n(n, factor):
    best = occupancy.one_shot_probability(n, 1 / n)
    assert best == pytest.approx((1 - 1 / n) ** (n - 1))
    assert occupancy.one_shot_probability(n, min(1.0, factor / n)) <= best + 1e-12
    assert best > 1 / np.e


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: occupancy.expected_recovered(0, 5), "n must"),
        (lambda: occupancy.expected_recovered(5, 1), "k must"),
        (lambda: occupancy.expected_recovered(5, 5, public=3), "public"),
        (lambda: occupancy.proposition_1(5, 5), "k > n > 2"),
        (lambda: occupancy.bins_needed(5, 1.0), "fraction"),
        (lambda: occupancy.one_shot_probability(5, 1.5), "mass"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ValueError, match=word):
        call()
