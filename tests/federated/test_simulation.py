"""Federated averaging against plain PyTorch, its checkpoints, and what is observed of it."""

import copy
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import toy_clients

from gradleak_lib import models
from gradleak_lib.defenses import gaussian_noise
from gradleak_lib.federated import cohort, simulate, split_frozen, train_only
from gradleak_lib.federated.frozen import cached

SIZES = (5, 2, 8, 3, 1, 8, 4)
OPTIONS = {"learning_rate": 0.3, "fraction": 0.5, "batch_size": 3, "epochs": 2}


def small(seed=0):
    return models.build("mlp", (6,), classes=3, width=5, seed=seed)


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
    assert torch.allclose(observed.layer(), torch.stack(sent), rtol=1e-7, atol=1e-9)
    for value, truth in zip(result.model.parameters(), server.parameters(), strict=True):
        assert torch.allclose(value, truth, rtol=1e-7, atol=1e-9)
    assert observed.samples.tolist() == [SIZES[client] for client, _ in senders]
    assert observed.users.tolist() == [client // 2 for client, _ in senders]
    assert observed.devices.tolist() == [client % 2 for client, _ in senders]


def test_engines_and_seeds():
    clients, model = toy_clients(SIZES), small()
    before = copy.deepcopy(model)
    one, all_at_once = (
        simulate(model, clients, rounds=9, engine=engine, **OPTIONS).observed.layer()
        for engine in ("sequential", "vectorized")
    )
    assert ((one - all_at_once).norm(dim=1) < 1e-4 * one.norm(dim=1)).all()
    first, same, other = (simulate(model, clients, rounds=9, seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert torch.equal(first.observed.layer(), same.observed.layer())
    assert same_state(first.model, same.model)
    assert not torch.equal(first.observed.clients, other.observed.clients)
    assert same_state(model, before)
    # One client trains anew in each round: the order of its samples differs.
    alone = simulate(model, toy_clients((9,)), rounds=2, learning_rate=1e-4, batch_size=1).observed.layer()
    assert not torch.equal(alone[0], alone[1])


def test_what_is_observed():
    clients, model = toy_clients(SIZES), small()
    everything = simulate(model, clients, rounds=4, **OPTIONS).observed
    assert list(everything.tensors) == [name for name, _ in model.named_parameters()]
    part = simulate(model, clients, rounds=4, observe=["5", "1.bias"], **OPTIONS).observed
    assert list(part.tensors) == ["1.bias", "5.weight", "5.bias"]
    assert torch.equal(part.layer("5"), everything.layer("5"))
    assert torch.equal(part.layer("1.bias"), everything.tensors["1.bias"])
    assert torch.equal(part.layer(), torch.cat([part.layer("1"), part.layer("5")], dim=1))
    assert list(simulate(model, clients, rounds=1, observe="5", **OPTIONS).observed.tensors) == [
        "5.weight",
        "5.bias",
    ]
    nothing = simulate(model, clients, rounds=4, observe=(), **OPTIONS)
    assert len(nothing.observed) == len(everything) == 3 + 3 + 1 + 3
    assert not nothing.observed.tensors
    with pytest.raises(ValueError, match=r"layer '3' was observed here: there are 1\.bias, 5\.weight"):
        part.layer("3")
    with pytest.raises(ValueError, match="nothing was observed here: there are no tensors"):
        nothing.observed.layer()
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
    assert observed.layer("fc1").shape == (3, 42)


def test_subsets_and_single_updates():
    observed = simulate(small(), toy_clients(SIZES), rounds=5, **OPTIONS).observed
    late = observed.subset(observed.rounds >= 2)
    rows = torch.nonzero(observed.rounds >= 2).squeeze(1)
    for part in (late, observed.subset(rows)):
        assert len(part) == len(rows)
        assert torch.equal(part.layer("5"), observed.layer("5")[rows])
        for field in ("clients", "users", "devices", "rounds", "samples"):
            assert torch.equal(getattr(part, field), getattr(observed, field)[rows])
    update = observed.update(3, learning_rate=0.3)
    assert torch.equal(update.flat(), observed.layer()[3])
    assert (update.kind, update.samples, update.learning_rate) == ("delta", SIZES[observed.clients[3]], 0.3)


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
        defense = lambda number: gaussian_noise(deviation, seed=number)  # noqa: E731
        return simulate(model, clients, rounds=1, defense=defense, seed=seed, **OPTIONS)

    plain, silent = simulate(model, clients, rounds=1, **OPTIONS), run(0.0)
    assert torch.equal(silent.observed.layer(), plain.observed.layer())
    noisy, again = run(0.1), run(0.1)
    assert torch.equal(noisy.observed.layer(), again.observed.layer())
    noise = noisy.observed.layer() - plain.observed.layer()
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
    assert torch.allclose(step, weights.double() @ noisy.observed.layer(), atol=1e-7)


def test_bad_input():
    clients, model = toy_clients(SIZES), small()
    for wrong in ({"rounds": 0}, {"rounds": 1, "every": 0}):
        with pytest.raises(ValueError, match="rounds and every must be 1 or more"):
            simulate(model, clients, **(OPTIONS | wrong))
    for name, value in (("fraction", 0.0), ("learning_rate", -1.0), ("batch_size", 0), ("epochs", 0)):
        with pytest.raises(ValueError, match=name):
            simulate(model, clients, rounds=1, **(OPTIONS | {name: value}))
    with pytest.raises(ValueError, match="engine='quick'"):
        simulate(model, clients, rounds=1, engine="quick", **OPTIONS)
    with pytest.raises(ValueError, match="NaN or infinity in"):
        simulate(model, clients, rounds=5, **(OPTIONS | {"learning_rate": 1e30}))
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        simulate(small().requires_grad_(False), clients, rounds=1, **OPTIONS)


# The frozen start of a chain.


def cut(model):
    start, rest = split_frozen(model)
    assert start is not None
    return start, rest


def trained_names(model):
    return [name for name, value in model.named_parameters() if value.requires_grad]


def test_mobilenet_is_cut_inside_its_features():
    model = train_only(models.build("mobilenet-v2", (3, 32, 32), classes=4), ("features.17", "classifier"))
    start, rest = cut(model)
    assert [name for name, _ in start.named_children()] == ["features"]
    assert [name for name, _ in start.features.named_children()] == [str(number) for number in range(17)]
    assert trained_names(rest) == trained_names(model)
    assert trained_names(rest)[0] == "features.17.conv.0.0.weight"
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rest(start(images)), model(images))
    assert rest.classifier[1].weight is model.classifier[1].weight
    model.features[3].train()  # batch norm that works on the batch: nothing may be computed before
    assert split_frozen(model) == (None, model)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_start_and_rest_compute_what_the_model_does(data, seed):
    torch.manual_seed(seed)
    shared = nn.Tanh()

    def chain(depth):
        layers = []
        for _ in range(data.draw(st.integers(1, 4))):
            kind = data.draw(st.sampled_from(["linear", "shared", "norm", "chain" if depth else "linear"]))
            if kind == "chain":
                layers.append(chain(depth - 1))
            elif kind == "linear":
                layers.append(nn.Linear(4, 4).requires_grad_(data.draw(st.booleans())))
            else:
                layers.append(shared if kind == "shared" else nn.BatchNorm1d(4).eval().requires_grad_(False))
        return nn.Sequential(*layers)

    model = chain(2)
    x = torch.randn(5, 4)
    start, rest = split_frozen(model)
    inside = x if start is None else start(x)
    assert torch.equal(rest(inside), model(x))
    assert trained_names(rest) == trained_names(model)
    if start is not None:
        assert not trained_names(start)
        assert list(start.parameters())


def test_what_is_not_a_plain_chain_is_left_whole():
    class Doubling(nn.Sequential):
        def forward(self, x):
            return super().forward(2 * x)

    def layers():
        return nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)

    doubling, wrapped, hooked = Doubling(*layers()), nn.Sequential(*layers()), nn.Sequential(*layers())
    inner = wrapped.forward
    wrapped.forward = lambda x: inner(2 * x)
    hooked.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    for model in (doubling, wrapped, hooked, models.build("resnet20", (3, 8, 8), classes=3)):
        assert split_frozen(model) == (None, model)
    # Inside a plain chain, they count as one layer.
    outer = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), doubling)
    start, rest = cut(outer)
    x = torch.rand(2, 6)
    assert torch.equal(rest(start(x)), outer(x))
    assert next(iter(rest)) is doubling


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6),
        nn.Dropout(),
        nn.Sequential(nn.Dropout()),
        nn.BatchNorm1d(6, track_running_stats=False).eval(),
    ],
)
def test_a_start_that_draws_or_averages_is_not_computed_before(layer):
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3))
    model[0].requires_grad_(False)
    layer.requires_grad_(False)
    assert split_frozen(model) == (None, model)
    if layer.training:
        assert cut(model.eval())[0](torch.rand(2, 6)).shape == (2, 6)


