"""One defence at one strength, the same against every attack."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.data.images import ImageDataset
from gradleak_lib.data.users import ClientData, UserDataset, unowned
from gradleak_lib.defenses import (
    UpdateDefense,
    add_background,
    add_background_mode,
    chain,
    clip,
    compress,
    compress_as_released,
    dp_sgd,
    gaussian_noise,
    laplacian_noise,
    quantize,
    replace_with_background,
    sign,
)
from gradleak_lib.defenses.background import DataDefense
from gradleak_lib.federated import aggregate, fedsgd
from gradleak_lib.federated.update import Update
from gradleak_lib.show import summary

# What a strength means, by defence. The order is that of the chapter's tables.
STRENGTHS: Mapping[str, str] = MappingProxyType(
    {
        "none": "none",
        "noise": "deviation, in deviations of the update's entries",
        "noise, absolute": "deviation",
        "Laplacian noise": "scale, in deviations of the update's entries",
        "clipping": "bound, in norms of a usual update",
        "clipping and noise": "noise multiplier, at a bound of one norm of a usual update",
        "clipping and noise, as released": "bound on the gradient of each tensor, with noise of deviation 0.1",
        "DP-SGD": "noise multiplier, at a bound of the median norm of a sample's gradient",
        "compression": "share of the update that is not sent",
        "compression, each tensor": "share of each tensor that is not sent",
        "compression, as released": "share of the classes whose numbers decide which tensors are not sent",
        "quantisation": "bits of each entry; 1: its sign",
        "secure aggregation": "clients in a sum",
        "bkg-repl": "share of the samples replaced",
        "rand-aug": "samples added, as a multiple of one's own",
        "mm-aug": "samples of one mode added, as a multiple of one's own",
        "mm-aug, by labels": "samples of one mode of labels added, as a multiple of one's own",
        "mm-aug, by labels, and noise": "deviation, as for noise; with as many samples added as one has",
    }
)


@dataclass(frozen=True)
class Mitigation:
    """One defence at one strength.

    Parameters
    ----------
    name
        One of `STRENGTHS`, which says what the strength means.
    strength
        0 or more; whole for bits and clients. Any, and without effect, for ``"none"``.

    Raises
    ------
    ValueError
        If there is no such defence, or the strength is negative, infinite or not a number.
    """

    name: str = "none"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in STRENGTHS:
            raise ValueError(f"no defence {self.name!r}: there are {', '.join(STRENGTHS)}")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"the strength of {self.name} must be 0 or more and finite, got {self.strength}")
        if self.name in ("quantisation", "secure aggregation") and not (
            self.strength >= 1 and float(self.strength).is_integer()
        ):
            raise ValueError(
                f"the strength of {self.name} must be a whole number from 1 on, got {self.strength}"
            )

    @property
    def clients(self) -> int:
        """How many clients' updates the server sees as one sum."""
        return int(self.strength) if self.name == "secure aggregation" else 1

    def on_update(self, *, head: str, usual: float, unit: float = 1.0, seed: int = 0) -> UpdateDefense:
        """What the client does to its update before sending it; nothing for defences of another kind.

        Parameters
        ----------
        head
            Name of the last layer, for the compression of the released code of LLG.
        usual
            Norm of a usual update, which everybody knows: that of public data.
        unit
            What absolute strengths are multiplied by: 1, or learning rate times local steps where they are meant for
            a gradient and the update is a change of parameters.
        seed
            Seed of what is drawn.

        Returns
        -------
        Callable[[Update], Update]
            The defence.
        """
        amount = self.strength
        match self.name:
            case "noise" | "mm-aug, by labels, and noise":
                return gaussian_noise(amount, relative=True, seed=seed)
            case "noise, absolute":
                return gaussian_noise(amount * unit, seed=seed)
            case "Laplacian noise":
                return laplacian_noise(amount, relative=True, seed=seed)
            case "clipping":
                return clip(amount * usual)
            case "clipping and noise":
                return chain(clip(usual), gaussian_noise(amount * usual, seed=seed))
            case "clipping and noise, as released":
                return chain(clip(amount * unit, within="tensor"), gaussian_noise(0.1 * unit, seed=seed))
            case "compression":
                return compress(amount)
            case "compression, each tensor":
                return compress(amount, within="tensor")
            case "compression, as released":
                return compress_as_released(amount, head)
            case "quantisation":
                return sign() if amount == 1 else quantize(int(amount), seed=seed)
            case _:
                return chain()

    def on_data(
        self, background: UserDataset, features: np.ndarray, *, modes: int = 100, seed: int = 0
    ) -> DataDefense:
        """What the client does to its data before training; nothing for defences of another kind.

        Parameters
        ----------
        background
            N public samples of the same task.
        features
            float ``[N, D]``, in which k-means finds the modes of the background.
        modes
            Number of modes, at most N.
        seed
            Seed of what is drawn.

        Returns
        -------
        Callable[[ClientData], ClientData]
            The defence.
        """
        match self.name:
            case "bkg-repl":
                return replace_with_background(background, self.strength, seed=seed)
            case "rand-aug":
                return add_background(background, self.strength, seed=seed)
            case "mm-aug":
                return add_background_mode(background, features, self.strength, modes=modes, seed=seed)
            case "mm-aug, by labels" | "mm-aug, by labels, and noise":
                by_label = _label_vectors(background)
                kinds = min(modes, len(np.unique(by_label, axis=0)))
                amount = self.strength if self.name == "mm-aug, by labels" else 1.0
                return add_background_mode(background, by_label, amount, modes=kinds, seed=seed)
            case _:
                return lambda clients: clients


