"""How well updates give their users away: identification, matching, and what chance would score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradleak_lib.show import summary

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Identification:
    """One identification attack, scored.

    Parameters
    ----------
    per_class
        float ``[U]``: average precision of each user among all tested updates, NaN for one without any.
    top1, top5
        Share of updates whose user has the highest score, or one of the five highest; ties are broken by chance, in
        expectation.
    chance
        Mean average precision of uniform random scores on the same updates.
    null
        float ``[permutations]``: mean average precision after the users' names have been permuted among the tested
        clients. The updates of one client are alike, so scores that know nothing rank them together; this is
        what such scores reach, and it lies above chance.
    """

    per_class: Array
    top1: float
    top5: float
    chance: float
    null: Array
    __repr__ = summary

    @property
    def ap(self) -> float:
        """Mean over users of the average precision, in [0, 1]."""
        return float(np.nanmean(self.per_class))

    @property
    def gain(self) -> float:
        """Average precision over that of random scores, the increase over chance (Orekondy et al. 2018, Sec. 8.2)."""
        return self.ap / self.chance

    @property
    def gain_over_null(self) -> float:
        """Average precision over its mean under permuted clients, which is stricter than `gain`."""
        return self.ap / float(self.null.mean())


def identification(
    scores: ArrayLike, users: ArrayLike, clients: ArrayLike, *, draws: int = 10, seed: int = 0
) -> Identification:
    """Score an identification attack.

    Parameters
    ----------
    scores
        ``[M, U]``: for each tested update a score of each user (or class); higher is likelier.
    users
        int ``[M]``: true users, 0 to U - 1.
    clients
        int ``[M]``: which client each update came from.
    draws
        Draws of random scores, and permutations of clients; at least 1.
    seed
        Seed of both.

    Raises
    ------
    ValueError
        If shapes disagree, there is no update, a user is out of range, a client has several, or a score is NaN or
        infinite.

    References
    ----------
    Orekondy et al. 2018, Sec. 8.2 (mean average precision, top-1, top-5, increase over chance).
    """
    table, owners, senders = _checked(scores, users, clients)
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    rng = np.random.default_rng(seed)
    chance = [np.nanmean(_per_class(rng.random(table.shape), owners)) for _ in range(draws)]
    _, first, sender = np.unique(senders, return_index=True, return_inverse=True)
    owner_of = owners[first]
    if (owner_of[sender] != owners).any():
        raise ValueError("a client may have only one user: its updates are of several")
    null = [np.nanmean(_per_class(table, rng.permutation(owner_of)[sender])) for _ in range(draws)]
    return Identification(
        _per_class(table, owners),
        _top(table, owners, 1),
        _top(table, owners, 5),
        float(np.mean(chance)),
        np.array(null),
    )


def balanced_pairs(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], *, count: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Draw pairs of updates from two different clients, half of them of one user.

    Parameters
    ----------
    first, second
        Users and clients (int ``[A]`` and ``[A]``; ``[B]`` and ``[B]``) of the updates of either side.
    count
        Pairs of each kind, at least 1.
    seed
        Seed, 0 or more.

    Returns
    -------
    tuple
        Rows of the first side and of the second (int64 ``[2 count]``), and whether the users are the same (bool).
        First all pairs of one user: a user by chance, then one update of each side. Then the others: any two
        updates of different users.

    Raises
    ------
    ValueError
        If users and clients differ in number, no two updates are of one user and two clients, none of two users, or
        ``count`` is out of range.

    References
    ----------
    Orekondy et al. 2018, Sec. 6.2.
    """
    users_a, clients_a = (np.asarray(values) for values in first)
    users_b, clients_b = (np.asarray(values) for values in second)
    if users_a.shape != clients_a.shape or users_b.shape != clients_b.shape:
        raise ValueError("each side needs as many users as clients: one of each for every update")
    rng = np.random.default_rng(seed)
    common = [
        user
        for user in np.intersect1d(users_a, users_b)
        if len(np.union1d(clients_a[users_a == user], clients_b[users_b == user])) > 1
    ]
    if not common or len(np.union1d(users_a, users_b)) < 2:
        raise ValueError("pairs need a user with updates from two clients, and two users")
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    rows: list[tuple[int, int]] = []
    while len(rows) < count:
        user = rng.choice(common)
        one, other = (
            rng.choice(np.flatnonzero(users_a == user)),
            rng.choice(np.flatnonzero(users_b == user)),
        )
        if clients_a[one] != clients_b[other]:
            rows.append((int(one), int(other)))
    while len(rows) < 2 * count:
        one, other = rng.integers(len(users_a)), rng.integers(len(users_b))
        if users_a[one] != users_b[other]:
            rows.append((int(one), int(other)))
    left, right = np.array(rows, dtype=np.int64).T
    return left, right, np.arange(2 * count) < count


