"""How often each label occurs in a client's batch, read from the gradient of the last layer.

Every attack returns counts, int64 ``[K]``, which sum to the number of samples behind the update; the order of the
samples is lost in the gradient, and does not matter. The model is the one that the server sent out; results lie on
its device, wherever the update and the images are.
"""

import heapq
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.attacks.access import sent_layer, undisturbed
from gradleak_lib.federated.functional import as_function, cast_like
from gradleak_lib.federated.update import Update
from gradleak_lib.models import last_layer
from gradleak_lib.show import summary

Dummies = Literal["zeros", "ones", "random"]


def class_gradients(update: Update, model: nn.Module) -> Tensor:
    """Sum of each row of the last layer's weight gradient: one number a class.

    Parameters
    ----------
    update
        A gradient, or the change of parameters after local steps: then the mean gradient of these steps, which is
        that of all samples if the local batches are equally large and the parameters move little.
    model
        The model that the server sent out. Its last layer is `gradleak_lib.models.last_layer`, and gives the scores.

    Returns
    -------
    Tensor
        float64 ``[K]``.

    Raises
    ------
    ValueError
        If the update is of another model or holds NaN or infinity, or a change of parameters has no learning rate.

    References
    ----------
    Wainakh et al. 2022 (g_i, the sum over a row of the last layer).
    """
    return _last_gradient(update, model)[0].sum(1)


def idlg(update: Update, model: nn.Module) -> Tensor:
    """Label of a single sample: its row of the gradient points against all others.

    A row is the features below the last layer, times the probability of the class, minus 1 for the label. So the
    label's row is minus the sum of all others, and none is longer, whatever the activation. Where another row is as
    long (two classes, or a model that is certain and wrong) the sign of the bias's gradient decides, or without a
    bias that of the row's sum, for features that are not negative.

    Parameters
    ----------
    update, model
        As for `class_gradients`.

    Raises
    ------
    ValueError
        As for `class_gradients`, or if there is more than one sample.

    References
    ----------
    Zhao et al. 2020, who compare signs; rows that rounding has set to zero have none.
    """
    if update.samples != 1:
        raise ValueError(f"idlg reads one label, and {update.samples} samples are behind the update: try llg")
    weight, bias = _last_gradient(update, model)
    lengths = weight.norm(dim=1)
    signs = weight.sum(1) if bias is None else bias
    label = signs.masked_fill(lengths < 0.9 * lengths.max(), torch.inf).argmin()
    return _counts(np.bincount([int(label)], minlength=len(weight)), weight)


@dataclass(frozen=True)
class Probe:
    """What a server learns by passing images of its own through the model that it sends out.

    Parameters
    ----------
    impact
        m: what one sample adds to the gradient of its class in a batch of one; in a batch of n it adds
        ``impact / n``. Below zero where features sum to more than zero.
    offset
        s, float64 ``[K]``: gradient of each class in batches without it.
    probabilities
        float64 ``[K]``: mean probability of each class.

    References
    ----------
    Wainakh et al. 2022 (impact and offset).
    """

    impact: float
    offset: Tensor
    probabilities: Tensor
    __repr__ = summary


def dummies(kind: Dummies, shape: tuple[int, ...], count: int = 1, *, seed: int = 0) -> Tensor:
    """Images without content, for `probe`.

    Parameters
    ----------
    kind
        ``"zeros"``, ``"ones"``, or ``"random"``, uniform in [0, 1].
    shape
        Of one image.
    count
        Number of images, at least 1; one is enough where all are equal.
    seed
        Seed of random images.

    Returns
    -------
    Tensor
        float32 ``[count, *shape]``.

    References
    ----------
    The authors' code takes zeros for MNIST, ones for CIFAR-100 and random images for SVHN.
    """
    if kind not in get_args(Dummies) or count < 1:
        raise ValueError(
            f"kind must be one of {', '.join(get_args(Dummies))}, and count 1 or more; got {kind!r}, {count}"
        )
    if kind == "random":
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return torch.full((count, *shape), float(kind == "ones"))


