"""What attacks share: how they run the model that the server sent out, and read what came back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradleak_lib.federated import checks
from gradleak_lib.federated.update import Update, check_finite
from gradleak_lib.seeding import seeded


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter or buffer; the CPU if it has none."""
    tensors = (tensor for own in (model.parameters(), model.buffers()) for tensor in own)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run a model as an attack does: in full precision, and with draws of its own.

    On a GPU, convolutions of cuDNN round their inputs to ten bits by default (TF32), which is too coarse to compare
    gradients. Layers that draw at random, such as dropout in training mode, draw by the seed. Both are afterwards as
    they were before, also for the rest of the program's devices.
    """
    cudnn = torch.backends.cudnn
    # The second are the names that torch had before 2.9.
    place, name, full = (
        (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    )
    before = getattr(place, name)
    with seeded(seed, [device_of(model)]):
        setattr(place, name, full)
        try:
            yield
        finally:
            setattr(place, name, before)


def searched_for(update: Update, model: nn.Module) -> dict[str, Tensor]:
    """Parameters whose gradient a search can compare with an update's: those that are trained, by name.

    Raises
    ------
    ValueError
        If the update is of another model or zero, or holds NaN or infinity, or the model has no trained parameter.
    """
    update.check(model)
    if not update.flat().any():  # refuses NaN and infinity
        raise ValueError("the update is zero, and so is what it says of its images")
    return dict(checks.trained_parameters(model))


def sent_layer(update: Update, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Tensors of one layer of an update by their names in the layer, in their own dtype, on the model's device.

    Raises
    ------
    ValueError
        If they are not those of the model's layer, or hold NaN or infinity. Of other layers nothing is asked.
    """
    layer = model.get_submodule(name)
    sent = update.layer(name) if name else dict(update.tensors)
    check_finite(sent)
    for key, value in layer.named_parameters():
        if key not in sent or sent[key].shape != value.shape:
            given = tuple(sent[key].shape) if key in sent else "nothing"
            whole = f"{name}.{key}".removeprefix(".")
            raise ValueError(
                f"the update is of another model: {whole} has shape {tuple(value.shape)}, and it brings {given}"
            )
    return {key: sent[key].detach().to(value.device) for key, value in layer.named_parameters()}
