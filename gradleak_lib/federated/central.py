"""Training with all data in one place: warm starts, and what federated averaging is compared with."""

import copy
import math

import torch
from torch import Tensor, nn

from gradleak_lib.federated.clients import Loss
from gradleak_lib.federated.engines import task_loss


def train_centrally(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    loss: Loss | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train a copy of a model with Adam.

    Parameters
    ----------
    model
        The network to start from; left as it was. The copy is trained in its mode (no dropout in evaluation mode).
    inputs, targets
        ``[N, ...]`` and int64 ``[N]`` or multi-hot ``[N, K]``.
    epochs
        Passes over the data, at least 1.
    learning_rate, batch_size
        Of Adam; positive.
    loss
        As for `fedavg`; None: see `task_loss`.
    seed
        Seed of the order of the samples, and of dropout.

    Returns
    -------
    nn.Module
        The trained copy.

    Raises
    ------
    ValueError
        If a number is out of range, inputs and targets differ in number, or the training diverges.
    """
    if epochs < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
        raise ValueError(
            "epochs and batch_size must be 1 or more and learning_rate positive and finite, got "
            f"{epochs}, {batch_size}, {learning_rate}"
        )
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"inputs and targets must be equally many and not none: {len(inputs)}, {len(targets)}"
        )
    loss = loss or task_loss(targets)
    trained = copy.deepcopy(model)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("every parameter of the model is frozen: call model.requires_grad_(True)")
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng({parameter.device for parameter in parameters if parameter.is_cuda}):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
                value = loss(trained(inputs[batch].to(device)), targets[batch].to(device), reduction="mean")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            if not all(tensor.isfinite().all() for tensor in (value, *parameters)):
                raise ValueError("the training diverged to NaN or infinity: lower learning_rate")
    return trained


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 512) -> Tensor:
    """Outputs of a model for many inputs, on the CPU, ``[N, ...]``."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).cpu() for part in inputs.split(batch_size)])
