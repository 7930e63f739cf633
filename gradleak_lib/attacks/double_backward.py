"""How a distance between gradients changes with the images: for many restarts in one pass, with no sum too many.

Searching for images whose gradient matches takes a derivative of a derivative. Written plainly for one restart,
torch does up to twice the arithmetic in each layer that it needs, and on small networks mostly waits for Python. Here
all restarts pass through the layers as one batch, and only what differs between them is computed for each: the
gradient of the weights, and its derivative. A linear layer or a convolution then costs seven matrix products, which
is what the chain rule asks for, each as large as the forward pass: the output; the gradients of input and weights;
and in the second pass four more, each of the two gradients' derivatives by input and output.

The model is not touched: while it is called, its convolutions, linear layers and batch norms are replaced by those of
this module, which also return a gradient for each restart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradleak_lib.attacks.products import Patches, Product, Rows
from gradleak_lib.federated.functional import as_function


class NotSupportedError(Exception):
    """The model computes with parameters in a way that this module cannot follow."""


@dataclass(eq=False)
class Passes:
    """Which of the two backward passes is running; shared by all layers of one call.

    Parameters
    ----------
    second
        Whether it is the second.
    """

    second: bool = False

    def change_of_images(
        self, images: Tensor, found: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> Tensor:
        """Take the second backward pass: the derivative by the images of the product of ``found`` and directions.

        Parameters
        ----------
        images
            Those of the first pass.
        found
            What the first pass returned.
        directions
            ``[lanes, ...]`` each, of the same sizes.
        """
        self.second = True
        shaped = [value.view_as(gradient) for gradient, value in zip(found, directions, strict=True)]
        return torch.autograd.grad(found, images, shaped)[0]


def gradients(model: nn.Module, images: Tensor, labels: Tensor, lanes: int) -> tuple[list[Tensor], "Passes"]:
    """Gradient of the mean cross-entropy of each lane: the first backward pass.

    Parameters
    ----------
    model
        In evaluation mode, or in training mode; a batch norm in training mode takes the statistics of each lane.
    images
        ``[lanes * n, ...]``, a leaf that requires a gradient: the n images of the first lane, then of the next.
    labels
        int64 ``[lanes * n]``.
    lanes
        How many batches these are.

    Returns
    -------
    found
        ``[lanes, ...]`` for each trained parameter, in the model's order.
    passes
        For the second backward pass.

    Raises
    ------
    NotSupportedError
        If the model works on its parameters other than by linear layers, 2d convolutions without groups, and batch
        norms. Models that mix the samples of several lanes in another way give wrong gradients: compare once.
    """
    mode = _Lanes(model, lanes)
    outputs_of: Callable[[Tensor], Tensor] = model
    if any(module.training for module in model.modules()):
        # Norms write to their buffers then, and count.
        buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
        outputs_of = partial(as_function(model), buffers)
    with mode:
        loss = functional.cross_entropy(outputs_of(images), labels, reduction="sum") / (len(images) // lanes)
    found = torch.autograd.grad(loss, list(mode.own.values()), create_graph=True, materialize_grads=True)
    return list(found), mode.passes


Term = tuple[Tensor, Tensor]


class _Affine(torch.autograd.Function):
    """A layer that multiplies with weights; ``own_weight`` and ``own_bias`` only stand for those of each restart."""

    @staticmethod
    def forward(ctx, inputs, own_weight, own_bias, weight, bias, kernel, passes):  # type: ignore[no-untyped-def]
        rows = kernel.read(inputs)
        products = kernel.times(weight, rows)
        if bias is not None:
            kernel.add_bias(products, bias)
        ctx.save_for_backward(rows, weight)
        ctx.kernel, ctx.passes = kernel, passes
        ctx.of_input = inputs.requires_grad and not inputs.is_leaf
        ctx.has_bias = own_bias is not None
        ctx.later: list[Term] = []  # what the second pass owes to the inputs
        ctx.set_materialize_grads(False)
        return kernel.outputs(products)

    @staticmethod
    def backward(ctx, signal):  # type: ignore[no-untyped-def]
        rows, weight = ctx.saved_tensors
        if not ctx.passes.second:
            found = _AffineGradient.apply(signal, rows, weight, ctx)
            return *found, None, None, None, None
        kernel = ctx.kernel
        total = kernel.back(weight, kernel.signal(signal))
        for direction, earlier in ctx.later:
            kernel.add_back(total, direction, earlier)
        ctx.later.clear()  # a node that held on to others would keep all of them alive
        return kernel.write(total), None, None, None, None, None, None


class _AffineGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, signal, rows, weight, layer):  # type: ignore[no-untyped-def]
        kernel = layer.kernel
        parts = kernel.signal(signal)
        ctx.save_for_backward(parts, rows, weight)
        ctx.kernel, ctx.later = kernel, layer.later
        ctx.set_materialize_grads(False)
        return (
            kernel.write(kernel.back(weight, parts)) if layer.of_input else None,
            kernel.gradient(parts, rows),
            kernel.bias_gradient(parts) if layer.has_bias else None,
        )

    @staticmethod
    def backward(ctx, of_input, direction, of_bias):  # type: ignore[no-untyped-def]
        parts, rows, weight = ctx.saved_tensors
        kernel = ctx.kernel
        total = kernel.times(direction, rows)
        ctx.later.append((direction.detach(), parts.detach()))
        if of_input is not None:
            kernel.add_times(total, weight, kernel.read(of_input))
        if of_bias is not None:
            kernel.add_bias(total, of_bias)
        return kernel.outputs(total), None, None, None


@dataclass(frozen=True)
class _Statistics:
    """Batch norm with statistics that are known: ``scale (x - mean) / deviation + shift``, channel by channel."""

    lanes: int
    mean: Tensor
    inverse: Tensor  # of the standard deviation
    variance: Tensor
    eps: float

    def each(self, values: Tensor, inputs: Tensor) -> Tensor:
        """``[lanes, C]`` so that it multiplies inputs ``[N, C, ...]``."""
        samples = inputs.shape[0] // self.lanes
        return values.repeat_interleave(samples, 0).view(*inputs.shape[:2], *(1,) * (inputs.ndim - 2))

    def sums(self, inputs: Tensor) -> Tensor:
        """Sums over samples and places, ``[lanes, C]``."""
        return inputs.view(self.lanes, -1, inputs.shape[1], inputs[0, 0].numel()).sum((1, 3))


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, own_weight, own_bias, weight, bias, statistics, passes):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs)
        ctx.scale = statistics.inverse * weight
        ctx.statistics, ctx.passes = statistics, passes
        ctx.later: list[Term] = []
        ctx.set_materialize_grads(False)
        return torch.batch_norm(
            inputs, weight, bias, statistics.mean, statistics.variance, False, 0.0, statistics.eps, False
        )

    @staticmethod
    def backward(ctx, signal):  # type: ignore[no-untyped-def]
        (inputs,) = ctx.saved_tensors
        if not ctx.passes.second:
            return *_NormaliseGradient.apply(signal, inputs, ctx), None, None, None, None
        total = signal * _channels(ctx.scale, inputs)
        for direction, earlier in ctx.later:
            total.addcmul_(earlier, direction)
        ctx.later.clear()
        return total, None, None, None, None, None, None


class _NormaliseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, signal, inputs, layer):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(signal, inputs)
        ctx.scale, ctx.statistics, ctx.later = layer.scale, layer.statistics, layer.later
        ctx.set_materialize_grads(False)
        total = layer.statistics.sums(signal)
        product = layer.statistics.sums(signal * inputs)
        of_weight = layer.statistics.inverse * (product - layer.statistics.mean * total)
        return signal * _channels(layer.scale, inputs), of_weight, total

    @staticmethod
    def backward(ctx, of_input, of_weight, of_bias):  # type: ignore[no-untyped-def]
        signal, inputs = ctx.saved_tensors
        statistics = ctx.statistics
        factor = statistics.inverse * of_weight
        factor, offset = (statistics.each(v, inputs) for v in (factor, of_bias - statistics.mean * factor))
        ctx.later.append((factor.detach(), signal.detach()))
        total = torch.addcmul(offset, inputs, factor)
        if of_input is not None:
            total.addcmul_(of_input, _channels(ctx.scale, inputs))
        return total, None, None


def _channels(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (inputs.ndim - 2))


class _Lanes(TorchFunctionMode):
    """Calls of layers, while this is entered, are calls for many restarts at once."""

    def __init__(self, model: nn.Module, lanes: int) -> None:
        super().__init__()
        self.lanes, self.passes = lanes, Passes()
        self.own = {
            id(value): value.detach().expand(lanes, *value.shape).requires_grad_()
            for value in model.parameters()
            if value.requires_grad
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = _flat([*args, *(kwargs or {}).values()])
        layer = _LAYERS.get(func)
        if layer is not None and not (given and id(given[0]) in self.own):
            found = layer(self, *args, **(kwargs or {}))
            if found is not None:
                return found
        result = func(*args, **(kwargs or {}))
        gives_tensors = any(isinstance(value, Tensor) for value in _flat([result]))
        if gives_tensors and any(id(value) in self.own for value in given):
            raise NotSupportedError(f"{getattr(func, '__name__', func)} works on parameters")
        return result

    def leaf(self, value: Tensor | None) -> Tensor | None:
        """What stands for the parameter of each restart; None where it is not trained."""
        return None if value is None else self.own.get(id(value))

    def affine(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, kernel: Product) -> Tensor:
        matrix = weight.detach().flatten(1)
        own = self.leaf(weight)
        if own is None:
            raise NotSupportedError("a layer is frozen in part")
        own = own.flatten(2) if own.ndim > 3 else own
        shift = None if bias is None else bias.detach()
        return _Affine.apply(inputs, own, self.leaf(bias), matrix, shift, kernel, self.passes)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _linear(mode: _Lanes, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if id(weight) not in mode.own and id(bias) not in mode.own:
        return None
    if input.shape[0] % mode.lanes:
        raise NotSupportedError("samples were mixed before a linear layer")
    return mode.affine(input, weight, bias, Rows(mode.lanes, tuple(input.shape)))


def _conv2d(  # type: ignore[no-untyped-def]
    mode: _Lanes, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Tensor | None:
    if id(weight) not in mode.own and id(bias) not in mode.own:
        return None
    if groups != 1 or isinstance(padding, str) or input.ndim != 4 or input.shape[0] % mode.lanes:
        raise NotSupportedError("a convolution in groups, or on samples that were mixed before")
    kernel = Patches(
        mode.lanes,
        tuple(input.shape),
        _pair(weight.shape[2:]),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
    )
    return mode.affine(input, weight, bias, kernel)


def _batch_norm(  # type: ignore[no-untyped-def]
    mode: _Lanes,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Tensor | None:
    own_weight, own_bias = mode.leaf(weight), mode.leaf(bias)
    if training:
        # Each restart has the statistics of its own batch. Running ones would change by momentum: not here.
        parts = input.reshape(mode.lanes, -1, input.shape[1], input[0, 0].numel())
        variance, mean = torch.var_mean(parts, (1, 3), correction=0, keepdim=True)
        parts = (parts - mean) * (variance + eps).rsqrt()
        scale, shift = (
            own if own is not None else value for own, value in ((own_weight, weight), (own_bias, bias))
        )
        if scale is not None:
            parts = parts * scale.view(-1, 1, input.shape[1], 1)
        if shift is not None:
            parts = parts + shift.view(-1, 1, input.shape[1], 1)
        return parts.reshape(input.shape)
    if own_weight is None and own_bias is None:
        return None
    if own_weight is None or own_bias is None:
        raise NotSupportedError("a layer is frozen in part")
    statistics = _Statistics(mode.lanes, running_mean, (running_var + eps).rsqrt(), running_var, eps)
    return _Normalise.apply(
        input, own_weight, own_bias, weight.detach(), bias.detach(), statistics, mode.passes
    )


_LAYERS: dict[Callable, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    functional.linear: _linear,
    functional.batch_norm: _batch_norm,
}
