"""What a client sees of a malicious model, before and after it has trained."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import disguise, imprint, placement
from gradleak_lib.data import load
from gradleak_lib.defenses.inspection import Alarm, find_alarms, inspect_layers, inspect_update
from gradleak_lib.federated import Update, fedavg, fedsgd
from gradleak_lib.federated.central import train_centrally

SHAPE = (3, 16, 16)
BINS = 128
BRIGHTNESS = imprint.mean_brightness(SHAPE)


@pytest.fixture(scope="module")
def public():
    return load("photos", 16, sample=2000, seed=99, distinct=False).images


@pytest.fixture(scope="module")
def private():
    return load("photos", 16, sample=64, seed=1)


def armed(public, **options):
    edges = imprint.bins_from_public(imprint.measure(public, BRIGHTNESS), BINS)
    return imprint.arm(imprint.Imprint(SHAPE, BINS, **options), BRIGHTNESS, edges)


def planted(layer):
    return placement.before_input(models.build("lenet", SHAPE, classes=10), layer)


def alarms(model, layer="imprint.linear"):
    return {alarm.statistic for alarm in find_alarms(inspect_layers(model)) if alarm.layer == layer}


def leaks(model, batch, **options):
    update = fedsgd(model, batch.images, batch.labels)
    return {leak.name: leak for leak in inspect_update(update, model, batch.images, **options)}


# --- the model ---


@pytest.mark.parametrize("name", models.NAMES)
def test_no_alarm_on_an_untrained_network(name):
    shape, classes = ((5,), 300) if name == "nplm" else ((3, 32, 32), 10)
    for seed in range(2 if name in ("resnet18", "convnet", "mobilenet-v2") else 10):
        assert find_alarms(inspect_layers(models.build(name, shape, classes=classes, seed=seed))) == []


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "resnet20"])
def test_no_alarm_on_a_trained_network(name):
    digits = load("digits", sample=600)
    model = models.build(name, digits.images.shape[1:], classes=10, seed=1)
    epochs = 2 if name == "resnet20" else 20
    trained = train_centrally(model, digits.images, digits.labels, epochs=epochs, learning_rate=2e-3)
    assert find_alarms(inspect_layers(trained)) == []


@pytest.mark.parametrize("variant", ["cumulative", "sparse"])
@pytest.mark.parametrize("connection", ["addition", "linear"])
def test_a_plain_imprint_shows_in_every_statistic(public, variant, connection):
    layer = armed(public, variant=variant, connection=connection)
    model = planted(layer)
    every = {
        "effective_rank",
        "participation",
        "largest_cosine",
        "median_cosine",
        "bias_spread",
        "bias_order",
    }
    assert alarms(model) == every
    (statistics,) = (s for s in inspect_layers(model) if s.name == "imprint.linear")
    assert (statistics.rows, statistics.columns) == (BINS, 768)
    assert statistics.effective_rank == pytest.approx(1 / BINS, rel=1e-3)
    assert statistics.participation == pytest.approx(1 / BINS, rel=1e-6)
    assert statistics.median_cosine == pytest.approx(1, abs=1e-6)
    assert statistics.bias_order == pytest.approx(1)
    disguise.permute_rows(layer, seed=0)
    assert alarms(model) == every - {"bias_order"}


def test_a_dormant_imprint_shows_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert find_alarms(inspect_layers(planted(imprint.Imprint(SHAPE, BINS)))) == []


def test_noise_evades_one_statistic_after_the_other(public):
    left = {
        amount: alarms(planted(disguise.randomise_rows(armed(public), amount, seed=0)))
        for amount in (1e-3, 0.1, 0.5, 4.0)
    }
    assert "effective_rank" in left[1e-3] & left[0.1]
    assert "largest_cosine" in left[0.1]
    assert "effective_rank" not in left[0.5]
    assert {"participation", "median_cosine"} <= left[0.5]
    assert left[4.0] == {"bias_spread", "bias_order"}


def test_decoys_hide_what_is_averaged_over_rows_but_not_the_most_alike(public):
    found = alarms(planted(disguise.decoy_rows(armed(public), 512, seed=0)))
    assert found == {"largest_cosine", "bias_spread"}


def test_layers_that_copy_channels_are_seen():
    net = placement.pass_through(models.build("resnet18", (3, 64, 64), classes=10), "layer3")
    assert "effective_rank" in alarms(net, "layer2.0.downsample.0")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(8, 40),
    columns=st.integers(2, 40),
    seed=st.integers(0, 2**31),
    power=st.integers(-60, 60),
)
def test_statistics_keep_their_values_under_permutation_and_scaling(rows, columns, seed, power):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=generator))
        layer.bias.copy_(torch.randn(rows, generator=generator))
    (first,) = inspect_layers(layer)
    changed = copy.deepcopy(layer)
    order = torch.randperm(rows, generator=generator)
    with torch.no_grad():
        changed.weight.copy_(layer.weight[order] * 2.0**power)
        changed.bias.copy_(layer.bias[order] * 2.0**power)
    (second,) = inspect_layers(changed)
    for statistic in ("effective_rank", "participation", "largest_cosine", "median_cosine", "bias_spread"):
        assert getattr(first, statistic) == pytest.approx(getattr(second, statistic), rel=1e-6), statistic
        assert getattr(first, statistic) >= 0
    for statistic in ("effective_rank", "participation", "largest_cosine", "median_cosine", "bias_order"):
        assert 0 <= getattr(second, statistic) <= 1 + 1e-9
    with torch.no_grad():
        layer.weight.mul_(3)
        layer.bias.mul_(3)
    (scaled,) = inspect_layers(layer)
    assert scaled.bias_order == pytest.approx(first.bias_order)


def test_known_ranks():
    layer = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(16))
        (statistics,) = inspect_layers(layer)
        assert (statistics.effective_rank, statistics.participation) == (pytest.approx(1), pytest.approx(1))
        assert (statistics.largest_cosine, statistics.median_cosine) == (0, 0)
        assert statistics.bias_spread is None
        assert statistics.bias_order is None
        layer.weight[8:] = 0
        (statistics,) = inspect_layers(layer)
        assert statistics.effective_rank == pytest.approx(0.5)
        layer.weight.zero_()
        (statistics,) = inspect_layers(layer)
        assert (statistics.effective_rank, statistics.largest_cosine) == (0, 0)


def test_equal_biases_have_no_order():
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.bias.zero_()
    (statistics,) = inspect_layers(layer)
    assert (statistics.bias_spread, statistics.bias_order) == (0, 0)


def test_thresholds():
    (usual,) = inspect_layers(models.build("linear", SHAPE, classes=10))
    assert find_alarms([usual]) == []
    odd = replace(usual, effective_rank=0.29, bias_spread=3.1)
    assert find_alarms([usual, odd, replace(usual, bias_spread=None, bias_order=None)]) == [
        Alarm("1", "effective_rank", 0.29, 0.3),
        Alarm("1", "bias_spread", 3.1, 3.0),
    ]


def test_models_that_cannot_be_inspected():
    with pytest.raises(ValueError, match="no linear layer or convolution with 8 rows"):
        inspect_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    broken = nn.Linear(4, 8)
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        inspect_layers(broken)


# --- the update ---


@pytest.mark.parametrize("connection", ["addition", "linear"])
@pytest.mark.parametrize("variant", ["cumulative", "sparse"])
@pytest.mark.parametrize("permuted", [False, True])
def test_what_the_server_reads_the_client_finds(public, private, variant, connection, permuted):
    layer = armed(public, variant=variant, connection=connection)
    if permuted:
        disguise.permute_rows(layer, seed=0)
    model = planted(layer)
    leak = leaks(model, private)["imprint.linear"]
    update = fedsgd(model, private.images, private.labels)
    stolen = metrics.score(imprint.recover(update, model).inputs, private.images).exact
    assert stolen.sum() > 20
    assert leak.exposed[stolen].all()
    assert (leak.paired[stolen] < 0.01).all()
    assert leak.exposed.sum() <= stolen.sum() + 5
    if variant == "sparse":
        assert (leak.single[stolen] < 0.01).all()
    else:
        assert (leak.single < 0.05).sum() <= 2


def test_decoys_and_noise_do_not_evade_the_client(public, private):
    for change in (
        lambda layer: disguise.decoy_rows(layer, 256, seed=0),
        lambda layer: disguise.randomise_rows(layer, 1.0, seed=0),
        lambda layer: disguise.randomise_rows(layer, 4.0, seed=0, orthogonal_to=public[:250]),
    ):
        model = planted(change(armed(public)))
        update = fedsgd(model, private.images, private.labels)
        stolen = metrics.score(imprint.recover(update, model).inputs, private.images).exact
        assert stolen.sum() > 10
        (leak, *_) = inspect_update(update, model, private.images)
        assert leak.exposed[stolen].all()


def test_unequal_outgoing_weights_evade_plain_differences_only(public, private):
    layer = armed(public, connection="linear")
    weights = torch.randn(BINS, generator=torch.Generator().manual_seed(0)).mul(0.5).exp()
    with torch.no_grad():
        layer.back.weight.mul_(weights)
    model = planted(layer)
    update = fedsgd(model, private.images, private.labels)
    # The server knows the outgoing weights, and divides by them.
    known = {
        name: tensor / weights.reshape(-1, *[1] * (tensor.ndim - 1))
        for name, tensor in update.tensors.items()
        if name.startswith("imprint.linear.")
    }
    divided = Update({**update.tensors, **known}, "gradient", len(private.images))
    stolen = metrics.score(imprint.recover(divided, model).inputs, private.images).exact
    assert stolen.sum() > 20
    missed, seen = (
        inspect_update(update, model, private.images, any_multiple=any_multiple)[0].exposed[stolen]
        for any_multiple in (False, True)
    )
    assert missed.float().mean() < 0.3
    assert seen.all()


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "resnet20"])
def test_a_single_sample_is_exposed_everywhere(private, name):
    one = private.subset(torch.arange(1))
    found = leaks(models.build(name, SHAPE, classes=10), one)
    assert found
    for leak in found.values():
        assert leak.single.shape == (1,)
        assert leak.exposed.all()
        assert leak.single.item() < 1e-3


def test_an_honest_network_gives_little_away(private):
    for name in ("linear", "lenet", "resnet20"):
        for leak in leaks(models.build(name, SHAPE, classes=10), private).values():
            assert leak.exposed.sum() <= 2


def test_the_inputs_are_those_of_the_layer():
    """A deep layer whose units fire for one sample each: its input is found, the image is not what is compared."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    images = torch.rand(6, 3, 4, 4, generator=generator)
    hidden = model[:3](images).detach()
    with torch.no_grad():  # unit i fires for sample i alone
        model[3].weight.copy_(torch.linalg.pinv(hidden).T)
        model[3].bias.fill_(-0.5)
    update = fedsgd(model, images, torch.tensor([0, 1, 2, 0, 1, 2]))
    found = {leak.name: leak for leak in inspect_update(update, model, images)}
    assert list(found) == ["1", "3", "5"]
    assert (found["3"].single < 1e-3).all()
    assert not found["1"].exposed.any()


