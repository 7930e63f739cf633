"""The distance between gradients and its derivative by the images, in three ways that must agree."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib import models
from gradleak_lib.attacks.double_backward import NotSupportedError
from gradleak_lib.attacks.matching import Target, one_by_one, together, vectorized, with_plain_norms
from gradleak_lib.attacks.search import total_variation
from gradleak_lib.federated import fedavg, fedsgd

DISTANCES = ["cosine", "euclidean"]


def problem(model, shape, *, clients=1, samples=1, restarts=2, distance="cosine", seed=0):
    """Updates of random batches, and images to start from."""
    generator = torch.Generator().manual_seed(seed)
    example = next(model.parameters())
    images = torch.rand(clients, samples, *shape, generator=generator).to(example)
    labels = torch.randint(3, (clients, samples), generator=generator)
    updates = [fedsgd(model, x, y) for x, y in zip(images, labels, strict=True)]
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    sent = {name: torch.stack([update.tensors[name] for update in updates]) for name in trained}
    start = torch.randn(clients * restarts * samples, *shape, generator=generator).to(example)
    return Target(sent, labels, restarts, distance), start


def assert_same(found, expected, *, tolerance=1e-9):
    (distance, change), (other, other_change) = found, expected
    assert torch.allclose(distance, other, rtol=tolerance, atol=tolerance)
    assert (change - other_change).norm() <= tolerance * other_change.norm()


@st.composite
def networks(draw):
    """A small network of convolutions, norms, activations and pooling, and the shape of its input."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers, channels, height = [], draw(st.integers(1, 3)), draw(st.integers(6, 9))
    width = height + draw(st.integers(0, 2))
    shape = (channels, height, width)
    activation = draw(st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU]))
    for _ in range(draw(st.integers(1, 3))):
        wide = draw(st.integers(1, 4))
        kernel, stride = draw(st.sampled_from([1, 2, 3, (3, 1), (1, 2)])), draw(st.integers(1, 2))
        bias, padding = draw(st.booleans()), draw(st.integers(1, 2))
        # Dilated, the kernel must still fit: each layer makes the image smaller.
        fits = (
            max(kernel if isinstance(kernel, tuple) else (kernel,))
            <= (min(height, width) + 2 * padding + 1) // 2
        )
        dilation = draw(st.integers(1, 2)) if fits else 1
        layers.append(nn.Conv2d(channels, wide, kernel, stride, padding, dilation, bias=bias))
        height, width = layers[-1](torch.zeros(1, channels, height, width)).shape[2:]
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(wide))
        layers.append(activation())
        channels = wide
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(2))
    body = nn.Sequential(*layers, nn.Flatten()).double().eval()
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
    features = body(torch.zeros(1, *shape).double()).shape[1]
    return body.append(nn.Linear(features, 3, bias=draw(st.booleans())).double()), shape


