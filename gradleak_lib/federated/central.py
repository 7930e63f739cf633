"""Training with all data in one place: warm starts, and what federated averaging is compared with."""

import copy

import torch
from torch import Tensor, nn

from gradleak_lib.federated.checks import check_samples, check_training, trained_parameters
from gradleak_lib.federated.engines import task_loss
from gradleak_lib.federated.functional import cast_like
from gradleak_lib.federated.update import Diverged, all_finite
from gradleak_lib.seeding import seeded


def train_centrally(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
) -> nn.Module:
    """Train a copy of a model with Adam, on the loss that `task_loss` names.

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
    seed
        Seed of the order of the samples, and of dropout.

    Returns
    -------
    nn.Module
        The trained copy.

    Raises
    ------
    ValueError
        If a number is out of range, inputs and targets differ in number, or the training diverges (`Diverged`).
    """
    check_training(learning_rate, batch_size, epochs)
    check_samples(inputs=inputs, targets=targets)
    loss = task_loss(targets)
    trained = copy.deepcopy(model)
    parameters = list(trained_parameters(trained).values())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, {parameter.device for parameter in parameters}):
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
                outputs = trained(cast_like(parameters[0], inputs[batch]))
                value = loss(outputs, targets[batch].to(outputs.device), reduction="mean")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            if not all_finite([value, *parameters]):
                raise Diverged("the training diverged to NaN or infinity: lower learning_rate")
    return trained


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of a model for many inputs, on the CPU, ``[N, ...]``."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).cpu() for part in inputs.split(512)])
