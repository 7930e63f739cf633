"""Searching for a batch whose gradient is the one that was sent."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradleak_lib.federated.functional import as_function
from gradleak_lib.federated.update import Update


@dataclass(frozen=True)
class Inversion:
    """What an optimisation came to.

    Parameters
    ----------
    images
        ``[n, ...]``, not confined to [0, 1].
    probabilities
        ``[n, K]``: a soft label for each image.
    distance
        Squared distance between the gradients, at its lowest, where images and labels were taken.
    """

    images: Tensor
    probabilities: Tensor
    distance: float


def dlg(
    update: Update, model: nn.Module, shape: tuple[int, ...], *, iterations: int = 100, seed: int = 0
) -> Inversion:
    """Optimise dummy images and soft labels together until their gradient matches (deep leakage from gradients).

    Parameters
    ----------
    update
        A gradient (FedSGD) of the model.
    model
        The model that the server sent out, in evaluation mode, twice differentiable (sigmoid rather than ReLU); left
        as it was.
    shape
        Of one input.
    iterations
        Steps of L-BFGS, each of up to 20 evaluations; at least 1.
    seed
        Seed of the start, which is Gaussian.

    Raises
    ------
    ValueError
        If the update is no gradient or of another model, or holds NaN or infinity.

    References
    ----------
    Zhu et al. 2019, Alg. 1 (learning rate 1).
    """
    if update.kind != "gradient" or iterations < 1:
        raise ValueError(
            f"dlg needs a gradient and 1 or more iterations, got a {update.kind} and {iterations} iterations"
        )
    update.check(model)
    update.flat()  # refuses NaN and infinity
    trained = {
        name: value.detach().requires_grad_()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= {name: value.detach().clone() for name, value in model.named_buffers()}
    if not trained:
        raise ValueError("every parameter of the model is frozen: call model.requires_grad_(True)")
    sent = [update.tensors[name].detach().to(value) for name, value in trained.items()]
    outputs_of = as_function(model)
    example = sent[0]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(update.samples, *shape, generator=generator).to(example)
    with torch.no_grad():
        classes = outputs_of(trained | fixed, images).shape[1]
    scores = torch.randn(update.samples, classes, generator=generator).to(example)
    dummies = [images.requires_grad_(), scores.requires_grad_()]
    optimizer = torch.optim.LBFGS(dummies, lr=1)
    best = Inversion(images.detach().clone(), scores.detach().softmax(1), math.inf)

    def closure() -> Tensor:
        nonlocal best
        loss = nn.functional.cross_entropy(outputs_of(trained | fixed, images), scores.softmax(1))
        found = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
        distance = torch.stack([(g - s).square().sum() for g, s in zip(found, sent, strict=True)]).sum()
        images.grad, scores.grad = torch.autograd.grad(distance, dummies)
        if (
            float(distance.detach()) < best.distance
        ):  # without a line search, L-BFGS may end far from its best
            best = Inversion(images.detach().clone(), scores.detach().softmax(1), float(distance.detach()))
        return distance

    for _ in range(iterations):
        optimizer.step(closure)
    return best
