"""Federated averaging against plain PyTorch, its checkpoints, and what is observed of it."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import toy_clients

from gradleak_lib import models
from gradleak_lib.defenses import dp_fedavg, gaussian_noise
from gradleak_lib.federated import (
    Diverged,
    Update,
    cohort,
    fedavg,
    fedsgd,
    local_updates,
    simulate,
    simulation,
    train_only,
)

SIZES = (5, 2, 8, 3, 1, 8, 4)
OPTIONS = {"learning_rate": 0.3, "fraction": 0.5, "batch_size": 3, "epochs": 2}


def small(seed=0):
    return models.build("mlp", (6,), classes=3, width=5, seed=seed)


def own_fedavg(model, inputs, targets, *, seed, **options):
    return fedavg(model, inputs, targets, **options, generator=torch.Generator().manual_seed(seed))


def same_state(first, second):
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(
    clients=st.integers(1, 60),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**40),
    turn=st.integers(0, 3),
)
def test_every_client_trains_once_in_each_pass(clients, fraction, seed, turn):
    size = len(cohort(0, clients, fraction=fraction, seed=seed))
    assert (
        max(1, math.floor(fraction * clients)) <= size <= math.floor(fraction * clients + 1e-9) or size == 1
    )
    rounds = math.ceil(clients / size)
    groups = [
        cohort(turn * rounds + number, clients, fraction=fraction, seed=seed) for number in range(rounds)
    ]
    assert sorted(torch.cat(groups).tolist()) == list(range(clients))
    assert [len(group) for group in groups[:-1]] == [size] * (rounds - 1)
    again = cohort(turn * rounds, clients, fraction=fraction, seed=seed)
    assert torch.equal(again, groups[0])


def test_cohorts_are_shuffled_anew():
    passes = [
        torch.cat([cohort(n, 40, fraction=0.25, seed=s) for n in range(p, p + 4)])
        for s, p in ((0, 0), (0, 4), (1, 0))
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (passes[first] != passes[second]).float().mean() > 0.8
    # 0.29 of 100 is 28.999999999999996 in floating point.
    assert len(cohort(0, 100, fraction=0.29)) == 29
    for fraction in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            cohort(0, 5, fraction=fraction)
    with pytest.raises(ValueError, match="clients 1 or more"):
        cohort(0, 0, fraction=0.5)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_simulate_is_federated_averaging(multilabel, engine):
    """Plain PyTorch: batches larger than any client, so that the order of the samples does not matter."""
    clients = toy_clients(SIZES, multilabel=multilabel)
    model = small().double()
    result = simulate(
        model,
        clients,
        rounds=7,
        learning_rate=0.3,
        fraction=0.4,
        batch_size=9,
        epochs=3,
        engine=engine,
        seed=2,
    )
    server, sent, senders = copy.deepcopy(model), [], []
    for number in range(7):
        chosen = cohort(number, len(clients), fraction=0.4, seed=2).tolist()
        total = {name: torch.zeros_like(value) for name, value in server.named_parameters()}
        for client in chosen:
            local = copy.deepcopy(server)
            optimiser = torch.optim.SGD(local.parameters(), lr=0.3)
            inputs, targets = clients.samples(client)
            for _ in range(3):
                optimiser.zero_grad()
                outputs = local(inputs.double())
                if multilabel:
                    loss = nn.functional.binary_cross_entropy_with_logits(outputs, targets.double())
                else:
                    loss = nn.functional.cross_entropy(outputs, targets)
                loss.backward()
                optimiser.step()
            deltas = [(a - b).detach() for a, b in zip(local.parameters(), server.parameters(), strict=True)]
            sent.append(torch.cat([delta.flatten() for delta in deltas]))
            senders.append((client, number))
            for name, delta in zip(total, deltas, strict=True):
                total[name] += SIZES[client] * delta / sum(SIZES[other] for other in chosen)
        with torch.no_grad():
            for name, value in server.named_parameters():
                value += total[name]
    observed = result.observed
    assert [
        (c, r) for c, r in zip(observed.clients.tolist(), observed.rounds.tolist(), strict=True)
    ] == senders
    assert torch.allclose(observed.matrix(), torch.stack(sent), rtol=1e-7, atol=1e-9)
    for value, truth in zip(result.model.parameters(), server.parameters(), strict=True):
        assert torch.allclose(value, truth, rtol=1e-7, atol=1e-9)
    assert observed.samples.tolist() == [SIZES[client] for client, _ in senders]
    assert observed.users.tolist() == [client // 2 for client, _ in senders]
    assert observed.devices.tolist() == [client % 2 for client, _ in senders]


def test_engines_and_seeds():
    clients, model = toy_clients(SIZES), small()
    before = copy.deepcopy(model)
    one, all_at_once = (
        simulate(model, clients, rounds=9, engine=engine, **OPTIONS).observed.matrix()
        for engine in ("sequential", "vectorized")
    )
    assert ((one - all_at_once).norm(dim=1) < 1e-4 * one.norm(dim=1)).all()
    first, same, other = (simulate(model, clients, rounds=9, seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert torch.equal(first.observed.matrix(), same.observed.matrix())
    assert same_state(first.model, same.model)
    assert not torch.equal(first.observed.clients, other.observed.clients)
    assert same_state(model, before)


def test_every_round_and_client_has_an_order_of_its_own(monkeypatch):
    drawn = []
    train = simulation.local_updates

    def spy(model, clients, chosen, *, seeds, **options):
        drawn.append(tuple(seeds))
        return train(model, clients, chosen, seeds=seeds, **options)

    monkeypatch.setattr(simulation, "local_updates", spy)
    for seed in (0, 0, 1):
        simulate(small(), toy_clients(SIZES), rounds=30, seed=seed, **OPTIONS)
    assert drawn[:30] == drawn[30:60]
    different = [value for seeds in (*drawn[:30], *drawn[60:]) for value in seeds]
    assert len(different) == len(set(different))


def test_what_is_observed():
    clients, model = toy_clients(SIZES), small()
    everything = simulate(model, clients, rounds=4, **OPTIONS).observed
    assert list(everything.tensors) == [name for name, _ in model.named_parameters()]
    part = simulate(model, clients, rounds=4, observe=["5", "1.bias"], **OPTIONS).observed
    assert list(part.tensors) == ["1.bias", "5.weight", "5.bias"]
    assert torch.equal(part.matrix("5"), everything.matrix("5"))
    assert torch.equal(part.matrix("1.bias"), everything.tensors["1.bias"])
    assert torch.equal(part.matrix(), torch.cat([part.matrix("1"), part.matrix("5")], dim=1))
    assert list(simulate(model, clients, rounds=1, observe="5", **OPTIONS).observed.tensors) == [
        "5.weight",
        "5.bias",
    ]
    nothing = simulate(model, clients, rounds=4, observe=(), **OPTIONS)
    assert len(nothing.observed) == len(everything) == 3 + 3 + 1 + 3
    assert not nothing.observed.tensors
    with pytest.raises(ValueError, match=r"layer '3' was observed here: there are 1\.bias, 5\.weight"):
        part.matrix("3")
    with pytest.raises(ValueError, match="nothing was observed here: there are no tensors"):
        nothing.observed.matrix()
    for wrong in ("6", "", "5.weigh", "features"):
        with pytest.raises(
            ValueError, match=rf"observe='{wrong}': no trained layer of that name; there are 1.weight"
        ):
            simulate(model, clients, rounds=1, observe=[wrong], **OPTIONS)
    with pytest.raises(ValueError, match="no trained layer"):
        simulate(train_only(small(), ("5",)), clients, rounds=1, observe=["1"], **OPTIONS)


def test_layers_whose_names_begin_alike():
    model = nn.Sequential()
    for name in ("fc", "fc1", "fc10"):
        model.add_module(name, nn.Linear(6, 6))
    observed = simulate(model, toy_clients(SIZES, classes=6), rounds=1, observe=["fc1"], **OPTIONS).observed
    assert list(observed.tensors) == ["fc1.weight", "fc1.bias"]
    assert observed.matrix("fc1").shape == (3, 42)


def test_subsets_and_single_updates():
    observed = simulate(small(), toy_clients(SIZES), rounds=5, **OPTIONS).observed
    late = observed.subset(observed.rounds >= 2)
    rows = torch.nonzero(observed.rounds >= 2).squeeze(1)
    for part in (late, observed.subset(rows)):
        assert len(part) == len(rows)
        assert torch.equal(part.matrix("5"), observed.matrix("5")[rows])
        for field in ("clients", "users", "devices", "rounds", "samples", "local_steps"):
            assert torch.equal(getattr(part, field), getattr(observed, field)[rows])
    with pytest.raises(ValueError, match="indices"):
        observed.subset([len(observed)])


@pytest.mark.parametrize("client", [None, own_fedavg])
def test_a_single_update_is_what_fedavg_sends(client, tmp_path):
    """With the steps that its own client made, and the learning rate: attacks on labels divide by both."""
    options = OPTIONS | {"rounds": 12, "client": client}
    plain = simulate(small(), toy_clients(SIZES), **options).observed
    saved = [simulate(small(), toy_clients(SIZES), checkpoint=tmp_path, **options).observed for _ in range(2)]
    for observed in (plain, *saved, plain.keep("5"), plain.subset(range(len(plain)))):
        assert observed.learning_rate == 0.3
        for row, number in enumerate(observed.clients.tolist()):
            update = observed.update(row)
            assert torch.equal(update.flat(), observed.matrix()[row])
            assert (update.kind, update.samples, update.learning_rate) == ("delta", SIZES[number], 0.3)
            assert update.local_steps == 2 * math.ceil(SIZES[number] / 3)
    held = toy_clients(SIZES)
    images, labels = held.samples(int(plain.clients[0]))
    alone = fedavg(small(), images, labels, learning_rate=0.3, batch_size=3, epochs=2)
    assert (alone.samples, alone.local_steps) == (plain.update(0).samples, plain.update(0).local_steps)


def test_a_defense_sees_what_the_protocol_tells():
    seen = []

    def defense(update, seed):
        seen.append((update.samples, update.local_steps, update.learning_rate))
        return update

    observed = simulate(small(), toy_clients(SIZES), rounds=2, defense=defense, **OPTIONS).observed
    assert seen == [
        (n, k, 0.3) for n, k in zip(observed.samples.tolist(), observed.local_steps.tolist(), strict=True)
    ]


def test_tracked_numbers_follow_the_global_model():
    clients, model = toy_clients(SIZES), nn.Sequential(small(), nn.Dropout(0.5)).train()

    def loss(network):
        network.eval()  # as one does; the training must not notice
        with torch.no_grad():
            return nn.functional.cross_entropy(network(clients.data.inputs), clients.data.targets)

    result = simulate(model, clients, rounds=8, track=loss, **OPTIONS)
    assert len(result.tracked) == 9
    assert all(type(value) is float for value in result.tracked)
    assert result.model.training
    assert result.model[1].training
    assert result.tracked[0] == loss(copy.deepcopy(model)).item()
    assert result.tracked[-1] == loss(copy.deepcopy(result.model)).item()
    assert result.tracked[-1] < result.tracked[0]
    without = simulate(model, clients, rounds=8, **OPTIONS)
    assert without.tracked == ()
    assert same_state(without.model, result.model)


def test_buffers_stay():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    result = simulate(model, toy_clients((4, 8, 8, 4)), rounds=3, **(OPTIONS | {"batch_size": 4}))
    for (name, value), before in zip(result.model.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(value, before), name
    assert not torch.equal(result.model[0].weight, model[0].weight)
    assert result.model[1].training


def test_a_defense_changes_what_is_sent_and_averaged():
    clients, model = toy_clients(SIZES), small().double()

    def run(deviation, seed=0):
        defense = lambda update, number: gaussian_noise(deviation, seed=number)(update)  # noqa: E731
        return simulate(model, clients, rounds=1, defense=defense, seed=seed, **OPTIONS)

    plain, silent = simulate(model, clients, rounds=1, **OPTIONS), run(0.0)
    assert torch.equal(silent.observed.matrix(), plain.observed.matrix())
    noisy, again = run(0.1), run(0.1)
    assert torch.equal(noisy.observed.matrix(), again.observed.matrix())
    noise = noisy.observed.matrix() - plain.observed.matrix()
    assert 0.08 < noise.std() < 0.12
    correlation = torch.corrcoef(noise)  # of the clients' noises
    assert (correlation - torch.eye(3)).abs().max() < 0.5
    # The server averages what it was sent.
    weights = noisy.observed.samples / noisy.observed.samples.sum()
    step = torch.cat(
        [
            (a - b).detach().flatten()
            for a, b in zip(noisy.model.parameters(), model.parameters(), strict=True)
        ]
    )
    assert torch.allclose(step, weights.double() @ noisy.observed.matrix(), atol=1e-7)


def same_run(first, second):
    one, two = first.observed, second.observed
    return (
        same_state(first.model, second.model)
        and torch.equal(one.matrix(), two.matrix())
        and torch.equal(one.clients, two.clients)
        and torch.equal(one.rounds, two.rounds)
        and first.tracked == second.tracked
    )


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("trained", [None, ("5",)])
def test_a_client_of_ones_own_that_is_fedavg(multilabel, trained):
    """Frozen layers in front are computed once: the client gets what is behind them, and their outputs."""
    clients, model = toy_clients(SIZES, multilabel=multilabel), small()
    model = model if trained is None else train_only(model, trained)
    defense = lambda update, number: gaussian_noise(0.01, seed=number)(update)  # noqa: E731
    options = OPTIONS | {"rounds": 5, "seed": 3, "defense": defense}
    before = copy.deepcopy(model)
    plain = simulate(model, clients, engine="sequential", **options)
    own = simulate(model, clients, client=own_fedavg, **options)
    assert same_run(plain, own)
    assert same_state(model, before)


def test_a_client_of_ones_own_under_differential_privacy():
    clients = toy_clients(SIZES)
    private = partial(dp_fedavg, bound=1.0, noise_multiplier=0.5)
    one, same, other = (
        simulate(small(), clients, rounds=4, client=private, seed=seed, **OPTIONS) for seed in (0, 0, 1)
    )
    assert same_run(one, same)
    assert not same_run(one, other)
    loose = partial(dp_fedavg, bound=1e9, noise_multiplier=0.0)
    plain, quiet = (
        simulate(small(), clients, rounds=4, client=client, **OPTIONS) for client in (own_fedavg, loose)
    )
    assert torch.allclose(plain.observed.matrix(), quiet.observed.matrix(), atol=1e-5)


def test_a_client_of_ones_own_and_a_checkpoint(tmp_path):
    clients, model = toy_clients(SIZES), small()
    private = partial(dp_fedavg, bound=1.0, noise_multiplier=0.5)
    options = OPTIONS | {"client": private, "checkpoint": tmp_path}
    simulate(model, clients, rounds=11, **options)
    asked = []

    def spy(*args, seed, **local):
        asked.append(seed)
        return private(*args, seed=seed, **local)

    resumed = simulate(model, clients, rounds=14, **(options | {"client": spy}))
    whole = simulate(model, clients, rounds=14, **OPTIONS, client=private)
    assert same_run(resumed, whole)
    assert len(asked) == int((whole.observed.rounds >= 11).sum())
    with pytest.raises(ValueError, match="checkpoint"):
        simulate(model, clients, rounds=14, **(options | {"client": None}))


def test_clients_that_send_something_else():
    clients, model = toy_clients(SIZES), small()

    def gradient(network, inputs, targets, **options):
        return fedsgd(network, inputs, targets)

    def part(network, inputs, targets, **options):
        return Update({"1.weight": torch.zeros(5, 6)}, "delta", 1)

    def reshaped(network, *data, **options):
        sent = own_fedavg(network, *data, **options)
        return replace(sent, tensors={name: value[None] for name, value in sent.tensors.items()})

    def faster(network, *data, learning_rate, **options):
        return own_fedavg(network, *data, learning_rate=2 * learning_rate, **options)

    def broken(network, *data, **options):
        sent = own_fedavg(network, *data, **options)
        return replace(sent, tensors={name: value * torch.nan for name, value in sent.tensors.items()})

    for client, message in (
        (gradient, "client must return an update of kind 'delta', .* got 'gradient'"),
        (part, "the update is of another architecture: it lacks"),
        (reshaped, "the update is of another architecture: .* has shape"),
        (faster, r"at the learning rate 0\.3, got 'delta', 0\.6"),
        (broken, "NaN or infinity in"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(model, clients, rounds=1, client=client, **OPTIONS)


def test_bad_input():
    clients, model = toy_clients(SIZES), small()
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        simulate(model, clients, rounds=0, **OPTIONS)
    for name, value in (("fraction", 0.0), ("learning_rate", -1.0), ("batch_size", 0), ("epochs", 0)):
        with pytest.raises(ValueError, match=name):
            simulate(model, clients, rounds=1, **(OPTIONS | {name: value}))
    with pytest.raises(ValueError, match="engine='quick'"):
        simulate(model, clients, rounds=1, engine="quick", **OPTIONS)
    with pytest.raises(Diverged, match="NaN or infinity in"):
        simulate(model, clients, rounds=5, **(OPTIONS | {"learning_rate": 1e30}))
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        simulate(small().requires_grad_(False), clients, rounds=1, **OPTIONS)
    for defense in (
        lambda update, seed: replace(update, tensors={k: v.mean() for k, v in update.tensors.items()}),
        lambda update, seed: replace(update, tensors={}),
    ):
        with pytest.raises(ValueError, match=r"the defense must return an update with .* of shape"):
            simulate(model, clients, rounds=1, defense=defense, **OPTIONS)
    nobody = replace(clients, rows=(*clients.rows[:-1], clients.rows[0][:0]))
    with pytest.raises(ValueError, match="holds no samples"):
        simulate(model, nobody, rounds=1, **OPTIONS)
    for chosen in ([-1], [len(clients)]):
        with pytest.raises(ValueError, match="chosen: there is no client"):
            local_updates(model, clients, chosen, learning_rate=0.1, batch_size=4)
