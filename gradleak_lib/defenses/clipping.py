"""Bounding what one update, or one sample, can change."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from gradleak_lib.defenses.composition import UpdateDefense
from gradleak_lib.defenses.noise import gaussian_noise
from gradleak_lib.federated.checks import check_samples, trained_parameters
from gradleak_lib.federated.functional import as_function, cast_like
from gradleak_lib.federated.update import Update, check_finite
from gradleak_lib.seeding import seeded


def clip(bound: float, *, within: Literal["update", "tensor"] = "update") -> UpdateDefense:
    """Scale an update down to a Euclidean norm.

    Parameters
    ----------
    bound
        Largest norm, positive. Smaller updates stay as they are.
    within
        ``"update"``: the norm of the whole update. ``"tensor"``: of each tensor by itself, as the released code of
        LLG does.

    Raises
    ------
    ValueError
        If the bound is out of range; when it is used, if the update holds NaN or infinity.

    References
    ----------
    Abadi et al. 2016, Alg. 1; McMahan et al. 2018 (clipping of a client's update).
    """
    if not 0 < bound < math.inf or within not in ("update", "tensor"):
        raise ValueError(
            f"bound must be positive and finite, within 'update' or 'tensor', got {bound}, {within!r}"
        )

    def defense(update: Update) -> Update:
        check_finite(update.tensors)
        norms = {name: tensor.double().norm() for name, tensor in update.tensors.items()}
        whole = torch.stack(list(norms.values())).norm()
        tensors = {
            # In double precision: a small factor would round to zero in half precision.
            name: (
                tensor.double() * (bound / (whole if within == "update" else norms[name])).clamp(max=1)
            ).to(tensor)
            for name, tensor in update.tensors.items()
        }
        return replace(update, tensors=tensors)

    return defense


def dp_sgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bound: float,
    noise_multiplier: float,
    loss: Callable[..., Tensor] = nn.functional.cross_entropy,
    seed: int = 0,
    microbatch: int = 32,
) -> Update:
    """Gradient of a batch whose samples are clipped one by one, with noise: what a client sends under DP-SGD.

    Parameters
    ----------
    model, images, labels, loss
        As for `gradleak_lib.federated.fedsgd`; batch norm must be in evaluation mode, since it mixes samples.
    bound
        C, largest norm of the gradient of one sample, positive.
    noise_multiplier
        z, 0 or more: the sum of the clipped gradients gets Gaussian noise of standard deviation z C.
    seed
        Seed of the noise.
    microbatch
        Samples whose gradients are held at once, at least 1.

    Returns
    -------
    Update
        The noisy sum, divided by the number of samples. What privacy it buys depends on how batches are drawn and how
        often: see `gradleak_lib.defenses.epsilon`.

    Raises
    ------
    ValueError
        If a number is out of range, images and labels differ in number, every parameter is frozen, batch norm is in
        training mode, or the gradient is NaN or infinity (`Diverged`).

    References
    ----------
    Abadi et al. 2016, Alg. 1.
    """
    if not 0 < bound < math.inf or not 0 <= noise_multiplier < math.inf or microbatch < 1:
        raise ValueError(
            "bound must be positive, noise_multiplier 0 or more, both finite, microbatch at least 1; got "
            f"{bound}, {noise_multiplier}, {microbatch}"
        )
    check_samples(images=images, labels=labels)
    trained = {name: value.detach() for name, value in trained_parameters(model).items()}
    if any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in model.modules()
    ):
        raise ValueError(
            "batch norm in training mode mixes the samples of a batch: put the model in evaluation mode"
        )
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= {name: value.detach().clone() for name, value in model.named_buffers()}
    outputs_of = as_function(model)
    example = next(iter(trained.values()))

    def of_one(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss(outputs_of(values | fixed, image[None]), label[None], reduction="sum")

    per_sample = vmap(grad(of_one), (None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(value) for name, value in trained.items()}
    lengths = torch.zeros(len(trained), dtype=torch.float64, device=example.device)
    with seeded(seed, {example.device}):  # for dropout
        for part, part_labels in zip(images.split(microbatch), labels.split(microbatch), strict=True):
            each = per_sample(trained, cast_like(example, part), part_labels.to(example.device))
            norms = torch.stack([value.flatten(1).double().norm(dim=1) for value in each.values()])
            lengths += norms.sum(1)
            factors = (bound / norms.norm(dim=0)).clamp(max=1).to(example)
            for name, value in each.items():
                total[name] += torch.tensordot(factors, value, 1)
    # Once for all microbatches: each look makes a GPU wait. The sum would not tell in which tensor it began.
    check_finite(dict(zip(trained, lengths, strict=True)))
    mean = Update({name: value / len(images) for name, value in total.items()}, "gradient", len(images))
    noisy = gaussian_noise(noise_multiplier * bound / len(images), seed=seed)(mean)
    sent = {
        name: noisy.tensors[name] if name in noisy.tensors else torch.zeros_like(value)
        for name, value in model.named_parameters()
    }
    return replace(noisy, tensors=sent)
