"""Small populations of clients, drawn at random."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradleak_lib.data.users import ClientData, UserDataset


def toy_clients(
    sizes: Sequence[int],
    *,
    shape: tuple[int, ...] = (6,),
    classes: int = 3,
    multilabel: bool = False,
    words: bool = False,
    seed: int = 0,
) -> ClientData:
    """Clients that hold so many samples each, two clients to a user; the rows of a client are scattered."""
    draw = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    inputs = (
        torch.randint(classes + 1, (count, *shape), generator=draw)
        if words
        else torch.rand(count, *shape, generator=draw)
    )
    targets = (
        torch.randint(2, (count, classes), generator=draw).float()
        if multilabel
        else torch.randint(classes, (count,), generator=draw)
    )
    rows = torch.randperm(count, generator=draw).split(list(sizes))
    users = torch.arange(len(sizes)) // 2
    owner = torch.empty(count, dtype=torch.long)
    for user, held in zip(users, rows, strict=True):
        owner[held] = user
    data = UserDataset(
        inputs=inputs,
        targets=targets,
        users=owner,
        items=torch.arange(count),
        albums=torch.zeros(count, dtype=torch.long),
        times=torch.arange(count).double(),
        sources=torch.arange(count)[:, None],
        classes=tuple(map(str, range(classes))),
        user_names=tuple(f"user {number}" for number in range(len(sizes))),
        name="toy",
    )
    return ClientData(data, tuple(rows), users, torch.arange(len(sizes)) % 2)


def flat(updates: Mapping[str, Tensor]) -> Tensor:
    """Updates ``[M, ...]`` of several tensors as one matrix."""
    return torch.cat([value.flatten(1) for value in updates.values()], dim=1)


def largest_error(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Largest distance of two clients' updates, as a share of the second's length: whole, and tensor by tensor.

    A tensor counts with at least a hundredth of the length of its client's whole update: the gradient of a tensor may
    be zero but for rounding.
    """
    assert list(first) == list(second)
    whole = flat(second).norm(dim=1)
    errors = [(flat(first) - flat(second)).norm(dim=1) / whole]
    for name, value in second.items():
        size = torch.maximum(value.flatten(1).norm(dim=1), 0.01 * whole)
        errors.append((first[name] - value).flatten(1).norm(dim=1) / size)
    return torch.stack(errors).max().item()
