"""Noise on the update."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradleak_lib.federated.update import Update

UpdateDefense = Callable[[Update], Update]


def gaussian_noise(deviation: float, *, seed: int = 0) -> UpdateDefense:
    """Add independent Gaussian noise to every entry of an update.

    Parameters
    ----------
    deviation
        Standard deviation of the noise in the units of the update, at least 0.
    seed
        Seed of the noise; the same update gets the same noise, so every client and round needs a seed of its own.

    Returns
    -------
    Callable[[Update], Update]
        The defense.

    References
    ----------
    Orekondy et al. 2018, Sec. 9.1, Eq. 5.
    """
    if deviation < 0:
        raise ValueError(f"deviation must be 0 or more, got {deviation}")

    def draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
        return deviation * torch.randn(shape, generator=generator, dtype=torch.float64)

    return _additive(draw, seed)


def laplacian_noise(scale: float, *, seed: int = 0) -> UpdateDefense:
    """Add independent Laplacian noise to every entry of an update.

    Parameters
    ----------
    scale
        Scale of the noise in the units of the update (its standard deviation is ``2 ** 0.5`` times that), at
        least 0.
    seed
        Seed of the noise; the same update gets the same noise, so every client and round needs a seed of its own.

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

    def draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        return -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())

    return _additive(draw, seed)


def _additive(draw: Callable[[torch.Size, torch.Generator], Tensor], seed: int) -> UpdateDefense:
    def defense(update: Update) -> Update:
        generator = torch.Generator().manual_seed(seed)
        noisy = {
            name: tensor + draw(tensor.shape, generator).to(tensor) for name, tensor in update.tensors.items()
        }
        return replace(update, tensors=noisy)

    return defense
