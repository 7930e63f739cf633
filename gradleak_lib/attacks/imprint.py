"""Robbing the Fed: a layer whose gradient is made of private samples (Fowl et al. 2022).

The server puts an `Imprint` into the model, sets its parameters with `arm`, and reads the update of an honest
client with `recover`. Nothing here sees a client's batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.attacks.access import sent_layer
from gradleak_lib.attacks.analytic import linear_input
from gradleak_lib.federated.update import Update, rounding_error
from gradleak_lib.seeding import seeded
from gradleak_lib.show import summary

Variant = Literal["cumulative", "sparse"]
Connection = Literal["addition", "linear"]
Reduction = Literal["mean", "sum"]

# Bins cover this many standard deviations around the mean, as the authors' first edge of -10 does.
_SPAN = 10.0


class Imprint(nn.Module):
    """``M(x) = f(W x + b)``, brought back to the shape of ``x`` so that any network can follow.

    A new module has random parameters and behaves like any linear layer; `arm` makes it malicious.

    Parameters
    ----------
    shape
        Shape of one input, without the batch dimension.
    bins
        Rows of ``W``, at least 2.
    variant
        ``"cumulative"``: f is ReLU, row i fires above edge i, and a bin is the difference of two rows.
        ``"sparse"``: f is a hard tanh on [0, 1], and only the samples inside bin i have a gradient in row i.
    connection
        ``"addition"``: the reduced activations are added to every entry of ``x`` (no more parameters).
        ``"linear"``: a second linear layer maps the activations back to the shape of ``x``; armed, it gives every
        entry the reduced activations, and what ``x`` was is lost.
    reduction
        ``"sum"`` is the paper's: its gradients are ``bins`` times as large. ``"mean"`` keeps the values that the
        network gets near those of ``x``, so that it can go on training.
    gain
        The paper's c0, positive: scales rows, biases and ceiling; what follows is divided by it, so that the
        function that the network computes does not change. The gradient of a row grows as ``1 / gain``. The
        authors' code has ``connection="linear", reduction="sum", gain=1e-3``.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Fowl et al. 2022, Sec. 3.3 (cumulative) and Sec. 4.3 (sparse).
    """

    def __init__(
        self,
        shape: Sequence[int],
        bins: int,
        *,
        variant: Variant = "cumulative",
        connection: Connection = "addition",
        reduction: Reduction = "mean",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        _check_bins(bins)
        if variant not in ("cumulative", "sparse"):
            raise ValueError(f"variant must be 'cumulative' or 'sparse', got {variant!r}")
        if connection not in ("addition", "linear"):
            raise ValueError(f"connection must be 'addition' or 'linear', got {connection!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if gain <= 0:
            raise ValueError(f"gain must be positive, got {gain}")
        self.shape, self.bins, self.variant, self.gain = tuple(shape), bins, variant, gain
        self.reduction = reduction
        self.rows = torch.arange(bins)  # those that measure, which the server knows; `disguise` adds others
        features = math.prod(self.shape)
        self.linear = nn.Linear(features, bins)
        self.back = nn.Linear(bins, features) if connection == "linear" else None

    def forward(self, x: Tensor) -> Tensor:
        """Pass a batch ``[N, *shape]`` on in its shape; ValueError if it has another."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"the imprint takes inputs of shape {self.shape}, got {tuple(x.shape[1:])}")
        ceiling = self.gain if self.variant == "sparse" else None
        activation = self.linear(x.flatten(1)).clamp(0, ceiling)
        if self.back is not None:
            return self.back(activation).reshape(x.shape)
        reduced = activation.mean(1) if self.reduction == "mean" else activation.sum(1)
        return x + (reduced / self.gain).reshape(-1, *(1 for _ in self.shape))


