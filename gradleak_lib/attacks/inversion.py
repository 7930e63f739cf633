"""Searching for the images whose update is the one that was sent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradleak_lib.attacks import labels as label_attacks
from gradleak_lib.attacks.access import searched_for, undisturbed
from gradleak_lib.attacks.matching import Matcher, Target, one_by_one, together, vectorized
from gradleak_lib.attacks.search import PAPER, Checkpoint, Search, State, run
from gradleak_lib.federated.checkpoint import described, digest, read_whole
from gradleak_lib.federated.functional import as_function
from gradleak_lib.federated.update import Update
from gradleak_lib.models import last_layer
from gradleak_lib.show import summary


@dataclass(frozen=True)
class Inversion:
    """What a search came to, on the model's device.

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
    __repr__ = summary


def invert(
    update: Update,
    model: nn.Module,
    shape: tuple[int, int, int],
    labels: Tensor | None = None,
    search: Search = PAPER,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    compiled: bool = False,
    snapshots: Sequence[int] = (),
    checkpoint: Path | str | None = None,
) -> Inversion:
    """Reconstruct the images behind one update; see `invert_all` for the parameters.

    Parameters
    ----------
    labels
        int64 ``[n]``; None: read from the update.
    search
        How to search: ``Search(iterations=200)`` for a shorter one.

    Examples
    --------
    >>> from gradleak_lib import data, metrics, models
    >>> from gradleak_lib.federated import fedsgd
    >>> digit, model = data.load("digits", sample=1), models.build("mlp", (1, 8, 8), classes=10)
    >>> update = fedsgd(model, digit.images, digit.labels)
    >>> found = invert(update, model, (1, 8, 8), search=Search(iterations=50))
    >>> found.images.shape, found.labels.equal(digit.labels), float(metrics.psnr(found.images, digit.images)) > 20
    (torch.Size([1, 1, 8, 8]), True, True)
    """
    [found] = invert_all(
        [update],
        model,
        shape,
        None if labels is None else [labels],
        search,
        mean=mean,
        std=std,
        batch_size=batch_size,
        compiled=compiled,
        snapshots=snapshots,
        checkpoint=checkpoint,
    )
    return found


def invert_all(
    updates: Sequence[Update],
    model: nn.Module,
    shape: tuple[int, int, int],
    labels: Sequence[Tensor] | None = None,
    search: Search = PAPER,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    compiled: bool = False,
    snapshots: Sequence[int] = (),
    checkpoint: Path | str | None = None,
) -> list[Inversion]:
    """Reconstruct the images behind several updates of one model, all in one pass: inverting gradients.

    Ctrl-C ends the search, and what was best so far is returned. Layers that draw at random, such as dropout in
    training mode, draw from a state of their own, by the seed; the client's draws are unknown to the server. On a GPU
    convolutions run in full precision, whatever they do elsewhere (see `undisturbed`).

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
        the update, see `read_labels`; not for local steps on different batches, whose order it does not tell.
    search
        How to search.
    mean, std
        The model's inputs are ``(image - mean) / std``; one number, or one for each channel. The search confines
        images to [0, 1].
    batch_size
        Samples of each local step, in the client's order, again and again; None: all of them. A wrong one that leads
        to the same number of steps cannot be told.
    compiled
        Whether to compile with ``torch.compile``, which takes a minute or more, and is kept for the next time.
    snapshots
        Iterations whose images are kept, from 0 to that after the last step.
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
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {shape}")
    if not all(0 <= step <= search.iterations for step in snapshots):
        raise ValueError(f"snapshots must lie in 0..{search.iterations}, got {tuple(snapshots)}")
    target = _target(updates, model, labels, search, _local_steps(first, batch_size))
    example = next(iter(target.sent.values()))
    centre, spread = normalisation(mean, std, shape, example)
    generator = torch.Generator().manual_seed(search.seed)
    start = torch.randn(search.restarts, first.samples, *shape, generator=generator).to(example)
    state = State(start.repeat(len(updates), 1, 1, 1, 1).flatten(0, 1), target.lanes, search)
    box = ((0 - centre) / spread, (1 - centre) / spread)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # flash attention has no second derivative
        with undisturbed(model, search.seed):
            matcher = _matcher(model, target, state.images, compiled)
        file = None
        if checkpoint is not None:
            file = Checkpoint(
                Path(checkpoint), _key(target, model, search, snapshots, (start, centre, spread))
            )
            if file.path.exists():
                state.restore(read_whole(file.path, file.key))
        with undisturbed(model, search.seed):
            run(state, matcher, search, box, frozenset(snapshots), file)
    return _best(state, target, centre, spread)


def _best(state: State, target: Target, centre: Tensor, spread: Tensor) -> list[Inversion]:
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
            torch.stack([pictures(state.kept[step], client) for step in sorted(state.kept)])
            if state.kept
            else None,
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
    if update.kind == "gradient":
        if batch_size is not None:
            raise ValueError("batch_size is for local steps, and the update is a gradient")
        return None
    if not 0 < (update.learning_rate or 0) < math.inf:
        raise ValueError(
            f"a change of parameters is read with the clients' learning rate, got {update.learning_rate}: "
            "give it to the update"
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
    return batches * epochs if update.local_steps > 1 else None


def _target(
    updates: Sequence[Update],
    model: nn.Module,
    labels: Sequence[Tensor] | None,
    search: Search,
    steps: tuple[Tensor, ...] | None,
) -> Target:
    """What has to be matched, after checking all of it."""
    [trained, *_] = [searched_for(update, model) for update in updates]
    first = updates[0]
    if labels is None and steps is not None and len(steps[0]) < first.samples:
        raise ValueError(
            "after local steps on different batches the update does not tell which label was in which: give labels"
        )
    known = [read_labels(update, model) for update in updates] if labels is None else list(labels)
    if len(known) != len(updates):
        raise ValueError(f"labels must be given for each of {len(updates)} updates, got {len(known)}")
    for given in known:
        check_labels(given, first.samples)
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


def check_labels(labels: Tensor, samples: int) -> None:
    """Raise ValueError unless these are int64 labels of so many samples; see `check_classes`."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (samples,):
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be an int64 tensor [{samples}] for each update, got {got}")
    if (labels < 0).any():
        raise ValueError(f"labels must be 0 or more, got {labels.tolist()}")


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless all labels are of classes that the model has."""
    if labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.max())}")


def normalisation(
    mean: Sequence[float], std: Sequence[float], shape: Sequence[int], example: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as tensors that fit one image ``(C, ...)``, like an example.

    Raises
    ------
    ValueError
        Unless there are 1 or C of each, finite, and positive deviations.
    """
    centre, spread = (
        torch.tensor(values).to(example.dtype).view(-1, *[1] * (len(shape) - 1)) for values in (mean, std)
    )
    finite = centre.isfinite().all() and spread.isfinite().all() and (spread > 0).all()
    if not finite or len(centre) not in (1, shape[0]) or len(spread) not in (1, shape[0]):
        raise ValueError(
            f"mean and std need 1 or {shape[0]} finite numbers, std positive ones, got {mean} and {std}"
        )
    return centre.to(example.device), spread.to(example.device)


