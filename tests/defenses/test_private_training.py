"""Local DP-SGD against its two parts, and against plain local training."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib import models
from gradleak_lib.defenses import dp_fedavg, dp_sgd
from gradleak_lib.federated import apply_update, fedavg, multilabel_loss

LOCAL = {"learning_rate": 0.3, "batch_size": 3, "epochs": 2}
PRIVATE = LOCAL | {"bound": 0.5, "noise_multiplier": 0.7}


def small(seed=0):
    return models.build("mlp", (6,), classes=3, width=5, seed=seed)


def drawn(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("multilabel", [False, True])
def test_it_is_dp_sgd_step_by_step(samples, multilabel):
    images, labels = drawn(samples)
    loss = multilabel_loss if multilabel else nn.functional.cross_entropy
    labels = nn.functional.one_hot(labels, 3).float() if multilabel else labels
    model = small()
    sent = dp_fedavg(model, images, labels, **PRIVATE, loss=loss, seed=5)
    local, generator, steps = copy.deepcopy(model), torch.Generator().manual_seed(5), 0
    for _ in range(2):
        for batch in torch.randperm(samples, generator=generator).split(3):
            seed = int(np.random.SeedSequence([5, steps]).generate_state(1)[0])
            gradient = dp_sgd(
                local,
                images[batch],
                labels[batch],
                bound=0.5,
                noise_multiplier=0.7,
                loss=loss,
                seed=seed,
                microbatch=3,
            )
            apply_update(local, gradient, learning_rate=0.3)
            steps += 1
    for name, value in local.named_parameters():
        assert torch.equal(sent.tensors[name], value.detach() - model.get_parameter(name).detach())
    assert (sent.kind, sent.samples, sent.local_steps, sent.learning_rate) == ("delta", samples, steps, 0.3)
    sent.check(model)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(1, 3), st.integers(0, 2**31))
def test_without_a_bound_and_noise_it_is_fedavg(samples, batch_size, epochs, seed):
    images, labels = drawn(samples, seed % 100)
    local = {"learning_rate": 0.3, "batch_size": batch_size, "epochs": epochs}
    found = dp_fedavg(small(), images, labels, **local, bound=1e9, noise_multiplier=0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    expected = fedavg(small(), images, labels, **local, generator=generator)
    assert torch.allclose(found.flat(), expected.flat(), atol=1e-5)
    assert found.local_steps == expected.local_steps
    assert found.samples == expected.samples


def test_noise_and_bound_of_one_step():
    images, labels = drawn(4)
    options = {"learning_rate": 0.5, "batch_size": 4, "bound": 1e-3}
    quiet = dp_fedavg(small(), images, labels, **options, noise_multiplier=0).flat()
    assert float(quiet.norm()) <= 0.5 * 1e-3 * (1 + 1e-4)
    wide = models.build("mlp", (6,), classes=3, width=400)
    noise = [dp_fedavg(wide, images, labels, **options, noise_multiplier=z).flat() for z in (0, 3)]
    # Standard deviation z C / n, times the learning rate.
    assert float((noise[1] - noise[0]).std()) == pytest.approx(0.5 * 3 * 1e-3 / 4, rel=0.05)


def test_the_seed_decides_and_everything_else_stays():
    images, labels = drawn(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    one, same, other = (dp_fedavg(model, images, labels, **PRIVATE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.flat(), same.flat())
    assert not torch.equal(one.flat(), other.flat())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not one.tensors["0.weight"].any()  # frozen: no change, no noise
    assert one.tensors["2.weight"].any()


def test_every_step_has_noise_of_its_own():
    images, labels = drawn(8)
    model, options = models.build("mlp", (6,), classes=3, width=400), PRIVATE | {"bound": 1e-6}
    one = dp_fedavg(model, images, labels, **(options | {"epochs": 1, "batch_size": 8})).flat()
    many = dp_fedavg(model, images, labels, **(options | {"epochs": 4, "batch_size": 8})).flat()
    assert float(many.std() / one.std()) == pytest.approx(2, rel=0.1)  # independent: the variances add up


def test_bad_input():
    images, labels = drawn(4)
    for wrong in (
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"batch_size": 0},
        {"epochs": 0},
    ):
        with pytest.raises(
            ValueError, match="learning_rate must be positive and finite, batch_size and epochs"
        ):
            dp_fedavg(small(), images, labels, **(PRIVATE | wrong))
    for wrong in ({"bound": 0.0}, {"noise_multiplier": -1.0}, {"noise_multiplier": math.nan}):
        with pytest.raises(ValueError, match="bound must be positive, noise_multiplier 0 or more"):
            dp_fedavg(small(), images, labels, **(PRIVATE | wrong))
    for count, given_labels in ((0, 0), (4, 3), (3, 4)):
        with pytest.raises(ValueError, match=f"equally many and not none, got {count}, {given_labels}"):
            dp_fedavg(small(), images[:count], labels[:given_labels], **PRIVATE)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        dp_fedavg(small().requires_grad_(False), images, labels, **PRIVATE)
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    with pytest.raises(ValueError, match="batch norm in training mode"):
        dp_fedavg(normed, images, labels, **PRIVATE)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dp_fedavg(small(), images * torch.nan, labels, **PRIVATE)
    # The last step itself leaves the range: no later one would notice.
    with pytest.raises(ValueError, match="NaN or infinity"):
        dp_fedavg(
            small(), images, labels, learning_rate=1e38, batch_size=4, bound=1e3, noise_multiplier=100.0
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_another_device():
    images, labels = drawn(7)
    here = dp_fedavg(small(), images, labels, **PRIVATE)
    there = dp_fedavg(small().cuda(), images, labels, **PRIVATE)
    assert there.flat().is_cuda
    assert torch.allclose(there.flat().cpu(), here.flat(), atol=1e-4)