@torch.no_grad()
def arm(imprint: Imprint, measurement: Tensor, edges: Tensor) -> Imprint:
    """Set the parameters of an imprint so that every row measures the same h against its own edge.

    Parameters
    ----------
    imprint
        The module, changed in place; the other two may lie on any device.
    measurement
        ``[M]``, the weights of the linear measurement ``h(x) = <measurement, x>``, M the size of one input.
    edges
        ``[bins + 1]``, ascending: bin i holds the samples with ``edges[i] < h(x) < edges[i + 1]``. The cumulative
        variant has no upper end: its last bin holds everything above ``edges[bins - 1]``.

    Returns
    -------
    Imprint
        The same module.

    Raises
    ------
    ValueError
        If a shape does not fit, or the edges do not ascend.

    References
    ----------
    Fowl et al. 2022, Sec. 3.3 (``W = h, b = -c``) and Sec. 4.3 (``W = h / delta, b = -c / delta``).
    """
    weight, bias = imprint.linear.weight, imprint.linear.bias
    if measurement.shape != weight.shape[1:]:
        raise ValueError(
            f"measurement must have shape {tuple(weight.shape[1:])}, got {tuple(measurement.shape)}"
        )
    if edges.shape != (imprint.bins + 1,):
        raise ValueError(f"edges must have shape {(imprint.bins + 1,)}, got {tuple(edges.shape)}")
    measurement, edges = (values.to(weight.device, torch.float64) for values in (measurement, edges))
    lower, width = edges[:-1], edges.diff()
    if not (width > 0).all():
        raise ValueError(
            "edges must ascend strictly: take fewer bins, more public data, or a measurement that varies more"
        )
    scale = imprint.gain / width if imprint.variant == "sparse" else torch.full_like(width, imprint.gain)
    weight.copy_(scale[:, None] * measurement)
    bias.copy_(-scale * lower)
    if imprint.back is not None:
        # Equal outgoing weights: Eq. 4 needs every row to receive the same signal from the loss.
        imprint.back.weight.fill_(1 / (imprint.gain * (imprint.bins if imprint.reduction == "mean" else 1)))
        imprint.back.bias.zero_()
    return imprint


def from_public(
    public: Tensor,
    bins: int,
    *,
    measurement: Tensor | None = None,
    variant: Variant = "cumulative",
    connection: Connection = "addition",
    reduction: Reduction = "mean",
    gain: float = 1.0,
) -> Imprint:
    """Build an imprint and arm it for data like these: what a server does that has public images of the same kind.

    Parameters
    ----------
    public
        ``[P, *shape]``, samples like the clients', more than ``bins``.
    bins
        At least 2; bins of equal mass on the public samples.
    measurement
        As for `arm`; None: the mean brightness.
    variant, connection, reduction, gain
        As for `Imprint`.

    Returns
    -------
    Imprint
        On the CPU, like any new layer; `gradleak_lib.attacks.placement` brings it to the model's device.

    Raises
    ------
    ValueError
        As for `Imprint`, `bins_from_public` and `arm`.

    References
    ----------
    Fowl et al. 2022, Sec. 3.3.
    """
    shape = public.shape[1:]
    with seeded(None):  # parameters that are about to be set
        layer = Imprint(shape, bins, variant=variant, connection=connection, reduction=reduction, gain=gain)
    measurement = mean_brightness(shape) if measurement is None else measurement
    return arm(layer, measurement, bins_from_public(measure(public, measurement), bins))


@dataclass(frozen=True)
class Recovered:
    """What the server reads from one update.

    Parameters
    ----------
    inputs
        ``[R, *shape]``, the candidates: exact inputs of the imprint where one sample fell into the bin, weighted
        means where several did. Not clamped.
    bins
        int64 ``[R]``, the row of ``W`` that each candidate was read from, ascending: the bin, as `arm` orders them.
    """

    inputs: Tensor
    bins: Tensor
    __repr__ = summary

    def __len__(self) -> int:
        return len(self.inputs)


