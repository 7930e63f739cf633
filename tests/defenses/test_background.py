from dataclasses import replace

import numpy as np
import pytest
import torch

from gradleak_lib.data import digit_scenes, split_clients
from gradleak_lib.defenses import add_background, add_background_mode, replace_with_background


@pytest.fixture(scope="module")
def people():
    return digit_scenes(4, scenes=32, public_users=5)


@pytest.fixture(scope="module")
def clients(people):
    return split_clients(people.train, "random")


def public_counts(mixed):
    return [int((mixed.data.users[rows] == -1).sum()) for rows in mixed.rows]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_replacement_keeps_the_number_of_samples(people, clients, share):
    mixed = replace_with_background(people.public, share, seed=3)(clients)
    assert [len(rows) for rows in mixed.rows] == [16] * 8
    assert public_counts(mixed) == [round(16 * share)] * 8
    for before, after, user in zip(clients.rows, mixed.rows, clients.users, strict=True):
        own = after[mixed.data.users[after] == user]
        assert set(own.tolist()) <= set(before.tolist())
        assert len(own) == len(set(own.tolist()))


def test_addition_keeps_all_own_samples(people, clients):
    mixed = add_background(people.public, 1.5, seed=3)(clients)
    assert public_counts(mixed) == [24] * 8
    for before, after in zip(clients.rows, mixed.rows, strict=True):
        assert set(before.tolist()) <= set(after.tolist())
    assert torch.equal(mixed.data.inputs[: len(people.train)], people.train.inputs)
    assert mixed.users is clients.users


def test_a_mode_is_one_kind_for_each_client(people, clients):
    kinds = people.public.targets.numpy()
    mixed = add_background_mode(people.public, kinds, 1.0, modes=len(np.unique(kinds, axis=0)), seed=3)(
        clients
    )
    chosen = set()
    for rows in mixed.rows:
        added = mixed.data.targets[rows[mixed.data.users[rows] == -1]]
        assert len(added) == 16
        assert len(added.unique(dim=0)) == 1  # as many clusters as label vectors: each is one vector
        chosen.add(tuple(added[0].tolist()))
    assert len(chosen) > 1


def test_clients_draw_differently_and_by_the_seed(people, clients):
    def added(seed):
        mixed = add_background(people.public, 1.0, seed=seed)(clients)
        return [rows[mixed.data.users[rows] == -1].tolist() for rows in mixed.rows]

    assert added(1) == added(1)
    assert added(1) != added(2)
    assert added(1)[0] != added(1)[1]


def test_bad_input(people, clients):
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        replace_with_background(people.public, 1.5)
    with pytest.raises(ValueError, match="amount must be 0 or more"):
        add_background(people.public, -1)
    with pytest.raises(ValueError, match="modes 1 to"):
        add_background_mode(people.public, people.public.targets.numpy(), 1, modes=0)
    with pytest.raises(ValueError, match="the background is empty"):
        add_background(people.public.subset([]), 1)(clients)
    with pytest.raises(ValueError, match="amount must be 0 or more and finite"):
        add_background(people.public, float("inf"))
    for other in (
        {"classes": tuple("abcdefghij")},
        {"inputs": (255 * people.public.inputs).to(torch.uint8)},
        {"inputs": people.public.inputs[..., 1:]},
        {"targets": people.public.targets.argmax(1)},
    ):
        with pytest.raises(ValueError, match="the background is of another task"):
            replace_with_background(replace(people.public, **other), 0.5)(clients)