def read_labels(update: Update, model: nn.Module) -> Tensor:
    """Labels of the batch, as the attacks on labels read them: int64 ``[n]``, ascending.

    Parameters
    ----------
    update, model
        As for `class_gradients`. One sample: `idlg`. More: `ilrg`, or `llg` where the last layer has no bias.

    Raises
    ------
    ValueError
        As for `class_gradients`, or if the last layer is frozen.
    """
    name = last_layer(model)
    if not label_attacks.class_gradients(update, model).any():
        raise ValueError("the last layer's gradient is zero, or it is frozen, and tells no labels: give them")
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
        with torch.no_grad():
            buffers = {name: value.clone() for name, value in model.named_buffers()}  # norms write to them
            classes = as_function(model)(buffers, images[:samples]).shape[1]
        check_classes(target.labels, classes)
        distance, change = one_by_one(model, alone)(images[:samples])
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"the model cannot be run on images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    ways: list[Callable[[nn.Module, Target], Matcher]] = [partial(vectorized, compiled=compiled)]
    if target.steps is None and not compiled:
        ways.insert(0, together)
    # All starts look alike, and so would averages over them. The first lane stays, the others are moved away from it.
    move = (torch.arange(target.lanes, device=images.device) % 3).repeat_interleave(samples).view(-1, 1, 1, 1)
    unlike = torch.where(
        torch.arange(len(images), device=images.device).view(-1, 1, 1, 1) < samples,
        images,
        images * (1 + move) + move,
    )
    for way in ways:
        try:
            matcher = way(model, target)
            found, its_change = matcher(unlike)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever it is, plain autograd has just done it
            if compiled:
                raise
            continue
        # Rounding may move a few units of a ReLU across zero. A model that mixes the lanes is off by far more.
        near = (its_change[:samples] - change).norm() <= 0.02 * change.norm()
        if near and torch.isclose(found[0], distance[0], rtol=1e-2, atol=1e-4):
            return matcher
    if compiled:
        raise ValueError("compiled, the model gives another gradient: invert it without")
    return one_by_one(model, target)


def _key(
    target: Target, model: nn.Module, search: Search, snapshots: Sequence[int], tensors: Sequence[Tensor]
) -> str:
    """Hash of all that a search depends on."""
    settings = [search, sorted(snapshots), target.learning_rate, described(model)]
    steps = target.steps or ()
    return digest(
        repr(settings), [target.labels, *steps, *tensors, *target.sent.values(), *model.state_dict().values()]
    )