def _label_vectors(data: UserDataset) -> np.ndarray:
    if data.multilabel:
        return data.targets.numpy(force=True)
    return nn.functional.one_hot(data.targets, len(data.classes)).double().numpy(force=True)


@dataclass(frozen=True)
class Sent:
    """What reached the server from one client, and what an evaluation may know.

    Parameters
    ----------
    update
        The update; under secure aggregation the sum's mean.
    labels
        int64 ``[n]``: labels of all samples behind the update, in the client's order.
    own
        bool ``[n]``: which of them are private samples of the client, and not public or somebody else's.
    inputs
        ``[m, ...]``: the private samples that are left, in order; with bkg-repl fewer than the batch had.
    """

    update: Update
    labels: Tensor
    own: Tensor
    inputs: Tensor

    __repr__ = summary


def send(
    mitigation: Mitigation,
    model: nn.Module,
    batch: ImageDataset,
    background: ImageDataset,
    *,
    head: str,
    usual: float,
    sample_bound: float,
    modes: int = 100,
    seed: int = 0,
) -> Sent:
    """One client's gradient under one mitigation.

    Parameters
    ----------
    mitigation
        The defence.
    model
        What the server sent out.
    batch
        The client's private samples.
    background
        Public samples of the same task: for the defences on the data, which find modes in the pixels, and as the data
        of the other clients of a sum.
    head, usual
        As for `Mitigation.on_update`.
    sample_bound
        Bound of DP-SGD on the norm of one sample's gradient.
    modes
        As for `Mitigation.on_data`.
    seed
        Seed of what is drawn.

    Raises
    ------
    ValueError
        If the batch is empty, the background too small for a sum, or the strength out of range for the defence.
    """
    others_needed = (mitigation.clients - 1) * len(batch)
    if others_needed > len(background):
        raise ValueError(
            f"a sum of {mitigation.clients} clients with batches of {len(batch)} needs {others_needed} samples in "
            f"the background, which are the other clients'; there are {len(background)}"
        )
    own = unowned(batch)
    public = unowned(background)
    alone = ClientData(own, (torch.arange(len(own)),), torch.tensor([0]), torch.tensor([0]))
    defend = mitigation.on_data(
        public, background.images.flatten(1).numpy(force=True), modes=modes, seed=seed
    )
    mixed = defend(alone)
    inputs, labels = mixed.samples(0)
    private = mixed.rows[0] < len(own)
    left = inputs[private.nonzero().squeeze(1)]  # by row: a mask would have to lie where the inputs do
    gradient: Callable[..., Update] = fedsgd
    if mitigation.name == "DP-SGD":
        gradient = partial(dp_sgd, bound=sample_bound, noise_multiplier=mitigation.strength, seed=seed)
    update = mitigation.on_update(head=head, usual=usual, seed=seed)(gradient(model, inputs, labels))
    if mitigation.clients > 1:
        others = np.random.default_rng([seed, 1]).choice(len(background), others_needed, replace=False)
        theirs = background.subset(torch.from_numpy(others))
        parts = [theirs.subset(rows) for rows in torch.arange(len(theirs)).split(len(batch))]
        update = aggregate([update, *(fedsgd(model, part.images, part.labels) for part in parts)])
        labels = torch.cat([labels, theirs.labels])
        private = torch.cat([private, torch.zeros(len(theirs), dtype=torch.bool)])
    return Sent(update, labels, private, left)


def usual_norms(
    model: nn.Module, public: ImageDataset, samples: int, *, batches: int = 4
) -> tuple[float, float]:
    """Norms that everybody can know, since they come from public data.

    Parameters
    ----------
    model
        What the server sent out.
    public
        Public samples, at least ``samples * batches``.
    samples
        Samples in a batch.
    batches
        How many batches are looked at.

    Returns
    -------
    tuple of float
        Median norm of the gradient of a batch, and of the gradient of one sample.

    Raises
    ------
    ValueError
        If a number is below 1, or there are too few public samples.
    """
    if samples < 1 or batches < 1 or samples * batches > len(public):
        raise ValueError(
            f"samples and batches must be 1 or more, and samples * batches at most {len(public)}, the number of "
            f"public samples; got {samples}, {batches}"
        )
    parts = [public.subset(rows) for rows in torch.arange(samples * batches).split(samples)]
    ones = [public.subset([row]) for row in range(min(16, len(public)))]

    def median_norm(group: list[ImageDataset]) -> float:
        sent = [fedsgd(model, part.images, part.labels) for part in group]
        return float(np.median([float(update.flat().double().norm()) for update in sent]))

    return median_norm(parts), median_norm(ones)


def check_counts(samples: int, batches: int) -> None:
    """Raise ValueError unless both are 1 or more."""
    if samples < 1 or batches < 1:
        raise ValueError(f"samples and batches must be 1 or more, got {samples} and {batches}")


def send_private(mitigation: Mitigation, *batch: Any, **options: Any) -> Sent:
    """`send`, with an error where nothing private is left in the batch."""
    sent = send(mitigation, *batch, **options)
    if not sent.own.any():
        name, strength = mitigation.name, mitigation.strength
        raise ValueError(
            f"{name}, {strength}, leaves nothing private in a batch of {len(sent.own)}: lower it"
        )
    return sent
