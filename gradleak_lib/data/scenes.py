"""Users who photograph digits: scenes drawn from scikit-learn's handwritten digits, with no download."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gradleak_lib.data.users import CUT_SEED, Population, UserDataset

SIZE, CLASSES, MOST_DIGITS = 16, 10, 3
# Shear, scale, rotation, gamma, contrast, brightness, light from the left and from above, noise.
STYLE_DIMENSIONS = 9
_TASTE_SPREAD, _STYLE_SPREAD = 12.0, 0.35
# Shares of the glyphs behind the public scenes and behind the test of the task; the users train on the rest.
_PUBLIC_SHARE, _TEST_SHARE = 0.2, 0.2


def digit_scenes(
    users: int = 50,
    *,
    scenes: int = 128,
    sessions: int = 8,
    taste: float = 0.5,
    style: float = 0.5,
    drift: float = 0.5,
    public_users: int = 50,
    seed: int = 0,
) -> Population:
    """Draw people, and for each a stream of scenes with one to three handwritten digits.

    A person has a taste (which digits), drawn from a Dirichlet distribution, and a photographic style (geometry,
    light, noise). The stream consists of sessions that scatter around both; over the stream, taste and style move
    on the way to a second taste and style of the same person.

    Parameters
    ----------
    users
        Number of users, at least 1.
    scenes
        Scenes that each user trains on, a multiple of ``sessions``; a quarter as many more are held out.
    sessions
        Sessions (albums) of each user, at least 1; ``scenes / sessions`` must be a multiple of 4.
    taste
        Concentration of the Dirichlet distribution of tastes: small for pronounced tastes; infinite for none, when
        all people draw all digits equally often.
    style
        Strength of the styles, up to 10; 0 for none.
    drift
        How far the stream moves from the first taste and style (0: not at all) to the second (1: all the way).
    public_users
        Number of other people behind the public scenes, at least 1.
    seed
        Seed of people and scenes, 0 or more.

    Returns
    -------
    Population
        Images ``[N, 1, 16, 16]`` in [0, 1], ten labels, multi-hot. ``sources`` are the numbers of the glyphs in
        scikit-learn's digits, ``albums`` the sessions, ``times`` the sessions with the place in them as a fraction.
        Training, test and public scenes are made of different glyphs, by one cut for all seeds.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if users < 1 or public_users < 1 or sessions < 1 or scenes < 1 or scenes % (4 * sessions):
        raise ValueError(
            "users, public_users and sessions must be 1 or more and scenes a multiple of 4 sessions, got "
            f"users={users}, public_users={public_users}, sessions={sessions}, scenes={scenes}"
        )
    if not (taste > 0 and 0 <= style <= 10 and 0 <= drift <= 1):
        raise ValueError(
            f"taste must be positive, style in [0, 10], drift in [0, 1], got {taste}, {style}, {drift}"
        )
    for_public, for_test, for_train = glyph_cut()
    options: dict[str, Any] = {"taste": taste, "style": style, "drift": drift, "sessions": sessions}
    rng_people, rng_public, *rngs = np.random.default_rng(seed).spawn(5)
    people = _draw_people(rng_people, users, **options)
    names = tuple(f"user {number}" for number in range(users))
    train = _draw_scenes(rngs[0], *people, for_train, scenes // sessions, names)
    test = _draw_scenes(rngs[1], *people, for_test, scenes // sessions // 4, names)
    others = _draw_people(rng_public, public_users, **options)
    public = _draw_scenes(rngs[2], *others, for_public, scenes // sessions, ())
    return Population(train, test, public)


@cache
def glyph_cut() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the glyphs behind public scenes, held-out scenes, and the users' own: one cut for all seeds."""
    from sklearn.datasets import load_digits

    order = np.random.default_rng(CUT_SEED).permutation(len(load_digits().target))
    public, test = round(_PUBLIC_SHARE * len(order)), round(_TEST_SHARE * len(order))
    return order[:public], order[public : public + test], order[public + test :]


def _draw_people(
    rng: np.random.Generator, count: int, *, taste: float, style: float, drift: float, sessions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Taste ``[count, sessions, 10]`` and style ``[count, sessions, 9]`` of each session of each person."""
    ends = [rng.dirichlet(np.full(CLASSES, min(taste, 1e6)), count)[:, None] for _ in range(2)]
    styles = [rng.standard_normal((count, 1, STYLE_DIMENSIONS)) for _ in range(2)]
    way = drift * (np.arange(sessions) / max(1, sessions - 1))[None, :, None]
    mean_taste = (1 - way) * ends[0] + way * ends[1]
    # A Dirichlet draw is a normalised vector of gamma draws; the small number keeps an empty taste legal.
    gammas = rng.standard_gamma(_TASTE_SPREAD * mean_taste + 1e-3)
    tastes = mean_taste if math.isinf(taste) else gammas / gammas.sum(-1, keepdims=True)
    jitter = _STYLE_SPREAD * rng.standard_normal((count, sessions, STYLE_DIMENSIONS))
    return tastes, style * ((1 - way) * styles[0] + way * styles[1] + jitter)


def _draw_scenes(
    rng: np.random.Generator,
    tastes: np.ndarray,
    styles: np.ndarray,
    glyphs: np.ndarray,
    per_session: int,
    names: tuple[str, ...],
) -> UserDataset:
    """Scenes of people with these tastes and styles; without names, they belong to nobody."""
    people, sessions, _ = tastes.shape
    count = people * sessions * per_session
    taste = np.repeat(tastes.reshape(-1, CLASSES), per_session, axis=0)
    digits = (rng.random((count, MOST_DIGITS, 1)) > taste.cumsum(-1)[:, None, :-1]).sum(-1)
    shown = np.arange(MOST_DIGITS) < rng.integers(1, MOST_DIGITS + 1, count)[:, None]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pools = [glyphs[bunch.target[glyphs] == digit] for digit in range(CLASSES)]
    sizes = np.array([len(pool) for pool in pools])
    place = (rng.random(digits.shape) * sizes[digits]).astype(np.int64)
    padded = np.zeros((CLASSES, sizes.max()), dtype=np.int64)
    for digit, pool in enumerate(pools):
        padded[digit, : len(pool)] = pool
    sources = np.where(shown, padded[digits, place], -1)
    targets = np.zeros((count, CLASSES), dtype=np.float32)
    for column in range(MOST_DIGITS):
        targets[np.arange(count)[shown[:, column]], digits[shown[:, column], column]] = 1
    cells = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)[:, :MOST_DIGITS]
    canvas = _compose(bunch.images / 16, sources, cells)
    session = np.tile(np.repeat(np.arange(sessions), per_session), people)
    style = np.repeat(styles.reshape(-1, STYLE_DIMENSIONS), per_session, axis=0)
    noise = torch.from_numpy(rng.standard_normal(canvas.shape).astype(np.float32))
    users = np.repeat(np.arange(people), sessions * per_session)
    return UserDataset(
        inputs=_photograph(canvas, torch.from_numpy(style.astype(np.float32)), noise),
        targets=torch.from_numpy(targets),
        users=torch.from_numpy(users if names else np.full(count, -1)),
        items=torch.arange(count),
        albums=torch.from_numpy(session),
        times=torch.from_numpy(session + np.tile(np.arange(per_session), people * sessions) / per_session),
        sources=torch.from_numpy(sources),
        classes=tuple(map(str, range(CLASSES))),
        user_names=names,
        name="digit scenes",
    )


def _compose(glyphs: np.ndarray, sources: np.ndarray, cells: np.ndarray) -> Tensor:
    """Put glyphs of 8 x 8 pixels into the quarters of a canvas; ``[N, 1, 16, 16]``."""
    quarters = np.zeros((len(sources), 4, 8, 8), dtype=np.float32)
    for column in range(sources.shape[1]):
        rows = np.flatnonzero(sources[:, column] >= 0)
        quarters[rows, cells[rows, column]] = glyphs[sources[rows, column]]
    canvas = quarters.reshape(-1, 2, 2, 8, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 1, SIZE, SIZE)
    return torch.from_numpy(np.ascontiguousarray(canvas))


def _photograph(canvas: Tensor, style: Tensor, noise: Tensor) -> Tensor:
    """Apply a style to each canvas: first the geometry, then the light, then the noise of the camera."""
    shear, scale, rotation, gamma, contrast, brightness, left, above, grain = style.T
    angle, factor = 0.35 * rotation, (0.2 * scale).exp()
    matrix = torch.zeros(len(canvas), 2, 3)
    matrix[:, 0, 0] = angle.cos() / factor
    matrix[:, 0, 1] = (0.4 * shear - angle.sin()) / factor
    matrix[:, 1, 0] = angle.sin() / factor
    matrix[:, 1, 1] = angle.cos() / factor
    grid = functional.affine_grid(matrix, list(canvas.shape), align_corners=False)
    turned = functional.grid_sample(canvas, grid, align_corners=False).clamp_(0, 1)

    def column(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    ramp = torch.linspace(-1, 1, SIZE)
    light = column(left) * ramp + column(above) * ramp[:, None]
    ink = turned ** column((0.4 * gamma).exp()) * column((0.3 * contrast).exp())
    return (ink + 0.1 * column(brightness) + 0.1 * light + 0.05 * column(grain.abs()) * noise).clamp_(0, 1)