def test_local_training_is_inspected_too(public, private):
    model = planted(armed(public, variant="sparse")).double()
    update = fedavg(model, private.images, private.labels, learning_rate=1e-4, batch_size=8)
    (leak, *_) = inspect_update(update, model, private.images)
    assert leak.exposed.sum() > 20


class _Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.unused, self.last = nn.Linear(12, 16), nn.Linear(3, 3), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.each(x).relu().mean(1))


def test_several_vectors_of_one_sample():
    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
    model = _Words()
    found = {leak.name: leak for leak in inspect_update(fedsgd(model, x, torch.tensor([1])), model, x)}
    assert list(found) == ["each", "last"]
    assert found["each"].single.shape == (1,)
    assert found["last"].exposed.all()


def test_the_model_and_the_random_state_are_left_alone():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
    ).train()
    model[3].eval()
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    update = fedsgd(model, images, torch.arange(8) % 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    inspect_layers(model)
    inspect_update(update, model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(-20, 20), any_multiple=st.booleans())
def test_errors_do_not_depend_on_the_scale_of_the_update(seed, power, any_multiple):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 30, generator=generator)
    model = models.build("mlp", (30,), classes=4, seed=seed % 1000, width=8)
    update = fedsgd(model, x, torch.arange(6) % 4)
    scaled = Update({n: t * 2.0**power for n, t in update.tensors.items()}, "gradient", 6)
    pairs = zip(
        *(inspect_update(u, model, x, any_multiple=any_multiple) for u in (update, scaled)), strict=True
    )
    for first, second in pairs:
        assert torch.allclose(first.single, second.single, rtol=1e-6)
        assert torch.allclose(first.paired, second.paired, rtol=1e-6, atol=1e-6)


def test_bad_input(private):
    model = models.build("lenet", SHAPE, classes=10)
    images = private.images
    update = fedsgd(model, images, private.labels)
    with pytest.raises(ValueError, match="of 64 samples, got 63 images"):
        inspect_update(update, model, images[:63])
    with pytest.raises(ValueError, match="another architecture"):
        inspect_update(update, models.build("mlp", SHAPE, classes=10), images)
    tensors = dict(update.tensors)
    tensors["0.weight"] = tensors["0.weight"] * torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in '0\.weight'"):
        inspect_update(Update(tensors, "gradient", 64), model, images)
    with pytest.raises(ValueError, match="the inputs of layer '7' hold NaN"):
        inspect_update(update, model, images * torch.nan)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(768, 10, bias=False))
    with pytest.raises(ValueError, match="no linear layer with a bias"):
        inspect_update(fedsgd(bare, images, private.labels % 10), bare, images)
