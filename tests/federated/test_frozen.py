"""The frozen start of a network: cut off, computed once, and the same in the end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import StochasticDepth
from toys import toy_clients

from gradleak_lib import models
from gradleak_lib.federated import simulate, split_frozen, train_only
from gradleak_lib.federated.frozen import cached

SIZES = (5, 2, 8, 3, 1, 8, 4)
OPTIONS = {"learning_rate": 0.3, "fraction": 0.5, "batch_size": 3, "epochs": 2}


def small(seed=0):
    return models.build("mlp", (6,), classes=3, width=5, seed=seed)


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
        nn.RReLU(),
        StochasticDepth(0.5, "row"),
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
    assert torch.allclose(fast.observed.matrix(), slow.observed.matrix(), atol=1e-12)
    assert list(fast.observed.tensors) == [name.removeprefix("chain.") for name in slow.observed.tensors]
    for value, other in zip(fast.model.parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(value, other, atol=1e-12)
    assert type(fast.model) is type(model)
    x = clients.data.inputs if name == "nplm" else clients.data.inputs.double()
    assert torch.allclose(fast.model(x), slow.model(x), atol=1e-12)


def test_the_frozen_start_is_computed_once():
    clients = toy_clients(SIZES)
    model = nn.Sequential(Counted(6, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3)).eval()
    Counted.calls = 0
    simulate(model, clients, rounds=5, **OPTIONS)
    assert Counted.calls == 1
    inputs = clients.data.inputs
    made = cached(cut(model)[0], clients)
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
