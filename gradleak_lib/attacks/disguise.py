"""How a malicious server hides an imprint from a client that inspects the model, and what that costs the attack."""

import math

import torch
from torch import Tensor, nn

from gradleak_lib.attacks.imprint import Imprint


@torch.no_grad()
def permute_rows(imprint: Imprint, *, seed: int) -> Imprint:
    """Shuffle the rows of an imprint: its function and its gradients stay the same, but for their order.

    Parameters
    ----------
    imprint
        An armed imprint, changed in place.
    seed
        Seed of the permutation.

    Returns
    -------
    Imprint
        The same module.

    References
    ----------
    Not in Fowl et al. 2022; Eq. 4 asks for neighbouring edges, wherever their rows stand.
    """
    order = torch.randperm(len(imprint.linear.bias), generator=torch.Generator().manual_seed(seed))
    _reorder(imprint, order)
    return imprint


@torch.no_grad()
def randomise_rows(
    imprint: Imprint, amount: float, *, seed: int, orthogonal_to: Tensor | None = None
) -> Imprint:
    """Add Gaussian noise to every row that measures, so that the rank of the layer is full.

    The rows then measure slightly different numbers against their edges, and samples near an edge change bins. Noise
    that is orthogonal to public inputs changes only what is measured on the rest of a private input.

    Parameters
    ----------
    imprint
        An armed imprint, changed in place.
    amount
        Root mean square norm of the noise on a row, in norms of that row; at least 0. With ``orthogonal_to``, the
        part of the noise that is taken away is missing from it.
    seed
        Seed of the noise.
    orthogonal_to
        ``[P, *shape]``, fewer than the entries of one input: what the imprint receives for public samples. Noise has
        no component in their span. None: noise in all directions.

    Returns
    -------
    Imprint
        The same module.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Fowl et al. 2022, Sec. 5 ("randomize a few entries of the linear layer to increase its rank"). The orthogonal
    noise is not in the paper.
    """
    if not 0 <= amount < math.inf:
        raise ValueError(f"amount must be 0 or more and finite, got {amount}")
    weight = imprint.linear.weight
    rows = imprint.rows.to(weight.device)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(rows), weight.shape[1], generator=generator, dtype=torch.float64).to(
        weight.device
    )
    if orthogonal_to is not None:
        if orthogonal_to.shape[1:] != imprint.shape or not 0 < len(orthogonal_to) < weight.shape[1]:
            raise ValueError(
                f"orthogonal_to must hold 1 to {weight.shape[1] - 1} inputs of shape {imprint.shape}, "
                f"got shape {tuple(orthogonal_to.shape)}"
            )
        basis = torch.linalg.qr(orthogonal_to.flatten(1).to(noise).T).Q
        noise -= noise @ basis @ basis.T
    scale = amount * weight[rows].double().norm(dim=1, keepdim=True) / math.sqrt(weight.shape[1])
    weight[rows] = (weight[rows].double() + scale * noise).to(weight)
    return imprint


@torch.no_grad()
def decoy_rows(imprint: Imprint, count: int, *, seed: int) -> Imprint:
    """Add rows with ordinary random weights at random places; what follows treats them as all others.

    `gradleak_lib.attacks.imprint.recover` passes over them, for the server knows where they stand. They change what
    the network computes, as any random feature does, and with ``connection="addition"`` the mean runs over them, too.

    Parameters
    ----------
    imprint
        An armed imprint, changed in place: it gets a larger layer, so make its optimiser, or copies, afterwards.
    count
        Number of rows added, at least 1.
    seed
        Seed of the rows, drawn as PyTorch draws those of any linear layer, and of their places.

    Returns
    -------
    Imprint
        The same module.

    Raises
    ------
    ValueError
        If the count is out of range.

    References
    ----------
    Fowl et al. 2022, Sec. 5 ("additional rows that compute normal deep features"). Here they compute random ones.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    old, back = imprint.linear, imprint.back
    total = old.out_features + count
    imprint.linear = _larger(old, old.in_features, total)
    generator = torch.Generator().manual_seed(seed)
    bound = old.in_features**-0.5
    for new, given in ((imprint.linear.weight, old.weight), (imprint.linear.bias, old.bias)):
        drawn = bound * (2 * torch.rand(count, *given.shape[1:], generator=generator) - 1)
        new.copy_(torch.cat([given, drawn.to(given)]))
    if back is not None:
        imprint.back = _larger(back, total, back.out_features)
        # A decoy with other outgoing weights than its neighbours would stand out there.
        alike = back.weight.mean(1, keepdim=True).expand(-1, count)
        imprint.back.weight.copy_(torch.cat([back.weight, alike], 1))
        imprint.back.bias.copy_(back.bias)
    _reorder(imprint, torch.randperm(total, generator=generator))
    return imprint


def _larger(layer: nn.Linear, columns: int, rows: int) -> nn.Linear:
    """Return a linear layer of another size, in the dtype, device and mode of the first, not yet filled."""
    empty = nn.utils.skip_init(nn.Linear, columns, rows, device=layer.weight.device, dtype=layer.weight.dtype)
    assert isinstance(empty, nn.Linear)
    return empty.train(layer.training).requires_grad_(layer.weight.requires_grad)


def _reorder(imprint: Imprint, order: Tensor) -> None:
    """Put row ``order[i]`` in place i, outgoing weights with it."""
    for tensor in (imprint.linear.weight, imprint.linear.bias):
        tensor.copy_(tensor[order.to(tensor.device)])
    if imprint.back is not None:
        imprint.back.weight.copy_(imprint.back.weight[:, order.to(imprint.back.weight.device)])
    imprint.rows = order.argsort()[imprint.rows.cpu()]
