"""Epsilon against opacus called by hand, and against the closed form of the Gaussian mechanism."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis.rdp import get_privacy_spent

from gradleak_lib.defenses import epsilon, noise_multiplier_for
from gradleak_lib.defenses.privacy import _ORDERS

noises = st.floats(0.05, 20)
rates = st.sampled_from([0.001, 0.02, 0.2, 0.8, 1.0])


def by_opacus(noise_multiplier, rate, steps, delta, **orders):
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return accountant.get_epsilon(delta, **orders)


@settings(max_examples=5, deadline=None)
@given(noises, rates, st.integers(1, 50), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_what_opacus_says_and_never_looser_than_its_own_orders(noise, rate, steps, delta):
    here = epsilon(noise, rate=rate, steps=steps, delta=delta)
    assert here == pytest.approx(max(0, by_opacus(noise, rate, steps, delta, alphas=_ORDERS)), rel=1e-12)
    assert here <= max(0, by_opacus(noise, rate, steps, delta)) * (1 + 1e-12)
    assert set(RDPAccountant.DEFAULT_ALPHAS) <= set(_ORDERS)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 100), st.integers(1, 10_000), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_without_sampling_it_is_the_closed_form(noise, steps, delta):
    orders = np.array(_ORDERS)
    divergences = steps * orders / (2 * noise**2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = get_privacy_spent(orders=orders, rdp=divergences, delta=delta)
    assert epsilon(noise, steps=steps, delta=delta) == pytest.approx(expected, rel=1e-9)
    # The best real order is near this one, and the plain conversion of Mironov 2017 is never tighter than Balle's.
    best = math.sqrt(2 * noise**2 * math.log(1 / delta) / steps)
    if 1e-3 <= best <= 1000:
        plain = steps * (1 + best) / (2 * noise**2) + math.log(1 / delta) / best
        assert epsilon(noise, steps=steps, delta=delta) <= plain * 1.02
    limit = steps / (2 * noise**2)
    assert best > 1e-3 or epsilon(noise, steps=steps, delta=delta) <= limit * 1.0021


@settings(max_examples=5, deadline=None)
@given(noises, st.floats(1, 4), rates, st.integers(1, 500), st.integers(1, 500))
def test_monotone(noise, factor, rate, steps, more):
    here = epsilon(noise, rate=rate, steps=steps)
    assert epsilon(noise * factor, rate=rate, steps=steps) <= here * (1 + 1e-9)
    assert epsilon(noise, rate=rate, steps=steps + more) >= here * (1 - 1e-9)
    assert epsilon(noise, rate=rate, steps=steps, delta=1e-6) >= here * (1 - 1e-9)
    assert epsilon(noise, rate=min(1, 1.1 * rate), steps=steps) >= here * (1 - 1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.01])
def test_hardly_any_noise_is_a_large_number_and_no_warning(rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = [epsilon(z, rate=rate, steps=6) for z in (0.1, 0.03, 0.01, 1e-4, 1e-8, 1e-50)]
        assert values == sorted(values)
        assert math.isfinite(values[2])
        assert values[2] > 1e4
        assert all(epsilon(z, rate=rate, steps=6) == math.inf for z in (1e-200, 5e-324, 0.0, 0))
        assert 0 <= epsilon(1e4, rate=min(rate, 0.01), steps=6) < 0.01
        assert epsilon(1e4, rate=min(rate, 0.01), steps=6, delta=0.5) == 0


def test_known_values():
    # The example of opacus' own documentation is at its default orders, all of which are among ours.
    assert [round(epsilon(z, steps=6), 2) for z in (0.03, 0.1, 1, 10)] == [3722.33, 414.86, 13.78, 0.99]


@pytest.mark.parametrize("rate", [1.0, 0.05])
@pytest.mark.parametrize("value", [0.05, 1.0, 8.0, 5000.0])
def test_the_noise_for_an_epsilon_gives_it(rate, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise = noise_multiplier_for(value, rate=rate, steps=20, delta=1e-6)
        assert 0.998 * value <= epsilon(noise, rate=rate, steps=20, delta=1e-6) <= value


def test_importing_the_defences_does_not_import_opacus():
    code = "import sys, gradleak_lib.defenses; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier must be 0 or more and finite, got -1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be 0 or more and finite, got nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be 0 or more and finite, got inf"),
        ({"rate": 0.0}, r"rate must lie in \(0, 1\], got 0.0"),
        ({"rate": 1.5}, r"rate must lie in \(0, 1\], got 1.5"),
        ({"rate": math.nan}, r"rate must lie in \(0, 1\], got nan"),
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of 1 or more, got 2.5"),
        ({"delta": 0.0}, r"delta must lie in \(0, 1\), got 0.0"),
        ({"delta": 1.0}, r"delta must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        epsilon(**({"noise_multiplier": 1.0} | options))
    if "noise_multiplier" not in options:
        with pytest.raises(ValueError, match=message):
            noise_multiplier_for(1.0, **options)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_epsilon(value):
    with pytest.raises(ValueError, match="epsilon must be positive and finite, got"):
        noise_multiplier_for(value)


@pytest.mark.parametrize(("rate", "steps", "value"), [(1.0, 1, 1e-4), (0.5, 1, 1e-4), (1.0, 10**12, 0.1)])
def test_an_epsilon_that_no_noise_gives(rate, steps, value):
    with pytest.raises(ValueError, match="epsilon must be larger, got"):
        noise_multiplier_for(value, rate=rate, steps=steps)
