"""The two client protocols: one gradient (FedSGD), or several local steps (FedAvg)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradleak_lib.federated.update import Update

Loss = Callable[..., Tensor]
State = dict[str, Tensor]


def fedsgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss = nn.functional.cross_entropy,
    microbatch: int = 64,
) -> Update:
    """Gradient of the mean loss over the client's batch.

    The batch passes through the model in microbatches whose gradients are added up, so that memory does not
    grow with the batch. The model is left as it was, batch-norm statistics included.

    Parameters
    ----------
    model
        The model that the server sent, in training or evaluation mode; its device and dtype are used.
    images
        ``[N, ...]``, inputs of the model.
    labels
        ``[N]`` class indices, or whatever ``loss`` takes.
    loss
        ``loss(outputs, labels, reduction="sum")``, as in ``torch.nn.functional``.
    microbatch
        Samples per pass, at least 1.

    Raises
    ------
    ValueError
        If images and labels differ in number or are empty, or a model with batch norm is in training mode and
        the batch is larger than ``microbatch`` (its statistics would then be those of the microbatches).

    References
    ----------
    McMahan et al. 2017, Sec. 2 (FedSGD).
    """
    _check_batch(model, images, labels, microbatch, step=len(images))
    parameters, buffers = _state(model)
    gradient = _gradient(model, parameters, buffers, images, labels, loss, microbatch)
    return Update(gradient, "gradient", len(images))


def fedavg(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    epochs: int = 1,
    generator: torch.Generator | None = None,
    loss: Loss = nn.functional.cross_entropy,
    microbatch: int = 64,
) -> Update:
    """Parameters after local SGD, minus the parameters received.

    Parameters
    ----------
    model, images, labels, loss, microbatch
        As for `fedsgd`.
    learning_rate
        Step size of the local SGD, positive.
    batch_size
        Samples per local step, at least 1; the last batch of an epoch may be smaller.
    epochs
        Passes over the client's data, at least 1.
    generator
        Draws the order of the samples in each epoch; None keeps the given order.

    Raises
    ------
    ValueError
        As for `fedsgd`, or if a number is out of range, or training diverged to NaN.

    References
    ----------
    McMahan et al. 2017, Alg. 1 (ClientUpdate).
    """
    if learning_rate <= 0 or batch_size < 1 or epochs < 1:
        raise ValueError(
            "learning_rate must be positive, batch_size and epochs at least 1, "
            f"got {learning_rate}, {batch_size}, {epochs}"
        )
    _check_batch(model, images, labels, microbatch, step=batch_size)
    received, buffers = _state(model)
    current = received
    steps = 0
    for _ in range(epochs):
        order = (
            torch.arange(len(images))
            if generator is None
            else torch.randperm(len(images), generator=generator)
        )
        for batch in order.split(batch_size):
            gradient = _gradient(model, current, buffers, images[batch], labels[batch], loss, microbatch)
            current = {name: current[name] - learning_rate * gradient[name] for name in current}
            steps += 1
    delta = {name: current[name] - received[name] for name in received}
    return Update(delta, "delta", len(images), steps, learning_rate)


def _state(model: nn.Module) -> tuple[State, State]:
    """Detached parameters, and copies of the buffers that batch norm may write to."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return parameters, {name: buffer.clone() for name, buffer in model.named_buffers()}


def _gradient(
    model: nn.Module,
    parameters: State,
    buffers: State,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    microbatch: int,
) -> State:
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
    first = next(iter(leaves.values()))
    for part_images, part_labels in zip(images.split(microbatch), labels.split(microbatch), strict=True):
        inputs = part_images.to(first) if part_images.is_floating_point() else part_images.to(first.device)
        outputs = functional_call(model, (leaves, buffers), (inputs,))
        part = loss(outputs, part_labels.to(first.device), reduction="sum") / len(images)
        part.backward()  # adds to .grad in place: one gradient in memory, however many microbatches
    return {
        name: leaf.grad if leaf.grad is not None else torch.zeros_like(parameters[name])
        for name, leaf in leaves.items()
    }


def _check_batch(model: nn.Module, images: Tensor, labels: Tensor, microbatch: int, *, step: int) -> None:
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"images and labels must be equally many and not none, got {len(images)}, {len(labels)}"
        )
    if microbatch < 1:
        raise ValueError(f"microbatch must be at least 1, got {microbatch}")
    batch = min(step, len(images))
    if batch > microbatch and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()
    ):
        raise ValueError(
            f"batch norm in training mode needs the whole batch at once: set microbatch to {batch}, "
            "or put the model in evaluation mode"
        )