def matching_ap(same: ArrayLike, probabilities: ArrayLike) -> float:
    """Average precision of a matching attack, in [0, 1]; 0.5 by chance on balanced pairs.

    Parameters
    ----------
    same
        bool ``[P]``: whether the pair is of one user.
    probabilities
        float ``[P]``: higher is likelier.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(np.asarray(same), np.asarray(probabilities)))


def identity_bits(scores: ArrayLike, users: ArrayLike, clients: ArrayLike) -> float:
    """How many bits of its user's identity one update carries, at least.

    The scores become probabilities by a softmax at the temperature that suits the *other* half of the clients (two
    folds), mixed with one part in N of the uniform distribution: N updates are no reason to be surer than that. The
    bits are ``log2 U`` minus the mean of ``-log2 P[true user]``: a lower bound, in
    expectation, of the mutual information of user and update, when users are equally likely, as here.

    Parameters
    ----------
    scores, users, clients
        As for `identification`; scores are log probabilities or margins. Two clients or more.

    Raises
    ------
    ValueError
        As for `identification`, or if there is only one client.
    """
    table, owners, senders = _checked(scores, users, clients)
    names, place = np.unique(senders, return_inverse=True)
    if len(names) < 2:
        raise ValueError("the temperature is found on other clients: there must be two or more")
    fold = place % 2
    count = table.shape[1]
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax

    table = table - table.mean(axis=1, keepdims=True)
    table /= max(float(table.std()), np.finfo(float).tiny)  # the temperatures that are tried lie around 1

    def bits(rows: NDArray[np.bool_], log_scale: float, doubt: float) -> Array:
        sure = softmax(np.exp(log_scale) * table[rows], axis=1)[np.arange(rows.sum()), owners[rows]]
        return np.log2(count * (1 - doubt) * sure + doubt)

    total = 0.0
    for half in (0, 1):

        def loss(log_scale: float, rows: NDArray[np.bool_] = fold != half) -> float:
            return -float(bits(rows, log_scale, 1 / rows.sum()).mean())

        best = minimize_scalar(loss, bounds=(-10, 10), method="bounded").x
        total += bits(fold == half, best, 1 / (fold != half).sum()).sum()
    return total / len(table)


def _checked(
    scores: ArrayLike, users: ArrayLike, clients: ArrayLike
) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    table, owners, senders = np.asarray(scores, dtype=np.float64), np.asarray(users), np.asarray(clients)
    if table.ndim != 2 or owners.shape != (len(table),) or senders.shape != (len(table),) or not len(table):
        raise ValueError(
            "scores must be [M, U], users and clients [M], with M at least 1; got "
            f"{table.shape}, {owners.shape} and {senders.shape}"
        )
    if not np.isfinite(table).all():
        raise ValueError("scores hold NaN or infinity")
    if owners.min() < 0 or owners.max() >= table.shape[1]:
        raise ValueError(f"users must lie in 0..{table.shape[1] - 1}, got {owners.min()}..{owners.max()}")
    return table, owners, senders


def _top(scores: Array, owners: NDArray[np.int64], count: int) -> float:
    """Share of rows whose owner is among the best ``count``, if ties are broken by chance."""
    own = scores[np.arange(len(scores)), owners][:, None]
    better, ties = (scores > own).sum(1), (scores == own).sum(1)
    return float(((count - better) / ties).clip(0, 1).mean())


def _per_class(scores: Array, owners: NDArray[np.int64]) -> Array:
    """Average precision of each column; NaN for a class that nobody belongs to."""
    result = np.full(scores.shape[1], np.nan)
    for column in np.unique(owners):
        result[column] = _average_precision(owners == column, scores[:, column])
    return result


def _average_precision(positive: NDArray[np.bool_], scores: Array) -> float:
    """What scikit-learn's average_precision_score gives, without its checks, which take most of its time."""
    order = np.argsort(-scores)
    ranked = scores[order]
    places = np.flatnonzero(
        np.append(ranked[1:] != ranked[:-1], True)
    )  # the last of each run of equal scores
    hits = positive[order].cumsum()[places]
    return float((np.diff(hits, prepend=0) * hits / (places + 1)).sum() / hits[-1])
