"""Many clients' local training: one after the other, or all at once, with the same updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from gradleak_lib.data.users import ClientData
from gradleak_lib.federated.checks import check_training, trained_parameters
from gradleak_lib.federated.clients import Loss, fedavg
from gradleak_lib.federated.frozen import draws_or_averages
from gradleak_lib.federated.functional import cast_like
from gradleak_lib.federated.stacked import fits_in_groups, is_special_embedding, stacked_outputs
from gradleak_lib.federated.update import check_finite
from gradleak_lib.seeding import reseed, seeded

Engine = Literal["auto", "sequential", "vectorized", "compiled"]

# Measured by benchmarks/federated.py: on a CPU, clients side by side win while a step is mostly overhead.
_SMALL, _SEVERAL = 100_000, 4
# Numbers that the parameters of all clients of one pass may hold; as measured on a CPU.
_CPU_BUDGET, _GPU_BUDGET = 2**20, 2**30


def multilabel_loss(outputs: Tensor, targets: Tensor, *, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy of each label, averaged over the K labels.

    Parameters
    ----------
    outputs
        Logits ``[N, K]``.
    targets
        Multi-hot float ``[N, K]``.
    reduction
        ``"sum"`` over the samples, ``"mean"``, or ``"none"`` for ``[N]``.

    References
    ----------
    Orekondy et al. 2018, Sec. 8.1.
    """
    targets = targets.to(outputs.dtype)
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction={reduction!r}: it must be sum, mean or none")
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def task_loss(targets: Tensor) -> Loss:
    """`multilabel_loss` for multi-hot targets ``[N, K]``, cross-entropy for class indices ``[N]``."""
    return multilabel_loss if targets.ndim == 2 else nn.functional.cross_entropy


