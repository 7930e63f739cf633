"""The networks: shapes, known sizes, seeds."""

import pytest
import torch
from torch import nn

from gradleak_lib import models

# isort: split
import torchvision

# Known from the papers: He et al. 2016 (0.27 million), torchvision's documentation, Geiping's ConvNet of width 64.
PARAMETERS = {"resnet18": 11_689_512, "mobilenet-v2": 3_504_872}


@pytest.mark.parametrize("name", [name for name in models.NAMES if name != "nplm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_classifies(name, channels):
    model = models.build(name, (channels, 32, 32), classes=7)
    assert not model.training
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_of_the_big_ones(name, count):
    assert sum(p.numel() for p in models.build(name, (3, 224, 224), classes=1000).parameters()) == count


def test_parameters_of_the_small_ones():
    resnet = models.build("resnet20", (3, 32, 32), classes=10)
    assert 0.26e6 < sum(p.numel() for p in resnet.parameters()) < 0.28e6
    lenet = models.build("lenet", (3, 32, 32), classes=10)
    assert lenet[-1].in_features == 768
    assert models.build("convnet", (3, 32, 32), classes=10)[-1].in_features == 36 * 64


def test_seeds_decide_and_the_global_state_stays():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, same, other = (models.build("lenet", (3, 32, 32), classes=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown model 'resnet50': choose one of linear"):
        models.build("resnet50", (3, 32, 32), classes=10)
    with pytest.raises(ValueError, match="classes"):
        models.build("mlp", (4,), classes=0)
    with pytest.raises(ValueError, match="images of shape"):
        models.build("lenet", (4,), classes=2)
    with pytest.raises(ValueError, match="9x9"):
        models.build("convnet", (3, 8, 8), classes=2)
    with pytest.raises(ValueError, match="cnn takes images of 4x4 or larger, got 3x8"):
        models.build("cnn", (3, 3, 8), classes=2)
    with pytest.raises(ValueError, match=r"nplm takes windows of shape \(words,\)"):
        models.build("nplm", (3, 8, 8), classes=2)


def test_the_small_cnn():
    model = models.build("cnn", (3, 11, 14), classes=7, width=5)
    layers = [name for name, module in model.named_children() if list(module.parameters())]
    assert layers == ["conv1", "conv2", "fc1", "fc2"]
    assert model.fc1.in_features == 10 * 2 * 3
    x = torch.rand(2, 3, 11, 14)
    pool, relu = nn.functional.max_pool2d, torch.relu
    by_hand = pool(relu(model.conv2(pool(relu(model.conv1(x)), 2))), 2).flatten(1)
    assert torch.allclose(model(x), model.fc2(relu(model.fc1(by_hand))), atol=1e-6)
    assert models.build("cnn", (1, 4, 4), classes=2)(torch.rand(1, 1, 4, 4)).shape == (1, 2)


def test_the_language_model_reads_windows_of_words():
    model = models.build("nplm", (4,), classes=9, width=6)
    words = torch.tensor([[0, 3, 8, 9], [9, 9, 9, 9]])  # 9: unknown
    assert model(words).shape == (2, 9)
    by_hand = model.embedding.weight[words].flatten(1) @ model.hidden.weight.T + model.hidden.bias
    assert torch.allclose(model(words), model.output(by_hand.tanh()), atol=1e-6)
    with pytest.raises(IndexError):
        model(torch.tensor([[0, 1, 2, 10]]))


def test_the_mobilenet_is_torchvisions():
    theirs = torchvision.models.mobilenet_v2(num_classes=6).eval()
    ours = models.build("mobilenet-v2", (3, 64, 64), classes=6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not torch.equal(ours.classifier[1].weight, theirs.classifier[1].weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        seeded = torchvision.models.mobilenet_v2(num_classes=6)
    again = models.build("mobilenet-v2", (3, 64, 64), classes=6, seed=3)
    assert all(torch.equal(value, seeded.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("name", models.NAMES)
def test_last_layers_and_new_heads(name):
    shape = (5,) if name == "nplm" else (3, 32, 32)
    model = models.build(name, shape, classes=10, width=8).double()
    last = models.last_layer(model)
    known = {
        "cnn": "fc2",
        "nplm": "output",
        "mobilenet-v2": "classifier.1",
        "resnet18": "fc",
        "resnet20": "fc",
    }
    assert last == known.get(name, last)
    assert model.get_submodule(last).out_features == 10
    model.get_submodule(last).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    new, same, other = (models.with_new_head(model, classes=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = torch.randint(10, (2, *shape)) if name == "nplm" else torch.rand(2, *shape).double()
    assert new(x).shape == (2, 4)
    head = new.get_submodule(last)
    assert models.last_layer(new) == last
    assert head.weight.requires_grad
    assert not head.training
    assert torch.equal(head.weight, same.get_submodule(last).weight)
    assert not torch.equal(head.weight, other.get_submodule(last).weight)
    for key, value in new.state_dict().items():
        if not key.startswith(f"{last}."):
            assert torch.equal(value, before[key]), key
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    first = next(new.parameters()) if name != "linear" else head.weight
    with torch.no_grad():
        first.add_(1)  # a copy: the old network does not notice
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_heads_need_a_linear_layer():
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3))
    for function in (models.last_layer, lambda model: models.with_new_head(model, classes=2)):
        with pytest.raises(ValueError, match="no linear layer"):
            function(convolution)
    for model, classes in ((nn.Linear(3, 2), 2), (models.build("mlp", (4,), classes=2), 0)):
        with pytest.raises(ValueError, match="must have a last layer and classes be at least 1"):
            models.with_new_head(model, classes=classes)
    without_bias = nn.Sequential(nn.Linear(3, 2, bias=False))
    assert models.with_new_head(without_bias, classes=5)[0].bias is None


def test_activations_are_replaced_and_nothing_else():
    model = models.build("lenet", (1, 16, 16), classes=10)
    changed = models.with_activation(model, nn.ELU)
    assert sum(isinstance(layer, nn.ELU) for layer in changed.modules()) == 3
    assert not any(isinstance(layer, nn.Sigmoid) for layer in changed.modules())
    assert sum(isinstance(layer, nn.Sigmoid) for layer in model.modules()) == 3
    for one, other in zip(model.parameters(), changed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(layer.training for layer in changed.modules())
    shared = nn.ReLU()
    twice = models.with_activation(nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared), nn.ELU)
    assert isinstance(twice[1], nn.ELU)
    assert isinstance(twice[3], nn.ELU)
    with pytest.raises(ValueError, match="no layer that is a ReLU"):
        models.with_activation(models.build("linear", (4,), classes=2), nn.ELU)


def test_uniform_weights():
    model = models.build("lenet", (1, 16, 16), classes=10)
    one, same, other = (models.with_uniform_weights(model, 0.5, seed=s) for s in (1, 1, 2))
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (one, same, other)]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    assert -0.5 <= float(flat[0].min()) < -0.49 < 0.49 < float(flat[0].max()) <= 0.5
    assert float(one[-1].bias.detach().abs().min()) > 0
    with pytest.raises(ValueError, match="bound must be positive"):
        models.with_uniform_weights(model, 0)


def test_a_new_head_without_a_bias():
    bare = models.with_new_head(models.build("lenet", (1, 16, 16), classes=10), classes=4, bias=False)
    assert bare[-1].bias is None
    assert bare(torch.rand(2, 1, 16, 16)).shape == (2, 4)


def test_a_small_stem_keeps_the_size_of_images_and_the_mode():
    resnet = models.build("resnet18", (3, 32, 32), classes=10)
    small = models.with_small_stem(resnet, seed=1)
    assert small.maxpool(small.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not any(module.training for module in small.modules())
    assert resnet.conv1.kernel_size == (7, 7)
    assert torch.equal(small.conv1.weight, models.with_small_stem(resnet, seed=1).conv1.weight)
    with pytest.raises(ValueError, match="expected a ResNet"):
        models.with_small_stem(models.build("lenet", (3, 32, 32), classes=10))
