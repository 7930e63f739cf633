"""Composition of batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak_lib import data

DIGITS = data.load("digits", sample=300)


@given(st.integers(1, 300), st.integers(2, 120), st.integers(0, 2**31))
def test_unbalanced_batches_are_half_of_one_class_and_a_quarter_of_another(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = data.draw_labels(samples, classes, balanced=False, generator=generator)
    assert labels.shape == (samples,)
    counts = labels.bincount(minlength=classes)
    assert len(counts) == classes
    first, second = counts.topk(2).values.tolist()
    assert first >= samples // 2
    assert first + second >= samples // 2 + samples // 4


def test_balanced_batches_are_uniform_and_seeded():
    one, same, other = (
        data.draw_labels(5000, 10, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one.bincount(minlength=10) - 500).abs().max() < 120


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(0, 2**31))
def test_one_image_for_each_label_and_another_each_time(wanted, seed):
    labels = torch.tensor(wanted)
    batch = data.draw_images(DIGITS, labels, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(batch.labels, labels)
    there = DIGITS.labels.bincount(minlength=10)
    if (labels.bincount(minlength=10) <= there).all():
        assert (
            len(batch.images.flatten(1).unique(dim=0)) >= len(labels) - 1
        )  # two digits of the set are equal


def test_unbalanced_rest_is_uniform_and_the_order_random():
    generator = torch.Generator().manual_seed(0)
    labels = data.draw_labels(4000, 10, balanced=False, generator=generator)
    counts, order = labels.bincount(minlength=10).sort()
    assert counts[:8].min() > 60  # a tenth of the last quarter
    assert 500 < int((labels[:2000] == order[-1]).sum()) < 1500 - 100


def test_another_image_for_another_seed():
    digits = data.load("digits", sample=500)
    wanted = torch.full((5,), 3)
    one, other = (
        data.draw_images(digits, wanted, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    assert not torch.equal(one.images, other.images)


def test_bad_input():
    digits = data.load("digits", sample=20)
    with pytest.raises(ValueError, match="samples must be 1 or more"):
        data.draw_labels(0, 10)
    with pytest.raises(ValueError, match="2 if unbalanced"):
        data.draw_labels(4, 1, balanced=False)
    few = digits.subset(digits.labels == 3)
    with pytest.raises(ValueError, match="digits has no image of class 4"):
        data.draw_images(few, torch.tensor([3, 4]))