def choose_engine(model: nn.Module, engine: Engine = "auto", *, clients: int = _SEVERAL) -> Engine:
    """Return the engine that trains clients of this model; ``"auto"`` takes the faster one that fits.

    Parameters
    ----------
    model
        The model that the server sends out.
    engine
        ``"sequential"``: `fedavg`, client by client; any model. ``"vectorized"``: all clients side by side, for
        models whose layers neither draw at random nor mix the samples of a batch. ``"compiled"``: that, compiled by
        torch, which takes a minute and a C++ compiler, and pays for thousands of updates. ``"auto"``: vectorised
        for chains of common layers on a GPU, and on a CPU for four clients or more of up to 100,000 trained
        parameters, where it was measured to be faster; else sequential.
    clients
        How many train at once.

    Raises
    ------
    ValueError
        If the engine is unknown, or the model does not fit it.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}: it must be one of {', '.join(get_args(Engine))}")
    unfit = [
        name
        for name, module in model.named_modules()
        if draws_or_averages(module) or is_special_embedding(module)
    ]
    if engine == "auto":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        on_gpu = any(parameter.device.type != "cpu" for parameter in trained)
        small = sum(parameter.numel() for parameter in trained) <= _SMALL
        worth = on_gpu or (small and clients >= _SEVERAL)
        return "vectorized" if worth and not unfit and fits_in_groups(model) else "sequential"
    if engine != "sequential" and unfit:
        raise ValueError(
            f"engine={engine!r} trains all clients in one pass, and {unfit[0]!r} draws at random, works on the batch "
            "of one, or is an embedding with options: put it in evaluation mode, or take engine='sequential'"
        )
    return engine


def local_updates(
    model: nn.Module,
    clients: ClientData,
    chosen: Sequence[int],
    *,
    learning_rate: float,
    batch_size: int,
    epochs: int = 1,
    loss: Loss | None = None,
    seeds: Sequence[int] | None = None,
    engine: Engine = "auto",
) -> dict[str, Tensor]:
    """Local training of several clients from the same model.

    Parameters
    ----------
    model
        The model that the server sent; left as it was.
    clients
        Who holds what.
    chosen
        The M clients that train, at least one.
    learning_rate, batch_size, epochs
        As for `gradleak_lib.federated.fedavg`.
    loss
        As for `fedavg`, with ``reduction="none"`` as well; None: see `task_loss`.
    seeds
        For each chosen client the seed of the order of its samples; None keeps the order.
    engine
        See `choose_engine`. One seed gives the same updates in all of them, up to rounding.

    Returns
    -------
    dict of Tensor
        By trained parameter, ``[M, ...]``: parameters after local training minus the parameters received.

    Raises
    ------
    ValueError
        As for `fedavg` and `choose_engine`, or if nobody is chosen.

    References
    ----------
    McMahan et al. 2017, Alg. 1 (ClientUpdate); Orekondy et al. 2018, Alg. 1.
    """
    check_training(learning_rate, batch_size, epochs)
    if not len(chosen):
        raise ValueError("chosen must hold one client or more, got none")
    if seeds is not None and len(seeds) != len(chosen):
        raise ValueError(f"seeds must be one for each chosen client, got {len(seeds)} for {len(chosen)}")
    for client in chosen:
        if not 0 <= client < len(clients):
            raise ValueError(f"chosen: there is no client {int(client)}, only 0 to {len(clients) - 1}")
        if len(clients.rows[client]) == 0:
            raise ValueError(f"client {int(client)} holds no samples")
    kind = choose_engine(model, engine, clients=len(chosen))
    loss = loss or task_loss(clients.data.targets)
    generators: list[torch.Generator | None] = [None] * len(chosen)
    if seeds is not None:
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    training = _Training(list(chosen), generators, loss, learning_rate, batch_size, epochs)
    if kind == "sequential":
        return _one_by_one(model, clients, training)
    return _side_by_side(model, clients, training, compiled=kind == "compiled")


@dataclass(frozen=True)
class _Training:
    """Who trains, and how."""

    chosen: list[int]
    generators: list[torch.Generator | None]
    loss: Loss
    learning_rate: float
    batch_size: int
    epochs: int


def _one_by_one(model: nn.Module, clients: ClientData, training: _Training) -> dict[str, Tensor]:
    trained = trained_parameters(model)
    devices = {value.device for value in model.parameters()}
    rows: list[dict[str, Tensor]] = []
    with seeded(None, devices):
        for client, generator in zip(training.chosen, training.generators, strict=True):
            if generator is not None:
                reseed(generator.initial_seed(), devices)  # dropout draws from torch's own generators
            update = fedavg(
                model,
                *clients.samples(client),
                learning_rate=training.learning_rate,
                batch_size=training.batch_size,
                epochs=training.epochs,
                generator=generator,
                loss=training.loss,
                microbatch=max(64, training.batch_size),
            )
            rows.append({name: update.tensors[name] for name in trained})
    return {name: torch.stack([row[name] for row in rows]) for name in trained}


def _side_by_side(
    model: nn.Module, clients: ClientData, training: _Training, *, compiled: bool
) -> dict[str, Tensor]:
    received = {name: value.detach() for name, value in trained_parameters(model).items()}
    example = next(iter(received.values()))
    step = _step(model, training.loss, compiled)
    held = [clients.rows[client] for client in training.chosen]
    # Clients with as many steps side by side: the others would wait for the longest.
    order = sorted(range(len(held)), key=lambda place: len(held[place]))
    budget = _CPU_BUDGET if example.device.type == "cpu" else _GPU_BUDGET
    width = max(1, budget // sum(value.numel() for value in received.values()))
    result = {name: value.new_empty(len(held), *value.shape) for name, value in received.items()}
    for places in np.array_split(order, -(-len(order) // width)):
        together = torch.cat([held[place] for place in places])
        inputs, targets = clients.data.inputs[together], clients.data.targets[together]
        inputs, targets = cast_like(example, inputs), targets.to(example.device)
        rows, weights = _batches(
            list(torch.arange(len(together)).split([len(held[place]) for place in places])),
            [training.generators[place] for place in places],
            batch_size=training.batch_size,
            epochs=training.epochs,
        )
        current = {name: value.expand(len(places), *value.shape).clone() for name, value in received.items()}
        for now, weight in zip(rows.to(example.device), weights.to(example), strict=True):
            try:
                current = step(current, inputs[now], targets[now], weight, training.learning_rate)
            except RuntimeError as error:
                if compiled or isinstance(error, torch.OutOfMemoryError):
                    raise  # not the model's fault, or the compiler's to explain
                why = str(error).splitlines()[0]
                raise ValueError(
                    f"this model, or its inputs, cannot be trained for all clients in one pass ({why}): try "
                    "engine='sequential'"
                ) from error
        for name, value in received.items():
            result[name][places] = current[name] - value
    check_finite(result)
    return result


def _step(model: nn.Module, loss: Loss, compiled: bool) -> Callable[..., dict[str, Tensor]]:
    """One step of gradient descent of all clients at once."""
    outputs_of = stacked_outputs(model)

    def total_loss(parameters: Any, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # Client by client, so that a loss that mixes samples cannot mix clients.
        losses = vmap(partial(loss, reduction="none"))(outputs_of(parameters, inputs), targets)
        # A loss with several numbers for a sample counts their sum, as with reduction="sum".
        return (losses.reshape(*weights.shape, -1).sum(2) * weights).sum()

    # No client's parameters touch another's loss: the gradient of the total is the gradient of each.
    gradients = grad(total_loss)

    def step(
        parameters: Any, inputs: Tensor, targets: Tensor, weights: Tensor, learning_rate: float
    ) -> dict[str, Tensor]:
        gradient = gradients(parameters, inputs, targets, weights)
        return {
            name: torch.add(value, gradient[name], alpha=-learning_rate) for name, value in parameters.items()
        }

    return torch.compile(step, dynamic=False) if compiled else step


def _batches(
    held: list[Tensor], generators: list[torch.Generator | None], *, batch_size: int, epochs: int
) -> tuple[Tensor, Tensor]:
    """Rows ``[steps, M, B]`` of each client's batches, and the weight of each sample in the mean of its batch.

    A client that has fewer samples repeats its first one with a weight of zero.
    """
    per_epoch = [-(-len(rows) // batch_size) for rows in held]
    steps = epochs * max(per_epoch)
    batch = min(batch_size, max(map(len, held)))
    rows = torch.stack([own[0].expand(steps, batch) for own in held], dim=1).contiguous()
    weights = torch.zeros(steps, len(held), batch, dtype=torch.float64)
    for client, (own, generator) in enumerate(zip(held, generators, strict=True)):
        each = per_epoch[client]
        sizes = torch.full((each, 1), batch)
        sizes[-1] = len(own) - (each - 1) * batch
        weight = (torch.arange(batch) < sizes) / sizes.double()
        filling = own[0].expand(each * batch - len(own))
        for epoch in range(epochs):
            order = own if generator is None else own[torch.randperm(len(own), generator=generator)]
            now = slice(epoch * each, (epoch + 1) * each)
            rows[now, client] = torch.cat([order, filling]).view(each, batch)
            weights[now, client] = weight
    return rows, weights
