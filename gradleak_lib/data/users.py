"""Users, their devices, and what nobody's device holds: the populations of the linkability chapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gradleak_lib.data.images import ImageDataset, row_index
from gradleak_lib.show import summary

Split = Literal["random", "album", "chrono"]
SPLITS: tuple[str, ...] = get_args(Split)

# Share of each user's items that is held out.
HELD_OUT = 0.2
# One cut for all seeds: no source item is public in one run and private or held out in another.
CUT_SEED = 20180515


@dataclass(frozen=True)
class UserDataset:
    """Samples that belong to users.

    Parameters
    ----------
    inputs
        ``[N, ...]``: float32 images in [0, 1], or int64 windows of word numbers.
    targets
        int64 ``[N]`` class indices, or float32 ``[N, K]`` multi-hot.
    users
        int64 ``[N]``: the user of each sample, a row of ``user_names``; -1 for public samples of nobody.
    items
        int64 ``[N]``: the photograph, post or digit that a sample was cut from. No split tears an item apart.
    albums
        int64 ``[N]``: photoset, day or session; numbers may be reused by other users.
    times
        float64 ``[N]``: when, in any unit that orders a user's items.
    sources
        int64 ``[N, S]``: identities of everything that went into a sample, in the source corpus (glyphs of a
        drawn scene, row of a digit, number of a post), -1 for none. For the tests that the parts of a population
        share nothing.
    classes
        Names of the K classes.
    user_names
        Names or pseudonyms of the U users.
    name
        Name of the data set.

    Raises
    ------
    ValueError
        If the lengths disagree, or a user has no name.
    """

    inputs: Tensor
    targets: Tensor
    users: Tensor
    items: Tensor
    albums: Tensor
    times: Tensor
    sources: Tensor
    classes: tuple[str, ...]
    user_names: tuple[str, ...]
    name: str

    __repr__ = summary

    def __post_init__(self) -> None:
        for field in _ROWS:
            if len(getattr(self, field)) != len(self.inputs):
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries: it must have one per sample, "
                    f"{len(self.inputs)}"
                )
        if len(self.users) and int(self.users.max()) >= len(self.user_names):
            raise ValueError(
                f"users holds {int(self.users.max())}, but user_names has {len(self.user_names)} names"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def multilabel(self) -> bool:
        """Whether a sample may have several labels (or none)."""
        return self.targets.ndim == 2

    def subset(self, indices: Tensor | Sequence[int]) -> "UserDataset":
        """Return the samples at ``indices`` (int64 ``[M]`` or bool ``[N]``), in that order."""
        index = row_index(indices, len(self))
        return replace(self, **{field: getattr(self, field)[index] for field in ("inputs", *_ROWS)})


_ROWS = ("targets", "users", "items", "albums", "times", "sources")


def unowned(images: ImageDataset) -> UserDataset:
    """Return images as the samples of nobody, each an item of its own: a public background, for instance."""
    count = torch.arange(len(images))
    return UserDataset(
        inputs=images.images,
        targets=images.labels,
        users=torch.full((len(images),), -1),
        items=count,
        albums=torch.zeros_like(count),
        times=count.double(),
        sources=count[:, None],
        classes=images.classes,
        user_names=(),
        name=images.name,
    )


@dataclass(frozen=True)
class Population:
    """The three parts of a study, which share no source item.

    Parameters
    ----------
    train
        What the users' devices hold.
    test
        Held out of the same users' data, to measure the collaborative task.
    public
        Other people's data of the same kind: for a warm start, a vocabulary, or the background of a mitigation.
    """

    train: UserDataset
    test: UserDataset
    public: UserDataset

    __repr__ = summary


@dataclass(frozen=True)
class ClientData:
    """Who holds what: the rows of a data set that lie on each client.

    Parameters
    ----------
    data
        All samples.
    rows
        For each of the K clients int64 ``[n_k]``, its rows of ``data``; no row on two clients.
    users
        int64 ``[K]``: the user of each client.
    devices
        int64 ``[K]``: 0 for a user's first device, 1 for the second, and so on.
    """

    data: UserDataset
    rows: tuple[Tensor, ...]
    users: Tensor
    devices: Tensor

    __repr__ = summary

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> Tensor:
        """Number of samples on each client, int64 ``[K]``."""
        return torch.tensor([len(rows) for rows in self.rows])

    def samples(self, client: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets that one client holds."""
        return self.data.inputs[self.rows[client]], self.data.targets[self.rows[client]]


