"""The imprint attack end to end, on real photographs and through real networks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from gradleak_lib import metrics, models
from gradleak_lib.attacks import imprint, occupancy, placement
from gradleak_lib.data import load
from gradleak_lib.federated import Update, aggregate, fedavg, fedsgd

SIDE = 32
SHAPE = (3, SIDE, SIDE)
BRIGHTNESS = imprint.mean_brightness(SHAPE)


@pytest.fixture(scope="module")
def public():
    return imprint.measure(load("photos", SIDE, sample=4000, seed=99, distinct=False).images, BRIGHTNESS)


@pytest.fixture(scope="module")
def private():
    return load("photos", SIDE, sample=64, seed=1)


def armed(edges, *, measurement=BRIGHTNESS, shape=SHAPE, host="lenet", dtype=torch.float32, **options):
    layer = imprint.arm(imprint.Imprint(shape, len(edges) - 1, **options), measurement, edges)
    return placement.before_input(models.build(host, shape, classes=10), layer).to(dtype)


def attack(model, batch):
    return imprint.recover(fedsgd(model, batch.images, batch.labels), model)


@pytest.mark.parametrize("connection", ["addition", "linear"])
@pytest.mark.parametrize("variant", ["cumulative", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_alone_in_its_bin_is_recovered(public, private, variant, connection, dtype):
    edges = imprint.bins_from_public(public, 128)
    model = armed(edges, variant=variant, connection=connection, dtype=dtype)
    score = metrics.score(attack(model, private).inputs, private.images.to(dtype))
    alone = imprint.alone_in_bin(model.imprint, private.images)
    assert 20 < alone.sum() < 60
    assert (score.psnr[alone] > (200 if dtype is torch.float64 else 60)).all()
    assert not score.exact[~alone].any()


@pytest.mark.parametrize("host", [name for name in models.NAMES if name not in ("convnet", "nplm")])
def test_any_network_can_follow(public, private, host):
    edges = imprint.bins_from_public(public, 32)
    some = private.subset(torch.arange(16))
    model = armed(edges, host=host)
    score = metrics.score(attack(model, some).inputs, some.images)
    alone = imprint.alone_in_bin(model.imprint, some.images)
    assert alone.any()
    assert score.exact[alone].all()


@pytest.mark.parametrize(
    "measurement",
    [BRIGHTNESS, imprint.random_projection(SHAPE, seed=4)],
    ids=["brightness", "projection"],
)
def test_any_linear_measurement(private, measurement):
    values = imprint.measure(load("photos", SIDE, sample=2000, seed=98, distinct=False).images, measurement)
    # Pixels are multiples of 1/255 in the source, so a single feature has ties: keep distinct edges.
    edges = torch.unique(imprint.bins_from_public(values, 64))
    model = armed(edges, measurement=measurement, variant="sparse")
    score = metrics.score(attack(model, private).inputs, private.images)
    alone = imprint.alone_in_bin(model.imprint, private.images)
    assert alone.sum() > 5
    assert score.exact[alone].all()


def test_recovered_counts_agree_with_the_exact_expectation(public):
    edges = imprint.bins_from_public(public, 128)
    model = armed(edges)
    counts = []
    for seed in range(20):
        batch = load("photos", SIDE, sample=64, seed=1000 + seed)
        counts.append(int(metrics.score(attack(model, batch).inputs, batch.images).exact.sum()))
    error = np.std(counts, ddof=1) / len(counts) ** 0.5
    assert abs(np.mean(counts) - occupancy.expected_recovered(64, 128)) < 3 * error
    assert np.mean(counts) - occupancy.proposition_1(64, 128) > 3 * error


def test_recovered_counts_on_cifar10(real_data):
    cifar = load("cifar10", sample=10_000, root=real_data)
    shape = cifar.images.shape[1:]
    edges = imprint.bins_from_public(imprint.measure(cifar.images[:5000], BRIGHTNESS), 128)
    model = armed(edges, shape=shape)
    counts = []
    for start in range(5000, 5000 + 20 * 64, 64):
        batch = cifar.subset(torch.arange(start, start + 64))
        score = metrics.score(attack(model, batch).inputs, batch.images)
        alone = imprint.alone_in_bin(model.imprint, batch.images)
        assert score.exact[alone].all()
        counts.append(int(score.exact.sum()))
    error = np.std(counts, ddof=1) / len(counts) ** 0.5
    assert abs(np.mean(counts) - occupancy.expected_recovered(64, 128)) < 3 * error


def test_secure_aggregate_leaks_as_much_as_one_client(public, private):
    model = armed(imprint.bins_from_public(public, 128))
    parts = [private.subset(torch.arange(i, i + 8)) for i in range(0, 64, 8)]
    summed = aggregate([fedsgd(model, part.images, part.labels) for part in parts])
    assert summed.samples == 64
    one = metrics.score(attack(model, private).inputs, private.images)
    many = metrics.score(imprint.recover(summed, model).inputs, private.images)
    assert torch.equal(one.exact, many.exact)


def test_alone_is_what_the_edges_say(public, private):
    """Away from rounding at the edges, the layer's own view is that of the measurement."""
    edges = imprint.bins_from_public(public, 64)
    bins = torch.bucketize(imprint.measure(private.images, BRIGHTNESS).double(), edges) - 1
    expected = torch.bincount(bins, minlength=64)[bins] == 1
    for variant in ("cumulative", "sparse"):
        found = imprint.alone_in_bin(armed(edges, variant=variant).imprint, private.images)
        assert (found != expected).sum() <= 1


