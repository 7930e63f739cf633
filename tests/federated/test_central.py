"""Training in one place: against plain Adam, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from toys import toy_clients

from gradleak_lib import models
from gradleak_lib.federated import Diverged
from gradleak_lib.federated.central import predict, train_centrally


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_is_adam(multilabel):
    data = toy_clients((10,), multilabel=multilabel).data
    model = models.build("mlp", (6,), classes=3, width=5)
    trained = train_centrally(model, data.inputs, data.targets, epochs=20, learning_rate=0.01, batch_size=10)
    plain = copy.deepcopy(model)
    loss = nn.functional.binary_cross_entropy_with_logits if multilabel else nn.functional.cross_entropy
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        loss(plain(data.inputs), data.targets).backward()
        optimiser.step()
    for value, truth in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(value, truth, atol=1e-4)
        assert value.requires_grad
    assert loss(trained(data.inputs), data.targets) < 0.98 * loss(model(data.inputs), data.targets)


def test_seeds_modes_and_frozen_layers():
    data = toy_clients((40,)).data
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state = torch.random.get_rng_state()

    def run(seed, network=model):
        return train_centrally(network, data.inputs, data.targets, epochs=2, seed=seed)

    first, same, other = run(1), run(1), run(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[2].weight, same[2].weight)
    assert not torch.equal(first[2].weight, other[2].weight)
    assert torch.equal(first[0].weight, model[0].weight)
    assert first.training
    calm = run(1, copy.deepcopy(model).eval())
    assert not calm.training
    assert not torch.equal(first[2].weight, calm[2].weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input():
    data = toy_clients((8,)).data
    model = models.build("linear", (6,), classes=3)
    for name, value in (
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
    ):
        with pytest.raises(
            ValueError, match="learning_rate must be positive and finite, batch_size and epochs 1 or more"
        ):
            train_centrally(model, data.inputs, data.targets, **({"epochs": 1} | {name: value}))
    for inputs, targets in ((data.inputs, data.targets[:3]), (data.inputs[:0], data.targets[:0])):
        with pytest.raises(ValueError, match="equally many and not none"):
            train_centrally(model, inputs, targets, epochs=1)
    with pytest.raises(Diverged, match="diverged"):
        train_centrally(model, data.inputs * torch.nan, data.targets, epochs=1)
    with pytest.raises(Diverged, match="diverged"):
        train_centrally(
            models.build("mlp", (6,), classes=3), data.inputs, data.targets, epochs=2, learning_rate=1e20
        )
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        train_centrally(copy.deepcopy(model).requires_grad_(False), data.inputs, data.targets, epochs=1)


def test_predict():
    model = models.build("cnn", (1, 8, 8), classes=5, width=4)
    inputs = torch.rand(600, 1, 8, 8)  # more than pass at once
    outputs = predict(model, inputs)
    assert torch.allclose(outputs, model(inputs), atol=1e-6)
    assert not outputs.requires_grad
