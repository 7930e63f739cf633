"""How far the update of dummy images lies from the one that was sent, and how that changes with the images."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vmap

from gradleak_lib.attacks import double_backward
from gradleak_lib.federated.functional import as_function

Distance = Literal["cosine", "euclidean"]
# From images [lanes * n, ...] to the distance of each lane [lanes] and its gradient by the images.
Matcher = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """What a search has to match: the updates of U clients of one model, each with several restarts.

    A lane is one restart on one update; lane ``u * restarts + r`` is restart r on update u.

    Parameters
    ----------
    sent
        ``[U, ...]`` by parameter name: gradients, or changes of parameters; trained parameters only.
    labels
        int64 ``[U, n]``.
    restarts
        Restarts R on each update.
    distance
        ``"cosine"``: 1 minus the cosine of the angle between the two updates, all parameters in one vector.
        ``"euclidean"``: squared distance, divided by the squared norm of what was sent.
    steps
        For each local step of a client which of its images it takes; None for a gradient.
    learning_rate
        Of the local steps.
    """

    sent: Mapping[str, Tensor]
    labels: Tensor
    restarts: int
    distance: Distance
    steps: tuple[Tensor, ...] | None = None
    learning_rate: float = 0.0

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self.labels) * self.restarts


def together(model: nn.Module, target: Target) -> Matcher:
    """All lanes in one pass, by `double_backward`; of gradients only.

    Raises
    ------
    NotSupportedError
        When called, if the model cannot be followed.
    """
    labels = target.labels.repeat_interleave(target.restarts, 0).flatten()
    sent = [value.flatten(1) for value in target.sent.values()]
    squared = torch.stack([value.square().sum(1) for value in sent]).sum(0).repeat_interleave(target.restarts)

    def matcher(images: Tensor) -> tuple[Tensor, Tensor]:
        inputs = images.detach().requires_grad_()
        found, passes = double_backward.gradients(model, inputs, labels, target.lanes)
        with torch.no_grad():
            # Written into below. The second pass needs no value of the gradients, only how they came about; `data` is
            # the memory without its history.
            rows = [value.data.reshape(len(target.labels), target.restarts, -1) for value in found]
            dot = torch.stack(
                [(row @ value[:, :, None]).flatten() for row, value in zip(rows, sent, strict=True)]
            ).sum(0)
            own = torch.stack([torch.linalg.vector_norm(row, dim=2).square().flatten() for row in rows]).sum(
                0
            )
            distance = _distance(target.distance, dot, own, squared)
            # The distance's derivative by the update is a multiple of (sent + factor * own); that multiple is taken
            # at the end, from few numbers.
            factor, multiple = _derivative(target.distance, dot, own, squared)
            factor = factor.view(len(target.labels), target.restarts, 1)
            for row, value in zip(rows, sent, strict=True):
                row.mul_(factor).add_(value[:, None])
        change = passes.change_of_images(inputs, found, rows)
        return distance, change.mul_(
            multiple.repeat_interleave(target.labels.shape[1]).view(-1, *[1] * (images.ndim - 1))
        )

    return matcher


def vectorized(model: nn.Module, target: Target, *, compiled: bool = False) -> Matcher:
    """All lanes in one pass, by ``torch.func``; of any update, but of no model that averages over its batch.

    Parameters
    ----------
    model, target
        What is searched for.
    compiled
        Whether to compile the pass with ``torch.compile``: slow at first, then faster than `together`.
    """
    client = _client(with_plain_norms(model), target, lambda loss, values, rows: grad(loss)(values, rows))
    lane = vmap(grad_and_value(_lane(client, target)), in_dims=(0, 0, 0))
    sent = {name: value.repeat_interleave(target.restarts, 0) for name, value in target.sent.items()}
    labels = target.labels.repeat_interleave(target.restarts, 0)
    if compiled:
        # Every search compiles a function of its own, and torch stops compiling after eight that look the same to it.
        torch.compiler.reset()
        lane = torch.compile(lane)

    def matcher(images: Tensor) -> tuple[Tensor, Tensor]:
        change, distance = lane(images.detach().unflatten(0, labels.shape), labels, sent)
        return distance.detach(), change.flatten(0, 1)

    return matcher


def one_by_one(model: nn.Module, target: Target) -> Matcher:
    """Lane after lane, by plain autograd: of any update of any model."""

    def gradient(loss: Callable[..., Tensor], values: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
        values = {
            name: value if value.requires_grad else value.requires_grad_() for name, value in values.items()
        }
        found = torch.autograd.grad(
            loss(values, rows), list(values.values()), create_graph=True, materialize_grads=True
        )
        return dict(zip(values, found, strict=True))

    lane = _lane(_client(model, target, gradient), target)

    def matcher(images: Tensor) -> tuple[Tensor, Tensor]:
        distances, changes = [], []
        for number, part in enumerate(images.detach().split(target.labels.shape[1])):
            client = number // target.restarts
            inputs = part.clone().requires_grad_()
            sent = {name: value[client] for name, value in target.sent.items()}
            distance = lane(inputs, target.labels[client], sent)
            changes.append(torch.autograd.grad(distance, inputs)[0])
            distances.append(distance.detach())
        return torch.stack(distances), torch.cat(changes)

    return matcher


def _client(
    model: nn.Module, target: Target, gradient: Callable
) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """The update of a client as a function of its images and labels: a gradient, or the change by local steps."""
    outputs_of = as_function(model)
    # Rows on the CPU would be copied to the device at every step.
    steps = None if target.steps is None else [rows.to(target.labels.device) for rows in target.steps]
    received = {name: value.detach() for name, value in model.named_parameters() if name in target.sent}
    fixed = {name: value.detach() for name, value in model.named_parameters() if name not in target.sent}

    def loss(values: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        buffers = {
            name: value.detach().clone() for name, value in model.named_buffers()
        }  # norms may write to them
        outputs = outputs_of(values | fixed | buffers, rows[0])
        return nn.functional.cross_entropy(outputs, rows[1])

    def update(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        values = {name: value.detach() for name, value in received.items()}
        if steps is None:
            return gradient(loss, values, (images, labels))
        for rows in steps:
            change = gradient(loss, values, (images[rows], labels[rows]))
            values = {name: value - target.learning_rate * change[name] for name, value in values.items()}
        return {name: values[name] - received[name] for name in received}

    return update


class _PlainNorm(nn.Module):
    """A batch norm in plain arithmetic, which torch can vectorise and compile; running statistics stay."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.affine = norm.affine
        self.of_batch = norm.training or norm.running_mean is None
        for name, value in norm.named_parameters():
            self.register_parameter(name, value)
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        if self.of_batch:
            axes = (0, *range(2, inputs.ndim))
            variance, mean = torch.var_mean(inputs, axes, correction=0)
        else:
            variance, mean = cast(Tensor, self.running_var), cast(Tensor, self.running_mean)
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (inputs - mean.view(shape)) * scale.view(shape)
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        return (inputs - mean.view(shape)) * (scale * weight).view(shape) + bias.view(shape)


