"""Local training under differential privacy: every step of it clips its samples and adds noise."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.defenses.clipping import dp_sgd
from gradleak_lib.federated.checks import check_samples, check_training
from gradleak_lib.federated.update import Update, apply_update, check_finite


def dp_fedavg(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    bound: float,
    noise_multiplier: float,
    epochs: int = 1,
    loss: Callable[..., Tensor] = nn.functional.cross_entropy,
    seed: int = 0,
) -> Update:
    """Parameters after local DP-SGD, minus the parameters received.

    Parameters
    ----------
    model, images, labels, learning_rate, batch_size, epochs, loss
        As for `gradleak_lib.federated.fedavg`.
    bound, noise_multiplier
        As for `dp_sgd`, in every step.
    seed
        Seed of the order of the samples and of the noise.

    Returns
    -------
    Update
        What it has cost in privacy tells `epsilon`. A sample is in one batch of each pass: rate 1, with all passes of
        all rounds as steps, gives a bound. The rate ``batch_size / len(images)`` with all local steps gives a smaller
        number, which counts with batches drawn by Poisson sampling; these are shuffled, and it need not hold.

    Raises
    ------
    ValueError
        As for `dp_sgd`, if learning_rate, batch_size or epochs are out of range, or if training diverged to NaN or
        infinity (`Diverged`).

    References
    ----------
    Abadi et al. 2016, Alg. 1; McMahan et al. 2017, Alg. 1.
    """
    check_training(learning_rate, batch_size, epochs)
    check_samples(images=images, labels=labels)
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    local = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(epochs)]).to(device)
    batches = [batch for epoch in order.split(len(images)) for batch in epoch.split(batch_size)]
    for step, batch in enumerate(batches):
        gradient = dp_sgd(
            local,
            images[batch],
            labels[batch],
            bound=bound,
            noise_multiplier=noise_multiplier,
            loss=loss,
            seed=int(np.random.SeedSequence([seed, step]).generate_state(1)[0]),
            microbatch=batch_size,
        )
        apply_update(local, gradient, learning_rate=learning_rate)
    received = dict(model.named_parameters())
    delta = {name: value.detach() - received[name].detach() for name, value in local.named_parameters()}
    check_finite(delta)
    return Update(delta, "delta", len(images), len(batches), learning_rate)
