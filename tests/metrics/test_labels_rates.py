"""Success rates of label attacks."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.metrics import attack_success_rate, chance_success_rate

batches = st.integers(1, 12).flatmap(
    lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60).map(
        lambda pairs: (classes, [a for a, _ in pairs], [b for _, b in pairs])
    )
)


@given(batches)
def test_it_is_the_size_of_the_intersection_of_multisets(batch):
    classes, found, true = batch
    counts = [torch.tensor(labels).bincount(minlength=classes) for labels in (found, true)]
    expected = (Counter(found) & Counter(true)).total() / len(true)
    assert attack_success_rate(*counts) == pytest.approx(expected)
    assert attack_success_rate(counts[1], counts[1]) == 1


@settings(max_examples=25, deadline=None)
@given(batches, st.integers(0, 2**31))
def test_chance_is_what_guessing_gives(batch, seed):
    classes, _, true = batch
    counts = torch.tensor(true).bincount(minlength=classes)
    generator = torch.Generator().manual_seed(seed)
    guesses = torch.randint(classes, (4000, len(true)), generator=generator)
    table = torch.nn.functional.one_hot(guesses, classes).sum(1)
    rates = table.minimum(counts).sum(1) / len(true)
    margin = 5 * float(rates.double().std()) / 4000**0.5 + 1e-9
    assert chance_success_rate(counts) == pytest.approx(float(rates.double().mean()), abs=margin)


def test_large_balanced_batches_are_easy_to_guess():
    assert (
        chance_success_rate(torch.full((10,), 13))
        > 0.85
        > chance_success_rate(torch.tensor([65, 65] + 8 * [0]))
    )


def test_any_whole_numbers():
    counts = torch.tensor([200, 100], dtype=torch.uint8), torch.tensor([250, 50])
    assert attack_success_rate(*counts) == pytest.approx(250 / 300)
    assert chance_success_rate(torch.tensor([7_000_000, 3_000_000])) == pytest.approx(0.8, abs=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match=r"counts must be \[K\]"):
        attack_success_rate(torch.tensor([1, 2]), torch.tensor([3]))
    with pytest.raises(ValueError, match="sums 3 and 4"):
        attack_success_rate(torch.tensor([1, 2]), torch.tensor([3, 1]))
    with pytest.raises(ValueError, match="0 or more"):
        attack_success_rate(torch.tensor([4, -1]), torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="not all zero"):
        chance_success_rate(torch.zeros(3, dtype=torch.int64))
