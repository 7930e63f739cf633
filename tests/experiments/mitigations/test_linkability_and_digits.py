"""Linkability and the cost of training, under a mitigation, in small federations."""

import copy
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.data import split_clients
from gradleak_lib.defenses import dp_fedavg, epsilon, private_training
from gradleak_lib.experiments.mitigations import Mitigation, draw_people, link_users, train_digits, training
from gradleak_lib.federated import cohort, simulate

ROUNDS = 16  # of eight clients, one in a round: each trains twice


@pytest.fixture(scope="module")
def people():
    return draw_people(0, users=4, scenes=32, warm_epochs=1)


def equal(first, second):
    values = [[value for name, value in vars(one).items() if name != "confusion"] for one in (first, second)]
    return np.array_equal(*values, equal_nan=True) and np.array_equal(first.confusion, second.confusion)


def test_people(people):
    again, other = (draw_people(seed, users=4, scenes=32, warm_epochs=1) for seed in (0, 1))
    for one, two in zip(people.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(people.population.train.inputs, again.population.train.inputs)
    assert not torch.equal(people.population.train.inputs, other.population.train.inputs)
    trained = {name.split(".")[0] for name, p in people.network.named_parameters() if p.requires_grad}
    assert trained == {"fc1", "fc2"}
    below = people.features(people.population.test)
    assert below.shape == (len(people.population.test), people.network.fc2.in_features)
    head = torch.nn.functional.linear(
        torch.from_numpy(below), people.network.fc2.weight, people.network.fc2.bias
    )
    assert torch.allclose(head, people.network(people.population.test.inputs), atol=1e-5)


def test_users_are_linked_unless_noise_hides_them(people):
    before = copy.deepcopy(people.network.state_dict())
    plain = link_users(people, Mitigation(), rounds=ROUNDS, matching=True)
    assert plain.identification > plain.chance + 0.3
    assert plain.identification > plain.null
    assert plain.svm > plain.chance
    assert 0.5 < plain.matching <= 1
    assert plain.epsilon == math.inf
    assert plain.confusion.sum() == ROUNDS // 2  # updates of second devices
    assert plain.confusion.sum(1).tolist() == [2] * 4
    noisy = link_users(people, Mitigation("noise", 50.0), rounds=ROUNDS)
    assert noisy.identification < plain.identification - 0.2
    assert noisy.size > 4 * plain.size
    assert math.isnan(noisy.matching)
    assert all(torch.equal(value, before[name]) for name, value in people.network.state_dict().items())


@pytest.mark.parametrize("name", ["DP-SGD", "mm-aug, by labels, and noise", "secure aggregation"])
def test_one_seed_gives_one_result(people, name):
    mitigation = Mitigation(name, 2)
    runs = [link_users(people, mitigation, rounds=ROUNDS, modes=5) for _ in range(2)]
    assert equal(*runs)
    if name == "DP-SGD":
        other = link_users(replace(people, seed=1), mitigation, rounds=ROUNDS, modes=5)
        assert not equal(runs[0], other)


def test_the_background_is_shifted(people):
    mitigation = Mitigation("rand-aug", 2.0)
    found = [
        link_users(people, mitigation, rounds=ROUNDS, background=kind) for kind in ("in-domain", "shifted")
    ]
    assert not equal(*found)
    with pytest.raises(ValueError, match="background='negative': it must be one of in-domain, shifted"):
        link_users(people, mitigation, background="negative")


def test_sums(people):
    found = link_users(people, Mitigation("secure aggregation", 2), rounds=ROUNDS)
    assert found.identification > found.chance
    assert found.chance == found.null
    assert found.chance == pytest.approx(0.5, abs=0.1)  # two of four users
    assert found.confusion.sum() == 2 * 400
    one = link_users(people, Mitigation("secure aggregation", 1), rounds=ROUNDS)
    assert equal(one, link_users(people, Mitigation(), rounds=ROUNDS))
    with pytest.raises(ValueError, match="a sum of 4 clients needs more than 4 users, there are 4"):
        link_users(people, Mitigation("secure aggregation", 4), rounds=ROUNDS)
    with pytest.raises(ValueError, match="rounds must be more: not every user's second device"):
        link_users(people, Mitigation("secure aggregation", 2), rounds=3)


# --- what is promised ---


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 45), st.sampled_from([0.1, 0.29, 0.5, 1.0]), st.integers(1, 60))
def test_the_promise_counts_the_rounds_of_the_busiest_client(clients, fraction, rounds):
    cohorts = [cohort(number, clients, fraction=fraction).tolist() for number in range(rounds)]
    turns = max(Counter(client for chosen in cohorts for client in chosen).values())
    for name in ("clipping and noise", "DP-SGD"):
        mitigation = Mitigation(name, 0.8)
        promise = training.promise(mitigation, rounds, clients=clients, fraction=fraction)
        assert promise == epsilon(0.8, steps=turns)


@pytest.mark.parametrize("rounds", [16, 19])
def test_the_promise_of_link_is_that_of_its_updates(people, rounds, monkeypatch):
    runs = []
    monkeypatch.setattr(
        training, "simulate", lambda *args, **options: runs.append(simulate(*args, **options)) or runs[-1]
    )
    for name in ("DP-SGD", "clipping and noise"):
        found = link_users(people, Mitigation(name, 1.5), rounds=rounds)
        turns = int(runs[-1].observed.clients.bincount().max())
        assert found.epsilon == epsilon(1.5, rate=1.0, steps=turns)


