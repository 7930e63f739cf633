"""The forward pass of many clients' copies of one network at once."""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from gradleak_lib.federated.frozen import is_chain, is_plain
from gradleak_lib.federated.functional import as_function

Parameters = Mapping[str, Tensor]

# They treat every channel, and every number, by itself, so it does not matter whose it is.
_EACH_NUMBER = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Dropout)
_EACH_CHANNEL = (*_EACH_NUMBER, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def stacked_outputs(model: nn.Module) -> Callable[[Parameters, Tensor], Tensor]:
    """Return the forward pass of K copies of a model, each with parameters and inputs of its own.

    Parameters
    ----------
    model
        Any network that `choose_engine` lets be vectorised. Chains of convolutions, then of fully connected
        layers, are the fast case: the K copies become one network with K times the channels, in K groups. Others
        pass through ``torch.func.vmap``.

    Returns
    -------
    Callable
        From the trained parameters by name, ``[K, ...]``, and inputs ``[K, B, ...]`` to outputs ``[K, B, ...]``.
    """
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= {name: value.detach() for name, value in model.named_buffers()}
    one = as_function(model)

    def in_vmap(parameters: Parameters, inputs: Tensor) -> Tensor:
        return vmap(lambda own, batch: one({**own, **fixed}, batch))(parameters, inputs)

    if not fits_in_groups(model):
        return in_vmap
    layers = list(_leaves(model))
    dimensions = _dimensions([type(layer) for _, layer in layers])

    def in_groups(parameters: Parameters, inputs: Tensor) -> Tensor:
        copies, images = len(inputs), inputs.ndim == 5
        if dimensions not in (None, inputs.ndim):
            return in_vmap(parameters, inputs)
        tensors = {name: value.expand(copies, *value.shape) for name, value in fixed.items()} | {**parameters}
        # Images become [B, KC, H, W]; vectors stay [K, B, D].
        values = inputs.transpose(0, 1).flatten(1, 2) if images else inputs
        if images and inputs.device.type == "cpu":  # pooling and grouped convolutions take half the time
            values = values.contiguous(memory_format=torch.channels_last)
        for name, layer in layers:
            if isinstance(layer, nn.Flatten):
                values = values.unflatten(1, (copies, -1)).transpose(0, 1) if images else values
                values = values.flatten(2)
            else:
                # A layer that is the whole model has no name.
                names = {key: f"{name}.{key}".removeprefix(".") for key, _ in layer.named_parameters()}
                values = _apply(layer, {key: tensors[names[key]] for key in names}, values)
        return values

    return in_groups


def _apply(layer: nn.Module, own: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """One layer of all copies, with parameters ``[K, ...]`` of each copy's own."""
    if isinstance(layer, nn.Conv2d):
        bias = own["bias"].flatten() if "bias" in own else None
        groups = len(own["weight"]) * layer.groups
        return nn.functional.conv2d(
            values, own["weight"].flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, groups
        )
    if isinstance(layer, nn.Embedding):
        table, words = own["weight"], values.flatten(1).unsqueeze(2)
        return table.gather(1, words.expand(-1, -1, table.shape[2])).unflatten(1, values.shape[1:])
    if isinstance(layer, nn.Linear):
        values = values @ own["weight"].transpose(1, 2)
        return values + own["bias"].unsqueeze(1) if "bias" in own else values
    return layer(values)


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers of nested chains by name, in the order of the calls."""
    if not is_chain(model):
        yield prefix.removesuffix("."), model
        return
    for name, child in cast(dict[str, nn.Module], model._modules).items():
        yield from _leaves(child, f"{prefix}{name}.")


def fits_in_groups(model: nn.Module) -> bool:
    """Whether a model is a chain of layers that treat channels alone, `nn.Flatten`, and fully connected ones.

    Instead of layers for images, an embedding of words may stand first, or nothing.
    """
    layers = list(_leaves(model))
    start, end = _halves([type(layer) for _, layer in layers])
    # A layer that stands twice, or shares its parameters, has them under one name only.
    names = {
        f"{name}.{own}".removeprefix(".") for name, layer in layers for own, _ in layer.named_parameters()
    }
    return (
        (start == [nn.Embedding] or all(kind in (nn.Conv2d, *_EACH_CHANNEL) for kind in start))
        and all(kind in (nn.Linear, *_EACH_NUMBER) for kind in end)
        and all(_is_common(layer) for _, layer in layers)
        and names == {name for name, _ in model.named_parameters()}
    )


def _halves(kinds: list[type]) -> tuple[list[type], list[type]]:
    """Kinds of the layers in front of `nn.Flatten`, and behind it; without it all are behind."""
    cut = kinds.index(nn.Flatten) if nn.Flatten in kinds else -1
    return kinds[: max(cut, 0)], kinds[cut + 1 :]


def _dimensions(kinds: list[type]) -> int | None:
    """Dimensions that the inputs ``[K, B, ...]`` must have; None: any."""
    start, _ = _halves(kinds)
    if any(kind not in (nn.Embedding, *_EACH_NUMBER) for kind in start):
        return 5
    return 3 if nn.Embedding in start or nn.Flatten not in kinds else None


def _is_common(layer: nn.Module) -> bool:
    """Whether a layer has no options that are not written out here."""
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return False
    padded = isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"
    return is_plain(layer) and not padded and not is_special_embedding(layer)


def is_special_embedding(layer: nn.Module) -> bool:
    """Whether it is an embedding that treats some words otherwise, which ``vmap`` forgets."""
    return isinstance(layer, nn.Embedding) and (
        layer.padding_idx is not None
        or layer.max_norm is not None
        or layer.scale_grad_by_freq
        or layer.sparse
    )
