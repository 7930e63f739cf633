"""The input of a linear layer, read from the gradient of its weights and biases."""

import torch
from torch import Tensor


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
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"expected weight [K, M] and bias [K], got shapes {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    rows = (bias.abs() > rounding_error(bias)).nonzero().squeeze(1)
    return weight[rows] / bias[rows, None], rows


def rounding_error(values: Tensor) -> Tensor:
    """Size of a difference of sums that rounding alone explains, given the sums: a few units in the last place."""
    if values.numel() == 0:
        return torch.zeros((), dtype=values.dtype, device=values.device)
    return 4 * torch.finfo(values.dtype).eps * values.abs().max()
