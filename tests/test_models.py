"""The networks: shapes, known sizes, seeds."""

import pytest
import torch

from gradleak_lib import models

# Known from the papers: He et al. 2016 (0.27 million), torchvision's documentation, Geiping's ConvNet of width 64.
PARAMETERS = {"resnet18": 11_689_512, "mobilenet-v2": 3_504_872}


@pytest.mark.parametrize("name", models.NAMES)
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
