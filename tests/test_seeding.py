"""Draws from torch's own generators: as after torch.manual_seed, and nobody notices."""

import pytest
import torch

from gradleak_lib import models
from gradleak_lib.seeding import seeded


def test_seeded_draws_are_those_of_torch_and_leave_no_trace():
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.rand(5), expected)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(None):
        going_on = torch.rand(5)
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.rand(5), going_on)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_generator_of_a_gpu_is_seeded_where_it_takes_part_and_left_alone_where_not():
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    models.build("mlp", (4,), classes=2, seed=9)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with seeded(9, {torch.device("cuda", 0)}):
        first = torch.rand(5, device="cuda")
    with seeded(9, {torch.device("cuda", 0)}):
        assert torch.equal(torch.rand(5, device="cuda"), first)
    assert torch.equal(torch.cuda.get_rng_state(), before)
