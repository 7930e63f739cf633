"""Clipping, chains, and DP-SGD against a loop over the samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gradleak_lib import data, models
from gradleak_lib.defenses import chain, clip, dp_sgd, gaussian_noise
from gradleak_lib.federated import Update, fedsgd


def drawn(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Update(
        {name: scale * torch.randn(n, generator=generator) for name, n in (("w", 30), ("b", 4))},
        "gradient",
        5,
    )


@settings(max_examples=80, deadline=None)
@given(
    bound=st.floats(1e-6, 1e6), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e12]), seed=st.integers(0, 2**31)
)
def test_norms_are_bounded_and_directions_kept(bound, scale, seed):
    update = drawn(seed, scale)
    sent = clip(bound)(update)
    assert float(sent.flat().double().norm()) <= bound * (1 + 1e-6)
    similarity = torch.cosine_similarity(sent.flat().double(), update.flat().double(), dim=0, eps=0)
    assert float(similarity) == pytest.approx(1)
    for name, tensor in clip(bound, within="tensor")(update).tensors.items():
        assert float(tensor.double().norm()) <= bound * (1 + 1e-6)
        if float(update.tensors[name].double().norm()) <= bound:
            assert torch.equal(tensor, update.tensors[name])


def test_small_updates_and_zeros_stay():
    assert torch.equal(clip(1e9)(drawn(0)).flat(), drawn(0).flat())
    nothing = Update({"w": torch.zeros(3)}, "gradient", 1)
    assert torch.equal(clip(1.0)(nothing).flat(), torch.zeros(3))


def test_a_chain_goes_from_left_to_right():
    clipped_last = chain(gaussian_noise(10.0), clip(1.0))(drawn(0))
    assert float(clipped_last.flat().norm()) <= 1 + 1e-6
    noisy_last = chain(clip(1.0), gaussian_noise(10.0))(drawn(0))
    assert float(noisy_last.flat().norm()) > 1
    assert torch.equal(chain()(drawn(0)).flat(), drawn(0).flat())


def small_net():
    """Convolutions, a group norm, strides and two linear layers, in double precision."""
    with torch.random.fork_rng(()):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.Flatten(),
            nn.Linear(54, 8),
            nn.Tanh(),
            nn.Linear(8, 10),
        ).double()


def gradients_in_a_loop(model, images, labels):
    """Gradient of each sample by an ordinary backward pass: by name, [N, ...]."""
    each = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        each.append({name: value.grad.clone() for name, value in model.named_parameters()})
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def gradients_by_opacus(model, images, labels):
    wrapped = GradSampleModule(model, loss_reduction="sum")
    nn.functional.cross_entropy(wrapped(images), labels, reduction="sum").backward()
    found = {name: value.grad_sample.clone() for name, value in model.named_parameters()}
    wrapped.remove_hooks()
    return found


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("gradients_of", [gradients_in_a_loop, gradients_by_opacus])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
def test_dp_sgd_in_double_precision(gradients_of, quantile):
    digits = data.load("digits", 8, sample=9)
    images, labels = digits.images.double(), digits.labels
    each = gradients_of(small_net(), images, labels)
    norms = torch.stack([value.flatten(1).norm(dim=1) for value in each.values()]).norm(dim=0)
    bound = float(norms.quantile(quantile)) * {0.0: 0.5, 0.5: 1.0, 1.0: 2.0}[quantile]
    factors = torch.minimum(torch.ones(9, dtype=torch.float64), bound / norms)
    assert int((factors < 1).sum()) == {0.0: 9, 0.5: 4, 1.0: 0}[quantile]
    sent = dp_sgd(small_net(), images, labels, bound=bound, noise_multiplier=0, microbatch=4)
    for name, tensor in sent.tensors.items():
        expected = torch.tensordot(factors, each[name], 1) / 9
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-10), name


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
@pytest.mark.parametrize("bound", [0.5, 1e9])
def test_dp_sgd_clips_each_sample(name, bound):
    digits = data.load("digits", 16, sample=7)
    model = models.build(name, (1, 16, 16), classes=10)
    sent = dp_sgd(model, digits.images, digits.labels, bound=bound, noise_multiplier=0, microbatch=3)
    one_by_one = [
        clip(bound)(fedsgd(model, digits.images[i : i + 1], digits.labels[i : i + 1])).flat()
        for i in range(7)
    ]
    assert torch.allclose(sent.flat(), torch.stack(one_by_one).mean(0), rtol=1e-4, atol=1e-6)
    assert (sent.kind, sent.samples) == ("gradient", 7)


def test_frozen_parameters_are_sent_as_zeros_and_do_not_count():
    digits = data.load("digits", 8, sample=5)
    model = models.build("mlp", (1, 8, 8), classes=10)
    model[1].requires_grad_(False)
    sent = dp_sgd(model, digits.images, digits.labels, bound=0.1, noise_multiplier=1.0)
    expected = fedsgd(model, digits.images, digits.labels)
    assert list(sent.tensors) == list(expected.tensors)
    assert float(sent.tensors["1.weight"].abs().max()) == 0
    one = digits.subset([0])
    clipped = dp_sgd(model, one.images, one.labels, bound=0.1, noise_multiplier=0)
    assert float(clipped.flat().norm()) == pytest.approx(0.1, rel=1e-5)


def test_dropout_is_seeded_and_the_model_left_alone():
    digits = data.load("digits", 8, sample=5)
    layers = nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 16)), nn.Dropout(0.5), nn.Linear(16, 10))
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    one, same = (
        dp_sgd(layers, digits.images, digits.labels, bound=1.0, noise_multiplier=0.1).flat() for _ in range(2)
    )
    assert torch.equal(one, same)
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())


def test_half_precision_is_clipped_in_double():
    update = Update({"w": torch.full((1000,), 6000.0, dtype=torch.float16)}, "gradient", 1)
    assert float(clip(1e-3)(update).flat().double().norm()) == pytest.approx(1e-3, rel=0.01)


def test_noise_is_that_of_the_multiplier_and_seeded():
    digits = data.load("digits", 8, sample=4)
    model = models.build("mlp", (1, 8, 8), classes=10)

    def sent(multiplier, seed=0):
        return dp_sgd(
            model, digits.images, digits.labels, bound=2.0, noise_multiplier=multiplier, seed=seed
        ).flat()

    noise = sent(0.5) - sent(0.0)
    assert float(noise.std()) == pytest.approx(0.5 * 2.0 / 4, rel=0.02)
    assert torch.equal(sent(0.5), sent(0.5))
    assert not torch.equal(sent(0.5), sent(0.5, seed=1))


def test_bad_input():
    model, images = models.build("mlp", (4,), classes=3), torch.rand(2, 4)
    with pytest.raises(ValueError, match="bound must be positive"):
        clip(0.0)
    with pytest.raises(ValueError, match="within 'update' or 'tensor'"):
        clip(1.0, within="layer")
    with pytest.raises(ValueError, match="NaN or infinity"):
        clip(1.0)(Update({"w": torch.tensor([torch.inf])}, "gradient", 1))
    with pytest.raises(ValueError, match="noise_multiplier 0 or more"):
        dp_sgd(model, images, torch.tensor([0, 1]), bound=1.0, noise_multiplier=-1)
    resnet = models.build("resnet20", (1, 8, 8), classes=3).train()
    with pytest.raises(ValueError, match="batch norm in training mode"):
        dp_sgd(resnet, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), bound=1.0, noise_multiplier=0)
    frozen = models.build("mlp", (4,), classes=3).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        dp_sgd(frozen, images, torch.tensor([0, 1]), bound=1.0, noise_multiplier=0)
    with pytest.raises(ValueError, match="equally many and not none, got 2, 1"):
        dp_sgd(model, images, torch.tensor([0]), bound=1.0, noise_multiplier=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dp_sgd(model, images * torch.nan, torch.tensor([0, 1]), bound=1.0, noise_multiplier=0)
