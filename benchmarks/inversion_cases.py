"""What `inversion.py` looks at: networks, cases, and the two attacks on one client's gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import peer_inversion
import torch
from torch import Tensor, nn

from gradleak_lib.attacks.inversion import invert
from gradleak_lib.attacks.search import Search
from gradleak_lib.federated import Update, fedsgd
from gradleak_lib.models import build

SHAPE, CLASSES = (3, 32, 32), 10
# Of CIFAR-10, as the peer has them.
MEAN, STD = (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)
NOWHERE_BELOW = 0.95


def relu_net(seed: int) -> nn.Module:
    """The sigmoid LeNet's shape, with ReLU and 32 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, CLASSES),
        )
    return model.eval()


def _built(name: str, width: int | None, seed: int) -> nn.Module:
    return build(name, SHAPE, classes=CLASSES, seed=seed, width=width)


def _model(name: str, width: int | None = None) -> Callable[[int], nn.Module]:
    """Network of that name, as a function of its seed."""
    return partial(_built, name, width)


@dataclass(frozen=True)
class Case:
    """What is timed.

    Parameters
    ----------
    title
        As it is printed.
    make
        The network, from a seed.
    bar
        How many times faster ours has to be.
    iterations
        Timed iterations of each run, the same in both libraries.
    restarts
        Of ours, in one pass; theirs run one after the other, so one of them is timed.
    samples
        Images of the batch.
    compiled_bar
        The same with ``torch.compile``; None: not looked at.
    """

    title: str
    make: Callable[[int], nn.Module]
    bar: float
    iterations: int
    restarts: int = 1
    samples: int = 1
    compiled_bar: float | None = None


CASES = (
    Case("LeNet", _model("lenet"), 4.0, 60, restarts=8, compiled_bar=6.0),
    Case("ReLU net", relu_net, 1.8, 40, restarts=8, compiled_bar=4.0),
    Case("ConvNet, width 8", _model("convnet", 8), 1.4, 12, restarts=8, compiled_bar=2.5),
    Case("ConvNet, width 64", _model("convnet", 64), 1.05, 4),
    Case("ResNet-18", partial(peer_inversion.resnet18, CLASSES), 1.3, 4),
    Case("LeNet", _model("lenet"), NOWHERE_BELOW, 100),
    Case("ReLU net", relu_net, NOWHERE_BELOW, 80),
    Case("ConvNet, width 32", _model("convnet", 32), NOWHERE_BELOW, 8),
    Case("ResNet-20", _model("resnet20"), NOWHERE_BELOW, 12),
    Case("ResNet-18", partial(peer_inversion.resnet18, CLASSES), NOWHERE_BELOW, 3, samples=4),
)


@dataclass(frozen=True)
class Recipe:
    """Settings under which the images of both libraries are compared."""

    title: str
    make: Callable[[int], nn.Module]
    iterations: int
    tv: float
    restarts: int = 4


RECIPES = (Recipe("ReLU net", relu_net, 400, 1e-3), Recipe("LeNet", _model("lenet"), 1000, 1e-2))


@dataclass(frozen=True)
class Problem:
    """A network and what one client sent of it."""

    model: nn.Module
    update: Update
    images: Tensor
    labels: Tensor

    def ours(self, search: Search, *, compiled: bool = False) -> Tensor:
        """Our attack: images in [0, 1]."""
        found = invert(
            self.update, self.model, SHAPE, self.labels, search, mean=MEAN, std=STD, compiled=compiled
        )
        return found.images

    def theirs(self, search: Search) -> peer_inversion.Attacker:
        """Their attack, under the same settings."""
        return peer_inversion.Attacker(
            self.model,
            self.update,
            self.labels,
            SHAPE,
            mean=MEAN,
            std=STD,
            tv=search.tv,
            iterations=search.iterations,
            restarts=search.restarts,
        )


def channels(values: tuple[float, ...]) -> Tensor:
    """One number for each channel, to be combined with images."""
    return torch.tensor(values).view(-1, 1, 1)


def pose(model: nn.Module, images: Tensor, labels: Tensor) -> Problem:
    """Let a client compute its gradient."""
    inputs = (images - channels(MEAN)) / channels(STD)
    return Problem(model, fedsgd(model, inputs, labels), images, labels)
