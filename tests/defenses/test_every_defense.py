"""What every defence of an update must do, at every strength."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.defenses import (
    chain,
    clip,
    compress,
    compress_as_released,
    compress_classes,
    gaussian_noise,
    laplacian_noise,
    quantize,
    sign,
)
from gradleak_lib.federated import Update

SEEDED = {
    **{f"gaussian {d}": lambda seed, d=d: gaussian_noise(d, seed=seed) for d in (1e-3, 1.0, 30.0)},
    **{
        f"gaussian {d} relative": lambda seed, d=d: gaussian_noise(d, relative=True, seed=seed)
        for d in (0.01, 1.0, 5.0)
    },
    **{f"laplacian {s}": lambda seed, s=s: laplacian_noise(s, seed=seed) for s in (1e-3, 1.0, 30.0)},
    **{
        f"laplacian {s} relative": lambda seed, s=s: laplacian_noise(s, relative=True, seed=seed)
        for s in (0.01, 1.0, 5.0)
    },
    **{f"quantize {b}": lambda seed, b=b: quantize(b, seed=seed) for b in (2, 3, 4)},
    "clip, gaussian": lambda seed: chain(clip(1.0), gaussian_noise(0.1, seed=seed)),
    "quantize, compress": lambda seed: chain(quantize(2, seed=seed), compress(0.2)),
}
WITHIN = ("update", "tensor")
FIXED = {
    **{f"clip {b} {w}": clip(b, within=w) for b in (1e-3, 1.0, 1e6) for w in WITHIN},
    **{f"compress {s} {w}": compress(s, within=w) for s in (0.0, 0.3, 0.99, 1.0) for w in WITHIN},
    **{f"compress_classes {s}": compress_classes(s, "1") for s in (0.0, 0.5, 1.0)},
    **{f"compress_as_released {s}": compress_as_released(s, "1") for s in (0.0, 0.5, 1.0)},
    "quantize 8": quantize(8),
    "quantize 32": quantize(32),
    "sign": sign(),
    "compress, sign": chain(compress(0.5), sign()),
    "clip, compress": chain(clip(1.0), compress(0.5, within="tensor"), compress_classes(0.25, "1")),
}
EVERY = {name: make(7) for name, make in SEEDED.items()} | FIXED
NOTHING = {
    "gaussian": gaussian_noise(0.0, seed=3),
    "gaussian relative": gaussian_noise(0.0, relative=True, seed=3),
    "laplacian": laplacian_noise(0.0, seed=3),
    "laplacian relative": laplacian_noise(0.0, relative=True, seed=3),
    **{f"compress {w}": compress(0.0, within=w) for w in WITHIN},
    **{f"clip {w}": clip(1e4, within=w) for w in WITHIN},
    "compress_classes": compress_classes(0.0, "1"),
    "compress_as_released": compress_as_released(0.0, "1"),
    "chain": chain(),
    "chain of nothing": chain(gaussian_noise(0.0), compress(0.0), clip(1e4)),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def drawn(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 2, 2), "0.bias": (3,), "1.weight": (4, 5), "1.bias": (4,)}
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }
    return Update(tensors, "delta", 7, 3, 0.25)


def bits_of(update):
    """Every bit, which tells -0.0 from 0.0."""
    return {name: tensor.numpy(force=True).tobytes() for name, tensor in update.tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_form_is_kept_and_the_input_left_alone(name, dtype):
    update = drawn(dtype=dtype)
    before = {key: tensor.clone() for key, tensor in update.tensors.items()}
    sent = EVERY[name](update)
    assert {n: (t.shape, t.dtype) for n, t in sent.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    assert list(sent.tensors) == list(before)
    assert replace(sent, tensors={}) == replace(update, tensors={})  # kind, samples, steps, learning rate
    assert all(torch.equal(update.tensors[key], tensor) for key, tensor in before.items())
    assert bool(torch.isfinite(sent.flat()).all())


@pytest.mark.parametrize("name", EVERY)
def test_mixed_dtypes_are_kept(name):
    tensors = {
        key: tensor.to(dtype) for (key, tensor), dtype in zip(drawn().tensors.items(), DTYPES, strict=True)
    }
    sent = EVERY[name](Update(tensors, "gradient", 1))
    assert [tensor.dtype for tensor in sent.tensors.values()] == list(DTYPES)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(NOTHING)), st.integers(0, 2**31), st.sampled_from(DTYPES[::2] + DTYPES[3:]))
def test_strength_zero_is_the_identity_bit_for_bit(name, seed, dtype):
    update = drawn(seed, dtype)
    update = replace(
        update, tensors={**update.tensors, "0.bias": torch.tensor([-0.0, 0.0, 1.0], dtype=dtype)}
    )
    assert bits_of(NOTHING[name](update)) == bits_of(update)


@pytest.mark.parametrize("name", SEEDED)
def test_seeds(name):
    update = drawn()
    one, same, other = (SEEDED[name](seed)(update).flat() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", EVERY)
def test_the_global_generator_is_neither_read_nor_moved(name):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = EVERY[name](drawn()).flat()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(EVERY[name](drawn()).flat(), first)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", EVERY)
def test_nan_and_infinity_are_refused(name, bad):
    tensors = dict(drawn().tensors)
    tensors["0.bias"] = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(ValueError, match=r"NaN or infinity in '0\.bias'"):
        EVERY[name](Update(tensors, "gradient", 1))


@pytest.mark.parametrize("name", [name for name in NOTHING if name != "chain"])
def test_nan_is_refused_at_strength_zero(name):
    tensors = dict(drawn().tensors) | {"1.bias": torch.full((4,), torch.nan)}
    with pytest.raises(ValueError, match="NaN or infinity"):
        NOTHING[name](Update(tensors, "gradient", 1))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100), st.integers(0, 2**31))
def test_compression_keeps_the_stated_number_of_entries(percent, seed):
    update = drawn(seed, torch.float64)

    def kept(count):
        return count - math.floor(percent * count / 100 + 1e-9)

    assert int((compress(percent / 100)(update).flat() != 0).sum()) == kept(len(update.flat()))
    for tensor in compress(percent / 100, within="tensor")(update).tensors.values():
        assert int((tensor != 0).sum()) == kept(tensor.numel())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.sampled_from(sorted(EVERY)), st.sampled_from(sorted(EVERY)))
def test_two_are_one_after_the_other_and_three_need_no_brackets(a, b, c):
    first, second, third, update = EVERY[a], EVERY[b], EVERY[c], drawn()
    assert torch.equal(chain(first, second)(update).flat(), second(first(update)).flat())
    left, right = chain(chain(first, second), third), chain(first, chain(second, third))
    assert torch.equal(left(update).flat(), right(update).flat())
