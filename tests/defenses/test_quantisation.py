"""Stochastic rounding to a few levels, and signs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.defenses import quantize, sign
from gradleak_lib.federated import Update

scales = st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30])


def drawn(seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (6, 5), "b": (4,), "scalar": ()}
    tensors = {
        name: (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in shapes.items()
    }
    return Update(tensors, "gradient", 5)


def step(tensor, bits):
    return float(tensor.double().abs().max()) / (2 ** (bits - 1) - 1)


@settings(max_examples=120, deadline=None)
@given(st.integers(2, 32), st.integers(0, 2**31), scales)
def test_the_error_is_less_than_a_step(bits, seed, scale):
    update = drawn(seed, scale, torch.float64)
    for name, tensor in quantize(bits, seed=seed)(update).tensors.items():
        before = update.tensors[name]
        assert float((tensor - before).abs().max()) <= step(before, bits) * (1 + 1e-6)
        assert float(tensor.abs().max()) == float(before.abs().max())
        assert bool((tensor * before >= 0).all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8), st.integers(0, 2**31), st.sampled_from([torch.float16, torch.float32, torch.float64])
)
def test_the_values_are_the_stated_levels(bits, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(3000, generator=generator, dtype=torch.float64).to(dtype)
    sent = quantize(bits, seed=seed)(Update({"w": before}, "gradient", 1)).tensors["w"]
    numbers = sent.double() / step(before, bits)
    rounding = torch.finfo(dtype).eps * 2**bits
    assert torch.allclose(numbers, numbers.round(), rtol=0, atol=rounding)
    assert len(numbers.round().unique()) <= 2**bits - 1
    assert len(sent.unique()) <= 2**bits - 1


def test_all_the_levels_occur():
    sent = quantize(3)(Update({"w": torch.linspace(-3, 3, 4001)}, "gradient", 1)).tensors["w"]
    assert sent.unique().tolist() == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_unbiased(bits):
    update, seeds = drawn(11, dtype=torch.float64), 2000
    sent = torch.stack([quantize(bits, seed=seed)(update).flat() for seed in range(seeds)])
    steps = torch.cat([torch.full((t.numel(),), step(t, bits)) for t in update.tensors.values()])
    # Hoeffding: an error lies within one step, so the mean is off by a tenth with probability 2 exp(-40).
    assert bool(((sent.mean(0) - update.flat()).abs() < 0.1 * steps).all())
    assert bool((sent.std(0) > 0).any())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), scales)
def test_thirty_two_bits_are_nearly_exact(seed, scale):
    update = drawn(seed, scale)
    for name, tensor in quantize(32, seed=seed)(update).tensors.items():
        largest = float(update.tensors[name].abs().max())
        assert torch.allclose(tensor, update.tensors[name], rtol=2e-7, atol=largest * 2**-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extremes(dtype):
    ends = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype).repeat(500)
    nothing, empty = torch.zeros(3, 2, dtype=dtype), torch.zeros(0, 2, dtype=dtype)
    update = Update({"ends": ends, "nothing": nothing, "empty": empty}, "gradient", 1)
    for bits in (2, 8, 32):  # at 32 a level's number plus a draw would be rounded up beyond the last level
        sent = quantize(bits)(update).tensors
        assert torch.equal(sent["ends"], ends)
        assert torch.equal(sent["nothing"], nothing)
        assert sent["empty"].shape == (0, 2)
    sent = sign()(Update({"nothing": nothing, "empty": empty}, "gradient", 1)).tensors
    assert torch.equal(sent["nothing"], nothing)
    assert (sent["empty"].shape, sent["empty"].dtype) == ((0, 2), dtype)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), scales)
def test_signs_point_the_same_way(seed, scale):
    update = drawn(seed, scale)
    for name, tensor in sign()(update).tensors.items():
        before = update.tensors[name]
        assert torch.equal(tensor.sign(), before.sign())
        assert float(tensor.double().flatten() @ before.double().flatten()) > 0
        assert torch.allclose(tensor.abs(), before.double().abs().mean().float())


def test_signs_of_known_numbers():
    sent = sign()(Update({"w": torch.tensor([-4.0, 0.0, 1.0, 3.0])}, "gradient", 1)).tensors["w"]
    assert sent.tolist() == [-2.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize("bits", [1, 0, -3, 33, 4.0, 2.5, math.nan, "8"])
def test_bad_bits(bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 32, got"):
        quantize(bits)