@settings(max_examples=40, deadline=None)
@given(
    networks(),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(DISTANCES),
    st.booleans(),
)
def test_all_lanes_together_agree_with_plain_autograd(network, clients, samples, restarts, distance, train):
    model, shape = network
    target, images = problem(
        model, shape, clients=clients, samples=samples, restarts=restarts, distance=distance
    )
    assume(all(any(value[client].any() for value in target.sent.values()) for client in range(clients)))
    model.train(train and samples > 1)
    before = copy.deepcopy(model.state_dict())
    assert_same(together(model, target)(images), one_by_one(model, target)(images), tolerance=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "convnet", "resnet20", "resnet18"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_networks_of_the_book(name, distance):
    model = models.build(
        name, (3, 32, 32), classes=10, width=4 if name in ("convnet", "cnn") else None
    ).double()
    target, images = problem(model, (3, 32, 32), samples=2, distance=distance)
    expected = one_by_one(model, target)(images)
    assert_same(together(model, target)(images), expected)
    assert_same(vectorized(model, target)(images), expected)
    signs = together(model, target)(images)[1].sign()
    above = expected[1].abs() > 1e-9 * expected[1].abs().max()
    assert torch.equal(signs[above], expected[1].sign()[above])


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_single_precision(name):
    model = models.build(name, (3, 32, 32), classes=10)
    target, images = problem(model, (3, 32, 32))
    assert_same(together(model, target)(images), one_by_one(model, target)(images), tolerance=1e-3)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_plain_norms_compute_what_the_model_computes(train, options):
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4, **options)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), shared, nn.ReLU(), shared, nn.Flatten(), nn.BatchNorm1d(36)
    ).double()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 2, 5, 5).double())
    model.train(train)
    plain, images = with_plain_norms(model), torch.randn(4, 2, 5, 5).double()
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    before = copy.deepcopy(model.state_dict())
    found = plain(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(found, model(images))
    assert isinstance(model[1], nn.BatchNorm2d)
    alone = nn.BatchNorm1d(3).eval()
    assert torch.allclose(with_plain_norms(alone)(torch.ones(2, 3)), alone(torch.ones(2, 3)))


def test_the_distance_is_zero_at_the_images_themselves_and_one_is_a_right_angle():
    model = models.build("lenet", (1, 8, 8), classes=3).double()
    images = torch.rand(2, 1, 8, 8).double()
    update = fedsgd(model, images, torch.tensor([0, 1]))
    sent = {name: value[None] for name, value in update.tensors.items()}
    for distance in DISTANCES:
        target = Target(sent, torch.tensor([[0, 1]]), 1, distance)
        for way in (together, vectorized, one_by_one):
            assert way(model, target)(images)[0].abs() < 1e-9
    nothing = copy.deepcopy(model)
    torch.nn.init.zeros_(nothing[-1].weight)
    torch.nn.init.constant_(nothing[-1].bias, 0)
    nothing[-1].bias.data[0] = 1e5  # certain of its answer: the gradient of label 0 is zero
    target = Target(sent, torch.tensor([[0, 0]]), 1, "cosine")
    for way in (together, one_by_one):
        distance, change = way(nothing, target)(images)
        assert distance == 1
        assert not change.any()


def test_the_cosine_ignores_the_size_of_the_update():
    model = models.build("lenet", (1, 8, 8), classes=3).double()
    target, images = problem(model, (1, 8, 8))
    larger = Target({k: 1e3 * v for k, v in target.sent.items()}, target.labels, target.restarts, "cosine")
    assert_same(together(model, larger)(images), together(model, target)(images))


class Odd(nn.Module):
    """A network that multiplies by a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.linear = nn.Linear(16, 3)

    def forward(self, x):
        return self.linear((x * self.scale).flatten(1))


def test_what_cannot_be_followed_is_refused_and_vectorized():
    model = Odd().double()
    target, images = problem(model, (1, 4, 4))
    with pytest.raises(NotSupportedError, match="mul"):
        together(model, target)(images)
    assert_same(vectorized(model, target)(images), one_by_one(model, target)(images))
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(8, 3))
    target, images = problem(grouped, (2, 4, 4))
    with pytest.raises(NotSupportedError, match="groups"):
        together(grouped, target)(images)


class Chunked(nn.Module):
    """A network that splits a parameter of its own in two."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        scale, shift = self.own.chunk(2)
        return self.head(torch.sigmoid(self.body(x.flatten(1)) * scale + shift))


class Query(nn.Module):
    """A network that puts a parameter through a layer."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)))
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.sigmoid(self.body(x.flatten(1)) + self.body(self.own)))


@pytest.mark.parametrize("kind", [Chunked, Query])
def test_parameters_that_take_another_way_are_seen(kind):
    model = kind().double()
    target, images = problem(model, (1, 4, 4), restarts=1)
    with pytest.raises(NotSupportedError, match="works on parameters"):
        together(model, target)(images)


def test_shared_unused_and_frozen_layers():
    torch.manual_seed(0)
    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), shared, nn.Tanh(), shared, nn.Flatten(), nn.Linear(32, 3)
    )
    model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    model[0].requires_grad_(False)
    model = model.double()
    target, images = problem(model, (1, 6, 6))
    assert "0.weight" not in target.sent
    assert_same(together(model, target)(images), one_by_one(model, target)(images))


@pytest.mark.parametrize("distance", DISTANCES)
def test_local_steps(distance):
    model = models.build("lenet", (1, 8, 8), classes=3).double()
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(4, 1, 8, 8, generator=generator).double(), torch.tensor([0, 1, 2, 1])
    update = fedavg(model, images, labels, learning_rate=0.3, batch_size=2, epochs=2)
    sent = {name: value[None] for name, value in update.tensors.items()}
    steps = (torch.tensor([0, 1]), torch.tensor([2, 3])) * 2
    target = Target(sent, labels[None], 2, distance, steps, 0.3)
    start = torch.cat([images, torch.randn(4, 1, 8, 8, generator=generator).double()])
    expected = one_by_one(model, target)(start)
    assert expected[0][0] < 1e-9  # the client's own images
    assert_same(vectorized(model, target)(start), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.integers(0, 999))
def test_total_variation(count, channels, height, width, seed):
    images = torch.randn(
        count, channels, height, width, generator=torch.Generator().manual_seed(seed)
    ).double()
    variable = images.clone().requires_grad_()
    expected = variable.diff(dim=2).abs().mean((1, 2, 3)) + variable.diff(dim=3).abs().mean((1, 2, 3))
    variation, gradient = total_variation(images)
    assert torch.allclose(variation, expected.detach())
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), variable)[0])


def test_total_variation_needs_pixels():
    with pytest.raises(ValueError, match=r"2x2 or more, got \(1, 3, 1, 4\)"):
        total_variation(torch.zeros(1, 3, 1, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_on_a_gpu():
    model = models.build("lenet", (3, 16, 16), classes=10)
    target, images = problem(model, (3, 16, 16))
    expected = together(model, target)(images)
    moved = Target({k: v.cuda() for k, v in target.sent.items()}, target.labels.cuda(), 2, "cosine")
    for way in (together, vectorized):
        distance, change = way(copy.deepcopy(model).cuda(), moved)(images.cuda())
        assert_same((distance.cpu(), change.cpu()), expected, tolerance=1e-3)
