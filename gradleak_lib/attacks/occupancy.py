"""How many samples of a batch fall alone into a bin: the arithmetic behind the imprint attack.

A sample is recovered exactly when no other sample of the batch shares its bin. With bins of equal mass under
the distribution of the data, the occupancy of the bins is multinomial, and the expectation is elementary.
"""

import math
from fractions import Fraction

import numpy as np


def expected_recovered(n: int, k: int, *, public: int | None = None) -> float:
    """Expected number of samples that fall alone into a bin.

    For a server that knows the distribution, every bin has mass ``1 / k`` and the answer is ``n (1 - 1/k)^(n - 1)``.
    For a server whose bin edges are quantiles of ``public`` samples, the mass of a bin is itself random,
    Beta(a, public + 1 - a) with ``a = (public + 1) / k``, and the answer is
    ``k n B(a + 1, public + n - a) / B(a, public + 1 - a)``.

    Parameters
    ----------
    n
        Samples in the batch, independent and identically distributed; at least 1.
    k
        Bins of equal (expected) mass; at least 2.
    public
        Number of public samples that the edges are quantiles of, at least ``k - 1``; None when the server
        knows the distribution.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    The quantity of Fowl et al. 2022, Prop. 1, for independent samples. With ``public = k - 1`` it equals
    `proposition_1` before the residual term.
    """
    _check(n, k)
    if public is None:
        return n * (1 - 1 / k) ** (n - 1)
    if public < k - 1:
        raise ValueError(f"public must be at least k - 1 = {k - 1} to place the edges, got {public}")
    a = (public + 1) / k
    from scipy.special import betaln

    return k * n * math.exp(betaln(a + 1, public + n - a) - betaln(a, public + 1 - a))


def proposition_1(n: int, k: int, *, residual: bool = True) -> float:
    """The expectation as printed in the paper, computed with whole numbers.

    It averages over all ways to write ``n`` as an ordered sum of ``k`` occupancies, each with the same weight.

    Parameters
    ----------
    n, k
        Samples in the batch and bins; the paper asks for ``k > n > 2``.
    residual
        Include the ``- n/k`` of the printed correction term.

    Raises
    ------
    ValueError
        Unless ``k > n > 2``.

    References
    ----------
    Fowl et al. 2022, Prop. 1 and App. A.1.
    """
    if not k > n > 2:
        raise ValueError(f"Proposition 1 is stated for k > n > 2, got n={n}, k={k}")
    ways = sum(
        i
        * math.comb(k, i)
        * sum(math.comb(k - i, j) * math.comb(n - i - j - 1, j - 1) for j in range(1, (n - i) // 2 + 1))
        for i in range(1, n - 1)
    )
    value = Fraction(ways + n * math.comb(k, n), math.comb(k + n - 1, k - 1))
    return float(value - Fraction(n, k) if residual else value)


def bins_needed(n: int, fraction: float, *, printed: bool = False) -> int:
    """Smallest number of bins with which more than a fraction of the batch is expected to be recovered.

    Parameters
    ----------
    n
        Samples in the batch, at least 1 (3 for ``printed``).
    fraction
        In (0, 1).
    printed
        Count with `proposition_1` instead of `expected_recovered`.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    expected = proposition_1 if printed else expected_recovered
    low, high = (n if printed else 1), (n if printed else 1) + 1
    while expected(n, high) <= fraction * n:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if expected(n, middle) <= fraction * n else (low, middle)
    return high


def simulate_recovered(
    n: int, k: int, *, batches: int, seed: int = 0, public: int | None = None
) -> np.ndarray:
    """Number of samples alone in their bin, in simulated batches.

    Parameters
    ----------
    n, k, public
        As for `expected_recovered`; with ``public``, new edges are drawn for every batch.
    batches
        Batches to simulate.
    seed
        Seed of the simulation.

    Returns
    -------
    np.ndarray
        int64 ``[batches]``, each in ``[0, n]``.
    """
    _check(n, k)
    random = np.random.default_rng(seed)
    if public is None:
        return (random.multinomial(n, np.full(k, 1 / k), size=batches) == 1).sum(1)
    shape = (public + 1) / k
    masses = random.dirichlet(np.full(k, shape), size=batches)
    return np.array([(random.multinomial(n, mass) == 1).sum() for mass in masses])


def one_shot_probability(n: int, mass: float) -> float:
    """Probability that exactly one of ``n`` samples falls into a bin: ``n p (1 - p)^(n - 1)``.

    Its maximum, at ``p = 1/n``, is ``(1 - 1/n)^(n - 1)`` and falls to 1/e as ``n`` grows.

    Parameters
    ----------
    n
        Samples behind the update, at least 1.
    mass
        Probability ``p`` of the bin, in [0, 1].

    References
    ----------
    The quantity of Fowl et al. 2022, Sec. 4.2 and Fig. 2b, for independent samples.
    """
    if n < 1 or not 0 <= mass <= 1:
        raise ValueError(f"n must be at least 1 and mass in [0, 1], got {n}, {mass}")
    return n * mass * (1 - mass) ** (n - 1)


def one_shot_proposition_1(n: int, k: int) -> float:
    """Probability of a successful one-shot attack as Proposition 1 counts it: one bin's share of the total.

    ``n (k - 1) / ((n + k - 1)(n + k - 2))``, the chance that one given bin of ``k`` holds exactly one of ``n``
    samples when all occupancies are equally likely. At best 1/4 for large ``n``.

    References
    ----------
    Fowl et al. 2022, Sec. 4.2 and Fig. 2b.
    """
    _check(n, k)
    return n * (k - 1) / ((n + k - 1) * (n + k - 2))


def _check(n: int, k: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if k < 2:
        raise ValueError(f"k must be at least 2 bins, got {k}")