def split_clients(
    data: UserDataset, how: Split, *, devices: int = 2, samples: int | None = None, seed: int = 0
) -> ClientData:
    """Lay each user's items on several clients.

    Parameters
    ----------
    data
        Samples of users; public ones (user -1) are refused.
    how
        ``"random"``: items by chance, so that all devices of a user are alike. ``"album"``: whole albums (the
        paper's photosets and days) by chance. ``"chrono"``: the user's stream cut into consecutive parts, as if a
        new device had been bought.
    devices
        Devices of each user, 2 or more; each is a client.
    samples
        At most this many samples on a client, drawn from its own; None keeps all.
    seed
        Seed, 0 or more.

    Returns
    -------
    ClientData
        Clients user by user; the devices of a user in order (of time, for ``"chrono"``).

    Raises
    ------
    ValueError
        If an argument is out of range, or a user has fewer items (albums) than devices.

    References
    ----------
    Orekondy et al. 2018, Sec. 7.1 and 7.2 (per-user data splits).
    """
    if how not in SPLITS:
        raise ValueError(f"how={how!r}: it must be one of {', '.join(SPLITS)}")
    if devices < 2 or (samples is not None and samples < 1):
        raise ValueError(
            f"devices must be 2 or more and samples 1 or more, got devices={devices}, samples={samples}"
        )
    if len(data) == 0 or int(data.users.min()) < 0:
        raise ValueError("data must hold users' samples, and none of nobody's (user -1)")
    # A generator of its own for the thinning: the cut is the same with and without it.
    rng, thinning = np.random.default_rng([seed, SPLITS.index(how)]).spawn(2)
    rows: list[Tensor] = []
    owners: list[int] = []
    for user, mine in by_user(data):
        parts = _deal(data, mine, how, devices, rng)
        if any(len(part) == 0 for part in parts):
            unit = "albums" if how == "album" else "items"
            raise ValueError(
                f"user {data.user_names[user]!r} has too few {unit} to fill {devices} devices: "
                f"leave the user out, or split by another rule than {how!r}"
            )
        if samples is not None:
            parts = [np.sort(thinning.permutation(part)[:samples]) for part in parts]
        rows += [torch.from_numpy(part) for part in parts]
        owners += [user] * devices
    return ClientData(data, tuple(rows), torch.tensor(owners), torch.arange(len(rows)) % devices)


def by_user(data: UserDataset) -> Iterator[tuple[int, np.ndarray]]:
    """Give each user that has samples, in order, with the rows of them (int64)."""
    users = data.users.numpy()
    for user in np.unique(users):
        yield int(user), np.flatnonzero(users == user)


def draw_users(
    eligible: np.ndarray, users: int | None, *, seed: int, share: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the users of a study from people of whom a fixed part can never be drawn, whatever the seed.

    Parameters
    ----------
    eligible
        ``[P]``: people with enough data, in the order of the corpus, without repetition.
    users
        Number of users; None takes all that can be drawn.
    seed
        Seed of the draw, 0 or more.
    share
        Share of the people who can be drawn, in (0, 1].

    Returns
    -------
    tuple of ndarray
        The users (``[users]``), and the people who are never drawn, for the public part.

    Raises
    ------
    ValueError
        If fewer people than ``users`` can be drawn, or an argument is out of range.
    """
    if seed < 0 or not 0 < share <= 1:
        raise ValueError(f"seed must be 0 or more and share in (0, 1], got seed={seed}, share={share}")
    order = np.random.default_rng(CUT_SEED).permutation(len(eligible))
    candidates, others = np.split(eligible[order], [round(share * len(eligible))])
    count = len(candidates) if users is None else users
    if not 1 <= count <= len(candidates):
        raise ValueError(
            f"users={users}: {len(eligible)} people have enough data, of whom {len(candidates)} can be drawn"
        )
    return np.random.default_rng(seed).permutation(candidates)[:count], others


def hold_out(data: UserDataset) -> tuple[UserDataset, UserDataset]:
    """Cut a fifth of each user's items off, the same ones whatever the seed of a study.

    Parameters
    ----------
    data
        Samples of users. The share is rounded to whole items, at least one of each user's.

    Returns
    -------
    tuple of UserDataset
        What stays, and what is held out.

    Raises
    ------
    ValueError
        If that leaves a user nothing.

    References
    ----------
    Orekondy et al. 2018, Sec. 8.1 (20% held out).
    """
    held = np.zeros(len(data), dtype=bool)
    for user, mine in by_user(data):
        items = data.items.numpy()[mine]
        unique = np.unique(items)
        count = max(1, round(HELD_OUT * len(unique)))
        if count == len(unique):
            raise ValueError(
                f"holding out {count} of {len(unique)} items leaves user {data.user_names[user]!r} nothing: "
                "leave the user out"
            )
        rng = np.random.default_rng([CUT_SEED, int(unique[0])])
        chosen = rng.permutation(unique)[:count]
        held[mine[np.isin(items, chosen)]] = True
    mask = torch.from_numpy(held)
    return data.subset(~mask), data.subset(mask)


def _deal(
    data: UserDataset, mine: np.ndarray, how: Split, clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Rows of one user for each client, in the order of the data set."""
    units = (data.albums if how == "album" else data.items).numpy()[mine]
    names, unit_of, sizes = np.unique(units, return_inverse=True, return_counts=True)
    client_of = np.empty(len(names), dtype=np.int64)
    if how == "chrono":
        times = np.full(len(names), np.inf)
        np.minimum.at(times, unit_of, data.times.numpy()[mine])
        order = np.argsort(times, kind="stable")
        # The middle of each item in the stream of samples.
        before = np.cumsum(sizes[order]) - sizes[order] / 2
        place = np.arange(len(names))
        # An item larger than a client's share may not jump over a client, nor leave too few for the rest.
        ahead = np.minimum(before * clients // sizes.sum() - place, 0)
        steps = np.minimum.accumulate(ahead) + place
        client_of[order] = np.maximum(steps, clients - (len(names) - place)).clip(0, clients - 1)
    else:
        held = np.zeros(clients)
        for unit in rng.permutation(len(names)):
            emptiest = np.flatnonzero(held == held.min())
            client_of[unit] = rng.choice(emptiest)
            held[client_of[unit]] += sizes[unit]
    return [mine[client_of[unit_of] == client] for client in range(clients)]
