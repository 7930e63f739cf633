"""Inputs of linear layers from their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.attacks.analytic import linear_input
from gradleak_lib.federated import fedsgd
from gradleak_lib.models import build


@settings(max_examples=25, deadline=None)
@given(features=st.integers(1, 40), classes=st.integers(2, 12), seed=st.integers(0, 2**31))
def test_one_sample_is_read_from_every_row(features, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, features, generator=generator, dtype=torch.float64)
    model = build("linear", (features,), classes=classes, seed=seed).double()
    layer = fedsgd(model, x, torch.tensor([0])).layer("1")
    inputs, rows = linear_input(layer["weight"], layer["bias"])
    assert len(rows) >= 1
    assert torch.allclose(inputs, x.expand_as(inputs), atol=1e-12)


def test_rows_without_a_signal_are_left_out():
    weight, bias = torch.tensor([[2.0, 4.0], [0.0, 0.0]]), torch.tensor([2.0, 0.0])
    inputs, rows = linear_input(weight, bias)
    assert rows.tolist() == [0]
    assert inputs.tolist() == [[1.0, 2.0]]


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="expected weight"):
        linear_input(torch.zeros(3, 2), torch.zeros(2))
