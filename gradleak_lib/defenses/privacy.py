"""The differential privacy that clipping and Gaussian noise buy."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

# The bound is the least over these orders of Renyi divergence. Those of opacus, 1.1 to 63, are for strong privacy.
# With little noise the best order is close to 1: for k steps, near 1 + z (2 log(1/delta) / k)^0.5, which is 1.02 for
# z = 0.01 and six steps, where 1.1 gives a bound a sixteenth too large; below 1.001 less than a thousandth is to be
# gained. With much noise it is above 63; beyond 1029 the binomial coefficients of opacus overflow.
_ORDERS: list[float] = [
    *(1 + 10 ** (power / 10) for power in range(-30, -10)),
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *range(12, 64),
    *(round(64 * 2 ** (quarters / 4)) for quarters in range(17)),
]


def epsilon(noise_multiplier: float, *, rate: float = 1.0, steps: int = 1, delta: float = 1e-5) -> float:
    """Return epsilon of (epsilon, delta)-differential privacy for steps of the subsampled Gaussian mechanism.

    The mechanism draws every element by itself with probability ``rate``, sums contributions of norm at most C, and
    adds Gaussian noise of standard deviation z C. Neighbouring data sets differ by one element, which only one of
    them has. What an element is depends on the defence:

    - `dp_sgd`: one sample; ``rate`` is the expected batch by the client's number of samples. Batches must be drawn as
      above (Poisson sampling). Batches from a shuffled data set fit that only approximately, and the size of the
      batch, by which the sum is divided, counts as public.
    - ``chain(clip(C), gaussian_noise(z * C))``: one whole update, which is there or is zero; ``rate`` is 1. Any two
      clipped updates are up to 2 C apart: to hide which of them was sent, put in half of z.

    Parameters
    ----------
    noise_multiplier
        z, standard deviation of the noise by the norm C, 0 or more and finite.
    rate
        Probability that an element takes part in a step, in (0, 1].
    steps
        Number of steps, a whole number of 1 or more; each with fresh noise and an own seed.
    delta
        Probability with which epsilon need not hold, in (0, 1); less than one by the number of elements.

    Returns
    -------
    float
        An upper bound, 0 or more; infinity without noise.

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    Abadi et al. 2016; McMahan et al. 2018 (updates as elements); Mironov 2017 and Mironov et al. 2019 (the bound in
    terms of Renyi divergence); Balle et al. 2020, Thm. 21 (its conversion); Yousefpour et al. 2021 (opacus, which
    computes both).
    """
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier must be 0 or more and finite, got {noise_multiplier}")
    _check(rate, steps, delta)
    if noise_multiplier < 1e-100:  # opacus divides by the square, which must not vanish
        return math.inf
    from opacus.accountants import RDPAccountant  # here, since it takes more than a second

    accountant = RDPAccountant()
    accountant.history = [(float(noise_multiplier), float(rate), int(steps))]
    with _quiet():
        spent = accountant.get_epsilon(delta, alphas=_ORDERS)
    return max(0.0, spent)  # the conversion falls below zero for very much noise


def noise_multiplier_for(epsilon: float, *, rate: float = 1.0, steps: int = 1, delta: float = 1e-5) -> float:
    """Return the noise multiplier at which `epsilon` stays just below a given value.

    Parameters
    ----------
    epsilon
        The value, positive and finite.
    rate, steps, delta
        As for `epsilon`.

    Returns
    -------
    float
        z, at which epsilon is at most the value, and less by at most a thousandth of it.

    Raises
    ------
    ValueError
        If a number is out of range, or epsilon is so small that not even a noise multiplier of a million would do.

    References
    ----------
    Yousefpour et al. 2021 (opacus).
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    _check(rate, steps, delta)
    from opacus.accountants.analysis.rdp import get_privacy_spent  # here, since it takes more than a second
    from opacus.accountants.utils import get_noise_multiplier

    with _quiet():
        least, _ = get_privacy_spent(orders=_ORDERS, rdp=[0.0] * len(_ORDERS), delta=delta)
    too_small = f"epsilon must be larger, got {epsilon}: not even a noise multiplier of a million gives it"
    if epsilon <= least:
        raise ValueError(too_small)
    try:
        with _quiet():
            return float(
                get_noise_multiplier(
                    target_epsilon=float(epsilon),
                    target_delta=float(delta),
                    sample_rate=float(rate),
                    steps=int(steps),
                    accountant="rdp",
                    epsilon_tolerance=1e-3 * epsilon,
                    alphas=_ORDERS,
                )
            )
    except ValueError as error:
        raise ValueError(too_small) from error


def _check(rate: float, steps: int, delta: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be a whole number of 1 or more, got {steps!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the one warning that remains where noise is so little, or so much, that the best order is the last."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        yield
