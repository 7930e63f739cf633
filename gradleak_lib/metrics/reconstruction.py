"""How close reconstructions come to the originals.

Results lie where the originals lie: an attack on a device is scored against the images that the evaluator holds.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradleak_lib.show import summary

Cost = Callable[[Tensor, Tensor], Tensor]

# Above this PSNR the root mean square error is below 0.255 of a grey level.
EXACT_DB = 60.0
# Numbers that are held in double precision at once, for distances.
_AT_ONCE = 2**25


def psnr(reconstructions: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in decibels.

    Parameters
    ----------
    reconstructions
        ``[N, C, H, W]``, or rows ``[N, M]`` of a table; clamped to [0, 1] first, as in Fowl et al. 2022.
    originals
        Of the same shape, in [0, 1].

    Returns
    -------
    Tensor
        ``[N]``. Identical images would be infinitely good, and so would every mean that they are part of: they
        count as if they differed by a hundredth of the unit roundoff, 178 dB in single precision.

    Raises
    ------
    ValueError
        If the shapes differ, or are those of one image.
    """
    reconstructions, originals = _pair(reconstructions, originals)
    squared = (reconstructions.clamp(0, 1) - originals).square().flatten(1)
    scores = -(squared.sum(1) / squared.shape[1]).log() * (10 / torch.tensor(10.0).log())
    return scores.clamp_max(-20 * math.log10(torch.finfo(scores.dtype).eps / 100))


