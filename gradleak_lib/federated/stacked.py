"""The forward pass of many clients' copies of one network at once."""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradleak_lib.federated.frozen import is_chain, is_plain

Parameters = Mapping[str, Tensor]

# They treat every channel, and every number, by itself, so it does not matter whose it is.
_EACH_NUMBER = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Dropout)
_EACH_CHANNEL = (*_EACH_NUMBER, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def stacked_outputs(model: nn.Module) -> Callable[[Parameters, Tensor], Tensor]:
    """Return the forward pass of K copies of a model, each with parameters and inputs of its own.

    Parameters
    ----------
    model
        Any network without batch norm or dropout in training mode. Chains of convolutions, then of fully connected
        layers, are the fast case: the K copies become one network with K times the channels, in K groups. Others
        pass through ``torch.func.vmap``.

    Returns
    -------
    Callable
        From the trained parameters by name, ``[K, ...]``, and inputs ``[K, B, ...]`` to outputs ``[K, B, ...]``.
    """
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= {name: value.detach() for name, value in model.named_buffers()}

    def in_vmap(parameters: Parameters, inputs: Tensor) -> Tensor:
        return vmap(lambda own, batch: functional_call(model, {**own, **fixed}, (batch,)))(parameters, inputs)

    layers = list(_leaves(model))
    if not _treats_copies_alone(model, layers):
        return in_vmap
    convolutions = any(isinstance(layer, nn.Conv2d) for _, layer in layers)

    def in_groups(parameters: Parameters, inputs: Tensor) -> Tensor:
        copies, images = len(inputs), inputs.ndim == 5
        if convolutions and not images:
            return in_vmap(parameters, inputs)

        def own(name: str) -> Tensor:
            return parameters[name] if name in parameters else fixed[name].expand(copies, *fixed[name].shape)

        # Images become [B, KC, H, W]; vectors stay [K, B, D].
        values = inputs.transpose(0, 1).flatten(1, 2) if images else inputs
        if images and inputs.device.type == "cpu":  # pooling and grouped convolutions take half the time
            values = values.contiguous(memory_format=torch.channels_last)
        for name, layer in layers:
            if isinstance(layer, nn.Conv2d):
                bias = None if layer.bias is None else own(f"{name}.bias").flatten()
                weight = own(f"{name}.weight").flatten(0, 1)
                values = nn.functional.conv2d(
                    values, weight, bias, layer.stride, layer.padding, layer.dilation, copies * layer.groups
                )
            elif isinstance(layer, nn.Flatten):
                if images:
                    values = values.unflatten(1, (copies, -1)).transpose(0, 1)
                values = values.flatten(2)
            elif isinstance(layer, nn.Linear):
                values = values @ own(f"{name}.weight").transpose(1, 2)
                values = values if layer.bias is None else values + own(f"{name}.bias").unsqueeze(1)
            else:
                values = layer(values)
        return values

    return in_groups


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers of nested chains by name, in the order of the calls."""
    if not is_chain(model):
        yield prefix.removesuffix("."), model
        return
    for name, child in cast(dict[str, nn.Module], model._modules).items():
        yield from _leaves(child, f"{prefix}{name}.")


def _treats_copies_alone(model: nn.Module, layers: list[tuple[str, nn.Module]]) -> bool:
    """Whether a model is a chain of layers that treat channels alone, `nn.Flatten`, and fully connected ones."""
    kinds = [type(layer) for _, layer in layers]
    if nn.Flatten not in kinds or not all(is_plain(layer) for _, layer in layers):
        return False
    cut = kinds.index(nn.Flatten)
    flatten = cast(nn.Flatten, layers[cut][1])
    # A layer that stands twice, or shares its parameters, has them under one name only.
    names = {f"{name}.{own}" for name, layer in layers for own, _ in layer.named_parameters()}
    return (
        (flatten.start_dim, flatten.end_dim) == (1, -1)
        and all(kind in (nn.Conv2d, *_EACH_CHANNEL) for kind in kinds[:cut])
        and all(kind in (nn.Linear, *_EACH_NUMBER) for kind in kinds[cut + 1 :])
        and all(layer.padding_mode == "zeros" for _, layer in layers if isinstance(layer, nn.Conv2d))
        and names == {name for name, _ in model.named_parameters()}
    )
