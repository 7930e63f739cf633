"""Chains of defences."""

from functools import reduce

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.defenses import (
    DataDefense,
    UpdateDefense,
    chain,
    clip,
    compress,
    gaussian_noise,
    quantize,
    sign,
)
from gradleak_lib.federated import Update

PARTS = (clip(0.5), compress(0.3), gaussian_noise(0.2, seed=4), quantize(3, seed=5), sign())
some = st.lists(st.sampled_from(PARTS), max_size=4)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return Update({"w": torch.randn(6, 3, generator=generator), "b": torch.ones(3)}, "delta", 5, 3, 0.1)


@settings(max_examples=60, deadline=None)
@given(some, st.integers(0, 2**31))
def test_a_chain_is_one_after_the_other(defenses, seed):
    update = drawn(seed)
    expected = reduce(lambda before, defense: defense(before), defenses, update)
    assert torch.equal(chain(*defenses)(update).flat(), expected.flat())


@settings(max_examples=60, deadline=None)
@given(some, some, st.integers(0, 2**31))
def test_chains_of_chains_are_chains(first, then, seed):
    update = drawn(seed)
    nested, flat = chain(chain(*first), chain(*then)), chain(*first, *then)
    assert torch.equal(nested(update).flat(), flat(update).flat())


def test_a_chain_of_none_is_the_identity():
    update = drawn(0)
    assert chain()(update) is update


def test_the_types_are_exported():
    assert UpdateDefense.__args__ == (Update, Update)
    assert len(DataDefense.__args__) == 2
