"""Deep leakage from gradients: the first search for images whose gradient matches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradleak_lib.attacks.access import searched_for, undisturbed
from gradleak_lib.attacks.inversion import Inversion, check_classes, check_labels, normalisation
from gradleak_lib.federated.functional import as_function
from gradleak_lib.federated.update import Update


def dlg(
    update: Update,
    model: nn.Module,
    shape: tuple[int, ...],
    labels: Tensor | None = None,
    *,
    iterations: int = 100,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    seed: int = 0,
) -> Inversion:
    """Minimise the squared distance of the gradients with L-BFGS, over images and, if unknown, soft labels.

    Parameters
    ----------
    update
        A gradient (FedSGD) of the model.
    model
        The model that the server sent out, in evaluation mode, twice differentiable (sigmoid rather than ReLU); left
        as it was.
    shape
        Of one image.
    labels
        int64 ``[n]``; None: searched for together with the images.
    iterations
        Steps of L-BFGS, each of up to 20 evaluations; at least 1.
    mean, std
        The model's inputs are ``(image - mean) / std``; one number, or one for each channel.
    seed
        Seed of the start, which is Gaussian.

    Returns
    -------
    Inversion
        Its objective is the squared distance, its trace has a row for each evaluation, and its images are not
        confined to [0, 1].

    Raises
    ------
    ValueError
        If the update is no gradient, zero, or of another model, or holds NaN or infinity; if labels, mean or std do
        not fit; if the distance is never a number.

    References
    ----------
    Zhu et al. 2019, Alg. 1 (learning rate 1). Geiping et al. 2020, Sec. 4 (with known labels).
    """
    if update.kind != "gradient" or iterations < 1:
        raise ValueError(
            f"dlg needs a gradient and 1 or more iterations, got a {update.kind} and {iterations} iterations"
        )
    trained = {name: value.detach().requires_grad_() for name, value in searched_for(update, model).items()}
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= {name: value.detach().clone() for name, value in model.named_buffers()}
    sent = [update.tensors[name].detach().to(value) for name, value in trained.items()]
    outputs_of = as_function(model)
    example = sent[0]
    centre, spread = normalisation(mean, std, shape, example)
    generator = torch.Generator().manual_seed(seed)
    # L-BFGS asks for a number a hundred times a step: it works on the CPU, wherever the model is.
    images = torch.randn(update.samples, *shape, generator=generator).to(example.dtype).requires_grad_()
    with torch.no_grad(), undisturbed(model, seed):
        classes = outputs_of(trained | fixed, images.to(example)).shape[1]
    if labels is None:
        scores = torch.randn(update.samples, classes, generator=generator).to(example.dtype).requires_grad_()
        dummies = [images, scores]
    else:
        check_labels(labels, update.samples)
        check_classes(labels, classes)
        hot = nn.functional.one_hot(labels.cpu(), classes)
        scores = hot.to(example.dtype).log()  # its softmax is one-hot again
        dummies = [images]
    optimizer = torch.optim.LBFGS(dummies, lr=1)
    best, lowest, trace = (images.detach().clone(), scores.detach().clone()), math.inf, []

    def closure() -> Tensor:
        nonlocal best, lowest
        outputs = outputs_of(trained | fixed, images.to(example))
        loss = nn.functional.cross_entropy(outputs, scores.to(example).softmax(1))
        found = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
        distance = torch.stack([(g - s).square().sum() for g, s in zip(found, sent, strict=True)]).sum()
        for dummy, change in zip(dummies, torch.autograd.grad(distance, dummies), strict=True):
            dummy.grad = change
        trace.append(distance.detach().cpu())
        if float(trace[-1]) < lowest:  # without a line search, L-BFGS may end far from its best
            best, lowest = (images.detach().clone(), scores.detach().clone()), float(trace[-1])
        return trace[-1]

    with (
        torch.enable_grad(),
        undisturbed(model, seed),
        sdpa_kernel(SDPBackend.MATH),
    ):  # flash attention has no second derivative
        for _ in range(iterations):
            optimizer.step(closure)
    if lowest == math.inf:
        raise ValueError("the distance between the updates was never a number: check the model's weights")
    found, scores, objectives = (value.to(example.device) for value in (*best, torch.stack(trace)[:, None]))
    return Inversion(found * spread + centre, scores.argmax(1), lowest, objectives)
