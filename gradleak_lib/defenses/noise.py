"""Noise on the update."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradleak_lib.federated.update import Update


def laplacian_noise(scale: float, *, seed: int = 0) -> Callable[[Update], Update]:
    """Add independent Laplacian noise to every entry of an update.

    Parameters
    ----------
    scale
        Scale of the noise in the units of the update (its standard deviation is ``2 ** 0.5`` times that), at
        least 0.
    seed
        Seed of the noise; the same update gets the same noise.

    Returns
    -------
    Callable[[Update], Update]
        The defense.

    References
    ----------
    Fowl et al. 2022, Sec. 5 and Fig. 6; Dwork and Roth 2014, Sec. 3.3.
    """
    if scale < 0:
        raise ValueError(f"scale must be 0 or more, got {scale}")

    def defense(update: Update) -> Update:
        generator = torch.Generator().manual_seed(seed)

        def draw(tensor: Tensor) -> Tensor:
            uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            noise = -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())
            return tensor + noise.to(tensor)

        return replace(update, tensors={name: draw(tensor) for name, tensor in update.tensors.items()})

    return defense
