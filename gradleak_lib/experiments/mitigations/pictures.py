"""What a mitigation leaves of photographs: inversion, and imprint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import imprint as imprints
from gradleak_lib.attacks import placement
from gradleak_lib.attacks.inversion import invert_all
from gradleak_lib.attacks.search import Search
from gradleak_lib.data import ImageDataset, load
from gradleak_lib.experiments.mitigations.mitigation import (
    Mitigation,
    Sent,
    check_counts,
    send_private,
    usual_norms,
)
from gradleak_lib.show import summary


@dataclass(frozen=True)
class Pictures:
    """Private photographs, and what an attack made of them, under one mitigation.

    Parameters
    ----------
    originals
        ``[n, C, H, W]`` in [0, 1].
    reconstructions
        ``[n, C, H, W]``, in the order of the originals; grey where there is none.
    psnr, ssim
        ``[n]``; 0 where there is none.
    chance
        Mean PSNR of an attacker who sees nothing and guesses the mean of public photographs.
    chance_ssim
        Mean SSIM of that guess.
    iip
        Share that is closer to its original than to any photograph of a pool, in [0, 1].
    """

    originals: Tensor
    reconstructions: Tensor
    psnr: Tensor
    ssim: Tensor
    chance: float
    chance_ssim: float
    iip: float

    __repr__ = summary

    @property
    def exact(self) -> int:
        """How many came back at more than 60 dB."""
        return int((self.psnr > metrics.EXACT_DB).sum())


@cache
def photographs(size: int, seed: int) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Private crops with some contrast, public ones, and a pool for the image identifiability precision."""
    private, public, pool = (
        load("photos", size, sample=count, seed=100 * seed + part)
        for part, count in enumerate((200, 800, 400))
    )
    contrast = private.images.flatten(2).std(2).mean(1) > 0.1
    return private.subset(contrast), public, pool


def invert_photographs(
    mitigations: Sequence[Mitigation],
    *,
    samples: int = 4,
    batches: int = 1,
    size: int = 24,
    iterations: int = 200,
    step_size: float = 0.2,
    modes: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Pictures]:
    """Invert the gradients of small batches of photographs, under several mitigations at once.

    Parameters
    ----------
    mitigations
        What the client does. All gradients of equally many samples are inverted in one pass.
    samples, batches
        Private photographs in a batch, and number of batches.
    size
        Side of a photograph in pixels.
    iterations, step_size
        Of the search, which is short, hence the large steps. It knows the labels, those of public samples included.
    modes
        As for `Mitigation.on_data`.
    seed
        Seed of network, photographs, defence and search.
    device
        Where the network lies.

    Returns
    -------
    list of Pictures
        In the order of the mitigations, with the private photographs of all batches.

    Raises
    ------
    ValueError
        If a number is out of range, or a defence leaves no private photograph in a batch.

    References
    ----------
    Geiping et al. 2020, Sec. 5.
    """
    private, public, pool = photographs(size, seed)
    check_counts(samples, batches)
    _check_photographs(samples * batches, len(private))
    mean, std = ([float(v) for v in f((0, 2, 3))] for f in (public.images.mean, public.images.std))
    shape = (3, size, size)
    lenet = models.build("lenet", shape, classes=len(private.classes), seed=seed, width=32)
    model = models.with_activation(lenet, nn.ReLU).to(device)

    def normalised(photos: ImageDataset) -> ImageDataset:
        centre, spread = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        return replace(photos, images=(photos.images - centre) / spread)

    known = normalised(public)
    usual, bound = usual_norms(model, known, samples)
    head = models.last_layer(model)
    options: dict[str, Any] = {"head": head, "usual": usual, "sample_bound": bound, "modes": modes}
    jobs = [(number, batch) for number in range(len(mitigations)) for batch in range(batches)]
    sent: dict[tuple[int, int], Sent] = {}
    for number, batch in jobs:
        own = private.subset(range(batch * samples, (batch + 1) * samples))
        sent[number, batch] = send_private(
            mitigations[number], model, normalised(own), known, **options, seed=1000 * seed + batch
        )
    found: dict[tuple[int, int], Tensor] = {}
    for size_ in sorted({len(one.labels) for one in sent.values()}):
        group = [job for job in jobs if len(sent[job].labels) == size_ and sent[job].update.flat().any()]
        if group:
            inverted = invert_all(
                [sent[job].update for job in group],
                model,
                shape,
                [sent[job].labels for job in group],
                Search(iterations=iterations, step_size=step_size, seed=seed),
                mean=mean,
                std=std,
            )
            found |= {job: result.images.cpu() for job, result in zip(group, inverted, strict=True)}
    guess = public.images.mean(0)
    results = []
    for number in range(len(mitigations)):
        parts = []
        for batch in range(batches):
            one = sent[number, batch]
            centre, spread = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
            originals = (one.inputs * spread + centre).clamp(0, 1)
            nothing = torch.empty(0, *shape)
            parts.append(_pictures(found.get((number, batch), nothing), originals, pool.images, guess))
        results.append(_joined(parts))
    return results