def with_plain_norms(model: nn.Module) -> nn.Module:
    """Return a network whose batch norms are written in plain arithmetic, with the same parameters and buffers.

    It computes what the model computes in its present mode, but for the running statistics, which stay as they are.
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return _PlainNorm(model)
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        return model
    # The layers are copied and their tensors are not: what is looked up by name are the model's own.
    copied = copy.deepcopy(model, {id(value): value for value in (*model.parameters(), *model.buffers())})
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            parent, _, child = name.rpartition(".")
            plain = _PlainNorm(cast(nn.modules.batchnorm._BatchNorm, copied.get_submodule(name)))
            setattr(copied.get_submodule(parent), child, plain)
    return copied


def _lane(client: Callable, target: Target) -> Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]:
    """Distance of one lane as a function of its images."""

    def distance(images: Tensor, labels: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        found = client(images, labels)
        pairs = [(found[name], value) for name, value in sent.items()]
        dot = torch.stack([(own * value).sum() for own, value in pairs]).sum()
        own = torch.stack([own.square().sum() for own, _ in pairs]).sum()
        squared = torch.stack([value.square().sum() for _, value in pairs]).sum()
        return _distance(target.distance, dot, own, squared)

    return distance


def _distance(kind: Distance, dot: Tensor, own: Tensor, sent: Tensor) -> Tensor:
    """Distance, given the product of two updates and their squared norms."""
    if kind == "euclidean":
        return (own - 2 * dot + sent) / sent
    return 1 - dot / _norms(own, sent)


def _derivative(kind: Distance, dot: Tensor, own: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
    """The distance's derivative is ``multiple * (sent + factor * own)``."""
    if kind == "euclidean":
        return torch.full_like(dot, -1.0), -2 / sent
    return -dot / own.clamp_min(torch.finfo(own.dtype).tiny), -1 / _norms(own, sent)


def _norms(own: Tensor, sent: Tensor) -> Tensor:
    """Product of two norms, each from its square; not zero, so that an update of nothing is at a right angle."""
    tiny = torch.finfo(own.dtype).tiny
    return own.clamp_min(tiny).sqrt() * sent.clamp_min(tiny).sqrt()