def test_nothing_frozen_in_front_means_no_cut():
    assert split_frozen(small())[0] is None  # only Flatten stands in front
    behind = small()
    behind[5].requires_grad_(False)
    assert split_frozen(behind)[0] is None


class Whole(nn.Module):
    """Hides a chain, so that it is not cut."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return self.chain(x)


class Counted(nn.Linear):
    """Counts the calls of all of its kind."""

    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("name", ["cnn", "nplm"])
def test_simulate_with_a_frozen_start_is_exact(name):
    shape = {"cnn": (1, 8, 8), "nplm": (4,)}[name]
    clients = toy_clients(SIZES, shape=shape, words=name == "nplm")
    model = models.build(name, shape, classes=3, width=4).double()
    train_only(model, {"cnn": ("fc1", "fc2"), "nplm": ("output",)}[name])
    assert split_frozen(model)[0] is not None
    fast = simulate(model, clients, rounds=5, **OPTIONS)
    slow = simulate(Whole(model), clients, rounds=5, **OPTIONS)
    assert torch.allclose(fast.observed.layer(), slow.observed.layer(), atol=1e-12)
    assert list(fast.observed.tensors) == [name.removeprefix("chain.") for name in slow.observed.tensors]
    for value, other in zip(fast.model.parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(value, other, atol=1e-12)
    assert type(fast.model) is type(model)
    x = clients.data.inputs if name == "nplm" else clients.data.inputs.double()
    assert torch.allclose(fast.model(x), slow.model(x), atol=1e-12)


def test_the_frozen_start_is_computed_once():
    clients = toy_clients(SIZES)
    model = nn.Sequential(Counted(6, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3))
    Counted.calls = 0
    simulate(model, clients, rounds=5, **OPTIONS)
    assert Counted.calls == 1
    inputs = clients.data.inputs
    made = cached(cut(model)[0], clients, batch=4)
    assert torch.allclose(made.data.inputs, model[:2](inputs), atol=1e-7)
    assert clients.data.inputs is inputs
    assert made.rows is clients.rows
    assert not made.data.inputs.requires_grad


def test_train_only():
    model = train_only(models.build("cnn", (1, 8, 8), classes=3), ("conv2", "fc2"))
    assert trained_names(model) == ["conv2.weight", "conv2.bias", "fc2.weight", "fc2.bias"]
    assert trained_names(train_only(model, ("fc1",))) == ["fc1.weight", "fc1.bias"]
    assert trained_names(train_only(model, "fc2")) == ["fc2.weight", "fc2.bias"]
    for wrong in ("fc", "pool1", "fc3"):
        with pytest.raises(ValueError, match=rf"no layer '{wrong}' with parameters"):
            train_only(model, (wrong,))
    assert trained_names(model) == ["fc2.weight", "fc2.bias"]


# Checkpoints.

TRACKED = (
    "def track(model):\n"
    "    time.sleep(pause)\n"
    "    return sum(value.sum().item() for value in model.parameters())\n"
)
RUN = f"""
import sys, time
sys.path.insert(0, sys.argv[1])
import gradleak_lib, torch
from toys import toy_clients
from gradleak_lib import models
from gradleak_lib.federated import simulate
torch.set_num_threads(1)
pause = float(sys.argv[3])
{TRACKED}
model = models.build("mlp", (6,), classes=3, width=5)
simulate(model, toy_clients({SIZES}), rounds=40, learning_rate=0.3, fraction=0.5, batch_size=3, epochs=2,
         observe=["5"], track=track, checkpoint=sys.argv[2], every=3)