def ssim(reconstructions: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity of each image, in [-1, 1], with Gaussian windows of 11 pixels.

    Parameters and errors as for `psnr`; images of 11x11 or larger.

    References
    ----------
    Wang et al. 2004.
    """
    reconstructions, originals = _pair(reconstructions, originals)
    if originals.ndim != 4 or min(originals.shape[2:]) < 11:
        raise ValueError(f"SSIM needs images [N, C, H, W] of 11x11 or larger, got {tuple(originals.shape)}")
    from gradleak_lib import _torchvision  # noqa: F401  (first: torchmetrics imports torchvision)

    images = importlib.import_module("torchmetrics.functional.image")
    scores = images.structural_similarity_index_measure(
        reconstructions.clamp(0, 1), originals, data_range=1.0, reduction="none"
    )
    return scores.reshape(-1) if isinstance(scores, Tensor) else scores[0].reshape(-1)


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of every pair: ``[A, ...]`` and ``[B, ...]`` give ``[A, B]``, where the second lie.

    A matrix product, in float64, so that near-identical pairs keep their order.
    """
    a = first.flatten(1).to(second.device, torch.float64)
    lengths, parts = a.square().sum(1)[:, None], []
    for part in second.flatten(1).split(max(1, _AT_ONCE // a.shape[1])):
        b = part.double()
        parts.append((lengths + b.square().sum(1) - 2 * a @ b.T).clamp_min(0) / a.shape[1])
    return torch.cat(parts, 1)


def negative_psnr(reconstructions: Tensor, originals: Tensor) -> Tensor:
    """Minus the PSNR of every pair, in decibels: ``[R, ...]`` and ``[N, ...]`` give float64 ``[R, N]``."""
    # 1e-16 is what rounding leaves of the distance of identical images.
    return 10 * squared_distances(reconstructions, originals).clamp_min(1e-16).log10()


def lpips(network: Any) -> Cost:
    """Learned perceptual image patch similarity of every pair, as a cost for `match`.

    Parameters
    ----------
    network
        ``LearnedPerceptualImagePatchSimilarity().net`` of torchmetrics, or ``LPIPS()`` of the lpips package; both
        load trained weights. Every image passes through it once, not once for every pair.

    Returns
    -------
    Cost
        From ``[R, 3, H, W]`` and ``[N, 3, H, W]`` in [0, 1], as large as the network needs them (AlexNet: 32
        pixels), to float64 ``[R, N]``, at least 0.

    References
    ----------
    Zhang et al. 2018, Eq. 1.
    """

    # How much a channel's squared difference counts, 0 or more.
    weights = [linear.model[-1].weight for linear in network.lins]

    def features(images: Tensor) -> list[Tensor]:
        outputs = network.net(network.scaling_layer(2 * images.to(weights[0]) - 1))
        return [
            nn.functional.normalize(output, dim=1, eps=1e-10).mul_(weight.sqrt())
            for output, weight in zip(outputs, weights, strict=True)
        ]

    @torch.no_grad()
    def cost(reconstructions: Tensor, originals: Tensor) -> Tensor:
        layers = zip(features(reconstructions), features(originals), strict=True)
        # The sum over channels of the mean over places; squared_distances is the mean over both.
        return torch.stack([a.shape[1] * squared_distances(a, b) for a, b in layers]).sum(0)

    return cost


def match(reconstructions: Tensor, originals: Tensor, *, cost: Cost = negative_psnr) -> Tensor:
    """Pair reconstructions with originals, each at most once, at the least total cost.

    The default cost asks for the highest total PSNR. The least total squared error would give an exact
    reconstruction away to make two bad ones look better.

    Parameters
    ----------
    reconstructions
        ``[R, ...]``, compared as they are (clamp them first to compare what is seen).
    originals
        ``[N, ...]``.
    cost
        What each pair costs: from ``[R, ...]`` and ``[N, ...]`` to ``[R, N]``, finite.

    Returns
    -------
    Tensor
        int64 ``[N]``: for each original the index of its reconstruction, -1 where there is none.

    Raises
    ------
    ValueError
        If the shapes differ, or the costs are of another shape or not finite.

    References
    ----------
    Fowl et al. 2022, App. B (linear sum assignment; there `lpips`).
    """
    if reconstructions.shape[1:] != originals.shape[1:]:
        raise ValueError(
            f"shapes differ: {tuple(reconstructions.shape[1:])} and {tuple(originals.shape[1:])}"
        )
    partner = torch.full((len(originals),), -1)
    reconstructions = reconstructions.to(originals.device)
    if len(reconstructions):
        costs = cost(reconstructions, originals).detach().cpu()
        if costs.shape != (len(reconstructions), len(originals)):
            raise ValueError(
                f"the cost of {len(reconstructions)} x {len(originals)} pairs has shape {tuple(costs.shape)}"
            )
        if not costs.isfinite().all():
            raise ValueError("the costs hold NaN or infinity: check the reconstructions for them")
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(costs.numpy())
        partner[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return partner.to(originals.device)


def identified(reconstructions: Tensor, originals: Tensor, pool: Tensor) -> Tensor:
    """Whether each reconstruction lies closer to its original than to any image of a reference pool.

    Parameters
    ----------
    reconstructions
        ``[N, ...]``, in the order of the originals.
    originals
        ``[N, ...]``.
    pool
        ``[P, ...]``, other images; copies of the originals in it are left out of the comparison.

    Returns
    -------
    Tensor
        bool ``[N]``. Its mean, with False for every original that has no reconstruction, is the image
        identifiability precision (IIP).

    References
    ----------
    Yin et al. 2021 (there among images of its class); Fowl et al. 2022, App. B (in pixel space).
    """
    reconstructions, originals = _pair(reconstructions, originals)
    pool = pool.to(originals.device)
    own = (reconstructions.double() - originals.double()).flatten(1).square().mean(1)
    others = squared_distances(reconstructions, pool)
    others[squared_distances(originals, pool) < 1e-12] = torch.inf
    return own < others.amin(1)


@dataclass(frozen=True)
class Score:
    """One attack on one batch, against the originals.

    Parameters
    ----------
    images
        ``[N, C, H, W]``, the reconstructions in the order of the originals, clamped to [0, 1]; grey where none.
    found
        bool ``[N]``, whether there is a reconstruction.
    psnr
        ``[N]`` in decibels; 0 where there is none.
    identified
        bool ``[N]``, or None where no pool was given.
    """

    images: Tensor
    found: Tensor
    psnr: Tensor
    identified: Tensor | None = None
    __repr__ = summary

    @property
    def exact(self) -> Tensor:
        """Whether a sample came back at a PSNR over 60 dB, bool ``[N]``."""
        return self.psnr > EXACT_DB

    @property
    def iip(self) -> float:
        """Share of the batch that is identified, in [0, 1]."""
        if self.identified is None:
            raise ValueError("IIP needs a reference pool: call score(..., pool=...)")
        return self.identified.double().mean().item()


def score(reconstructions: Tensor, originals: Tensor, *, pool: Tensor | None = None) -> Score:
    """Match reconstructions to the originals and score them.

    Parameters
    ----------
    reconstructions
        ``[R, C, H, W]``, or rows ``[R, M]`` of a table; in any order, any number.
    originals
        ``[N, C, H, W]`` or ``[N, M]``, in [0, 1].
    pool
        ``[P, C, H, W]`` or ``[P, M]``, references for IIP; None leaves it out.

    Raises
    ------
    ValueError
        As for `psnr` and `match`.

    Examples
    --------
    >>> from gradleak_lib import data
    >>> images = data.load("digits", sample=5).images
    >>> found = score(images[[3, 1]], images)
    >>> found
    Score(images=float32[5, 1, 8, 8], found=bool[5], psnr=float32[5], identified=None)
    >>> found.exact
    tensor([False,  True, False,  True, False])
    """
    _check_batch(originals)
    reconstructions = reconstructions.to(originals.device).clamp(0, 1)
    partner = match(reconstructions, originals)
    found = partner >= 0
    images = torch.full_like(originals, 0.5, dtype=reconstructions.dtype)
    images[found] = reconstructions[partner[found]]
    scores = torch.zeros(len(originals), dtype=images.dtype, device=images.device)
    if found.any():
        scores[found] = psnr(images[found], originals[found])
    if pool is None:
        return Score(images, found, scores)
    return Score(images, found, scores, found & identified(images, originals, pool))


def _pair(reconstructions: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, on the device of the originals; ValueError unless they can be compared one by one."""
    if reconstructions.shape != originals.shape:
        raise ValueError(f"shapes differ: {tuple(reconstructions.shape)} and {tuple(originals.shape)}")
    _check_batch(originals)
    return reconstructions.to(originals.device), originals.to(reconstructions.dtype)


def _check_batch(originals: Tensor) -> None:
    if originals.ndim not in (2, 4):
        raise ValueError(
            f"expected images [N, C, H, W] (one: image[None]) or rows [N, M], got shape {tuple(originals.shape)}"
        )