def test_a_sample_is_in_one_step_of_every_turn(people, monkeypatch):
    """What the promise of DP-SGD rests on, whatever the number of samples of a client."""
    met = Counter()

    def spy(model, images, labels, **options):
        met.update(image.numpy().tobytes() for image in images)
        return real(model, images, labels, **options)

    real = private_training.dp_sgd
    monkeypatch.setattr(private_training, "dp_sgd", spy)
    clients = split_clients(people.population.train, "random", samples=13)
    rounds = 19
    private = partial(dp_fedavg, bound=1.0, noise_multiplier=1.0)
    run = simulate(
        people.network,
        clients,
        rounds=rounds,
        fraction=0.1,
        batch_size=8,
        learning_rate=0.1,
        observe=("fc2",),
        client=private,
    )
    assert set(met.values()) == set(run.observed.clients.bincount().tolist()) == {2, 3}


def test_defences_that_promise_nothing(people):
    for name in ("none", "noise", "clipping", "bkg-repl", "secure aggregation"):
        assert training.promise(Mitigation(name, 1), 10, clients=10, fraction=0.1) == math.inf
    for name in ("clipping and noise", "DP-SGD"):
        assert training.promise(Mitigation(name, 0.0), 10, clients=10, fraction=0.1) == math.inf


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("mitigation", "options"),
    [
        (Mitigation("noise, absolute", 1e30), {}),
        (Mitigation("noise, absolute", 1e300), {}),
        (Mitigation(), {"learning_rate": 1e20}),
        (Mitigation("DP-SGD", 1e38), {}),
        (Mitigation("secure aggregation", 2), {"learning_rate": 1e30}),
    ],
)
def test_a_training_that_diverges_is_no_error(people, mitigation, options):
    assert link_users(people, mitigation, rounds=ROUNDS, **options) is None


def test_other_errors_pass_through(people):
    for mitigation, options, message in (
        (Mitigation(), {"learning_rate": -1.0}, "learning_rate"),
        (Mitigation(), {"rounds": 0}, "rounds"),
        (Mitigation("compression", 1.5), {}, r"share must lie in \[0, 1\]"),
        (Mitigation("bkg-repl", 1.5), {}, r"share must lie in \[0, 1\]"),
        (Mitigation("clipping", 0.0), {}, "bound must be positive"),
        (Mitigation("mm-aug", 1.0), {"modes": 10**6}, "modes 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            link_users(people, mitigation, **({"rounds": ROUNDS} | options))


def test_nothing_is_left_of_what_is_not_sent(people):
    found = link_users(people, Mitigation("compression", 1.0), rounds=ROUNDS)
    assert found.size == 0
    assert found.identification == pytest.approx(0.25)
    assert link_users(people, Mitigation("bkg-repl", 1.0), rounds=ROUNDS).identification < 1


# --- digits ---


def test_digits_are_learnt():
    plain = train_digits(Mitigation())
    assert plain.accuracy > 0.9
    assert plain.epsilon == math.inf


@pytest.mark.parametrize("name", ["none", "noise", "DP-SGD", "rand-aug", "mm-aug", "mm-aug, by labels"])
def test_digits_are_the_same_for_a_seed(name):
    small = {"rounds": 3, "clients": 5, "samples": 40, "learning_rate": 2.0}
    one, same, other = (train_digits(Mitigation(name, 0.2), seed=seed, **small) for seed in (0, 0, 1))
    assert one == same
    assert one.accuracy != other.accuracy


def test_every_round_of_digits_costs_privacy():
    for name in ("DP-SGD", "clipping and noise"):
        found = train_digits(Mitigation(name, 2.0), rounds=3, clients=4, samples=30)
        assert found.epsilon == epsilon(2.0, steps=3)


@pytest.mark.parametrize(
    ("mitigation", "options"),
    [
        (Mitigation("noise, absolute", 1e20), {}),
        (Mitigation("noise, absolute", 1e300), {}),
        (Mitigation("DP-SGD", 1e39), {}),
        (Mitigation(), {"learning_rate": 1e10}),
        (Mitigation(), {"learning_rate": 1e10, "rounds": 1}),
    ],
)
def test_digits_that_diverge_are_guessed(mitigation, options):
    found = train_digits(mitigation, **({"rounds": 3, "clients": 4, "samples": 40} | options))
    assert 0.08 < found.accuracy < 0.15


def test_absolute_strengths_are_those_of_a_gradient(monkeypatch):
    units = []
    real = Mitigation.on_update
    monkeypatch.setattr(
        Mitigation, "on_update", lambda self, **options: units.append(options) or real(self, **options)
    )
    train_digits(
        Mitigation("noise, absolute", 0.1), rounds=1, clients=3, samples=50, batch_size=20, learning_rate=0.3
    )
    assert [options["unit"] for options in units] == [0.3 * 3] * 3
    assert len({options["seed"] for options in units}) == 3


def test_bad_numbers_of_digits():
    for wrong in ({"clients": 0}, {"samples": 0}, {"batch_size": 0}, {"clients": 50}, {"modes": 1000}):
        with pytest.raises(ValueError, match="clients, samples and batch_size must be 1 or more"):
            train_digits(Mitigation(), **wrong)
    with pytest.raises(ValueError, match="rounds"):
        train_digits(Mitigation(), rounds=0)
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 32, got 64"):
        train_digits(Mitigation("quantisation", 64), rounds=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", ["none", "clipping and noise", "DP-SGD", "mm-aug", "secure aggregation"])
def test_people_on_another_device(people, name):
    there = replace(people, network=copy.deepcopy(people.network).cuda())
    found, here = (link_users(who, Mitigation(name, 2), rounds=ROUNDS, modes=5) for who in (there, people))
    assert found.epsilon == here.epsilon
    assert found.size == pytest.approx(here.size, rel=0.05)
