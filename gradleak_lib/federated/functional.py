"""A model as a function of its tensors."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call


def as_function(model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Return the forward pass as a function of parameters and buffers by name, and of inputs.

    ``torch.func.functional_call`` by itself leaves a model changed in which one layer stands at two places.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    name_of = {id(value): name for name, value in tensors}
    # Each tensor at each layer that holds it, each layer once: shared tensors have one name, but several places.
    places = {
        f"{prefix}.{own}".removeprefix("."): name_of[id(value)]
        for prefix, layer in model.named_modules()
        for own, value in (*layer._parameters.items(), *layer._buffers.items())
        if value is not None
    }

    def call(values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        placed = {place: values[name] for place, name in places.items() if name in values}
        return functional_call(model, placed, (inputs,), tie_weights=False)

    return call


def cast_like(parameter: Tensor, inputs: Tensor) -> Tensor:
    """Return inputs on the device of a parameter, and in its dtype unless they are whole numbers, such as words."""
    return inputs.to(parameter) if inputs.is_floating_point() else inputs.to(parameter.device)
