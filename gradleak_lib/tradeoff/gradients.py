"""What a mitigation leaves of the attacks on one gradient: labels, inversion, imprint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import imprint as imprints
from gradleak_lib.attacks import labels as attacks
from gradleak_lib.attacks import placement
from gradleak_lib.attacks.inversion import invert_all
from gradleak_lib.attacks.search import Search
from gradleak_lib.data import ImageDataset, draw_images, draw_labels, load
from gradleak_lib.tradeoff.federation import digits_network
from gradleak_lib.tradeoff.mitigation import Mitigation, Sent, send, usual_norms


@dataclass(frozen=True)
class Labels:
    """Label leakage under one mitigation.

    Parameters
    ----------
    asr
        Mean attack success rate of each attack, in [0, 1]: ``"LLG"``, ``"LLG*"``, ``"LLG+"``. What the attacker reads
        of a mixed batch, or of a sum, it scales down to as many labels as are the client's own.
    chance
        Mean success rate of a random guess.
    true, read
        ``[K]``: labels of the first batch that are the client's own, and those that LLG+ finds.
    """

    asr: dict[str, float]
    chance: float
    true: Tensor
    read: Tensor


def read_labels(
    mitigation: Mitigation, *, samples: int = 8, batches: int = 20, modes: int = 10, seed: int = 0
) -> Labels:
    """Read the labels of unbalanced batches of digits from one gradient each.

    Parameters
    ----------
    mitigation
        What the client does.
    samples
        Private samples of a batch; with bkg-repl some of them are replaced.
    batches
        Number of batches.
    modes
        As for `Mitigation.on_data`.
    seed
        Seed of network, batches and defence.

    References
    ----------
    Wainakh et al. 2022; the batches are those of its code.
    """
    digits = load("digits", 8, n=1797, seed=seed)
    own, public = digits.subset(range(900)), digits.subset(range(900, 1797))
    model = digits_network(seed)
    usual, bound = usual_norms(model, public, samples)
    dummies = attacks.dummies("random", (1, 8, 8), 100, seed=seed)
    probes = {
        "LLG": None,
        "LLG*": attacks.probe(model, dummies),
        "LLG+": attacks.probe(model, public.images[:300], public.labels[:300]),
    }
    generator = torch.Generator().manual_seed(seed)
    rates: dict[str, list[float]] = {name: [] for name in probes}
    chance, first = [], None
    for number in range(batches):
        wanted = draw_labels(samples, 10, balanced=False, generator=generator)
        sent = send(
            mitigation,
            model,
            draw_images(own, wanted, generator=generator),
            public,
            head="fc2",
            usual=usual,
            sample_bound=bound,
            modes=modes,
            seed=1000 * seed + number,
        )
        true = sent.labels[sent.own].bincount(minlength=10)
        read = {
            name: scaled_down(attacks.llg(sent.update, model, probe), int(true.sum()))
            for name, probe in probes.items()
        }
        for name, counts in read.items():
            rates[name].append(metrics.attack_success_rate(counts, true))
        chance.append(metrics.chance_success_rate(true))
        first = first or (true, read["LLG+"])
    assert first is not None
    return Labels(
        {name: float(np.mean(rate)) for name, rate in rates.items()}, float(np.mean(chance)), *first
    )


def scaled_down(counts: Tensor, total: int) -> Tensor:
    """Scale counts ``[K]`` down to so many labels, in proportion, rounded by largest remainder.

    Parameters
    ----------
    counts
        int64, 0 or more, with a sum of at least ``total``.
    total
        Number of labels that are wanted, 0 or more.
    """
    if not 0 <= total <= int(counts.sum()):
        raise ValueError(f"total must lie between 0 and {int(counts.sum())}, got {total}")
    if total == int(counts.sum()):
        return counts
    exact = counts.double() * total / int(counts.sum())
    whole = exact.floor()
    left = total - int(whole.sum())
    whole[(exact - whole).argsort(descending=True, stable=True)[:left]] += 1
    return whole.long()


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

    @property
    def exact(self) -> int:
        """How many came back at more than 60 dB."""
        return int((self.psnr > metrics.EXACT_DB).sum())


@cache
def photographs(size: int, seed: int) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Private crops with some contrast, public ones, and a pool for the image identifiability precision."""
    private, public, pool = (
        load("photos", size, n=count, seed=100 * seed + part) for part, count in enumerate((200, 800, 400))
    )
    contrast = private.images.flatten(2).std(2).mean(1) > 0.1
    return private.subset(contrast), public, pool


def invert(
    mitigations: Sequence[Mitigation],
    *,
    samples: int = 4,
    batches: int = 1,
    size: int = 24,
    iterations: int = 200,
    step_size: float = 0.2,
    modes: int = 20,
    seed: int = 0,
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

    Returns
    -------
    list of Pictures
        In the order of the mitigations, with the private photographs of all batches.

    References
    ----------
    Geiping et al. 2020, Sec. 5.
    """
    private, public, pool = photographs(size, seed)
    mean, std = ([float(v) for v in f((0, 2, 3))] for f in (public.images.mean, public.images.std))
    shape = (3, size, size)
    lenet = models.build("lenet", shape, classes=len(private.classes), seed=seed, width=32)
    model = models.with_activation(lenet, nn.ReLU)

    def normalised(photos: ImageDataset) -> ImageDataset:
        centre, spread = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        return replace(photos, images=(photos.images - centre) / spread)

    known = normalised(public)
    usual, bound = usual_norms(model, known, samples)
    head = models.last_layer(model)
    jobs = [(number, batch) for number in range(len(mitigations)) for batch in range(batches)]
    sent: dict[tuple[int, int], Sent] = {}
    for number, batch in jobs:
        own = private.subset(range(batch * samples, (batch + 1) * samples))
        sent[number, batch] = send(
            mitigations[number],
            model,
            normalised(own),
            known,
            head=head,
            usual=usual,
            sample_bound=bound,
            modes=modes,
            seed=1000 * seed + batch,
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
            found |= {job: result.images for job, result in zip(group, inverted, strict=True)}
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


def imprint(
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

    References
    ----------
    Fowl et al. 2022, Sec. 4 and Fig. 6.
    """
    private, public, pool = photographs(size, seed)
    model = imprinted(public, bins=bins, variant=variant, gain=gain, seed=seed)
    usual, bound = usual_norms(model, public, samples)
    guess = public.images.mean(0)
    parts = []
    for batch in range(batches):
        rows = torch.randperm(len(private), generator=torch.Generator().manual_seed(100 * seed + batch))
        sent = send(
            mitigation,
            model,
            private.subset(rows[:samples]),
            public,
            head=models.last_layer(model),
            usual=usual,
            sample_bound=bound,
            modes=modes,
            seed=1000 * seed + batch,
        )
        recovered = imprints.recover(sent.update, model).inputs
        parts.append(_pictures(recovered, sent.inputs, pool.images, guess))
    return _joined(parts)


def imprinted(public: ImageDataset, *, bins: int = 128, seed: int = 0, **options: Any) -> nn.Module:
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
        Of `gradleak_lib.attacks.imprint.Imprint`.
    """
    shape = tuple(public.images.shape[1:])
    brightness = imprints.mean_brightness(shape)
    edges = imprints.bins_from_public(imprints.measure(public.images, brightness), bins)
    layer = imprints.arm(imprints.Imprint(shape, bins, **options), brightness, edges)
    return placement.before_input(
        models.build("linear", shape, classes=len(public.classes), seed=seed), layer
    )


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