@torch.no_grad()
def probe(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Probe:
    """Estimate impact and offset from images of the server's own.

    The paper takes gradients of batches that hold one class each. They are computed here in closed form, from one
    forward pass: sample x with label y contributes (p_i(x) - [i = y]) S(x) to the gradient of class i, where p is the
    softmax and S the sum of the features below the last layer.

    Parameters
    ----------
    model
        The model that the server sends out; left as it was.
    images
        ``[N, ...]``, inputs of the model.
    labels
        int64 ``[N]``: auxiliary data of at least two classes (LLG+). None: dummies, each of which takes every label
        in turn (LLG*).

    Returns
    -------
    Probe
        Classes count alike, however many images they have.

    Raises
    ------
    ValueError
        If the labels do not fit, or the model's outputs are not scores of classes from its last linear layer, or not
        finite.

    References
    ----------
    Wainakh et al. 2022 (LLG*, LLG+), with the factor 1 + 1/K of their code.
    """
    sums, probabilities = _features(model, images)
    classes = probabilities.shape[1]
    absent = probabilities * sums[:, None]  # what a sample adds to classes that are not its own
    if labels is None:
        own, offset, mean = (absent - sums[:, None]).mean(), absent.mean(0), probabilities.mean(0)
    else:
        if labels.shape != (len(images),) or labels.is_floating_point():
            raise ValueError(f"labels must be whole numbers [{len(images)}], got shape {tuple(labels.shape)}")
        labels = labels.to(sums.device, torch.int64)
        present, each = labels.unique(return_counts=True)
        if int(present[0]) < 0 or int(present[-1]) >= classes or len(present) < min(2, classes):
            raise ValueError(
                f"labels must hold two or more of 0 to {classes - 1}, got {present.tolist()[:8]}"
            )
        order, sizes = labels.argsort(stable=True), each.tolist()
        rows, features, mean = (
            torch.stack([part.mean(0) for part in values[order].split(sizes)])
            for values in (absent, sums, probabilities)
        )
        own = (rows.gather(1, present[:, None]).squeeze(1) - features).mean()
        foreign = present[:, None] != torch.arange(classes, device=present.device)
        offset = (rows * foreign).sum(0) / foreign.sum(0).clamp(min=1)
        mean = mean.mean(0)
    return Probe(float(own) * (1 + 1 / classes), offset, mean)


def llg(update: Update, model: nn.Module, probe: Probe | None = None) -> Tensor:
    """Labels by direction and size of the gradients of the classes.

    First every class with a negative gradient is taken once: for features that are not negative it must be in the
    batch. Then the class with the lowest gradient is taken again and again, and its gradient raised by the impact
    each time.

    Parameters
    ----------
    update, model
        As for `class_gradients`.
    probe
        None: impact from the negative gradients themselves, no offset (LLG). From `probe` with dummies: LLG*; with
        auxiliary data: LLG+.

    Raises
    ------
    ValueError
        As for `class_gradients`, or if the probe is of another number of classes.

    References
    ----------
    Wainakh et al. 2022 and their code. Where noise makes more classes negative than there are samples, the most
    negative ones are taken.

    Examples
    --------
    >>> from gradleak_lib import data, models
    >>> from gradleak_lib.federated import fedsgd
    >>> digits, model = data.load("digits", sample=6), models.build("mlp", (1, 8, 8), classes=10)
    >>> llg(fedsgd(model, digits.images, digits.labels), model)
    tensor([0, 0, 0, 0, 0, 2, 1, 1, 0, 2])
    >>> digits.labels.bincount(minlength=10)
    tensor([0, 0, 0, 0, 0, 2, 1, 1, 0, 2])
    """
    of_classes = class_gradients(update, model)
    gradients = of_classes.cpu().numpy()
    classes, samples = len(gradients), update.samples
    if probe is None:
        impact = gradients[gradients < 0].sum() * (1 + 1 / classes) / samples
        offset = np.zeros(classes)
    else:
        impact, offset = probe.impact / samples, _fitting(probe.offset, classes)
    counts = np.zeros(classes, dtype=np.int64)
    lowest = np.argsort(gradients, kind="stable")[:samples]
    counts[lowest[gradients[lowest] < 0]] = 1
    heap = [(value, label) for label, value in enumerate(gradients - offset - impact * counts)]
    heapq.heapify(heap)
    for _ in range(samples - int(counts.sum())):
        value, label = heap[0]
        counts[label] += 1
        heapq.heapreplace(heap, (value - impact, label))
    return _counts(counts, of_classes)


def probe_from_gradient(update: Update, model: nn.Module) -> Probe:
    """Impact and offset from the update alone, for a model that gives every class the probability 1/K.

    LLG takes the sum of the negative gradients for the whole impact. But a present class is also pushed up by the
    samples of all others: with r of K classes negative, the sum is short by the factor 1 - r/K, which LLG expands for
    r = 1. Here is the factor itself, and the offset that goes with it.

    Parameters
    ----------
    update, model
        As for `class_gradients`.

    References
    ----------
    Ours; see the chapter on label leakage. An untrained model with small weights is nearly such a model. Exact if,
    too, every present class has a negative gradient; where one has not, the impact is still too small.
    """
    gradients = class_gradients(update, model)
    negative = gradients < 0
    classes = len(gradients)
    share = min(float(negative.sum()) / classes, 1 - 1 / max(2, classes))
    features = -float(gradients[negative].sum()) / (1 - share)
    uniform = torch.full_like(gradients, 1 / classes)
    return Probe(-features, features * uniform, uniform)


def bias_counts(update: Update, model: nn.Module, probe: Probe) -> Tensor:
    """Counts from the gradient of the last biases: n times (mean probability minus gradient).

    The gradient of a bias is the mean of p_c - [c = y] over the batch, with no feature in it, so no activation can
    break it. The server does not know the batch's mean probability and puts that of its own images in its place.

    Parameters
    ----------
    update, model
        As for `class_gradients`.
    probe
        From `probe`, with dummies or auxiliary data.

    Raises
    ------
    ValueError
        As for `llg`, or if the last layer has no bias.

    References
    ----------
    Gat and Sharif 2024 (LLBG); Chen and Vikalo 2024 (RLU) for several local steps.
    """
    bias = _bias(_last_gradient(update, model)[1], "bias_counts")
    mean = _fitting(probe.probabilities, len(bias))
    return _counts(_whole(update.samples * (mean - bias.cpu().numpy()), update.samples), bias)


def ilrg(update: Update, model: nn.Module) -> Tensor:
    """Counts that solve the equations of the last layer, with the features of each class read from its gradient.

    Dividing a class's row of the weight gradient by that of its bias gives features typical of the class; the last
    layer turns them into its probabilities. The counts then solve a linear system in the least-squares sense.

    A class that occurs about as often as the model expects has a bias gradient near zero, and the quotient is noise.
    Within a tenth of a sample, such a class is taken for an average one. As average classes have the same equation
    but for the right side, only the others are solved for: with thousands of classes those that are in the batch.

    Parameters
    ----------
    update, model
        As for `class_gradients`.

    Raises
    ------
    ValueError
        As for `class_gradients`, or if the last layer has no bias.

    References
    ----------
    Ma et al. 2023 (iLRG). Ours are the average class and the projection onto counts that sum to n, none
    negative.
    """
    weight, bias = _last_gradient(update, model)
    bias = _bias(bias, "ilrg")
    layer = cast(nn.Linear, model.get_submodule(last_layer(model)))
    samples = update.samples
    read = bias.abs() * samples > 0.1
    features = weight[read] / bias[read, None]
    average = features.mean(0, keepdim=True) if len(features) else torch.zeros_like(weight[:1])
    features = torch.cat([features, average])
    scores = nn.functional.linear(features, layer.weight.detach().to(weight), layer.bias.detach().to(weight))
    # Where features times weights overflow, the row says nothing.
    probabilities = scores.softmax(1).nan_to_num(nan=1 / len(weight))
    row_of = torch.where(read, read.cumsum(0) - 1, len(features) - 1)
    rows, places, right = (values.cpu().numpy() for values in (probabilities, row_of, samples * bias))
    return _counts(_whole(_solve(rows, places, right, samples), samples), weight)


def _solve(rows: np.ndarray, row_of: np.ndarray, right: np.ndarray, samples: int) -> np.ndarray:
    """Counts x ``[K]`` of least squares, and then of least norm, for ``P.T @ x - x = right``, ``x.sum() = samples``.

    P ``[K, K]`` is ``rows[row_of]``: few rows, of which one stands for many classes.
    """
    from scipy.sparse.linalg import LinearOperator, lsqr

    def times(x: np.ndarray) -> np.ndarray:
        return np.append(np.bincount(row_of, x, len(rows)) @ rows - x, x.sum())

    def transposed(y: np.ndarray) -> np.ndarray:
        return (rows @ y[:-1])[row_of] - y[:-1] + y[-1]

    system = LinearOperator((len(right) + 1, len(right)), times, transposed, dtype=np.float64)
    return lsqr(system, np.append(right, samples), atol=1e-12, btol=1e-12, conlim=0)[0]


def _last_gradient(update: Update, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Gradient of the last layer's weights ``[K, D]`` and biases ``[K]`` if it has any, in double precision."""
    sent = sent_layer(update, model, last_layer(model))
    scale = 1.0
    if update.kind == "delta":
        if not update.learning_rate:
            raise ValueError("a change of parameters needs its learning_rate to be read as a gradient")
        scale = -1 / (update.learning_rate * update.local_steps)
    bias = scale * sent["bias"].double() if "bias" in sent else None
    return scale * sent["weight"].double(), bias


def _features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the features below the last layer ``[N]`` and probabilities ``[N, K]``, in double precision."""
    layer = model.get_submodule(last_layer(model))
    seen: list[Tensor] = []
    example = next(model.parameters())
    buffers = {name: value.clone() for name, value in model.named_buffers()}  # batch norm may write to them
    hook = layer.register_forward_hook(lambda _, inputs, outputs: seen.extend((inputs[0], outputs)))
    try:
        with undisturbed(model):
            outputs = [as_function(model)(buffers, cast_like(example, part)) for part in images.split(512)]
    finally:
        hook.remove()
    if len(images) == 0 or not seen or seen[0].ndim != 2:
        raise ValueError(
            "the probe needs images, and a model whose last linear layer takes one vector a sample"
        )
    features, scores = torch.cat(seen[0::2]).double(), torch.cat(seen[1::2]).double()
    if not (features.isfinite().all() and scores.isfinite().all()):
        raise ValueError("the model's outputs are NaN or infinity: check its parameters and the images")
    if not torch.equal(scores, torch.cat(outputs).double()):
        raise ValueError(
            f"the model's outputs must be the scores of its last linear layer ({last_layer(model)}, the one that was "
            "made last), without a softmax"
        )
    return features.sum(1), scores.softmax(1)


def _bias(bias: Tensor | None, attack: str) -> Tensor:
    if bias is None:
        raise ValueError(f"{attack} reads the last layer's bias, and this one has none: try llg")
    return bias


def _fitting(values: Tensor, classes: int) -> np.ndarray:
    """Numbers of a probe, one a class."""
    if len(values) != classes:
        raise ValueError(f"the probe is of a model with {len(values)} classes, the update has {classes}")
    return values.cpu().numpy()


def _whole(shares: np.ndarray, samples: int) -> np.ndarray:
    """Project onto counts that sum to ``samples``, and round by largest remainder."""
    shares = shares - shares.max()  # so that large ones keep their differences
    ordered = np.sort(shares)[::-1]
    excess = (np.cumsum(ordered) - samples) / np.arange(1, len(shares) + 1)
    level = excess[np.flatnonzero(ordered > excess)[-1]]
    projected = np.maximum(shares - level, 0)
    counts = np.floor(projected).astype(np.int64)
    left = samples - int(counts.sum())
    counts[np.argsort(counts - projected, kind="stable")[:left]] += 1
    return counts


def _counts(counts: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(counts, dtype=torch.int64, device=like.device)