def recover(update: Update, model: nn.Module) -> Recovered:
    """Read private inputs from an update, whatever the client's batch was.

    Parameters
    ----------
    update
        The gradient or parameter difference of one client, or of a secure aggregate.
    model
        The model that the server sent out, with one `Imprint` in it.

    Returns
    -------
    Recovered
        One candidate for each bin that was hit, on the model's device. Where noise makes more bins look hit than
        there are samples, the candidates with the largest mean weight gradient are kept.

    Raises
    ------
    ValueError
        If the update is of another architecture, the model has no imprint, or the imprint's part of the update
        holds NaN or infinity.

    References
    ----------
    Fowl et al. 2022, Eq. 4; Sec. 4.3 for the sparse variant; Sec. 4 for the candidates dropped.

    Examples
    --------
    >>> from gradleak_lib import data, metrics, models
    >>> from gradleak_lib.attacks import placement
    >>> from gradleak_lib.federated import fedsgd
    >>> digits = data.load("digits", sample=600)
    >>> public, private = digits.subset(range(500)), digits.subset(range(500, 510))
    >>> layer = from_public(public.images, bins=64)
    >>> model = placement.before_input(models.build("mlp", (1, 8, 8), classes=10), layer)
    >>> recovered = recover(fedsgd(model, private.images, private.labels), model)
    >>> recovered
    Recovered(inputs=float32[10, 1, 8, 8], bins=int64[10])
    >>> int(metrics.score(recovered.inputs, private.images).exact.sum())
    10
    """
    name, imprint = find(model)
    update.check(model)
    layer = sent_layer(update, model, f"{name}.linear" if name else "linear")
    rows, weight, bias = ascending(imprint), layer["weight"], layer["bias"]
    in_order = len(rows) == len(bias) and bool((rows[1:] > rows[:-1]).all())
    if not in_order:
        weight, bias = weight[rows], bias[rows]
    if imprint.variant == "cumulative":
        threshold = rounding_error(bias)
        # The last row stands alone: nothing lies above it that would have to be taken away.
        weight, bias = _less_the_next(weight), _less_the_next(bias)
        bias = torch.where(bias.abs() > threshold, bias, torch.zeros_like(bias))
    inputs, hit = linear_input(weight, bias)
    bins = rows[hit]
    if not in_order:
        bins, order = bins.sort()
        inputs, hit = inputs[order], hit[order]
    if len(inputs) > update.samples:
        keep = weight[hit].mean(1).abs().topk(update.samples).indices.sort().values
        inputs, bins = inputs[keep], bins[keep]
    return Recovered(inputs.reshape(-1, *imprint.shape), bins)


def _less_the_next(rows: Tensor) -> Tensor:
    """Each row minus the one after it; the last as it is."""
    found = torch.empty_like(rows)
    torch.sub(rows[:-1], rows[1:], out=found[:-1])
    found[-1] = rows[-1]
    return found


@torch.no_grad()
def alone_in_bin(imprint: Imprint, inputs: Tensor) -> Tensor:
    """Tell which inputs have a bin to themselves, as the layer computes it: for the evaluation, not the attack.

    Parameters
    ----------
    imprint
        An armed imprint.
    inputs
        ``[N, *shape]``, what the layer receives.

    Returns
    -------
    Tensor
        bool ``[N]``, on the device of the inputs, as all evaluations of given originals.
    """
    activation = imprint.linear(inputs.flatten(1).to(imprint.linear.weight))[:, ascending(imprint)]
    inside = activation >= 0  # at the ends of the clamp, too, torch lets the gradient through
    if imprint.variant == "sparse":
        inside &= activation <= imprint.gain
    else:
        inside[:, :-1] &= ~inside[:, 1:]
    return (inside & (inside.sum(0) == 1)).any(1).to(inputs.device)


def ascending(imprint: Imprint) -> Tensor:
    """Rows of an imprint that measure, int64 ``[bins]``, in the order of their edges."""
    # Bias is minus edge. The sparse variant scales each row, but reads its rows one by one: any order will do.
    bias = imprint.linear.bias.detach()
    rows = imprint.rows.to(bias.device)
    return rows[bias[rows].argsort(descending=True, stable=True)]


