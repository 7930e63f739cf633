"""What a server does to hide an imprint, and what is left of the attack."""

import pytest
import torch

from gradleak_lib import metrics, models
from gradleak_lib.attacks import disguise, imprint, placement
from gradleak_lib.data import load
from gradleak_lib.federated import fedsgd

SHAPE = (3, 16, 16)
BINS = 64
BRIGHTNESS = imprint.mean_brightness(SHAPE)
VARIANTS = pytest.mark.parametrize("variant", ["cumulative", "sparse"])
CONNECTIONS = pytest.mark.parametrize("connection", ["addition", "linear"])


@pytest.fixture(scope="module")
def public():
    return load("photos", 16, sample=1500, seed=99, distinct=False).images


@pytest.fixture(scope="module")
def private():
    return load("photos", 16, sample=32, seed=1)


def armed(public, **options):
    edges = imprint.bins_from_public(imprint.measure(public, BRIGHTNESS), BINS)
    return imprint.arm(imprint.Imprint(SHAPE, BINS, **options), BRIGHTNESS, edges)


def recovered(layer, private):
    model = placement.before_input(models.build("lenet", SHAPE, classes=10), layer)
    return imprint.recover(fedsgd(model, private.images, private.labels), model)


def exact(layer, private):
    return metrics.score(recovered(layer, private).inputs, private.images).exact


@VARIANTS
@CONNECTIONS
def test_a_permuted_imprint_recovers_the_same_images(public, private, variant, connection):
    plain = recovered(armed(public, variant=variant, connection=connection), private)
    layer = armed(public, variant=variant, connection=connection)
    changed = disguise.permute_rows(layer, seed=5)
    assert changed is layer
    permuted = recovered(layer, private)
    assert len(plain) == len(permuted)
    # The row is what is reported: sorted by the bin that each row measures, the candidates are the same.
    order = layer.rows.argsort()[permuted.bins].argsort()
    assert torch.equal(layer.rows.argsort()[permuted.bins].sort().values, plain.bins)
    # Where two sums nearly cancel, the order of summation is seen.
    assert torch.allclose(permuted.inputs[order], plain.inputs, atol=1e-4)
    both = [imprint.alone_in_bin(one, private.images) for one in (layer, armed(public, variant=variant))]
    assert torch.equal(*both)
    assert exact(layer, private)[both[0]].all()


@VARIANTS
def test_noise_on_the_rows_raises_the_rank_and_costs_the_cumulative_variant_images(public, private, variant):
    plain = armed(public, variant=variant)
    counts = {amount: 0 for amount in (1e-3, 0.1, 4.0)}
    for amount in counts:
        layer = disguise.randomise_rows(armed(public, variant=variant), amount, seed=3)
        noise = (layer.linear.weight - plain.linear.weight).detach()
        relative = (noise.norm(dim=1) / plain.linear.weight.norm(dim=1)).square().mean().sqrt()
        assert relative.item() == pytest.approx(amount, rel=0.05)
        assert torch.equal(layer.linear.bias, plain.linear.bias)
        assert torch.linalg.matrix_rank(layer.linear.weight.double()) == BINS
        counts[amount] = int(exact(layer, private).sum())
    assert torch.linalg.matrix_rank(plain.linear.weight.double()) == 1
    assert counts[1e-3] == int(exact(plain, private).sum()) > 10
    if variant == "cumulative":  # a row of the sparse variant needs no neighbour that measures the same
        assert counts[4.0] < counts[1e-3]


def test_orthogonal_noise_costs_less(public, private):
    seen = public[:500]
    free, bound = (
        disguise.randomise_rows(armed(public), 2.0, seed=3, orthogonal_to=span) for span in (None, seen)
    )
    change = (bound.linear.weight - armed(public).linear.weight).double() @ seen.flatten(1).double().T
    assert change.abs().max() < 1e-5
    assert exact(bound, private).sum() > exact(free, private).sum()


@VARIANTS
@CONNECTIONS
def test_decoys_leave_the_attack_as_it_was(public, private, variant, connection):
    plain = armed(public, variant=variant, connection=connection)
    layer = armed(public, variant=variant, connection=connection)
    assert disguise.decoy_rows(layer, 40, seed=2) is layer
    disguise.permute_rows(layer, seed=7)
    assert layer.linear.weight.shape == (BINS + 40, 768)
    assert layer.bins == len(layer.rows) == BINS
    assert torch.equal(layer.linear.weight[layer.rows], plain.linear.weight)
    assert torch.equal(layer.linear.bias[layer.rows], plain.linear.bias)
    assert set(recovered(layer, private).bins.tolist()) <= set(layer.rows.tolist())
    found = exact(layer, private)
    assert found[imprint.alone_in_bin(plain, private.images)].all()
    assert found.sum() > 10


def test_the_seed_decides_and_the_global_state_stays(public):
    for change in (
        lambda layer, seed: disguise.permute_rows(layer, seed=seed),
        lambda layer, seed: disguise.randomise_rows(layer, 0.5, seed=seed),
        lambda layer, seed: disguise.decoy_rows(layer, 5, seed=seed),
    ):
        layers = [change(armed(public), seed).linear for seed in (1, 1, 2)]
        first, again, other = (torch.cat([layer.weight.flatten(), layer.bias]) for layer in layers)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    # Building an Imprint draws from the global state; the disguises do not.
    layer = armed(public)
    state = torch.get_rng_state()
    disguise.decoy_rows(disguise.randomise_rows(disguise.permute_rows(layer, seed=0), 1, seed=0), 4, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input(public):
    layer = armed(public)
    for amount in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="amount must be 0 or more"):
            disguise.randomise_rows(layer, amount, seed=0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        disguise.decoy_rows(layer, 0, seed=0)
    for wrong in (torch.zeros(5, 3, 8, 8), torch.zeros(0, *SHAPE), torch.zeros(768, *SHAPE)):
        with pytest.raises(ValueError, match="orthogonal_to must hold 1 to 767 inputs"):
            disguise.randomise_rows(layer, 1.0, seed=0, orthogonal_to=wrong)
