"""Gaussian and Laplacian noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, laplace, norm

from gradleak_lib.defenses import gaussian_noise, laplacian_noise
from gradleak_lib.federated import Update

UPDATE = Update({"w": torch.zeros(200, 100), "b": torch.ones(50)}, "gradient", 8)


def test_the_noise_is_laplacian_of_the_given_scale():
    noise = laplacian_noise(0.3, seed=2)(UPDATE).tensors["w"].double().flatten().numpy()
    assert kstest(noise, laplace(scale=0.3).cdf).pvalue > 1e-3


def test_seeded_and_everything_else_kept():
    first, same, other = (laplacian_noise(0.1, seed=s)(UPDATE) for s in (1, 1, 2))
    assert torch.equal(first.flat(), same.flat())
    assert not torch.equal(first.flat(), other.flat())
    assert (first.kind, first.samples) == ("gradient", 8)
    assert torch.equal(laplacian_noise(0.0)(UPDATE).flat(), UPDATE.flat())


@pytest.mark.parametrize(("noise", "shape"), [(gaussian_noise, norm), (laplacian_noise, laplace)])
def test_relative_noise_is_in_units_of_the_whole_update(noise, shape):
    generator = torch.Generator().manual_seed(0)
    tensors = {  # of so different sizes that the unit of one tensor would be another
        "large": 3.0 + 10 * torch.randn(100, 100, generator=generator, dtype=torch.float64),
        "small": 1e-3 * torch.randn(30_000, generator=generator, dtype=torch.float64),
    }
    update = Update(tensors, "gradient", 8)
    unit = update.flat().numpy().std()
    sent = noise(5.0, relative=True, seed=2)(update)
    for name, tensor in tensors.items():
        added = (sent.tensors[name] - tensor).flatten().numpy() / unit
        assert kstest(added, shape(scale=5.0).cdf).pvalue > 1e-3
    same = noise(5.0 * unit, seed=2)(update)
    assert torch.allclose(sent.flat(), same.flat(), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([gaussian_noise, laplacian_noise]),
    st.floats(1e-3, 100),
    st.integers(-60, 60),
    st.integers(0, 2**31),
)
def test_relative_noise_follows_the_size_of_the_update(noise, strength, power, seed):
    tensors = {"w": torch.randn(20, generator=torch.Generator().manual_seed(seed)), "b": torch.ones(2)}
    scaled = {name: tensor * 2.0**power for name, tensor in tensors.items()}
    sent = noise(strength, relative=True, seed=seed)(Update(tensors, "gradient", 8)).flat()
    larger = noise(strength, relative=True, seed=seed)(Update(scaled, "gradient", 8)).flat()
    assert torch.equal(sent * 2.0**power, larger)  # powers of two: exactly


def test_an_update_of_equal_entries_gets_no_relative_noise():
    update = Update({"w": torch.full((3,), -0.0), "b": torch.zeros(2)}, "gradient", 8)
    assert bool(gaussian_noise(5.0, relative=True)(update).tensors["w"].signbit().all())


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_bad_strength(strength):
    with pytest.raises(ValueError, match=f"deviation must be 0 or more and finite, got {strength}"):
        gaussian_noise(strength)
    with pytest.raises(ValueError, match=f"scale must be 0 or more and finite, got {strength}"):
        laplacian_noise(strength, relative=True)
