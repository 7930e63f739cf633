"""SPEAR: batches come back exactly, in any order, and a failure shows in the agreement."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib import data, metrics, models
from gradleak_lib.attacks.spear import spear
from gradleak_lib.federated import Update, aggregate, fedavg, fedsgd


def network(inputs=20, width=48, *, bias=True, seed=0):
    """A small network in double precision, whose first layer a ReLU follows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, width, bias=bias), nn.ReLU(), nn.Linear(width, 5)).double()


def batch(samples, inputs=20, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (samples,), generator=generator)


def distance(found, images):
    """Largest difference of any input from its nearest original, and of any original from its nearest input."""
    apart = torch.cdist(found, images, p=math.inf, compute_mode="donot_use_mm_for_euclid_dist")
    return float(torch.maximum(apart.amin(0).amax(), apart.amin(1).amax()) / images.abs().max())


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_a_batch_comes_back_exactly_and_in_any_order(samples, seed):
    model, (images, labels) = network(width=96, seed=seed), batch(samples, seed=seed)
    # Enough zeros for every sample where some other one has a signal: else nothing tells mixtures apart.
    active = model[0](images) > 0
    assume(samples == 1 or int((~active & active.any(0)).sum(1).min()) >= samples + 8)
    found = spear(fedsgd(model, images, labels), model, "0", seed=seed)
    assert found.inputs.shape == images.shape
    assert found.agreement == 1
    assert distance(found.inputs, images) < 1e-6
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    again = spear(fedsgd(model, images[order], labels[order]), model, "0", seed=seed)
    assert distance(again.inputs, images) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [4, 8])
def test_photographs_come_back_exactly(samples, dtype):
    model = models.build("mlp", (3, 32, 32), classes=10).to(dtype)
    photos = data.load("photos", 32, sample=samples)
    update = fedsgd(model, photos.images.to(dtype), photos.labels % 10)
    found = spear(update, model, "1")
    images = found.inputs.reshape(-1, 3, 32, 32)
    partner = metrics.match(images.clamp(0, 1), photos.images)
    assert found.agreement > 0.999
    assert float(metrics.psnr(images[partner], photos.images).min()) > 100


def test_a_seed_gives_the_same_search():
    model, (images, labels) = network(), batch(4)
    update, state = fedsgd(model, images, labels), torch.get_rng_state()
    one, same = (spear(update, model, "0", seed=3) for _ in range(2))
    assert torch.equal(one.inputs, same.inputs)
    assert one.agreement == same.agreement
    assert torch.equal(state, torch.get_rng_state())


def test_one_local_step_and_an_aggregate_are_gradients_too():
    model, (images, labels) = network(), batch(4)
    step = fedavg(model, images, labels, learning_rate=0.1, batch_size=4)
    both = aggregate([fedsgd(model, images[i : i + 2], labels[i : i + 2]) for i in (0, 2)])
    for update in (step, both):
        assert distance(spear(update, model, "0").inputs, images) < 1e-6


def test_equal_inputs_come_back_as_one():
    model, (images, labels) = network(), batch(4)
    images[3] = images[2]
    found = spear(fedsgd(model, images, labels), model, "0")
    assert found.inputs.shape == (3, 20)
    assert found.agreement == 1
    assert distance(found.inputs, images[:3]) < 1e-6


def test_a_sample_without_a_signal_does_not_come_back():
    model, (images, labels) = network(), batch(4)
    with torch.no_grad():
        images[3] = torch.linalg.pinv(model[0].weight) @ -torch.ones(48, dtype=torch.float64)
        model[0].bias.copy_(-(model[0].weight @ images[3]).clamp_min(0) - 0.01)
    assert not (model[0](images[3]) > 0).any()
    found = spear(fedsgd(model, images, labels), model, "0")
    assert found.inputs.shape == (3, 20)
    assert distance(found.inputs, images[:3]) < 1e-6


def test_a_failure_shows_in_the_agreement():
    model, (images, labels) = network(), batch(8)
    smooth = models.with_activation(model, nn.Tanh)  # no signal is zero
    found = spear(fedsgd(smooth, images, labels), smooth, "0", trials=64)
    assert found.agreement < 0.9


def test_the_attack_sees_the_update_and_leaves_the_model_as_it_was():
    assert list(inspect.signature(spear).parameters) == ["update", "model", "layer", "trials", "seed"]
    model, (images, labels) = network().train(), batch(3)
    before = copy.deepcopy(model.state_dict())
    spear(fedsgd(model, images, labels), model, "0")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input():
    model, (images, labels) = network(), batch(4)
    update = fedsgd(model, images, labels)
    with pytest.raises(ValueError, match="trials must be 1 or more, got 0"):
        spear(update, model, "0", trials=0)
    with pytest.raises(ValueError, match="the gradient of one step, and the update has 2"):
        spear(fedavg(model, images, labels, learning_rate=0.1, batch_size=2), model, "0")
    for layer in ("1", "9"):
        with pytest.raises(ValueError, match=f"an nn.Linear with biases of the model, got '{layer}'"):
            spear(update, model, layer)
    bare = network(bias=False)
    with pytest.raises(ValueError, match=r"an nn\.Linear with biases"):
        spear(fedsgd(bare, images, labels), bare, "0")
    with pytest.raises(
        ValueError, match=r"another model: 0.weight has shape \(8, 20\), and it brings \(48, 20\)"
    ):
        spear(update, network(width=8), "0")
    with pytest.raises(ValueError, match="as the layer has inputs and outputs, 20, got 21"):
        spear(fedsgd(model, *batch(21)), model, "0")
    zero = {name: torch.zeros_like(value) for name, value in update.tensors.items()}
    with pytest.raises(ValueError, match="the gradient of layer '0' is zero"):
        spear(Update(zero, "gradient", 4), model, "0")
    zero["0.bias"][0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in '0\.bias'"):
        spear(Update(zero, "gradient", 4), model, "0")


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 1.0])
def test_noise_on_a_small_layer_is_no_error(noise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 5))
    sent = fedsgd(model, torch.randn(4, 20), torch.arange(4)).tensors
    noisy = Update(
        {name: value + noise * torch.randn_like(value) for name, value in sent.items()}, "gradient", 4
    )
    found = spear(noisy, model, "0", trials=500)
    assert found.inputs.dtype == torch.float32
    assert found.agreement < 1
