"""Searching for the images whose update is the one that was sent."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradleak_lib.attacks import labels as label_attacks
from gradleak_lib.attacks.double_backward import NotSupportedError
from gradleak_lib.attacks.matching import Distance, Matcher, Target, one_by_one, together, vectorized
from gradleak_lib.federated.checkpoint import digest, read_whole, write_whole
from gradleak_lib.federated.update import Update
from gradleak_lib.models import last_layer

SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True)
class Inversion:
    """What a search came to.

    Parameters
    ----------
    images
        ``[n, C, H, W]`` where the objective was lowest, over all iterations and restarts. In [0, 1], except by `dlg`,
        which confines them to nothing.
    labels
        int64 ``[n]``, of these images: those that were given, read from the update, or found by the search.
    objective
        Its lowest value: the distance between the updates, plus the weighted total variation.
    trace
        ``[iterations, restarts]``, the objective at each. Fewer iterations than asked for: it was interrupted.
    snapshots
        ``[S, n, C, H, W]``, images of the best restart on the way, where that was asked for.
    """

    images: Tensor
    labels: Tensor
    objective: float
    trace: Tensor
    snapshots: Tensor | None = None


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


def invert(
    update: Update,
    model: nn.Module,
    shape: tuple[int, int, int],
    labels: Tensor | None = None,
    search: Search = Search(),
    **options: Any,
) -> Inversion:
    """Reconstruct the images behind one update; see `invert_all` for the parameters.

    Parameters
    ----------
    labels
        int64 ``[n]``; None: read from the update.
    **options
        Of `invert_all`.
    """
    return invert_all([update], model, shape, None if labels is None else [labels], search, **options)[0]


def invert_all(
    updates: Sequence[Update],
    model: nn.Module,
    shape: tuple[int, int, int],
    labels: Sequence[Tensor] | None = None,
    search: Search = Search(),
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    compiled: bool = False,
    snapshots: Sequence[int] = (),
    progress: bool = False,
    checkpoint: Path | None = None,
) -> list[Inversion]:
    """Reconstruct the images behind several updates of one model, all in one pass: inverting gradients.

    Ctrl-C ends the search, and what was best so far is returned.

    Parameters
    ----------
    updates
        Of equally many samples n each: gradients, or changes by equally many local steps.
    model
        What the server sent out, in the mode that the clients have it in. It is not touched. In training mode a batch
        norm averages over the n dummy images, as it did over the client's.
    shape
        ``(C, H, W)`` of one image.
    labels
        For each update int64 ``[n]``; after local steps in the order in which the client took them. None: read from
        the update, by `idlg`, or for more samples by `ilrg` (`llg` without a bias), in any order.
    search
        How to search.
    mean, std
        The model's inputs are ``(image - mean) / std``; one number, or one for each channel. The search confines
        images to [0, 1].
    batch_size
        Samples of each local step, in the client's order, again and again; None: all of them.
    compiled
        Whether to compile with ``torch.compile``, which takes a minute or more, and is kept for the next time.
    snapshots
        Iterations, from 0, whose images are kept.
    progress
        Whether to show a progress bar.
    checkpoint
        A file, written every minute, from which an interrupted search goes on; None: no file.

    Returns
    -------
    list of Inversion
        In the order of the updates.

    Raises
    ------
    ValueError
        If an update is of another model or zero, or holds NaN or infinity; if labels, sizes or options do not fit;
        if the objective is never a number; if the checkpoint is of another search.

    References
    ----------
    Geiping et al. 2020, Eq. 2, Sec. 5 and 6. Zhao et al. 2020 (the label first).
    """
    first = _agreeing(updates)
    target = _target(updates, model, labels, search, _local_steps(first, batch_size))
    example = next(iter(target.sent.values()))
    centre, spread = (torch.tensor(values).to(example).view(-1, 1, 1) for values in (mean, std))
    if not (spread > 0).all() or len(centre) not in (1, shape[0]) or len(spread) not in (1, shape[0]):
        raise ValueError(
            f"mean and std need 1 or {shape[0]} numbers, std positive ones, got {mean} and {std}"
        )
    generator = torch.Generator().manual_seed(search.seed)
    start = torch.randn(search.restarts, first.samples, *shape, generator=generator).to(example)
    state = _State(start.repeat(len(updates), 1, 1, 1, 1).flatten(0, 1), target.lanes, search)
    matcher = _matcher(model, target, state.images, compiled)
    file = (
        None
        if checkpoint is None
        else _File(checkpoint, _key(target, model, search, snapshots, centre, spread))
    )
    if file is not None and file.path.exists():
        state.restore(read_whole(file.path, file.key))
    _run(
        state,
        matcher,
        search,
        (-centre / spread, (1 - centre) / spread),
        frozenset(snapshots),
        progress,
        file,
    )
    return _best(state, target, centre, spread)


@dataclass(frozen=True)
class _File:
    path: Path
    key: str


class _State:
    """A search under way."""

    def __init__(self, images: Tensor, lanes: int, search: Search) -> None:
        self.images = images
        self.lowest = images.new_full((lanes,), math.inf)
        self.best = images.clone()
        self.trace = images.new_full((search.iterations, lanes), math.nan)
        self.kept: list[Tensor] = []
        self.done = 0
        fused = True if images.device.type in ("cpu", "cuda") else None
        self.optimizer = torch.optim.Adam([images], lr=search.step_size, fused=fused)
        milestones = [int(search.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
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
        for name, value in content.items():
            setattr(self, name, value.to(self.images) if isinstance(value, Tensor) else value)


def _run(
    state: _State,
    matcher: Matcher,
    search: Search,
    box: tuple[Tensor, Tensor],
    snapshots: frozenset[int],
    progress: bool,
    file: _File | None,
) -> None:
    """Search until the end, or until Ctrl-C."""
    images, samples = state.images, len(state.images) // len(state.lowest)
    often = max(1, search.iterations // 100)

    def objective() -> tuple[Tensor, Tensor]:
        distance, change = matcher(images)
        if search.tv == 0:
            return distance, change
        variation, gradient = total_variation(images)
        change.add_(gradient, alpha=search.tv / samples)
        return distance + search.tv * variation.view(-1, samples).mean(1), change

    bar = tqdm(initial=state.done, total=search.iterations, unit="step", disable=not progress)
    written = time.monotonic()
    try:
        with bar:
            while state.done < search.iterations:
                value, change = objective()
                state.trace[state.done] = value
                state.consider(value)
                if state.done in snapshots:
                    state.kept.append(images.clone())
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
                if state.done % often == 0 or state.done == search.iterations:
                    bar.update(state.done - bar.n)
                    if progress:
                        bar.set_postfix(objective=f"{state.lowest.min().item():.4f}")
                    if file is not None and time.monotonic() - written > SECONDS_BETWEEN_CHECKPOINTS:
                        write_whole(file.path, state.content() | {"key": file.key})
                        written = time.monotonic()
            state.consider(objective()[0])
            if state.done in snapshots:
                state.kept.append(images.clone())
    except KeyboardInterrupt:
        print(f"interrupted after {state.done} of {search.iterations} iterations; this is the best so far")
    if file is not None:
        write_whole(file.path, state.content() | {"key": file.key})


def _best(state: _State, target: Target, centre: Tensor, spread: Tensor) -> list[Inversion]:
    """Of each update the restart with the lowest objective."""
    clients, samples = target.labels.shape
    lowest = state.lowest.view(clients, target.restarts)
    if not lowest.amin(1).isfinite().all():
        raise ValueError("the distance between the updates was never a number: check the model's weights")
    chosen = lowest.argmin(1)

    def pictures(images: Tensor, client: int) -> Tensor:
        lanes = images.unflatten(0, (clients, target.restarts, samples))
        return (lanes[client, chosen[client]] * spread + centre).clamp(0, 1)

    return [
        Inversion(
            pictures(state.best, client),
            target.labels[client],
            float(lowest[client, chosen[client]]),
            state.trace[: state.done].unflatten(1, lowest.shape)[:, client].clone(),
            torch.stack([pictures(images, client) for images in state.kept]) if state.kept else None,
        )
        for client in range(clients)
    ]


def _agreeing(updates: Sequence[Update]) -> Update:
    """Return the first of several updates of one kind and size."""
    if not updates:
        raise ValueError("there is no update to invert")
    sizes = {(u.kind, u.samples, u.local_steps, u.learning_rate) for u in updates}
    if len(sizes) > 1:
        raise ValueError(
            f"updates that are inverted together must agree in kind, samples, steps and learning rate, got {sizes}"
        )
    return updates[0]


def _local_steps(update: Update, batch_size: int | None) -> tuple[Tensor, ...] | None:
    """For each local step the samples that it takes; None for a gradient, or one step, which is one."""
    if update.kind == "delta" and update.learning_rate is None:
        raise ValueError(
            "a change of parameters is read with the clients' learning rate: give it to the update"
        )
    size = update.samples if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    batches = torch.arange(update.samples).split(size)
    epochs, rest = divmod(update.local_steps, len(batches))
    if rest:
        raise ValueError(
            f"{update.samples} samples in batches of {size} are {len(batches)} steps an epoch, "
            f"and {update.local_steps} steps are no whole number of epochs: set batch_size"
        )
    return batches * epochs if update.kind == "delta" and update.local_steps > 1 else None


def _target(
    updates: Sequence[Update],
    model: nn.Module,
    labels: Sequence[Tensor] | None,
    search: Search,
    steps: tuple[Tensor, ...] | None,
) -> Target:
    """What has to be matched, after checking all of it."""
    for update in updates:
        update.check(model)
        if not update.flat().any():
            raise ValueError("the update is zero, and so is what it says of its images")
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not trained:
        raise ValueError("every parameter of the model is frozen: call model.requires_grad_(True)")
    known = [read_labels(update, model) for update in updates] if labels is None else list(labels)
    first = updates[0]
    wrong = [given for given in known if given.shape != (first.samples,) or given.is_floating_point()]
    if wrong or len(known) != len(updates):
        raise ValueError(
            f"labels must be int64 [{first.samples}] for each of {len(updates)} updates, "
            f"got {[tuple(given.shape) for given in known]}"
        )
    scale = 1.0
    if first.kind == "delta" and steps is None and first.learning_rate is not None:
        scale = -1 / first.learning_rate  # one step is a gradient
    example = next(iter(trained.values()))
    return Target(
        {
            name: torch.stack([update.tensors[name].detach().to(value) * scale for update in updates])
            for name, value in trained.items()
        },
        torch.stack(known).to(example.device),
        search.restarts,
        search.distance,
        steps,
        first.learning_rate or 0.0,
    )


def read_labels(update: Update, model: nn.Module) -> Tensor:
    """Labels of the batch, as the attacks on labels read them: int64 ``[n]``, ascending.

    Parameters
    ----------
    update, model
        As for `class_gradients`. One sample: `idlg`. More: `ilrg`, or `llg` where the last layer has no bias.
    """
    name = last_layer(model)
    if update.samples == 1:
        counts = label_attacks.idlg(update, model)
    elif cast(nn.Linear, model.get_submodule(name)).bias is None:
        counts = label_attacks.llg(update, model)
    else:
        counts = label_attacks.ilrg(update, model)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _matcher(model: nn.Module, target: Target, images: Tensor, compiled: bool) -> Matcher:
    """The fastest way to the distance and its gradient that agrees with plain autograd on the first lane."""
    samples = target.labels.shape[1]
    alone = replace(
        target,
        sent={name: value[:1] for name, value in target.sent.items()},
        labels=target.labels[:1],
        restarts=1,
    )
    try:
        distance, change = one_by_one(model, alone)(images[:samples])
    except IndexError as error:  # of the cross-entropy
        raise ValueError(f"a label is out of the model's range: {error}") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"the model cannot be run on images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    ways = [vectorized(model, target, compiled=compiled)]
    if target.steps is None and not compiled:
        ways.insert(0, together(model, target))
    for matcher in ways:
        try:
            found, its_change = matcher(images)
        except torch.OutOfMemoryError:
            raise
        except (NotSupportedError, RuntimeError):
            if compiled:
                raise
            continue
        # Rounding may move a few units of a ReLU across zero. A model that mixes the lanes is off by far more.
        near = (its_change[:samples] - change).norm() <= 0.05 * change.norm()
        if near and torch.isclose(found[0], distance[0], rtol=1e-2, atol=1e-4):
            return matcher
    return one_by_one(model, target)


def _key(
    target: Target, model: nn.Module, search: Search, snapshots: Sequence[int], centre: Tensor, spread: Tensor
) -> str:
    """Hash of all that a search depends on."""
    settings = [search, tuple(snapshots), target.distance, target.learning_rate, repr(model), model.training]
    tensors = [target.labels, *(target.steps or ()), centre, spread]
    return digest(repr(settings), [*tensors, *target.sent.values(), *model.state_dict().values()])