def test_equal_outgoing_weights_matter_only_to_the_cumulative_variant(public, private):
    edges = imprint.bins_from_public(public, 128)
    exact = {}
    for variant in ("cumulative", "sparse"):
        model = armed(edges, variant=variant, connection="linear")
        torch.nn.init.normal_(model.imprint.back.weight, std=0.01, generator=torch.Generator().manual_seed(0))
        exact[variant] = int(metrics.score(attack(model, private).inputs, private.images).exact.sum())
    assert exact["cumulative"] <= 2 < 20 < exact["sparse"]


def test_federated_averaging_in_double_precision(public, private):
    edges = imprint.bins_from_public(public, 128)
    model = armed(edges, variant="sparse", dtype=torch.float64)
    update = fedavg(model, private.images, private.labels, learning_rate=1e-4, batch_size=8)
    assert update.local_steps == 8
    score = metrics.score(imprint.recover(update, model).inputs, private.images.double())
    alone = imprint.alone_in_bin(model.imprint, private.images)
    assert score.exact[alone].float().mean() > 0.9


@pytest.mark.parametrize(("variant", "floor"), [("sparse", 150), ("cumulative", 60)])
def test_one_shot_returns_the_one_sample_in_the_bin(public, variant, floor):
    crowd = load("photos", SIDE, sample=1024, seed=5)
    h = imprint.measure(crowd.images, BRIGHTNESS)
    found = 0
    for position in np.linspace(0.2, 0.9, 12):
        edges = imprint.one_shot_bins(public, len(crowd), position=float(position))
        inside = (h.double() > edges[0]) & (h.double() <= edges[1])
        recovered = attack(armed(edges, variant=variant, host="linear"), crowd)
        candidate = recovered.inputs[recovered.bins == 0]
        if inside.sum() == 1:
            found += 1
            assert metrics.psnr(candidate, crowd.images[inside]).item() > floor
        if variant == "sparse" and inside.sum() == 0:
            assert len(candidate) == 0
    assert found >= 2


@pytest.mark.parametrize("place", placement.POSITIONS)
def test_deep_placement_leaks_the_downsampled_image(place):
    batch = load("photos", 64, sample=16, seed=2)
    seen = load("photos", 64, sample=300, seed=97, distinct=False).images
    name = placement.POSITIONS[place]
    net = placement.pass_through(models.build("resnet18", (3, 64, 64), classes=10), name)
    features = placement.layer_inputs(net, name, batch.images)
    if place == "block 1":  # strided copy, then max-pooling: known in closed form
        expected = torch.nn.functional.max_pool2d(batch.images[:, :, ::2, ::2], 3, 2, 1)
        assert torch.allclose(features[:, :3], expected, atol=1e-5)
    assert (features[:, 3:] == 0).all()
    weights = imprint.mean_brightness(features.shape[1:], channels=3)
    edges = imprint.bins_from_public(imprint.measure(placement.layer_inputs(net, name, seen), weights), 64)
    layer = imprint.arm(imprint.Imprint(features.shape[1:], 64), weights, edges)
    model = placement.before_layer(net, name, layer)
    score = metrics.score(attack(model, batch).inputs[:, :3], features[:, :3])
    alone = imprint.alone_in_bin(layer, features)
    assert alone.sum() > 5
    assert score.exact[alone].all()


