"""The input of a linear layer, read from the gradient of its weights and biases."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradleak_lib.attacks.access import sent_layer
from gradleak_lib.federated.update import Update, rounding_error

# The derivative of an activation, given its output.
_DERIVATIVES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Identity: torch.ones_like,
    nn.ReLU: lambda outputs: (outputs > 0).to(outputs),
    nn.Sigmoid: lambda outputs: outputs * (1 - outputs),
    nn.Tanh: lambda outputs: 1 - outputs.square(),
}


def linear_input(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row of a linear layer's weight gradient by its bias gradient.

    For one sample, every row with a non-zero bias gradient returns the layer's input exactly. For a batch,
    a row returns the mean of the inputs, weighted by what each sample contributes to the row's bias gradient;
    it is one sample where all others contribute nothing.

    Parameters
    ----------
    weight
        ``[K, M]``, the gradient (or FedAvg's parameter difference) of the weights.
    bias
        ``[K]``, the same of the biases.

    Returns
    -------
    inputs
        ``[R, M]``, one candidate for each row whose bias gradient is above the rounding error of the largest.
    rows
        int64 ``[R]``, where the candidates were read, ascending.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    Phong et al. 2017; Geiping et al. 2020, Prop. 3.1; Fowl et al. 2022, Sec. 3.2, Eq. 2.

    Examples
    --------
    >>> import torch
    >>> from gradleak_lib import models
    >>> from gradleak_lib.federated import fedsgd
    >>> model = models.build("linear", (4,), classes=3)
    >>> layer = fedsgd(model, torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([2])).layer("1")
    >>> inputs, rows = linear_input(layer["weight"], layer["bias"])
    >>> inputs[0], rows
    (tensor([0.1000, 0.2000, 0.3000, 0.4000]), tensor([0, 1, 2]))
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"expected weight [K, M] and bias [K], got shapes {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    bias = bias.to(weight.device)
    rows = (bias.abs() > rounding_error(bias)).nonzero().squeeze(1)
    return weight[rows] / bias[rows, None], rows


def stack_input(update: Update, model: nn.Sequential) -> Tensor:
    """Input of a stack of fully connected layers, from the gradient of one sample; only the last layer needs a bias.

    The gradient of the last bias is the signal at the last layer's output. Each layer's weight gradient is the
    product of the signal with the layer's input, and so gives that input; the weights carry the signal back to it,
    and the derivative of the activation, which the activation's output tells, to the layer before.

    Parameters
    ----------
    update
        A gradient of one sample, or the change by one local step.
    model
        Linear layers with ReLU, sigmoid, tanh or nothing in between; a first `Flatten` is passed over.

    Returns
    -------
    Tensor
        ``[M]``, exact but for rounding, on the model's device.

    Raises
    ------
    ValueError
        If there is more than one sample or local step, the model is no such stack, a layer is frozen or used twice,
        or the signal is zero.

    References
    ----------
    Geiping et al. 2020, Prop. 3.1 and the remark after it.
    """
    if update.samples != 1 or update.local_steps != 1:
        raise ValueError(
            "the gradients of several samples or steps are mixed: stack_input needs one of each, "
            f"got {update.samples} and {update.local_steps}"
        )
    update.check(model)
    layers = [(name, layer) for name, layer in model._modules.items() if not isinstance(layer, nn.Flatten)]
    linear = [layer for _, layer in layers if isinstance(layer, nn.Linear)]
    if (
        not linear
        or layers[0][1] is not linear[0]
        or layers[-1][1] is not linear[-1]
        or linear[-1].bias is None
    ):
        raise ValueError("the stack must begin with a linear layer and end in one with a bias")
    weights = {id(layer.weight) for layer in linear}
    if len(weights) < len(linear) or not all(layer.weight.requires_grad for layer in linear):
        raise ValueError("a layer is frozen or stands at two places: its gradient is not that of one input")
    signal, found = sent_layer(update, model, layers[-1][0])["bias"], torch.empty(0)
    for name, layer in reversed(layers):
        if isinstance(layer, nn.Linear):
            squared = signal.square().sum()
            if squared == 0:
                raise ValueError(
                    f"no signal reaches layer {name!r}: the sample has left no trace in its gradient"
                )
            found = signal @ sent_layer(update, model, name)["weight"] / squared
            signal = signal @ layer.weight.detach().to(signal)
        elif type(layer) in _DERIVATIVES:
            signal = signal * _DERIVATIVES[type(layer)](found)
        else:
            known = ", ".join(kind.__name__ for kind in _DERIVATIVES)
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}; the stack may hold Linear, {known}"
            )
    return found
