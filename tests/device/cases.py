"""What the cases share: how one is registered, and the small models, batches and updates that it starts from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradleak_lib import models
from gradleak_lib.data import ClientData, ImageDataset, UserDataset, unowned
from gradleak_lib.federated import Update, fedsgd
from gradleak_lib.seeding import seeded

SHAPE, CLASSES = (1, 8, 8), 4
RELATIVE = 1e-4


@dataclass(frozen=True)
class Case:
    """A few calls of the library, the same on every device.

    Parameters
    ----------
    run
        From where the model lies and where the data lie to what comes out: tensors, numbers, updates, modules, and
        whatever holds them.
    tolerance
        Largest difference from the CPU, by the largest entry of a tensor.
    on
        Where what comes out must lie: where the model does, or on the CPU; None: not asked.
    draws
        Whether the functions draw from torch's global random state, as their documentation says.
    """

    run: Callable[[str, str], Any]
    tolerance: float = RELATIVE
    on: Literal["model", "cpu"] | None = None
    draws: bool = False


CASES: dict[str, Case] = {}


def case(**options: Any) -> Callable[[Callable[[str, str], Any]], Callable[[str, str], Any]]:
    """Register a function as a case of its name."""

    def register(run: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
        add(run.__name__, run, **options)
        return run

    return register


def add(name: str, run: Callable[[str, str], Any], **options: Any) -> None:
    """Register a case by name."""
    assert name not in CASES, name
    CASES[name] = Case(run, **options)


def network(device: str, name: str = "mlp", shape: tuple[int, ...] = SHAPE, **options: Any) -> nn.Module:
    """A small network with weights that leave no gradient near zero."""
    small = {"mlp": 12, "cnn": 4, "lenet": 4, "convnet": 2, "nplm": 6}
    options = ({"width": small[name]} if name in small else {}) | options
    model = models.build(name, shape, classes=CLASSES, seed=1, **options)
    plain = name in ("convnet", "resnet20", "resnet18")
    return (model if plain else models.with_uniform_weights(model, 0.3)).to(device)


def drawing(device: str) -> nn.Module:
    """A network in training mode, with dropout."""
    with seeded(0):
        parts = (nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, CLASSES))
        return nn.Sequential(*parts).to(device)


def images(device: str, count: int = 4, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    """Uniform noise."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)).to(device)


def labels(device: str, count: int = 4) -> Tensor:
    """Classes in turn."""
    return (torch.arange(count) % CLASSES).to(device)


def batch(device: str, count: int = 4, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Images with labels."""
    return images(device, count, shape), labels(device, count)


def moved(update: Update, device: str) -> Update:
    """The same update elsewhere: one that came in a file lies on the CPU."""
    return replace(update, tensors={name: value.to(device) for name, value in update.tensors.items()})


def gradient(model: nn.Module, device: str, count: int = 4, shape: tuple[int, ...] = SHAPE) -> Update:
    """A gradient of the model, computed where the model is, on a device."""
    return moved(fedsgd(model, *batch("cpu", count, shape)), device)


def dataset(device: str, count: int = 12, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> ImageDataset:
    """Images whose every tensor lies there."""
    names = tuple("abcd")
    return ImageDataset(images(device, count, shape, seed), labels(device, count), names, "noise")


def people(device: str, count: int = 12, seed: int = 0, *, words: bool = False) -> UserDataset:
    """Samples of nobody, whose inputs and targets lie there; who owns them is counted on the CPU."""
    data = unowned(dataset("cpu", count, seed=seed))
    if words:
        draw = torch.Generator().manual_seed(seed)
        data = replace(data, inputs=torch.randint(CLASSES + 1, (count, 3), generator=draw))
    return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))


def clients(device: str, *, words: bool = False) -> ClientData:
    """Four clients, two of each user, with 3, 2, 4 and 3 samples."""
    data = replace(people(device, words=words), user_names=("one", "two"))
    rows = torch.arange(12).split([3, 2, 4, 3])
    return ClientData(data, rows, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