@pytest.mark.parametrize("place", placement.POSITIONS)
def test_channels_that_are_free_carry_the_pixels_beside(place):
    images = load("photos", 64, sample=4, seed=2).images
    name = placement.POSITIONS[place]
    net = placement.pass_through(models.build("resnet18", (3, 64, 64), classes=10), name, offsets=True)
    features = placement.layer_inputs(net, name, images)
    square = placement.OFFSETS[name]
    assert 3 * square**2 <= features.shape[1] < 3 * (2 * square) ** 2
    assert (features[:, 3 * square**2 :] == 0).all()
    arrived = torch.nn.functional.pixel_shuffle(features[:, : 3 * square**2], square)
    # The largest of nine pixels, two apart, is what the max-pooling leaves.
    largest = torch.nn.functional.max_pool2d(torch.nn.functional.pad(images, (2,) * 4), 3, 1, dilation=2)
    step = 64 // arrived.shape[-1]
    first = -1 if step == 1 else 0  # four pixels around the centre of a stride of four: from -1 to 2
    expected = largest.roll((-first, -first), (2, 3))[:, :, ::step, ::step]
    inner = slice(8 // step, -8 // step)
    assert torch.allclose(arrived[..., inner, inner], expected[..., inner, inner], atol=1e-5)


def test_a_dormant_imprint_is_a_trainable_layer(private):
    model = placement.before_input(models.build("mlp", SHAPE, classes=10), imprint.Imprint(SHAPE, 16))
    update = fedsgd(model, private.images, private.labels)
    assert update.layer("imprint.linear")["weight"].abs().max() > 0
    assert torch.linalg.matrix_rank(model.imprint.linear.weight) == 16


def test_gain_leaves_the_function_unchanged(public, private):
    edges = imprint.bins_from_public(public, 32)
    for connection in ("addition", "linear"):
        for variant in ("cumulative", "sparse"):
            outputs = [
                armed(edges, variant=variant, connection=connection, gain=gain, dtype=torch.float64)(
                    private.images.double()
                )
                for gain in (1.0, 100.0)
            ]
            assert torch.allclose(*outputs, rtol=1e-9)


def test_more_candidates_than_samples_are_dropped(public, private):
    some = private.subset(torch.arange(8))
    model = armed(imprint.bins_from_public(public, 128))
    clean = fedsgd(model, some.images, some.labels)
    generator = torch.Generator().manual_seed(0)
    noise = {n: 1e-9 * torch.randn(t.shape, generator=generator) for n, t in clean.tensors.items()}
    noisy = Update({n: t + noise[n] for n, t in clean.tensors.items()}, "gradient", 8)
    recovered = imprint.recover(noisy, model)
    assert len(recovered) == 8
    kept, real = set(recovered.bins.tolist()), set(imprint.recover(clean, model).bins.tolist())
    assert len(real & kept) >= len(real) - 1


@settings(max_examples=40)
@given(k=st.integers(2, 60), shift=st.floats(-5, 5), scale=st.floats(0.01, 100))
def test_bins_from_cdf_have_equal_mass(k, shift, scale):
    distribution = norm(shift, scale)
    edges = imprint.bins_from_cdf(distribution, k)
    assert edges.shape == (k + 1,)
    assert (edges.diff() > 0).all()
    assert np.allclose(np.diff(distribution.cdf(edges.numpy())), 1 / k, atol=1e-12)


@settings(max_examples=40)
@given(k=st.integers(2, 40), seed=st.integers(0, 2**31))
def test_bins_from_public_have_equal_counts(k, seed):
    values = torch.randn(50 * k - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = imprint.bins_from_public(values, k)
    counts = torch.bincount(torch.bucketize(values, edges) - 1, minlength=k)
    assert ((counts - 50).abs() <= 1).all()


def test_bad_input(public, private):
    edges = imprint.bins_from_public(public, 8)
    for bins in (1, 0, -3):
        with pytest.raises(ValueError, match="bins must be at least 2"):
            imprint.Imprint(SHAPE, bins)
        with pytest.raises(ValueError, match="bins must be at least 2"):
            imprint.bins_from_public(public, bins)
        with pytest.raises(ValueError, match="bins must be at least 2"):
            imprint.bins_from_cdf(norm(), bins)
    with pytest.raises(ValueError, match="variant"):
        imprint.Imprint(SHAPE, 8, variant="thick")
    with pytest.raises(ValueError, match="connection"):
        imprint.Imprint(SHAPE, 8, connection="cat")
    with pytest.raises(ValueError, match="gain"):
        imprint.Imprint(SHAPE, 8, gain=0)
    with pytest.raises(ValueError, match="measurement must have shape"):
        imprint.arm(imprint.Imprint(SHAPE, 8), torch.ones(7), edges)
    with pytest.raises(ValueError, match="edges must have shape"):
        imprint.arm(imprint.Imprint(SHAPE, 9), BRIGHTNESS, edges)
    with pytest.raises(ValueError, match="ascend"):
        imprint.arm(imprint.Imprint(SHAPE, 8), BRIGHTNESS, edges.flip(0))
    with pytest.raises(ValueError, match="at least 7 public values"):
        imprint.bins_from_public(public[:6], 8)
    with pytest.raises(ValueError, match="takes inputs of shape"):
        armed(edges)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="one Imprint, found 0"):
        imprint.find(models.build("mlp", SHAPE, classes=2))
    with pytest.raises(ValueError, match="no submodule"):
        placement.before_layer(
            models.build("resnet18", SHAPE, classes=2), "layer9", imprint.Imprint(SHAPE, 8)
        )


def test_an_update_of_another_architecture(public, private):
    model = armed(imprint.bins_from_public(public, 8))
    other = armed(imprint.bins_from_public(public, 16))
    update = fedsgd(other, private.images, private.labels)
    with pytest.raises(ValueError, match=r"another architecture.*imprint\.linear\.weight"):
        imprint.recover(update, model)


def test_an_update_with_nan_is_refused(public, private):
    model = armed(imprint.bins_from_public(public, 8))
    images = private.images.clone()
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 'imprint.*check its inputs"):
        fedsgd(model, images, private.labels)
    tensors = dict(fedsgd(model, private.images, private.labels).tensors)
    tensors["imprint.linear.weight"] = tensors["imprint.linear.weight"].clone()
    tensors["imprint.linear.weight"][2, 7] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 'imprint\.linear\.weight'"):
        imprint.recover(Update(tensors, "gradient", len(images)), model)
