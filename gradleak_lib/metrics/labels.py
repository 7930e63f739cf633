"""Scores of attacks on labels."""

import torch
from torch import Tensor


def attack_success_rate(found: Tensor, true: Tensor) -> float:
    """Share of the batch's labels that an attack found, counted with repetition (ASR).

    Parameters
    ----------
    found, true
        int ``[K]``: how often each label was found, and how often it occurs; both sum to the batch size.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, a count is negative, or the sums differ or are zero.

    References
    ----------
    Wainakh et al. 2022 (ASR).

    Examples
    --------
    >>> import torch
    >>> attack_success_rate(found=torch.tensor([2, 1, 0]), true=torch.tensor([1, 1, 1]))
    0.6666666666666666
    """
    if found.shape != true.shape or found.ndim != 1 or len(found) == 0:
        raise ValueError(f"counts must be [K], got shapes {tuple(found.shape)} and {tuple(true.shape)}")
    if min(int(found.min()), int(true.min())) < 0 or not int(found.sum()) == int(true.sum()) > 0:
        raise ValueError(
            f"counts must be 0 or more and sum to the same number of samples, got sums {int(found.sum())} and "
            f"{int(true.sum())}"
        )
    found, true = found.to(torch.int64), true.to(found.device, torch.int64)
    return float(found.minimum(true).sum()) / float(true.sum())


def chance_success_rate(true: Tensor) -> float:
    """Expected success rate of guessing every label uniformly at random, in closed form.

    The number of guesses X of a class is binomial with n draws of probability p = 1/K. A class that occurs c times
    contributes the expectation of min(X, c), which is n p P(Y <= c - 2) + c P(X >= c), with Y of n - 1 draws.

    Parameters
    ----------
    true
        int ``[K]``: how often each label occurs in the batch.

    Returns
    -------
    float
        In (0, 1]. Large for large balanced batches: a guess of everything is right where everything is there.
    """
    counts = true.to(torch.int64).cpu().numpy()
    samples, classes = int(counts.sum()), len(counts)
    if samples < 1 or counts.min() < 0:
        raise ValueError(f"counts must be 0 or more and not all zero, got {counts.tolist()[:8]}")
    p = 1 / classes
    from scipy.stats import binom

    hits = samples * p * binom.cdf(counts - 2, samples - 1, p) + counts * binom.sf(counts - 1, samples, p)
    return float(hits.sum()) / samples