def imprint_photographs(
    mitigation: Mitigation,
    *,
    samples: int = 64,
    batches: int = 2,
    bins: int = 128,
    size: int = 32,
    variant: imprints.Variant = "sparse",
    gain: float = 0.01,
    modes: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Pictures:
    """Read photographs from the gradient of an imprint before a linear classifier.

    Parameters
    ----------
    mitigation
        What the client does.
    samples, batches
        Private photographs in a batch, and number of batches.
    bins, variant
        Of the imprint, which measures brightness against quantiles of public photographs.
    size
        Side of a photograph in pixels.
    gain
        Of the imprint. What follows divides by it, so that the network computes the same; but the gradient of the
        imprint grows as it shrinks, and stands out from the rest and from noise.
    modes
        As for `Mitigation.on_data`.
    seed
        Seed of photographs and defence.
    device
        Where the network lies.

    Raises
    ------
    ValueError
        If a number is out of range, or the defence leaves no private photograph in a batch.

    References
    ----------
    Fowl et al. 2022, Sec. 4 and Fig. 6.
    """
    private, public, pool = photographs(size, seed)
    check_counts(samples, batches)
    _check_photographs(samples, len(private))
    model = imprinted_classifier(public, bins=bins, variant=variant, gain=gain, seed=seed).to(device)
    usual, bound = usual_norms(model, public, samples)
    head = models.last_layer(model)
    known: dict[str, Any] = {"head": head, "usual": usual, "sample_bound": bound, "modes": modes}
    guess = public.images.mean(0)
    parts = []
    for batch in range(batches):
        rows = torch.randperm(len(private), generator=torch.Generator().manual_seed(100 * seed + batch))
        taken = private.subset(rows[:samples])
        sent = send_private(mitigation, model, taken, public, **known, seed=1000 * seed + batch)
        recovered = imprints.recover(sent.update, model).inputs.cpu()
        parts.append(_pictures(recovered, sent.inputs, pool.images, guess))
    return _joined(parts)


def imprinted_classifier(
    public: ImageDataset, *, bins: int = 128, seed: int = 0, **options: Any
) -> nn.Module:
    """A linear classifier behind an imprint that measures brightness against quantiles of public photographs.

    Parameters
    ----------
    public
        The photographs.
    bins
        Of the imprint.
    seed
        Seed of the classifier.
    **options
        Of `gradleak_lib.attacks.imprint.from_public`.
    """
    classifier = models.build("linear", public.images.shape[1:], classes=len(public.classes), seed=seed)
    return placement.before_input(classifier, imprints.from_public(public.images, bins, **options))


def _check_photographs(needed: int, there: int) -> None:
    if needed > there:
        raise ValueError(f"samples or batches must be fewer: {needed} photographs, but there are {there}")


def _pictures(found: Tensor, originals: Tensor, pool: Tensor, guess: Tensor) -> Pictures:
    score = metrics.score(found, originals, pool=pool)
    ssim = torch.where(score.found, metrics.ssim(score.images, originals), torch.zeros(()))
    guesses = guess.expand_as(originals)
    return Pictures(
        originals,
        score.images,
        score.psnr,
        ssim,
        float(metrics.psnr(guesses, originals).mean()),
        float(metrics.ssim(guesses, originals).mean()),
        score.iip,
    )


def _joined(parts: Sequence[Pictures]) -> Pictures:
    """Batches as one."""
    counts = [len(part.originals) for part in parts]
    chances, ssims, iips = (
        float(np.average([getattr(part, name) for part in parts], weights=counts))
        for name in ("chance", "chance_ssim", "iip")
    )
    originals, reconstructions, psnr, ssim = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("originals", "reconstructions", "psnr", "ssim")
    )
    return Pictures(originals, reconstructions, psnr, ssim, chances, ssims, iips)
