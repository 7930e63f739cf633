"""Mixing public data into a client's own before it trains: defences on the side of the data."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from gradleak_lib.data.users import ClientData, UserDataset

DataDefense = Callable[[ClientData], ClientData]


def replace_with_background(background: UserDataset, share: float, *, seed: int = 0) -> DataDefense:
    """Replace a share of each client's samples by public ones (bkg-repl).

    Parameters
    ----------
    background
        Public samples of the same task.
    share
        alpha in [0, 1]; at 1 all clients hold draws from one distribution.
    seed
        Seed of the draws.

    Raises
    ------
    ValueError
        If the share is out of range; when it is used, if the background is empty or of another task.

    References
    ----------
    Orekondy et al. 2018, Sec. 9.1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")

    def defend(clients: ClientData) -> ClientData:
        def mix(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            added = round(share * len(rows))
            return rng.permutation(rows)[added:], rng.integers(len(background), size=added)

        return _mixed(clients, background, mix, seed)

    return defend


def add_background(background: UserDataset, amount: float, *, seed: int = 0) -> DataDefense:
    """Add public samples to each client's own (rand-aug).

    Parameters
    ----------
    background
        Public samples of the same task.
    amount
        alpha, 0 or more: samples added, as a multiple of the client's own.
    seed
        Seed of the draws.

    Raises
    ------
    ValueError
        If the amount is negative or infinite; when it is used, if the background is empty or of another task.

    References
    ----------
    Orekondy et al. 2018, Sec. 9.1.
    """
    if not 0 <= amount < math.inf:
        raise ValueError(f"amount must be 0 or more and finite, got {amount}")

    def defend(clients: ClientData) -> ClientData:
        def mix(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return rows, rng.integers(len(background), size=round(amount * len(rows)))

        return _mixed(clients, background, mix, seed)

    return defend


def add_background_mode(
    background: UserDataset, features: np.ndarray, amount: float, *, modes: int = 100, seed: int = 0
) -> DataDefense:
    """Add public samples of one kind to each client, another kind to each (mm-aug).

    Parameters
    ----------
    background
        Public samples of the same task, N of them.
    features
        ``[N, D]``: what their kinds are found in by k-means; the paper takes features of a pretrained network.
    amount
        alpha, as for `add_background`.
    modes
        Number of kinds M, 1 to N. The paper: 100 and 500.
    seed
        Seed of the clusters, of each client's kind and of the draws.

    Raises
    ------
    ValueError
        If a number is out of range, or features and background differ in number; when it is used, if the background
        is of another task.

    References
    ----------
    Orekondy et al. 2018, Sec. 9.1.
    """
    known = 1 <= modes <= len(background) and len(features) == len(background)
    if not (known and 0 <= amount < math.inf):
        raise ValueError(
            f"amount must be 0 or more and finite, modes 1 to {len(background)}, features [{len(background)}, D]; "
            f"got {amount}, {modes}, {np.shape(features)}"
        )
    from sklearn.cluster import KMeans

    mode_of = KMeans(modes, n_init=1, random_state=seed).fit_predict(features)
    members = [np.flatnonzero(mode_of == mode) for mode in np.unique(mode_of)]

    def defend(clients: ClientData) -> ClientData:
        def mix(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return rows, rng.choice(members[rng.integers(len(members))], size=round(amount * len(rows)))

        return _mixed(clients, background, mix, seed)

    return defend


def _mixed(
    clients: ClientData,
    background: UserDataset,
    mix: Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> ClientData:
    """Clients with some of their own rows and some of the background's, which are put behind the users' data."""
    if len(background) == 0:
        raise ValueError("the background is empty")
    own = clients.data
    for field in ("inputs", "targets"):
        here, there = getattr(own, field), getattr(background, field)
        if (here.dtype, here.shape[1:]) != (
            there.dtype,
            there.shape[1:],
        ) or own.classes != background.classes:
            raise ValueError(
                f"the background is of another task than the clients' data: {field} {there.dtype} "
                f"{list(there.shape[1:])} and {len(background.classes)} classes, there {here.dtype} "
                f"{list(here.shape[1:])} and {len(own.classes)} classes; they must be the same, names included"
            )
    both = replace(
        own,
        inputs=torch.cat([own.inputs, background.inputs.to(own.inputs.device)]),
        targets=torch.cat([own.targets, background.targets.to(own.targets.device)]),
        users=torch.cat([own.users, torch.full((len(background),), -1)]),
        items=torch.cat([own.items, background.items]),
        albums=torch.cat([own.albums, background.albums]),
        times=torch.cat([own.times, background.times]),
        sources=torch.cat([own.sources, background.sources]),
    )
    rows = []
    for number, mine in enumerate(clients.rows):
        kept, added = mix(mine.numpy(), np.random.default_rng([seed, number]))
        rows.append(torch.from_numpy(np.concatenate([kept, len(own) + added])))
    return replace(clients, data=both, rows=tuple(rows))