def find(model: nn.Module) -> tuple[str, Imprint]:
    """Name and module of the one imprint in a model; ValueError if there is none, or more than one."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Imprint)]
    if len(found) != 1:
        raise ValueError(f"expected a model with one Imprint, found {len(found)}")
    return found[0]


# --- measurements: any linear function of the input ---


def mean_brightness(shape: Sequence[int], *, channels: int | None = None) -> Tensor:
    """Weights ``[M]`` of the mean over an input of this shape, or over its first ``channels`` channels."""
    weights = torch.zeros(tuple(shape))
    weights[:channels] = 1 / weights[:channels].numel()
    return weights.flatten()


def random_projection(shape: Sequence[int], *, seed: int = 0) -> Tensor:
    """Weights ``[M]`` drawn from a Gaussian, of unit length."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(math.prod(shape), generator=generator)
    return weights / weights.norm()


def measure(inputs: Tensor, measurement: Tensor) -> Tensor:
    """``h(x)`` of each input: ``[N, ...]`` and ``[M]`` give ``[N]``, where the inputs lie, in the dtype of h."""
    return inputs.flatten(1).to(measurement.dtype) @ measurement.to(inputs.device)


# --- bins: edges of equal mass ---


def bins_from_cdf(distribution: Any, bins: int) -> Tensor:
    """Edges of equal mass under a known distribution of h.

    Parameters
    ----------
    distribution
        A frozen distribution of ``scipy.stats``: ``norm(0, 1)``, or ``norm(*norm.fit(public))`` for a Gaussian
        fitted to public data.
    bins
        At least 2.

    Returns
    -------
    Tensor
        float64 ``[bins + 1]``; the outermost lie ten standard deviations from the mean.

    References
    ----------
    Fowl et al. 2022, Sec. 3.3: ``c_i = Phi^-1(i / k)``.
    """
    _check_bins(bins)
    inner = distribution.ppf(np.arange(1, bins) / bins)
    return _with_ends(inner, distribution.mean(), distribution.std())


def bins_from_public(values: Tensor, bins: int) -> Tensor:
    """Edges at the empirical quantiles of h on public data.

    Parameters
    ----------
    values
        ``[P]``, h of public samples; more than one distinct value in every bin, so P should exceed ``bins``.
    bins
        At least 2.

    Returns
    -------
    Tensor
        float64 ``[bins + 1]``; the outermost lie ten standard deviations from the mean.

    Raises
    ------
    ValueError
        If there are fewer than ``bins - 1`` values.
    """
    _check_bins(bins)
    if len(values) < bins - 1:
        raise ValueError(f"{bins} bins need at least {bins - 1} public values, got {len(values)}")
    public = values.double().cpu().numpy()
    # Weibull's rule puts the i-th of P ordered values at i / (P + 1): the mean mass below it, for any distribution.
    inner = np.quantile(public, np.arange(1, bins) / bins, method="weibull")
    return _with_ends(inner, public.mean(), public.std())


def one_shot_bins(values: Tensor, samples: int, *, position: float = 0.5) -> Tensor:
    """Edges of two bins: one expected to catch one of so many samples, and everything above it.

    Parameters
    ----------
    values
        ``[P]``, h of public samples.
    samples
        Samples expected behind one update: the first bin has mass ``1 / samples``.
    position
        Quantile, in (0.05, 0.95), around which the first bin lies.

    Returns
    -------
    Tensor
        float64 ``[3]``.

    References
    ----------
    Fowl et al. 2022, Sec. 4.2.
    """
    if samples < 1 or not 0.05 < position < 0.95:
        raise ValueError(
            f"samples must be at least 1 and position in (0.05, 0.95), got {samples}, {position}"
        )
    public = values.double().cpu().numpy()
    # A bin narrower than the gap between two public values needs the density around it, not the gap itself.
    low, centre, high = np.quantile(public, [position - 0.05, position, position + 0.05])
    width = (high - low) / 0.1 / samples
    top = public.mean() + _SPAN * public.std()
    return torch.tensor([centre - width / 2, centre + width / 2, top], dtype=torch.float64)


def _with_ends(inner: np.ndarray, mean: float, deviation: float) -> Tensor:
    ends = mean - _SPAN * deviation, mean + _SPAN * deviation
    return torch.from_numpy(np.concatenate([[ends[0]], inner, [ends[1]]]))


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
