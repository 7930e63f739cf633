"""The cases of `federated.py`, and a client's local training as people write it in plain PyTorch.

Flower's clients run the same loop, in another environment, so nothing here belongs to either library but the models
and the loss.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradleak_lib.federated import multilabel_loss, train_only
from gradleak_lib.models import build

LABELS = 10
# Where a GPU would round to TF32, the updates of two ways to compute them could not be compared.
torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Case:
    """A network and what each client does with it.

    Parameters
    ----------
    title, name, shape, width
        What to call it, and what `build` takes.
    clients, images
        K clients of so many images each.
    trained
        Layers that are trained; none: all.
    """

    title: str
    name: str
    shape: tuple[int, ...]
    clients: int
    images: int = 64
    width: int | None = None
    trained: tuple[str, ...] = ()
    batch_size: int = 8
    epochs: int = 1
    learning_rate: float = 0.05

    def model(self, device: torch.device) -> nn.Module:
        """The network that the server sends, in evaluation mode."""
        model = build(self.name, self.shape, classes=LABELS, width=self.width)
        return (train_only(model, self.trained) if self.trained else model).to(device)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Random images ``[K, n, C, H, W]`` and multi-hot labels ``[K, n, 10]``: only their shapes matter."""
        generator = torch.Generator().manual_seed(0)
        count = self.clients, self.images
        inputs = torch.rand(*count, *self.shape, generator=generator)
        return inputs, (torch.rand(*count, LABELS, generator=generator) < 0.2).float()


def read(fields: dict[str, Any]) -> Case:
    """A case from its fields as JSON knows them: lists, no tuples."""
    return Case(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )


@cache
def held(case: Case, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """Model and samples of all clients, made once in a process: Flower's clients would make them in every round."""
    return case.model(device), *case.samples()


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    case: Case,
    device: torch.device,
    *,
    shuffle: bool = True,
) -> None:
    """Train on one client's samples, in place."""
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=case.batch_size, shuffle=shuffle)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=case.learning_rate)
    for _ in range(case.epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = multilabel_loss(model(batch.to(device)), labels.to(device), reduction="mean")
            loss.backward()
            optimizer.step()


def updates(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    case: Case,
    device: torch.device,
    *,
    shuffle: bool = True,
) -> list[dict[str, Tensor]]:
    """Each client's update: what its copy of the model has become, minus the model."""
    received = model.state_dict()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    result = []
    for client in range(case.clients):
        local = copy.deepcopy(model)
        train(local, inputs[client], targets[client], case, device, shuffle=shuffle)
        after = local.state_dict()
        result.append({name: after[name] - received[name] for name in trained})
    return result


def contestant(model: nn.Module, case: Case, device: torch.device) -> Callable[[], Any]:
    """Return a call that trains all clients in plain PyTorch."""
    inputs, targets = case.samples()
    return lambda: updates(model, inputs, targets, case, device)
