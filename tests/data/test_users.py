from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.data import ImageDataset, load
from gradleak_lib.data.users import (
    SPLITS,
    UserDataset,
    by_user,
    draw_users,
    hold_out,
    split_clients,
    unowned,
)


def people(sizes: list[list[int]], albums: int = 3, names: int | None = None) -> UserDataset:
    """Users with items of these sizes, in a shuffled order of rows; the times run backwards over the items."""
    owners = [user for user, items in enumerate(sizes) for _ in items]
    lengths = [size for items in sizes for size in items]
    places = [place for items in sizes for place in range(len(items))]
    order = np.random.default_rng(1).permutation(sum(lengths))

    def column(values: list) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values), lengths)[order])

    items = column(list(range(len(owners))))
    return UserDataset(
        inputs=torch.arange(len(order))[:, None],
        targets=torch.arange(len(order)) % 4,
        users=column(owners),
        items=items,
        albums=column([place % albums for place in places]),
        times=column([-float(place) for place in places]),
        sources=items[:, None],
        classes=tuple("abcd"),
        user_names=tuple(f"user {user}" for user in range(len(sizes) if names is None else names)),
        name="people",
    )


SIZES = st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=12), min_size=1, max_size=4)


@given(SIZES, st.sampled_from(SPLITS), st.integers(2, 3), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_row_lies_on_one_client_of_its_user(sizes, how, clients, seed):
    data = people(sizes, albums=4)
    dealt = split_clients(data, how, devices=clients, seed=seed)
    rows = torch.cat(dealt.rows)
    assert rows.sort().values.tolist() == list(range(len(data)))
    assert len(dealt) == clients * len(sizes) == len(dealt.counts)
    assert dealt.counts.sum() == len(data)
    assert dealt.users.tolist() == [user for user in range(len(sizes)) for _ in range(clients)]
    assert dealt.devices.tolist() == list(range(clients)) * len(sizes)
    for client, user in enumerate(dealt.users.tolist()):
        assert len(dealt.rows[client])
        assert data.users[dealt.rows[client]].unique().tolist() == [user]


@given(SIZES, st.sampled_from(SPLITS), st.integers(2, 4), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_no_split_tears_an_item_or_its_own_unit(sizes, how, clients, seed):
    data = people(sizes, albums=4)
    dealt = split_clients(data, how, devices=clients, seed=seed)
    for units in [data.items] + [data.albums] * (how == "album"):
        kept = [
            {(user, int(unit)) for unit in units[rows]}
            for user, rows in zip(dealt.users.tolist(), dealt.rows, strict=True)
        ]
        assert sum(map(len, kept)) == len(set().union(*kept))


@given(SIZES, st.integers(2, 4))
@settings(max_examples=80, deadline=None)
def test_chrono_parts_follow_each_other(sizes, clients):
    data = people(sizes)
    dealt = split_clients(data, "chrono", devices=clients)
    for user in range(len(sizes)):
        mine = [dealt.rows[client] for client in torch.where(dealt.users == user)[0]]
        assert all(data.times[a].max() < data.times[b].min() for a, b in pairwise(mine))
        if clients == 2:
            # The cut is the nearest one to the middle, up to half an item.
            assert abs(len(mine[0]) - len(mine[1])) <= max(sizes[user])


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_hold_out_takes_a_fifth_of_every_users_whole_items(sizes):
    data = people(sizes)
    stay, held = hold_out(data)
    assert sorted([*stay.inputs[:, 0].tolist(), *held.inputs[:, 0].tolist()]) == list(range(len(data)))
    assert not set(stay.items.tolist()) & set(held.items.tolist())
    for user, items in enumerate(sizes):
        count = len(held.items[held.users == user].unique())
        assert count == max(1, round(0.2 * len(items)))


def test_what_is_held_out_of_a_user_does_not_depend_on_the_other_users():
    data = people([[1] * 30, [2] * 20, [1] * 25])
    _, held = hold_out(data)
    for user, mine in by_user(data):
        _, alone = hold_out(data.subset(torch.from_numpy(mine)))
        assert alone.items.tolist() == held.items[held.users == user].tolist()


def test_hold_out_leaves_everybody_something():
    with pytest.raises(ValueError, match="leaves user 'user 1' nothing"):
        hold_out(people([[1, 1], [5]]))


def test_random_parts_are_even_and_follow_the_seed():
    data = people([[1] * 40, [1] * 31])
    one, again, other = (split_clients(data, "random", seed=seed) for seed in (0, 0, 1))
    assert one.counts.tolist()[:2] == [20, 20]
    assert sorted(one.counts.tolist()[2:]) == [15, 16]
    assert all(torch.equal(a, b) for a, b in zip(one.rows, again.rows, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))


@pytest.mark.parametrize("how", SPLITS)
def test_samples_are_drawn_from_the_clients_own(how):
    data = people([[2] * 20, [1] * 8])
    whole, part = split_clients(data, how), split_clients(data, how, samples=10)
    assert part.counts.tolist() == whole.counts.clamp(max=10).tolist()
    for few, many in zip(part.rows, whole.rows, strict=True):
        assert set(few.tolist()) <= set(many.tolist())
        assert few.tolist() == sorted(few.tolist())
    inputs, targets = part.samples(0)
    assert torch.equal(inputs[:, 0], part.rows[0])
    assert torch.equal(targets, part.rows[0] % 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "time"}, "how='time': it must be one of random, album, chrono"),
        ({"devices": 1}, "devices=1"),
        ({"samples": 0}, "samples=0"),
        ({"devices": 4}, "user 'user 1' has too few items to fill 4 devices"),
        ({"how": "chrono", "devices": 4}, "too few items"),
        ({"how": "album", "devices": 4}, "user 'user 0' has too few albums"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_what_cannot_be_split(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_clients(people([[1] * 9, [1, 2, 3]]), **({"how": "random"} | arguments))


def test_public_samples_have_no_devices():
    data = people([[1, 1], [1, 1]])
    with pytest.raises(ValueError, match="nobody's"):
        split_clients(data.subset([]), "random")
    data.users[0] = -1
    with pytest.raises(ValueError, match="nobody's"):
        split_clients(data, "random")


def test_a_large_item_skips_no_client():
    # By their middles alone, the items would fall on clients 0, 1, 3 and 3.
    dealt = split_clients(people([[1, 1, 97, 1]]), "chrono", devices=4)
    assert sorted(dealt.counts.tolist()) == [1, 1, 1, 97]


def test_lengths_and_names_must_agree():
    data = people([[1, 1], [1, 1]])
    with pytest.raises(ValueError, match="items has 3 entries"):
        UserDataset(**(vars(data) | {"items": torch.zeros(3)}))
    with pytest.raises(ValueError, match="users holds 1, but user_names has 1"):
        people([[1, 1], [1, 1]], names=1)
    assert not data.multilabel
    assert UserDataset(**(vars(data) | {"targets": torch.zeros(4, 2)})).multilabel


def test_subset_keeps_rows_together():
    data = people([[1, 2], [3, 1]])
    part = data.subset([4, 1])
    for field in ("inputs", "targets", "users", "items", "albums", "times", "sources"):
        assert torch.equal(getattr(part, field), getattr(data, field)[[4, 1]])
    assert part.user_names == data.user_names
    assert len(data.subset(data.users == 1)) == 4


@given(st.integers(2, 60), st.floats(0.1, 1), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_nobody_is_public_under_one_seed_and_a_user_under_another(count, share, seed, other):
    eligible = np.arange(count) * 3
    everybody, never = (
        draw_users(eligible, None, seed=seed, share=share) if round(share * count) else ([], [])
    )
    if len(everybody):
        drawn, again = draw_users(eligible, 1, seed=other, share=share)
        assert again.tolist() == never.tolist()
        assert set(drawn) <= set(everybody)
        assert sorted([*everybody, *never]) == eligible.tolist()


@pytest.mark.parametrize(
    ("users", "options", "message"),
    [
        (8, {}, "users=8: 10 people have enough data, of whom 7 can be drawn"),
        (0, {}, "users=0"),
        (1, {"seed": -1}, "seed=-1"),
        (1, {"share": 0}, "share=0"),
        (1, {"share": 1.1}, r"share=1\.1"),
    ],
)
def test_draws_that_are_refused(users, options, message):
    with pytest.raises(ValueError, match=message):
        draw_users(np.arange(10), users, **({"seed": 0} | options))


@pytest.mark.parametrize("labels", ["classes", "several"])
def test_images_of_nobody(labels):
    digits = load("digits", 8, sample=7)
    if labels == "several":
        digits = ImageDataset(digits.images, torch.eye(10)[digits.labels], digits.classes, "several")
    data = unowned(digits)
    assert torch.equal(data.inputs, digits.images)
    assert torch.equal(data.targets, digits.labels)
    assert data.multilabel == (labels == "several")
    assert (data.classes, data.user_names, data.name) == (digits.classes, (), digits.name)
    assert data.users.tolist() == [-1] * 7
    assert data.items.tolist() == data.times.tolist() == data.sources[:, 0].tolist() == list(range(7))
    assert (data.users.dtype, data.items.dtype, data.albums.dtype) == (torch.int64,) * 3
    assert data.times.dtype == torch.float64
    assert data.subset([3, 1]).items.tolist() == [3, 1]
    with pytest.raises(ValueError, match="none of nobody's"):
        split_clients(data, "random")


def test_no_images_of_nobody():
    nothing = unowned(load("digits", 8, sample=7).subset([]))
    assert len(nothing) == 0
    assert nothing.sources.shape == (0, 1)
