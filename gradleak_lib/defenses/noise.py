"""Noise on the update."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradleak_lib.defenses.composition import UpdateDefense
from gradleak_lib.federated.update import Update, check_finite


def gaussian_noise(deviation: float, *, relative: bool = False, seed: int = 0) -> UpdateDefense:
    """Add independent Gaussian noise to every entry of an update.

    Parameters
    ----------
    deviation
        Standard deviation of the noise, 0 or more and finite; 0 leaves the update as it is.
    relative
        False: the deviation is in the units of the update. True: in units of the standard deviation of all entries
        of the very update, so 5 is noise five times the update. That is a measure for experiments, which makes
        updates of any size comparable. It is no differential privacy: the noise depends on the data.
    seed
        Seed of the noise; the same update gets the same noise, so every client and round needs a seed of its own.

    Returns
    -------
    Callable[[Update], Update]
        The defence.

    Raises
    ------
    ValueError
        If the deviation is out of range; when it is used, if the update holds NaN or infinity.

    References
    ----------
    Orekondy et al. 2018, Sec. 9.1, Eq. 5.
    """
    if not 0 <= deviation < math.inf:
        raise ValueError(f"deviation must be 0 or more and finite, got {deviation}")

    def draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return _additive(draw, deviation, relative, seed)


def laplacian_noise(scale: float, *, relative: bool = False, seed: int = 0) -> UpdateDefense:
    """Add independent Laplacian noise to every entry of an update.

    Parameters
    ----------
    scale
        Scale of the noise (its standard deviation is ``2 ** 0.5`` times that), 0 or more and finite; 0 leaves the
        update as it is.
    relative
        False: the scale is in the units of the update. True: in units of the standard deviation of all entries of
        the very update. As for `gaussian_noise`, that is a measure for experiments and no differential privacy.
    seed
        Seed of the noise; the same update gets the same noise, so every client and round needs a seed of its own.

    Returns
    -------
    Callable[[Update], Update]
        The defence.

    Raises
    ------
    ValueError
        If the scale is out of range; when it is used, if the update holds NaN or infinity.

    References
    ----------
    Fowl et al. 2022, Sec. 5 and Fig. 6; Dwork and Roth 2014, Sec. 3.3.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be 0 or more and finite, got {scale}")

    def draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())

    return _additive(draw, scale, relative, seed)


def _additive(
    draw: Callable[[torch.Size, torch.Generator], Tensor], strength: float, relative: bool, seed: int
) -> UpdateDefense:
    def defense(update: Update) -> Update:
        check_finite(update.tensors)
        # One number for the whole update, in double precision: squares of small entries vanish in single.
        unit = float(update.flat().double().std(correction=0)) if relative else 1.0
        if strength * unit == 0:
            return update  # adding zeros would turn -0.0 into 0.0
        generator = torch.Generator().manual_seed(seed)
        noisy = {
            name: tensor + (strength * unit * draw(tensor.shape, generator)).to(tensor)
            for name, tensor in update.tensors.items()
        }
        return replace(update, tensors=noisy)

    return defense
