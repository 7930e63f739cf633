"""Inputs of linear layers from their gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib.attacks.analytic import linear_input, stack_input
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


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(3, 12), min_size=1, max_size=3),
    st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity]),
    st.integers(0, 999),
)
def test_a_stack_gives_its_input_back(widths, activation, seed):
    """Geiping et al. 2020, Prop. 3.1: only the last layer has a bias."""
    torch.manual_seed(seed)
    sizes = [7, *widths]
    hidden = [
        layer
        for before, after in itertools.pairwise(sizes)
        for layer in (nn.Linear(before, after, bias=False), activation())
    ]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 5)).double()
    sample = torch.randn(1, 7).double()
    update = fedsgd(model, sample, torch.tensor([2]))
    if all(value.any() for value in update.tensors.values()):
        assert torch.allclose(stack_input(update, model), sample[0], rtol=1e-9, atol=1e-9)
    else:  # a ReLU network may be dead
        with pytest.raises(ValueError, match="no signal reaches"):
            stack_input(update, model)


def test_what_is_no_stack_or_no_single_sample():
    model = build("mlp", (3,), classes=4)
    two = fedsgd(model, torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs one of each, got 2 and 1"):
        stack_input(two, model)
    odd = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="layer '1' is a GELU"):
        stack_input(fedsgd(odd, torch.randn(1, 3), torch.tensor([0])), odd)
    bare = nn.Sequential(nn.Linear(3, 2, bias=False))
    with pytest.raises(ValueError, match="end in one with a bias"):
        stack_input(fedsgd(bare, torch.randn(1, 3), torch.tensor([0])), bare)
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)).double()
    x = torch.rand(1, 3).double()
    assert torch.allclose(stack_input(fedsgd(shared, x, torch.tensor([0])), shared), x[0])
    twice = nn.Sequential(shared[0], relu, shared[2], relu, shared[2], relu, shared[4])
    with pytest.raises(ValueError, match="stands at two places"):
        stack_input(fedsgd(twice, x, torch.tensor([0])), twice)
    shared[0].requires_grad_(False)
    with pytest.raises(ValueError, match="a layer is frozen"):
        stack_input(fedsgd(shared, x, torch.tensor([0])), shared)
    late = nn.Sequential(nn.Sigmoid(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="must begin with a linear layer"):
        stack_input(fedsgd(late, torch.randn(1, 3), torch.tensor([0])), late)
    dead = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(dead[0].bias, -100.0)
    with pytest.raises(ValueError, match="no signal reaches layer '0'"):
        stack_input(fedsgd(dead, torch.randn(1, 3), torch.tensor([0])), dead)
