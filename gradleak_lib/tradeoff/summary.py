"""From scores to a comparison: what a defence leaves of a leak, and what it costs."""

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
        1: all of it is left. 0: nothing, or less than nothing.

    Raises
    ------
    ValueError
        If the attack without a defence does not beat chance, so that there is nothing to take away.
    """
    if not undefended > chance:
        raise ValueError(f"without a defence the attack scores {undefended}, and chance {chance}")
    return max(0.0, (score - chance) / (undefended - chance))


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
    leaks, utilities = np.asarray(leak, dtype=float), np.asarray(utility, dtype=float)
    if leaks.shape != utilities.shape or leaks.ndim != 1:
        raise ValueError(f"leak and utility must both be [N], got {leaks.shape} and {utilities.shape}")
    less, more = (
        leaks[:, None] - leaks,
        utilities[:, None] - utilities,
    )  # row: the one that may beat the column
    beaten = ((less <= 0) & (more >= 0) & ((less < 0) | (more > 0))).any(axis=0)
    return ~beaten & ~np.isnan(leaks) & ~np.isnan(utilities)


def at_utility(leak: ArrayLike, utility: ArrayLike, least: float) -> float:
    """Least leak among the strengths of one defence that keep a utility: defences at matched utility.

    Parameters
    ----------
    leak, utility
        ``[N]``, one entry a strength.
    least
        Utility that has to be kept.

    Returns
    -------
    float
        NaN where no strength keeps it.
    """
    leaks, kept = np.asarray(leak, dtype=float), np.asarray(utility, dtype=float) >= least
    return float(leaks[kept].min()) if kept.any() else float("nan")
