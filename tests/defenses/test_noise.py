"""Laplacian noise."""

import pytest
import torch
from scipy.stats import kstest, laplace

from gradleak_lib.defenses import laplacian_noise
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


def test_negative_scale():
    with pytest.raises(ValueError, match="scale"):
        laplacian_noise(-1.0)
