"""The search for images: Adam on signs, in a box, with total variation, over all restarts at once."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradleak_lib.attacks.matching import Distance, Matcher
from gradleak_lib.federated.checkpoint import save_whole

SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True)
class Search:
    """How `invert` searches.

    Parameters
    ----------
    distance
        ``"cosine"`` or ``"euclidean"``, see `Target`.
    tv
        Weight of the total variation of the normalised images, 0 or more.
    signed
        Whether Adam sees only the signs of the gradient.
    iterations
        Steps of Adam, at least 1.
    restarts
        Searches side by side, each from images of its own; at least 1. The lowest objective decides.
    step_size
        Of Adam, divided by ten after 3/8, 5/8 and 7/8 of the iterations.
    seed
        Seed of the starts, which are Gaussian.

    References
    ----------
    Geiping et al. 2020, Eq. 2 and Sec. 5, and their code (values).
    """

    distance: Distance = "cosine"
    tv: float = 1e-2
    signed: bool = True
    iterations: int = 4800
    restarts: int = 1
    step_size: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distance not in ("cosine", "euclidean"):
            raise ValueError(f"distance must be 'cosine' or 'euclidean', got {self.distance!r}")
        if self.iterations < 1 or self.restarts < 1:
            raise ValueError(
                f"iterations and restarts must be 1 or more, got {self.iterations}, {self.restarts}"
            )
        if not 0 <= self.tv < math.inf or not 0 < self.step_size < math.inf:
            raise ValueError(f"tv must be 0 or more and step_size positive, got {self.tv}, {self.step_size}")


PAPER = Search()


def total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of neighbouring pixels, down plus across, and its gradient.

    Parameters
    ----------
    images
        ``[N, C, H, W]``, of at least 2x2 pixels.

    Returns
    -------
    variation
        ``[N]``.
    gradient
        ``[N, C, H, W]``; 0 where neighbours are equal.

    References
    ----------
    Geiping et al. 2020, Eq. 2; Rudin et al. 1992.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise ValueError(
            f"total variation needs images [N, C, H, W] of 2x2 or more, got {tuple(images.shape)}"
        )
    gradient = torch.zeros_like(images)
    variation = images.new_zeros(len(images))
    for axis, length in ((2, images.shape[2]), (3, images.shape[3])):
        steps = images.diff(dim=axis)
        count = steps[0].numel()
        variation += steps.abs().flatten(1).sum(1) / count
        signs = steps.sign_().div_(count)
        gradient.narrow(axis, 1, length - 1).add_(signs)
        gradient.narrow(axis, 0, length - 1).sub_(signs)
    return variation, gradient


@dataclass(frozen=True)
class Checkpoint:
    """Where a search is kept, so that it can go on.

    Parameters
    ----------
    path
        Of the file.
    key
        Hash of all that the search depends on.
    """

    path: Path
    key: str


class State:
    """A search under way: images, optimiser, and what was best so far."""

    def __init__(self, images: Tensor, lanes: int, search: Search) -> None:
        self.images = images
        self.lowest = images.new_full((lanes,), math.inf)
        self.best = images.clone()
        self.trace = images.new_full((search.iterations, lanes), math.nan)
        self.kept: dict[int, Tensor] = {}  # by iteration
        self.done = 0
        fused = True if images.device.type in ("cpu", "cuda") else None
        self.optimizer = torch.optim.Adam([images], lr=search.step_size, fused=fused)
        milestones = [math.ceil(search.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones)

    def consider(self, objective: Tensor) -> None:
        """Keep the images of the lanes whose objective is the lowest so far."""
        better = objective < self.lowest  # not where it is NaN
        self.lowest = torch.where(better, objective, self.lowest)
        each = better.repeat_interleave(len(self.images) // len(better)).view(
            -1, *[1] * (self.images.ndim - 1)
        )
        torch.where(each, self.images, self.best, out=self.best)

    def content(self) -> dict[str, Any]:
        """All of it, as a checkpoint holds it."""
        parts = {name: getattr(self, name) for name in ("images", "lowest", "best", "trace", "kept", "done")}
        return parts | {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def restore(self, content: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self.optimizer.load_state_dict(content.pop("optimizer"))
        self.schedule.load_state_dict(content.pop("schedule"))
        self.images.copy_(content.pop("images"))
        kept = content.pop("kept")
        self.kept = {iteration: images.to(self.images) for iteration, images in kept.items()}
        for name, value in content.items():
            setattr(self, name, value.to(self.images) if isinstance(value, Tensor) else value)


def run(
    state: State,
    matcher: Matcher,
    search: Search,
    box: tuple[Tensor, Tensor],
    snapshots: frozenset[int],
    file: Checkpoint | None,
) -> None:
    """Search until the end, or until Ctrl-C.

    Parameters
    ----------
    state
        Changed in place.
    matcher
        Distance and gradient, see `Target`.
    search
        How to search.
    box
        Lowest and highest value of the normalised images, ``[C, 1, 1]`` each.
    snapshots
        Iterations whose images are kept.
    file
        Where the state is written every minute, and at the end; None: nowhere. After an interrupt it goes on from
        there.

    Raises
    ------
    ValueError
        If the objective is no number in any lane from the start.
    """
    images, samples = state.images, len(state.images) // len(state.lowest)

    def objective() -> tuple[Tensor, Tensor]:
        distance, change = matcher(images)
        if search.tv == 0:
            return distance, change
        variation, gradient = total_variation(images)
        change.add_(gradient, alpha=search.tv / samples)
        return distance + search.tv * variation.view(-1, samples).mean(1), change

    written = time.monotonic()
    try:
        while state.done < search.iterations:
            value, change = objective()
            state.trace[state.done] = value
            state.consider(value)
            if state.done in snapshots:
                state.kept[state.done] = images.clone()
            if state.done == 0 and not value.isfinite().any():
                raise ValueError(
                    "the distance between the updates is no number from the start: check the model's weights"
                )
            # The fused Adam takes every gradient for contiguous, and those of a padded convolution are not.
            images.grad = (change.sign_() if search.signed else change).contiguous()
            state.optimizer.step()
            state.schedule.step()
            torch.clamp(images, *box, out=images)
            state.done += 1
            if file is not None and time.monotonic() - written > SECONDS_BETWEEN_CHECKPOINTS:
                save_whole(file.path, state.content() | {"key": file.key})
                written = time.monotonic()
        state.consider(objective()[0])
        if state.done in snapshots:
            state.kept[state.done] = images.clone()
        if file is not None:
            save_whole(file.path, state.content() | {"key": file.key})
    except KeyboardInterrupt:
        # Nothing is written: the interrupt may have come between two halves of a step.
        if state.done == 0:
            raise
        print(f"interrupted after {state.done} of {search.iterations} iterations; this is the best so far")
