"""Identification and matching: on clusters, on noise, and on updates of a real training."""

import math

import numpy as np
import pytest
import torch

from gradleak_lib import models
from gradleak_lib.attacks import linkability
from gradleak_lib.attacks.linkability import (
    ATTACKS,
    features,
    identify,
    match_by_cosine,
    match_by_identity,
    train_siamese,
)
from gradleak_lib.data.scenes import digit_scenes
from gradleak_lib.data.users import split_clients
from gradleak_lib.federated import Observations, simulate
from gradleak_lib.metrics import balanced_pairs, identification, matching_ap


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(users, each, *, spread, dimensions=20, seed=0, centres=0):
    """Directions ``[users * each, D]`` around one centre for each user, and whose they are."""
    middle = np.random.default_rng(centres).standard_normal((users, dimensions))
    owner = np.tile(np.arange(users), each)
    noise = np.random.default_rng([seed, 1]).standard_normal((len(owner), dimensions))
    return unit(middle[owner] + spread * noise), owner


def noise(users, each, *, dimensions=20, seed=0):
    owner = np.tile(np.arange(users), each)
    return unit(np.random.default_rng([seed, 2]).standard_normal((len(owner), dimensions))), owner


def observations(tensors):
    count = len(next(iter(tensors.values())))
    numbers = torch.arange(count)
    ones = torch.ones_like(numbers)
    return Observations(tensors, numbers, numbers, 0 * numbers, 0 * numbers, ones, ones, learning_rate=0.1)


