"""What compression sends, and what the released code of LLG makes of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.defenses import compress, compress_as_released, compress_classes
from gradleak_lib.federated import Update

shares = st.floats(0, 1)


def drawn(seed, classes=4):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 2, 2), "0.bias": (3,), "1.weight": (classes, 5), "1.bias": (classes,)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return Update(tensors, "gradient", 7)


def part(share, count):
    return math.floor(share * count + 1e-9)


def dropped(before, after):
    return int(((before != 0) & (after == 0)).sum())


@settings(max_examples=80, deadline=None)
@given(shares, st.integers(0, 2**31))
def test_exactly_the_stated_number_of_smallest_entries_is_dropped(share, seed):
    update = drawn(seed)
    whole, each = compress(share)(update), compress(share, within="tensor")(update)
    assert dropped(update.flat(), whole.flat()) == part(share, len(update.flat()))
    kept = whole.flat() != 0
    if kept.any() and not kept.all():
        assert update.flat()[kept].abs().min() >= update.flat()[~kept].abs().max()
    for name, tensor in update.tensors.items():
        assert dropped(tensor, each.tensors[name]) == part(share, tensor.numel())
    for sent in (whole, each):
        assert {n: (t.shape, t.dtype) for n, t in sent.tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in update.tensors.items()
        }
        assert torch.equal(sent.flat()[sent.flat() != 0], update.flat()[sent.flat() != 0])
        assert (sent.kind, sent.samples) == (update.kind, update.samples)


@settings(max_examples=60, deadline=None)
@given(shares, st.integers(0, 2**31))
def test_classes_go_by_the_sum_of_their_row(share, seed):
    update = drawn(seed)
    sent = compress_classes(share, "1")(update)
    sums = update.tensors["1.weight"].sum(1).abs()
    lost = (sent.tensors["1.weight"] == 0).all(1)
    assert int(lost.sum()) == part(share, 4)
    assert torch.equal(lost, sent.tensors["1.bias"] == 0)
    assert not lost.any() or lost.all() or sums[lost].max() <= sums[~lost].min()
    assert torch.equal(sent.tensors["0.weight"], update.tensors["0.weight"])


def test_the_released_code_takes_classes_for_tensors():
    update = drawn(0)
    weight = torch.ones(4, 5)
    weight[2] = 1e-3  # class 2 has the smallest gradient, and tensor 2 is the weight that the attack reads
    update = Update({**update.tensors, "1.weight": weight}, "gradient", 7)
    sent = compress_as_released(0.25, "1")(update)
    assert [bool((t == 0).all()) for t in sent.tensors.values()] == [False, False, True, False]
    weight = torch.ones(4, 5)
    weight[1] = 1e-3
    sent = compress_as_released(0.25, "1")(Update({**update.tensors, "1.weight": weight}, "gradient", 7))
    assert [bool((t == 0).all()) for t in sent.tensors.values()] == [False, True, False, False]
    spared = compress_classes(0.25, "1")(update)
    assert int((spared.tensors["1.weight"] == 0).all(1).sum()) == 1
    many = compress_as_released(0.5, "1")(drawn(1, classes=40))  # classes beyond the last tensor do nothing
    assert len(many.tensors) == 4


@pytest.mark.parametrize("defense", [compress, lambda share: compress_classes(share, "1")])
def test_nothing_dropped_is_the_identity(defense):
    assert torch.equal(defense(0.0)(drawn(1)).flat(), drawn(1).flat())
    assert float(compress(1.0)(drawn(1)).flat().abs().sum()) == 0


def test_twenty_nine_of_a_hundred():
    update = Update({"w": torch.arange(1.0, 101.0)}, "gradient", 1)
    assert int((compress(0.29)(update).flat() == 0).sum()) == 29


def test_bad_input():
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 20"):
        compress(20)
    with pytest.raises(ValueError, match="within must be 'update' or 'tensor', got 'layer'"):
        compress(0.2, within="layer")
    with pytest.raises(ValueError, match="no layer 'fc'"):
        compress_classes(0.2, "fc")(drawn(0))
    for within in ("update", "tensor"):
        with pytest.raises(ValueError, match="NaN or infinity"):
            compress(0.2, within=within)(Update({"w": torch.tensor([torch.nan])}, "gradient", 1))
