"""Many copies of a network in one pass give what each gives by itself."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib.federated import stacked
from gradleak_lib.federated.stacked import fits_in_groups, stacked_outputs

POINTWISE = st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, lambda: nn.Dropout(0.5).eval()])
POOLING = st.sampled_from([nn.Identity, lambda: nn.MaxPool2d(2, 1), lambda: nn.AvgPool2d(2)])
CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from([1, 3]),
        "stride": st.sampled_from([1, 2]),
        "padding": st.sampled_from([0, 1]),
        "dilation": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2]),
        "bias": st.booleans(),
    }
)


@st.composite
def chains(draw):
    """A convolution, something pointwise, pooling, and two linear layers, partly nested and partly frozen."""
    torch.manual_seed(draw(st.integers(0, 99)))
    body = nn.Sequential(
        nn.Conv2d(2, 4, **draw(CONVOLUTIONS)), draw(POINTWISE)(), draw(POOLING)(), nn.AdaptiveAvgPool2d(2)
    )
    head = [nn.Linear(16, 5, bias=draw(st.booleans())), draw(POINTWISE)(), nn.Linear(5, 3)]
    model = nn.Sequential(OrderedDict(body=body, flat=nn.Flatten(), head=nn.Sequential(*head))).eval()
    names = [name for name, _ in model.named_parameters()]
    frozen = draw(st.sets(st.sampled_from(names[:-1])))
    for name, value in model.named_parameters():
        value.requires_grad_(name not in frozen)
    return model.double()


def copies_of(model, count):
    """Other parameters for each copy, of those that are trained."""
    return {
        name: value.detach() + 0.1 * torch.randn(count, *value.shape, dtype=value.dtype)
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def one_by_one(model, parameters, inputs):
    outputs = []
    for row, batch in enumerate(inputs):
        one = copy.deepcopy(model)
        for name, value in one.named_parameters():
            value.data = parameters[name][row] if name in parameters else value.data
        outputs.append(one(batch).detach())
    return torch.stack(outputs)


@given(chains(), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_copies_in_groups_compute_what_each_computes(model, copies, batch):
    parameters = copies_of(model, copies)
    inputs = torch.randn(copies, batch, 2, 8, 8, dtype=torch.float64)
    expected = one_by_one(model, parameters, inputs)
    torch.testing.assert_close(stacked_outputs(model)(parameters, inputs), expected)


def tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, second)


def twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)


def hooked():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def held_back():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    model[1].register_full_backward_pre_hook(lambda module, gradient: (gradient[0].clamp(-0.1, 0.1),))
    return model


def patched():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU())
    model[2].forward = torch.neg
    return model


def circular():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(8, 3)
    )


def normalised():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("make", [tied, twice, hooked, held_back, patched, circular, normalised])
def test_what_is_not_a_plain_chain_is_computed_as_it_is(make):
    torch.manual_seed(0)
    model = make()
    assert not fits_in_groups(model)
    parameters, inputs = copies_of(model, 3), torch.randn(3, 2, 1, 2, 2)
    expected = one_by_one(model, parameters, inputs)
    torch.testing.assert_close(stacked_outputs(model)(parameters, inputs), expected)


def test_vectors_pass_through_a_chain_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    parameters = copies_of(model, 3)
    for inputs in (torch.randn(3, 5, 6), torch.randn(3, 5, 2, 3)):
        expected = one_by_one(model, parameters, inputs)
        torch.testing.assert_close(stacked_outputs(model)(parameters, inputs), expected)


def test_words_pass_through_a_chain():
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 5))
    parameters, inputs = copies_of(model, 3), torch.randint(0, 7, (3, 5, 4))
    torch.testing.assert_close(
        stacked_outputs(model)(parameters, inputs), one_by_one(model, parameters, inputs)
    )
    for wrong in (7, -1):  # not the first word of the next client, and not the last one
        inputs[0, 0, 0] = wrong
        with pytest.raises(RuntimeError, match=f"index {wrong} is out of bounds"):
            stacked_outputs(model)(parameters, inputs)


def test_a_chain_does_not_take_the_slow_way(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    monkeypatch.setattr(stacked, "vmap", None)
    assert stacked_outputs(model)(copies_of(model, 2), torch.randn(2, 3, 1, 4, 4)).shape == (2, 3, 2)
