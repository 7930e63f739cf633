"""Sending few bits of every entry of an update."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral

import torch
from torch import Tensor

from gradleak_lib.defenses.composition import UpdateDefense
from gradleak_lib.federated.update import Update, check_finite


def quantize(bits: int, *, seed: int = 0) -> UpdateDefense:
    """Round every entry at random to one of its two nearest levels, such that its mean stays what it was.

    The levels of a tensor with largest magnitude m are ``k * m / s`` for the whole numbers k from -s to s, where
    ``s = 2 ** (bits - 1) - 1``: a sign and s magnitudes, and zero, which makes ``2 ** bits - 1`` levels. An entry
    between two of them becomes the upper one with the probability that its distance to the lower one is of the step
    ``m / s``. So m stays m, zero stays zero, and a tensor of zeros stays one.

    Parameters
    ----------
    bits
        Bits per entry, a whole number from 2 (the levels are -m, 0 and m) to 32.
    seed
        Seed of the rounding; the same update is rounded the same way, so every client and round needs a seed of its
        own.

    Returns
    -------
    Callable[[Update], Update]
        The defence. The levels are rounded to the dtype of the tensor, which matters where bits are as many as it
        has.

    Raises
    ------
    ValueError
        If the bits are out of range; when it is used, if the update holds NaN or infinity.

    References
    ----------
    Alistarh et al. 2017 (QSGD), Sec. 3.1, with the maximum norm in place of the Euclidean one.
    """
    if not isinstance(bits, Integral) or not 2 <= bits <= 32:
        raise ValueError(f"bits must be a whole number from 2 to 32, got {bits!r}")
    magnitudes = 2 ** (int(bits) - 1) - 1

    def rounded(tensor: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        if tensor.numel() == 0:
            return tensor
        # In double precision, which holds 32 bits exactly: half precision does not even hold a level's number.
        exact = tensor.double()
        largest = exact.abs().max()
        levels = exact / torch.where(largest > 0, largest, 1) * magnitudes
        lower = levels.floor()
        # Not (levels + draws).floor(): that sum can round up to a level beyond the last.
        chosen = lower + (draws < levels - lower)
        return (chosen / magnitudes * largest).to(tensor)

    return _each_tensor(rounded, seed)


def sign() -> UpdateDefense:
    """Replace every entry by the mean magnitude of its tensor, with the entry's sign; zero stays zero.

    Returns
    -------
    Callable[[Update], Update]
        The defence: a bit per entry, and a number per tensor.

    Raises
    ------
    ValueError
        When it is used, if the update holds NaN or infinity.

    References
    ----------
    Bernstein et al. 2018 (signSGD, without a scale); Karimireddy et al. 2019 (the mean magnitude as scale).
    """

    def signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
        exact = tensor.double()
        return (exact.sign() * exact.abs().mean()).to(tensor)

    return _each_tensor(signs)


def _each_tensor(change: Callable[[Tensor, torch.Generator], Tensor], seed: int = 0) -> UpdateDefense:
    def defense(update: Update) -> Update:
        check_finite(update.tensors)
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: change(tensor, generator) for name, tensor in update.tensors.items()}
        return replace(update, tensors=tensors)

    return defense