def test_features_have_length_one():
    weight, bias = torch.randn(5, 3, 4), torch.randn(5, 3)
    weight[2], bias[2] = 0, 0
    seen = observations({"fc.weight": weight, "fc.bias": bias, "fc2.bias": torch.randn(5, 7)})
    found = features(seen, "fc")
    assert found.shape == (5, 15)
    assert found.dtype == np.float32
    assert (found[2] == 0).all()
    assert np.linalg.norm(found, axis=1)[[0, 1, 3, 4]] == pytest.approx(1, abs=1e-6)
    raw = torch.cat([weight.flatten(1), bias], dim=1).numpy()
    assert np.allclose(found[3] * np.linalg.norm(raw[3]), raw[3], atol=1e-6)
    assert features(seen).shape == (5, 22)
    tiny = observations({"fc.weight": 1e-20 * weight, "fc.bias": 1e-20 * bias})
    assert np.allclose(features(tiny), found, atol=1e-6)
    with pytest.raises(ValueError, match="was observed here"):
        features(seen, "fc1")
    for bad in (math.nan, math.inf):
        weight[1, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            features(observations({"fc.weight": weight}))


@pytest.mark.parametrize("attack", ["knn", "svm", "mlp"])
@pytest.mark.parametrize("users", [2, 6])
def test_attacks_find_clusters(attack, users):
    known, owner = clusters(users, 20, spread=0.7)
    unknown, truth = clusters(users, 20, spread=0.7, seed=1)
    scores = identify(attack, known, owner, unknown, classes=users)
    assert scores.shape == (users * 20, users)
    assert scores.dtype == np.float64
    result = identification(scores, truth, np.arange(len(truth)))
    assert result.ap > 0.9
    assert result.top1 > 0.9
    assert result.ap > result.null.max()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_find_nothing_in_noise(attack):
    known, owner = noise(5, 30)
    unknown, truth = noise(5, 100, seed=1)
    scores = identify(attack, known, owner, unknown, classes=5)
    result = identification(scores, truth, np.arange(len(truth)))
    assert result.ap == pytest.approx(0.2, abs=0.04)
    assert result.top1 == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize("attack", ["knn", "svm", "mlp"])
@pytest.mark.parametrize("present", [[1, 3], [0, 1, 4]])
def test_a_class_without_known_updates_scores_lowest(attack, present):
    known, owner = clusters(5, 12, spread=0.5)
    rows = np.isin(owner, present)
    unknown, truth = clusters(5, 10, spread=0.5, seed=1)
    scores = identify(attack, known[rows], owner[rows], unknown, classes=5)
    absent = [number for number in range(5) if number not in present]
    assert (scores[:, absent] == scores.min(axis=1, keepdims=True)).all()
    mine = np.isin(truth, present)
    assert (scores.argmax(1) == truth)[mine].mean() > 0.9


def test_probabilities_and_shares():
    known, owner = clusters(4, 10, spread=1.0)
    unknown, _ = clusters(4, 5, spread=1.0, seed=1)
    logs = identify("mlp", known, owner, unknown, classes=4)
    assert np.exp(logs).sum(1) == pytest.approx(1, abs=1e-5)
    shares = identify("knn", known, owner, unknown, classes=4)
    assert shares.sum(1) == pytest.approx(1)
    distances = np.linalg.norm(unknown[0] - known, axis=1)
    nearest = owner[np.argsort(distances)[:10]]
    assert shares[0] == pytest.approx(np.bincount(nearest, minlength=4) / 10)


@pytest.mark.parametrize("attack", ATTACKS)
def test_seeds_decide_and_the_global_state_stays(attack):
    known, owner = clusters(3, 10, spread=1.0)
    unknown, _ = clusters(3, 10, spread=1.0, seed=1)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = identify(attack, known, owner, unknown, classes=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    torch.manual_seed(8)
    assert (first == identify(attack, known, owner, unknown, classes=3, seed=1)).all()
    if attack in ("chance", "mlp"):
        assert (first != identify(attack, known, owner, unknown, classes=3, seed=2)).any()
    # A row's score is its own, whatever else is asked for; what is asked for is left as it was.
    if attack != "chance":
        alone = identify(attack, known, owner, unknown[4:5], classes=3, seed=1)
        assert np.allclose(alone[0], first[4], atol=1e-5)
    assert (unknown == clusters(3, 10, spread=1.0, seed=1)[0]).all()


def test_two_known_updates_are_enough():
    known, owner = clusters(2, 1, spread=0.1)
    for attack in ("knn", "svm", "mlp"):
        assert np.isfinite(identify(attack, known, owner, known, classes=2)).all()
    assert identify("svm", known.astype(float), owner, known, classes=2).argmax(1).tolist() == [0, 1]
    assert identify("mlp", known.astype(float), owner, known, classes=2).shape == (2, 2)


def test_identify_refuses():
    known, owner = clusters(3, 4, spread=1.0)
    for arguments, message in (
        (("cnn", known, owner, known), "attack='cnn': it must be one of chance, knn, svm, mlp"),
        (("knn", known, owner[:5], known), "do not fit"),
        (("knn", known, owner[:, None], known), "do not fit"),
        (("knn", known, owner, known[:, :4]), "do not fit"),
        (("knn", known[0], owner, known), "do not fit"),
        (("mlp", known * np.nan, owner, known), "NaN or infinity"),
        (("mlp", known, owner, known + np.inf), "NaN or infinity"),
        (("knn", known, owner * 0, known), "two or more, numbered 0 to 2; got"),
        (("knn", known, owner + 1, known), "numbered 0 to 2"),
        (("chance", known, owner - 1, known), "numbered 0 to 2"),
        (("knn", known[:0], owner[:0], known), "two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            identify(*arguments, classes=3)


def test_the_network_stops_when_it_no_longer_learns(monkeypatch):
    """Noise: the loss on the held-out tenth is lowest early, and the network of then is kept."""
    known, owner = noise(4, 25)
    steps = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1]
    )
    logs = identify("mlp", known, owner, known, classes=4)
    assert len(steps) < 300 * 3 / 2
    # Trained to the end, it would know its 100 updates by heart.
    assert np.exp(logs).max(1).mean() < 0.6
    monkeypatch.setattr(linkability, "_PATIENCE", 300)
    steps.clear()
    again = identify("mlp", known, owner, known, classes=4)
    assert len(steps) == 300 * 3
    assert np.exp(again).max(1).mean() < 0.6


def test_matching_by_identity_is_the_largest_product():
    first, second = np.random.default_rng(0).dirichlet(np.ones(4), (2, 30))
    products = (first * second).max(1)
    assert match_by_identity(np.log(first), np.log(second)) == pytest.approx(products)


def test_matchers_refuse():
    known, owner = clusters(3, 4, spread=1.0)
    siamese = train_siamese(known, owner, np.arange(len(owner)), epochs=1)
    for matcher in (match_by_cosine, siamese):
        for sides in ((known, known[:1]), (known[0], known[0])):
            with pytest.raises(ValueError, match=r"must both be \[P, D\]"):
                matcher(*sides)
        with pytest.raises(ValueError, match="NaN or infinity"):
            matcher(known, known * np.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        train_siamese(known * np.nan, owner, owner)
    shares = identify("knn", known, owner, known, classes=3)
    with pytest.raises(ValueError, match="no log probabilities"):
        match_by_identity(shares, shares)
    with pytest.raises(ValueError, match=r"must both be \[P, U\]"):
        match_by_identity(np.log(shares[:1] + 1e-9), np.log(shares + 1e-9))


def test_matching_by_cosine():
    first, _ = noise(5, 4)
    second, _ = noise(5, 4, seed=1)
    assert match_by_cosine(first, second) == pytest.approx((first * second).sum(1), abs=1e-6)
    assert match_by_cosine(first, first) == pytest.approx(1, abs=1e-6)
    assert match_by_cosine(first, second).dtype == np.float64


def pairs_of(owner, count=300):
    """Pairs among updates that come from two clients of each user, in turns."""
    clients = 2 * owner + np.arange(len(owner)) // (owner.max() + 1) % 2
    left, right, same = balanced_pairs((owner, clients), (owner, clients), count=count, seed=3)
    return left, right, same, clients


def test_the_siamese_network_matches_users_it_has_never_seen():
    """Forty users to learn from, ten others to match; much of the noise lies where no user differs."""
    middle = np.zeros((50, 30))
    middle[:, :5] = np.random.default_rng(0).standard_normal((50, 5))
    owner = np.tile(np.arange(50), 12)
    spread = np.array([0.5] * 5 + [1.0] * 25)
    vectors = unit(middle[owner] + spread * np.random.default_rng(1).standard_normal((600, 30)))
    known = owner < 40
    clients = 2 * owner + np.arange(600) // 50 % 2
    match = train_siamese(vectors[known], owner[known], clients[known], epochs=20)
    unseen, users = vectors[~known], owner[~known] - 40
    left, right, same, _ = pairs_of(users)
    learnt = match(unseen[left], unseen[right])
    assert learnt.shape == (600,)
    assert ((learnt >= 0) & (learnt <= 1)).all()
    ap = matching_ap(same, learnt)
    assert ap > 0.7
    assert ap > matching_ap(same, match_by_cosine(unseen[left], unseen[right])) + 0.03
    assert match(unseen[right], unseen[left]) == pytest.approx(learnt, abs=1e-6)
    # The same network on updates of nobody.
    rows, other = noise(10, 12, dimensions=30)
    left, right, same, _ = pairs_of(other)
    assert matching_ap(same, match(rows[left], rows[right])) == pytest.approx(0.5, abs=0.1)


def test_identity_matches_known_users():
    known, owner = clusters(6, 20, spread=0.8)
    unknown, users = clusters(6, 20, spread=0.8, seed=1)
    logs = identify("mlp", known, owner, unknown, classes=6)
    left, right, same, _ = pairs_of(users)
    assert matching_ap(same, match_by_identity(logs[left], logs[right])) > 0.85
    assert matching_ap(same, match_by_cosine(unknown[left], unknown[right])) > 0.85


def test_siamese_seeds_and_errors():
    known, owner = clusters(3, 6, spread=0.5)
    clients = np.arange(18) // 9
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one, same, other = (
        train_siamese(known, owner, clients, epochs=2, seed=seed)(known, known[::-1]) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (one == same).all()
    assert (one != other).any()
    for arguments, message in (
        ((known, owner * 0, clients), "two users or more"),
        ((known, owner[:4], clients), "must be"),
        ((known, owner, clients[:4]), "must be"),
        ((known[0], owner, clients), "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            train_siamese(*arguments)
    with pytest.raises(ValueError, match="epochs 1 or more"):
        train_siamese(known, owner, clients, epochs=0)


def test_pairs_of_one_user_come_from_two_clients_where_there_are_two():
    owners = np.array([0, 0, 0, 1, 1, 2])
    senders = np.array([0, 0, 1, 2, 2, 3])
    partners = [linkability._partners(owners, senders, row).tolist() for row in range(6)]
    assert partners == [[2], [2], [0, 1], [4], [3], [5]]


def test_updates_of_a_real_training_give_their_users_away():
    """Eight people with two devices each; one device of each is known, the other is asked for."""
    people = digit_scenes(8, scenes=64, taste=0.3, style=1.0, public_users=1, seed=0)
    clients = split_clients(people.train, "random")
    model = models.build("cnn", (1, 16, 16), classes=10, width=4)
    options = {"rounds": 24, "learning_rate": 0.5, "fraction": 0.25, "observe": [models.last_layer(model)]}
    observed = simulate(model, clients, **options).observed
    known, unknown = (observed.subset(observed.devices == device) for device in (0, 1))
    assert len(known) == len(unknown) == 48
    for attack in ("knn", "svm", "mlp"):
        scores = identify(attack, features(known), known.users, features(unknown), classes=8)
        result = identification(scores, unknown.users, unknown.clients)
        assert result.gain > 2, attack
        assert result.ap > result.null.max(), attack
    # The same attack, told wrong names: no better than what clients that are alike give.
    wrong = (known.users + 1 + known.users % 2 * 2) % 8
    scores = identify("svm", features(known), wrong, features(unknown), classes=8)
    assert identification(scores, unknown.users, unknown.clients).gain_over_null < 1.3
