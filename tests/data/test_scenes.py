"""Scenes of digits: what is in them, who shares what with whom, and what the parameters do."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from sklearn.datasets import load_digits

from gradleak_lib.data.scenes import digit_scenes, glyph_cut

DIGITS = load_digits().target


def glyphs(data):
    return set(data.sources[data.sources >= 0].tolist())


@pytest.fixture(scope="module")
def people():
    return digit_scenes(30, public_users=20, scenes=64, seed=3)


def test_train_test_and_public_are_made_of_different_glyphs_for_all_seeds(people):
    """One cut: what is public with one seed is neither trained on nor tested with any other."""
    seen = {"train": set(), "test": set(), "public": set()}
    for population in (
        people,
        *(digit_scenes(12, public_users=12, scenes=32, seed=seed) for seed in range(4)),
    ):
        for part, found in seen.items():
            found |= glyphs(getattr(population, part))
    assert min(map(len, seen.values())) > 100
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["public"]
    assert not seen["test"] & seen["public"]
    assert sorted(np.concatenate(glyph_cut())) == list(range(len(DIGITS)))
    assert all(set(DIGITS[part]) == set(range(10)) for part in glyph_cut())


def test_different_numbers_are_different_glyphs():
    """The cut is by number: no picture may be there twice, on either side of it."""
    images = load_digits().images.reshape(len(DIGITS), -1)
    parts = [{image.tobytes() for image in images[part]} for part in glyph_cut()]
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not part & other


def test_labels_are_the_digits_of_the_glyphs(people):
    for data in (people.train, people.test, people.public):
        shown = data.sources >= 0
        assert set(shown.sum(1).tolist()) == {1, 2, 3}
        expected = torch.zeros(len(data), 10)
        rows, columns = torch.nonzero(shown, as_tuple=True)
        expected[rows, torch.from_numpy(DIGITS)[data.sources[rows, columns]]] = 1
        assert torch.equal(data.targets, expected)
        assert data.multilabel
        assert data.classes == tuple("0123456789")


def test_sizes_users_sessions_and_times(people):
    train, test, public = people.train, people.test, people.public
    assert (len(train), len(test), len(public)) == (30 * 64, 30 * 16, 20 * 64)
    assert torch.equal(train.users.bincount(), torch.full((30,), 64))
    assert torch.equal(test.users.bincount(), torch.full((30,), 16))
    assert train.user_names == test.user_names
    assert len(train.user_names) == 30
    assert (public.users == -1).all()
    for data in (train, test, public):
        assert data.inputs.shape[1:] == (1, 16, 16)
        assert data.inputs.dtype == torch.float32
        assert 0 <= data.inputs.min() < data.inputs.max() <= 1
        assert torch.equal(data.times.floor().long(), data.albums)
        assert set(data.albums.tolist()) == set(range(8))
        assert len(data.items.unique()) == len(data)
    for user in range(30):
        times = train.times[train.users == user]
        assert (times.diff() > 0).all()
        assert torch.equal(train.albums[train.users == user].bincount(), torch.full((8,), 8))


def test_seeds_decide_and_the_global_state_stays():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, same, other = (digit_scenes(3, public_users=2, scenes=32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    for part in ("train", "test", "public"):
        one, two, three = (getattr(population, part) for population in (first, same, other))
        for field in ("inputs", "targets", "sources", "users", "times"):
            assert torch.equal(getattr(one, field), getattr(two, field)), field
        assert not torch.equal(one.inputs, three.inputs)
        assert not torch.equal(one.sources, three.sources)


def histograms(data, groups):
    """Count the digits of the glyphs shown, by group: ``[G, 10]``."""
    table = np.zeros((int(groups.max()) + 1, 10))
    rows, columns = torch.nonzero(data.sources >= 0, as_tuple=True)
    np.add.at(table, (groups[rows].numpy(), DIGITS[data.sources[rows, columns]]), 1)
    return table


def test_infinite_taste_draws_all_digits_equally_often():
    flat = digit_scenes(30, taste=math.inf, public_users=1, seed=5).train
    counts = histograms(flat, flat.users)
    assert chi2_contingency(counts).pvalue > 1e-3  # no user differs from the others
    total = counts.sum(0)
    assert (np.square(total - total.mean()) / total.mean()).sum() < 30  # chi-squared of 9 degrees of freedom
    picky = digit_scenes(30, taste=0.5, public_users=1, seed=5).train
    assert chi2_contingency(histograms(picky, picky.users) + 0.1).pvalue < 1e-50


def spread_between_sessions(drift, what):
    """Mean squared distance of a user's sessions, at the ends of the stream over next to each other."""
    data = digit_scenes(200, scenes=128, sessions=8, drift=drift, public_users=1, seed=7).train
    groups = data.users * 8 + data.albums
    if what == "taste":
        profile = histograms(data, groups)
        profile = profile / profile.sum(1, keepdims=True)
    else:
        profile = np.zeros((1600, 256))
        np.add.at(profile, groups.numpy(), data.inputs.flatten(1).numpy() / 16)
    profile = profile.reshape(200, 8, -1)

    def distance(first, second):
        return np.square(profile[:, first] - profile[:, second]).sum(-1).mean()

    ends = distance(0, 7)
    near = np.mean([distance(number, number + 1) for number in range(7)])
    return ends / near


@pytest.mark.parametrize("what", ["taste", "style"])
def test_drift_is_a_trend_and_without_it_there_is_none(what):
    assert spread_between_sessions(0.0, what) == pytest.approx(1, abs=0.12)
    assert spread_between_sessions(1.0, what) > 1.3


def test_style_tells_users_apart_and_can_be_turned_off():
    def between_users(style):
        data = digit_scenes(40, taste=math.inf, style=style, public_users=1, seed=2).train
        means = torch.stack([data.inputs[data.users == user].mean(0).flatten() for user in range(40)])
        return means.var(0).sum().item()

    assert between_users(0.5) > 5 * between_users(0.0)


def test_extremes_stay_pictures():
    for options in (
        {"style": 10},
        {"taste": 1e-3},
        {"taste": 1e-300},
        {"sessions": 1, "scenes": 4},
        {"drift": 1},
    ):
        data = digit_scenes(**({"users": 6, "public_users": 1, "scenes": 32} | options)).train
        assert data.inputs.isfinite().all(), options
        assert 0 <= data.inputs.min() <= data.inputs.max() <= 1
        assert set(data.targets.unique().tolist()) == {0, 1}
        assert (data.targets.sum(1) >= 1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": 0}, "users, public_users"),
        ({"public_users": 0}, "users, public_users"),
        ({"sessions": 0}, "sessions"),
        ({"scenes": 0}, "scenes a multiple"),
        ({"scenes": 100}, "scenes a multiple"),
        ({"taste": 0.0}, "taste must be positive"),
        ({"taste": math.nan}, "taste must be positive"),
        ({"style": -0.1}, "style in"),
        ({"style": math.inf}, "style in"),
        ({"style": 1000}, "style in"),
        ({"drift": 1.1}, "drift in"),
        ({"drift": -0.1}, "drift in"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message):
        digit_scenes(**({"users": 2, "public_users": 1, "scenes": 32} | wrong))