"""


def parts(folder):
    return sorted(path.name for path in Path(folder).glob("rounds-*.pt"))


def same_run(first, second):
    a, b = first.observed, second.observed
    assert list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        assert torch.equal(a.tensors[name], b.tensors[name]), name
    for field in ("clients", "users", "devices", "rounds", "samples"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert first.tracked == second.tracked
    assert same_state(first.model, second.model)
    return True


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    folder = tmp_path / "deep" / "run"
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder), "0.05"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(parts(folder)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended by itself"
    found = parts(folder)
    assert 2 <= len(found) < 14
    (folder / ".part-abandoned").write_bytes(b"half of a file")
    space = {"pause": 0.0, "time": time}
    exec(TRACKED, space)
    calls = Counter()

    def track(model):
        calls["all"] += 1
        return space["track"](model)

    options = OPTIONS | {"rounds": 40, "observe": ["5"], "track": track}
    resumed = simulate(small(), toy_clients(SIZES), checkpoint=folder, every=3, **options)
    assert calls["all"] == 40 - 3 * len(found)  # the rounds on disk are not done again
    assert not list(folder.glob(".part-*"))
    assert len(parts(folder)) == 14
    assert same_run(resumed, simulate(small(), toy_clients(SIZES), **options))
    # And once more, with nothing left to do.
    calls.clear()
    assert same_run(resumed, simulate(small(), toy_clients(SIZES), checkpoint=folder, every=3, **options))
    assert not calls


def test_longer_shorter_and_differently_cut_runs_go_on(tmp_path):
    clients, model = toy_clients(SIZES), small()
    rounds_done = []

    def track(network):
        rounds_done.append(1)
        return network[5].bias[0].item()

    def run(rounds, folder=None, every=4):
        rounds_done.clear()
        return simulate(model, clients, rounds=rounds, track=track, checkpoint=folder, every=every, **OPTIONS)

    whole = {rounds: run(rounds) for rounds in (3, 5, 10, 13)}
    assert same_run(run(10, tmp_path), whole[10])
    assert parts(tmp_path) == [
        "rounds-000000-000004.pt",
        "rounds-000004-000008.pt",
        "rounds-000008-000010.pt",
    ]
    assert same_run(run(13, tmp_path), whole[13])
    assert len(rounds_done) == 3
    assert same_run(run(5, tmp_path), whole[5])
    assert len(rounds_done) == 1
    assert same_run(run(3, tmp_path, every=2), whole[3])
    # What the shorter runs left does not hide the longer one's parts.
    assert same_run(run(13, tmp_path), whole[13])
    assert not rounds_done
    # A part in the middle is missing: what follows it is done again.
    (tmp_path / "rounds-000004-000008.pt").unlink()
    (tmp_path / "rounds-000004-000005.pt").unlink()
    assert same_run(run(13, tmp_path), whole[13])
    assert len(rounds_done) >= 4


def test_an_interrupted_run_goes_on_with_dropout_and_noise(tmp_path):
    """What draws at random during the training draws the same after a restart."""
    clients = toy_clients(SIZES)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    options = OPTIONS | {"rounds": 9, "defense": lambda seed: gaussian_noise(0.01, seed=seed)}
    whole = simulate(model, clients, track=lambda network: 0, **options)
    count = 0

    def stop(network):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        simulate(model, clients, checkpoint=tmp_path, every=2, track=stop, **options)
    assert len(parts(tmp_path)) == 2
    assert same_run(simulate(model, clients, checkpoint=tmp_path, every=2, track=stop, **options), whole)


def test_a_damaged_part_is_named(tmp_path):
    options = OPTIONS | {"rounds": 6, "every": 2, "checkpoint": tmp_path}
    first = simulate(small(), toy_clients(SIZES), **options)
    path = tmp_path / "rounds-000002-000004.pt"
    content = path.read_bytes()
    some = first.observed.tensors["1.weight"][first.observed.rounds == 2].numpy().tobytes()
    flipped = content.replace(some, bytes([some[0] ^ 64]) + some[1:])
    assert flipped != content
    for damage in (content[: len(content) // 2], b"", b"not a file of torch", content[100:], flipped):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"rounds-000002-000004\.pt is damaged \(\w+\): remove it"):
            simulate(small(), toy_clients(SIZES), **options)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is damaged"):
        simulate(small(), toy_clients(SIZES), **options)
    path.unlink()
    simulate(small(), toy_clients(SIZES), **options)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    def run(*, model=None, clients=None, **changed):
        options = OPTIONS | {"rounds": 2, "seed": 0, "observe": ["5"], "engine": "vectorized"} | changed
        model = small() if model is None else model
        clients = toy_clients(SIZES) if clients is None else clients
        return simulate(model, clients, checkpoint=tmp_path, **options)

    first = run()
    assert same_run(run(), first)
    tanh = small()
    tanh[2] = nn.Tanh()
    moved = toy_clients(SIZES)
    moved.data.inputs[3, 2] += 1e-3
    relabelled = toy_clients(SIZES)
    relabelled.data.targets[0] = (relabelled.data.targets[0] + 1) % 3
    for changed in (
        {"model": small(seed=1)},
        {"model": tanh},
        {"model": train_only(small(), ("5",))},
        {"model": small().train()},
        {"clients": moved},
        {"clients": relabelled},
        {"clients": toy_clients(SIZES[::-1])},
        {"learning_rate": 0.31},
        {"batch_size": 4},
        {"epochs": 1},
        {"fraction": 0.4},
        {"seed": 1},
        {"observe": ["3"]},
        {"engine": "sequential"},
        {"loss": nn.functional.multi_margin_loss},
        {"track": lambda network: 0},
        {"defense": lambda seed: lambda update: update},
    ):
        with pytest.raises(ValueError, match="checkpoint of another run"):
            run(**changed)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        simulate(small(), toy_clients(SIZES), rounds=1, checkpoint=file, **OPTIONS)


def test_saving_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(small(), toy_clients(SIZES), rounds=1, checkpoint=tmp_path, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_run_on_the_gpu_goes_on(tmp_path):
    options = OPTIONS | {"every": 2, "checkpoint": tmp_path}
    simulate(small().cuda(), toy_clients(SIZES), rounds=4, **options)
    resumed = simulate(small().cuda(), toy_clients(SIZES), rounds=6, **options)
    fresh = simulate(small().cuda(), toy_clients(SIZES), rounds=6, **OPTIONS)
    assert torch.allclose(resumed.observed.layer(), fresh.observed.layer(), atol=1e-5)
    assert {value.device.type for value in resumed.observed.tensors.values()} == {"cpu"}
