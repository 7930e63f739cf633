"""What a mitigation leaves of label leakage."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradleak_lib import metrics
from gradleak_lib.attacks import labels as attacks
from gradleak_lib.data import draw_images, draw_labels, load
from gradleak_lib.experiments.mitigations.digits import digits_network
from gradleak_lib.experiments.mitigations.mitigation import (
    Mitigation,
    check_counts,
    send_private,
    usual_norms,
)
from gradleak_lib.show import summary


@dataclass(frozen=True)
class Labels:
    """Label leakage under one mitigation.

    Parameters
    ----------
    asr
        Mean attack success rate of each attack, in [0, 1]: ``"LLG"``, ``"LLG*"``, ``"LLG+"``. What the attacker reads
        of a mixed batch, or of a sum, it scales down to as many labels as are the client's own. Under mode-specific
        augmentation also ``"LLG, mode taken off"`` and so on, see `without_mode`.
    chance
        Mean success rate of a random guess.
    true, read
        ``[K]``: labels of the first batch that are the client's own, and those that LLG+ finds.
    """

    asr: dict[str, float]
    chance: float
    true: Tensor
    read: Tensor

    __repr__ = summary


def count_labels(
    mitigation: Mitigation,
    *,
    samples: int = 8,
    batches: int = 20,
    modes: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
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
    device
        Where the network lies.

    Raises
    ------
    ValueError
        If a number is out of range, or the defence leaves no private sample in a batch.

    References
    ----------
    Wainakh et al. 2022; the batches are those of its code.
    """
    check_counts(samples, batches)
    digits = load("digits", 8, sample=1797, seed=seed)
    own, public = digits.subset(range(900)), digits.subset(range(900, 1797))
    model = digits_network(seed).to(device)
    usual, bound = usual_norms(model, public, samples)
    known: dict[str, Any] = {"head": "fc2", "usual": usual, "sample_bound": bound, "modes": modes}
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
        batch = draw_images(own, wanted, generator=generator)
        sent = send_private(mitigation, model, batch, public, **known, seed=1000 * seed + number)
        true = sent.labels[sent.own].bincount(minlength=10)
        read = {
            name: scaled_down(attacks.llg(sent.update, model, probe).cpu(), int(true.sum()))
            for name, probe in probes.items()
        }
        added = len(sent.labels) - int(true.sum())
        if mitigation.name.startswith("mm-aug") and added:
            read |= {
                f"{name}, mode taken off": scaled_down(
                    without_mode(attacks.llg(sent.update, model, probe).cpu(), added), int(true.sum())
                )
                for name, probe in probes.items()
            }
        for name, counts in read.items():
            rates.setdefault(name, []).append(metrics.attack_success_rate(counts, true))
        chance.append(metrics.chance_success_rate(true))
        first = first or (true, read["LLG+"])
    assert first is not None
    return Labels(
        {name: float(np.mean(rate)) for name, rate in rates.items()}, float(np.mean(chance)), *first
    )


def without_mode(counts: Tensor, added: int) -> Tensor:
    """Take the samples that mode-specific augmentation has added off the most frequent label.

    That is the attacker who knows of the defence: of how many samples it adds, and that they are of one kind.

    Parameters
    ----------
    counts
        int64 ``[K]``, 0 or more, with a sum above ``added``.
    added
        Number of samples, 0 or more. Where the most frequent label has fewer, the next ones lose the rest.
    """
    if not 0 <= added < int(counts.sum()):
        raise ValueError(f"added must lie in 0..{int(counts.sum()) - 1}, got {added}")
    left = counts.clone()
    while added > 0:
        top = int(left.argmax())
        taken = min(added, int(left[top]))
        left[top] -= taken
        added -= taken
    return left


def scaled_down(counts: Tensor, total: int) -> Tensor:
    """Scale counts ``[K]`` down to so many labels, in proportion, rounded by largest remainder.

    Parameters
    ----------
    counts
        int64, 0 or more, with a sum of at least ``total``.
    total
        Number of labels that are wanted, 0 or more.

    Raises
    ------
    ValueError
        If a count is negative, or the total out of range.
    """
    if (counts < 0).any():
        raise ValueError(f"counts must be 0 or more, got {counts.tolist()[:8]}")
    if not 0 <= total <= int(counts.sum()):
        raise ValueError(f"total must lie between 0 and {int(counts.sum())}, got {total}")
    if total == int(counts.sum()):
        return counts
    exact = counts.double() * total / int(counts.sum())
    whole = exact.floor()
    left = total - int(whole.sum())
    whole[(exact - whole).argsort(descending=True, stable=True)[:left]] += 1
    return whole.long()
