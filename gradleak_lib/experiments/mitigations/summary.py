"""From scores to a comparison: what a defence leaves of a leak, and what it costs."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def leak_left(score: float, undefended: float, chance: float) -> float:
    """Share of an attack's lead over chance that a defence leaves.

    Parameters
    ----------
    score
        Of the attack against the defence, higher for a better attack.
    undefended
        Of the attack without a defence.
    chance
        Of an attacker who sees no update. Under a defence that changes the task (fewer candidates, sums), the chance
        of that task.

    Returns
    -------
    float
        1: all of it is left. 0: nothing, or less than nothing. NaN where the score is.

    Raises
    ------
    ValueError
        If the attack without a defence does not beat chance, so that there is nothing to take away.
    """
    if not undefended > chance:
        raise ValueError(f"without a defence the attack scores {undefended}, and chance {chance}")
    left = (score - chance) / (undefended - chance)
    return left if math.isnan(left) else max(0.0, left)


def pareto_front(leak: ArrayLike, utility: ArrayLike) -> NDArray[np.bool_]:
    """Tell which points no other point beats.

    Parameters
    ----------
    leak, utility
        ``[N]``: less leak is better, more utility is better; NaN for a point that does not take part.

    Returns
    -------
    np.ndarray
        bool ``[N]``: no other point has at most that leak and at least that utility, and one of both strictly.

    Raises
    ------
    ValueError
        If they differ in length.
    """
    leaks, utilities = _strengths(leak, utility)
    # Row: the one that may beat the column. Compared, not subtracted, which tells two infinite numbers nothing.
    no_worse = (leaks[:, None] <= leaks) & (utilities[:, None] >= utilities)
    better = (leaks[:, None] < leaks) | (utilities[:, None] > utilities)
    beaten = (no_worse & better).any(axis=0)
    return ~beaten & ~np.isnan(leaks) & ~np.isnan(utilities)


def at_utility(leak: ArrayLike, utility: ArrayLike, least: float) -> float:
    """Least leak among the strengths of one defence that keep a utility: defences at matched utility.

    Parameters
    ----------
    leak, utility
        ``[N]``, one entry a strength; NaN for one that does not take part.
    least
        Utility that has to be kept.

    Returns
    -------
    float
        NaN where no strength keeps it.

    Raises
    ------
    ValueError
        If leak and utility differ in length.
    """
    leaks, utilities = _strengths(leak, utility)
    kept = (utilities >= least) & ~np.isnan(leaks)
    return float(leaks[kept].min()) if kept.any() else float("nan")


def _strengths(leak: ArrayLike, utility: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    leaks, utilities = np.asarray(leak, dtype=float), np.asarray(utility, dtype=float)
    if leaks.shape != utilities.shape or leaks.ndim != 1:
        raise ValueError(f"leak and utility must both be [N], got {leaks.shape} and {utilities.shape}")
    return leaks, utilities
