"""What a client can look at before it sends anything: the model that it received, and its own update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradleak_lib.federated.functional import as_function, cast_like
from gradleak_lib.federated.update import Update, check_finite, rounding_error
from gradleak_lib.seeding import seeded
from gradleak_lib.show import summary

# Layers with fewer rows are not looked at: a few rows are easily alike by chance.
_LEAST_ROWS = 8
# Of a larger layer, so many rows at even distances are compared with each other.
_MOST_ROWS = 2048
# Entries of the largest matrix of distances held at once: 32 MiB.
_ENTRIES = 1 << 22
# What an honest layer keeps to.
_LEAST = {"effective_rank": 0.3, "participation": 0.025}
_MOST = {"largest_cosine": 0.985, "median_cosine": 0.45, "bias_spread": 3.0, "bias_order": 0.95}
# Relative error below which a sample is exposed.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class LayerStatistics:
    """How the parameters of one layer look.

    All but `bias_order` stay the same when the rows change places (of more than 2048 rows, the cosines are those of a
    sample); all stay the same when the layer is scaled, weights and biases together.

    Parameters
    ----------
    name
        As in ``model.named_modules()``.
    rows, columns
        Shape of the weights, those of a convolution taken as one row per output channel.
    effective_rank
        Exponential of the entropy of the singular values, relative to the smaller of rows and columns, in [0, 1]; 0
        where all weights are zero.
    participation
        Participation ratio of the squared singular values, relative to the same, in [0, 1]. It counts only the large
        ones, and noise on the rows raises it less.
    largest_cosine, median_cosine
        Of all pairs of rows, without the sign, in [0, 1]: 1 where a row is repeated. Rows of zeros are left out.
    bias_spread
        Standard deviation over the rows of bias divided by norm of the row: the distance of the row's hyperplane from
        the origin. In units of 1 / sqrt(columns), where it is about 1 for PyTorch's initial weights. None without a
        bias.
    bias_order
        Rank correlation (Spearman) of that distance with the number of the row, without the sign, in [0, 1]. None
        without a bias.

    References
    ----------
    Roy and Vetterli 2007 (effective rank). Fowl et al. 2022, Sec. 5 (the analysis of ranks by a client).
    """

    name: str
    rows: int
    columns: int
    effective_rank: float
    participation: float
    largest_cosine: float
    median_cosine: float
    bias_spread: float | None
    bias_order: float | None


@torch.no_grad()
def inspect_layers(model: nn.Module) -> list[LayerStatistics]:
    """Look at every linear layer, and every convolution without groups, that has eight rows or more.

    Parameters
    ----------
    model
        The model that the server sent, left as it is.

    Returns
    -------
    list[LayerStatistics]
        In the order of ``model.named_modules()``. All are computed in double precision: in single precision, a little
        noise on the rows is taken for rounding.

    Raises
    ------
    ValueError
        If no layer is large enough, or one holds NaN or infinity.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1 and len(layer.weight) >= _LEAST_ROWS
    ]
    if not layers:
        raise ValueError(f"the model has no linear layer or convolution with {_LEAST_ROWS} rows or more")
    return [_statistics(name, layer.weight, layer.bias) for name, layer in layers]


def _statistics(name: str, weight: Tensor, bias: Tensor | None) -> LayerStatistics:
    matrix = weight.flatten(1).double()
    if not matrix.isfinite().all() or (bias is not None and not bias.isfinite().all()):
        raise ValueError(f"layer {name!r} of the model holds NaN or infinity")
    # The scale cancels; without it, squares of very small or large weights would leave the range.
    matrix = matrix / matrix.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    effective, participation = _ranks(matrix)
    norms = matrix.norm(dim=1)
    used = norms > 0
    largest, median = _cosines(matrix[used] / norms[used, None])
    spread = order = None
    if bias is not None:
        distance = bias.double()[used] / weight.flatten(1).double().norm(dim=1)[used]
        spread = distance.std(correction=0).item() * matrix.shape[1] ** 0.5 if used.any() else 0.0
        order = _rank_correlation(distance)
    rows, columns = matrix.shape
    return LayerStatistics(name, rows, columns, effective, participation, largest, median, spread, order)


def _ranks(matrix: Tensor) -> tuple[float, float]:
    """Effective rank and participation ratio, relative to the smaller side."""
    # Squared singular values from the smaller Gram matrix: those that it loses, below 1e-8 of the largest, count for
    # nothing in either, and it takes a tenth of the time.
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    squared = torch.linalg.eigvalsh(gram).clamp_min(0)
    squared = squared.where(squared > 1e-14 * squared.max(), 0)
    if not squared.any():
        return 0.0, 0.0
    share = squared.sqrt() / squared.sqrt().sum()
    entropy = -torch.special.xlogy(share, share).sum()
    participation = squared.sum().square() / squared.square().sum()
    return entropy.exp().item() / len(gram), participation.item() / len(gram)


def _cosines(directions: Tensor) -> tuple[float, float]:
    """Largest and median absolute cosine of all pairs of rows of length one."""
    count = len(directions)
    if count < 2:
        return 0.0, 0.0
    if count > _MOST_ROWS:
        directions = directions[torch.linspace(0, count - 1, _MOST_ROWS).long().to(directions.device)]
    first, second = torch.triu_indices(len(directions), len(directions), 1, device=directions.device)
    cosines = (directions @ directions.T).abs()[first, second]
    return cosines.max().clamp_max(1).item(), cosines.median().clamp_max(1).item()


def _rank_correlation(values: Tensor) -> float:
    from scipy.stats import rankdata

    numbers = torch.from_numpy(rankdata(values.numpy(force=True))).double()
    places = torch.arange(len(numbers), dtype=torch.float64)
    ranks, places = numbers - numbers.mean(), places - places.mean()
    norm = ranks.norm() * places.norm()
    return (ranks @ places / norm).abs().clamp_max(1).item() if norm > 0 else 0.0


@dataclass(frozen=True)
class Alarm:
    """One statistic of one layer that lies beyond its threshold.

    Parameters
    ----------
    layer
        Name of the layer.
    statistic
        Name of the field of `LayerStatistics`.
    value, threshold
        What was found, and the most (for the two ranks: the least) that an honest layer is granted.
    """

    layer: str
    statistic: str
    value: float
    threshold: float


def find_alarms(statistics: Sequence[LayerStatistics]) -> list[Alarm]:
    """List the statistics that no network of `gradleak_lib.models` has, untrained or trained on small images.

    That is no promise for other networks: a layer that starts at zero gives an alarm.

    Parameters
    ----------
    statistics
        From `inspect_layers`.

    Returns
    -------
    list[Alarm]
        In the order of the layers; empty where nothing is suspicious.
    """
    alarms = []
    for layer in statistics:
        for name, threshold in (_LEAST | _MOST).items():
            value = getattr(layer, name)
            if value is not None and (value < threshold if name in _LEAST else value > threshold):
                alarms.append(Alarm(layer.name, name, value, threshold))
    return alarms


@dataclass(frozen=True)
class LayerLeak:
    """What one linear layer's part of an update tells about the client's own samples.

    Parameters
    ----------
    name
        As in ``model.named_modules()``.
    single
        float64 ``[N]``: relative error of each sample's input to the layer, read as one row of the weights divided by
        its bias; infinite where nothing can be read.
    paired
        float64 ``[N]``: the same, read from the difference of two rows, or of any multiples of them.
    """

    name: str
    single: Tensor
    paired: Tensor

    __repr__ = summary

    @property
    def exposed(self) -> Tensor:
        """Samples whose inputs of this layer can be read from the update within 5 %, bool ``[N]``."""
        return torch.minimum(self.single, self.paired) < _TOLERANCE


@torch.no_grad()
def inspect_update(
    update: Update, model: nn.Module, images: Tensor, *, any_multiple: bool = False
) -> list[LayerLeak]:
    """Attack oneself: find the samples that one row, or two, of a linear layer's update give away.

    A row of the weights' update divided by its bias's is a weighted mean of the layer's inputs, and so is the
    difference of two rows divided by that of their biases. The client compares its own inputs with the ratios of all
    rows and of all pairs: it needs no idea of which rows belong together. The error of an input is relative to its
    distance from the mean of all others (of a single input, its norm): otherwise, a layer whose inputs nearly agree
    would seem to leak.

    Parameters
    ----------
    update
        What the client is about to send: a gradient, or the change by local training (where inputs of later layers
        change as it goes on, and less is found).
    model
        The model that the server sent, in the mode in which the update was made; left as it is.
    images
        ``[N, ...]``, all samples behind the update. A layer that meets several vectors of one sample (words) counts
        the one that is easiest to read.
    any_multiple
        Subtract from each row the multiple of another that comes closest to the sample, which a server whose rows
        have unequal outgoing weights knows. It gives false alarms where inputs lie on a line: of two samples, always.

    Returns
    -------
    list[LayerLeak]
        One for each linear layer that has a bias and that the samples reach. A single sample is exposed at every
        layer whose gradient is not zero. Of inputs with fewer than about ten entries, a pair comes close by chance.

    Raises
    ------
    ValueError
        If the images are not as many as the update's samples, the update is of another architecture, something is NaN
        or infinite, or the model has no linear layer with a bias.

    References
    ----------
    Geiping et al. 2020, Prop. 3.1 (one row); Fowl et al. 2022, Eq. 4 (two rows).
    """
    if len(images) != update.samples:
        raise ValueError(f"the update is of {update.samples} samples, got {len(images)} images")
    update.check(model)
    check_finite(update.tensors)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.bias is not None
        and f"{name}.bias".lstrip(".") in update.tensors
    }
    if not layers:
        raise ValueError("the model has no linear layer with a bias")
    leaks = []
    for name, inputs in _layer_inputs(model, layers, images).items():
        prefix = f"{name}." if name else ""
        weight, bias = (update.tensors[f"{prefix}{part}"].double() for part in ("weight", "bias"))
        # What rounding leaves of a gradient of zero has the precision in which it was computed.
        rows = bias.abs() > rounding_error(update.tensors[f"{prefix}bias"]).double()
        signal = None if any_multiple else bias[rows]
        single, paired = _errors(weight[rows] / bias[rows, None], signal, inputs.to(weight))
        leaks.append(LayerLeak(name, single.cpu(), paired.cpu()))
    return leaks


def _layer_inputs(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What each layer receives for each image, ``[N, T, M]``; layers that are not reached are left out."""
    received: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: received[name].append(inputs[0].detach())
        )
        for name, layer in layers.items()
    ]
    parameter = next(model.parameters())
    values = {name: value.detach() for name, value in model.named_parameters()}
    # Batch norm in training mode writes to its buffers, and dropout draws.
    values |= {name: value.detach().clone() for name, value in model.named_buffers()}
    try:
        with seeded(None, {parameter.device}):
            as_function(model)(values, cast_like(parameter, images))
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, parts in received.items():
        grouped = [
            part.reshape(len(images), -1, part.shape[-1]) for part in parts if len(part) % len(images) == 0
        ]
        if grouped:
            found[name] = torch.cat(grouped, 1).double()
            if not found[name].isfinite().all():
                raise ValueError(f"the inputs of layer {name!r} hold NaN or infinity: check the images")
    return found


def _errors(ratios: Tensor, signal: Tensor | None, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Relative distance of each sample's nearest vector to the nearest ratio, and to what the nearest pair gives.

    A pair gives a point on the line through its two ratios: with the rows' biases as ``signal``, that of their
    difference, without, the one nearest to the sample.
    """
    count, vectors = inputs.shape[:2]
    x = inputs.flatten(0, 1)
    size, centre = x.norm(dim=1), x.mean(0)
    # From the mean of all others; of a single vector, from the origin, and so for copies of one vector.
    scale = (x - centre).norm(dim=1) * len(x) / max(len(x) - 1, 1)
    scale = torch.where(scale > 1e-9 * size, scale, size)
    points, x = ratios - centre, x - centre  # what they have in common would cost precision
    gram, cross = points @ points.T, points @ x.T
    square, to_x = gram.diagonal(), x.square().sum(1)
    single = torch.full_like(to_x, torch.inf)
    paired = single.clone()
    for part in torch.arange(len(points), device=x.device).split(max(1, _ENTRIES // max(1, cross.numel()))):
        own = square[part, None]
        to_point = (to_x - 2 * cross[part] + own).clamp_min(0)  # [B, NT]
        single = torch.minimum(single, to_point.amin(0))
        length = (own - 2 * gram[part] + square).clamp_min(0)  # [B, R], squared, from one point to the other
        along = cross[None] - cross[part, None] - (gram[part] - own)[..., None]  # [B, R, NT]
        if signal is None:
            # Two points that agree but for rounding span no line.
            apart = length > 1e-12 * (own + square)
            gained = along.square().mul_(torch.where(apart, 1 / length.where(apart, 1), 0)[..., None])
        else:
            difference = signal[part, None] - signal
            apart = difference.abs() > rounding_error(signal.float())
            step = torch.where(apart, -signal / difference.where(apart, 1), 0)
            gained = along.mul_(2 * step[..., None]).sub_((step.square() * length)[..., None])
        paired = torch.minimum(paired, (to_point - gained.amax(1)).clamp_min(0).amin(0))
    if len(points) < 2:
        paired.fill_(torch.inf)

    def relative(squared: Tensor) -> Tensor:
        error = torch.where(scale > 0, squared.sqrt() / scale.where(scale > 0, 1), torch.inf)
        return error.reshape(count, vectors).amin(1)

    return relative(single), relative(paired)
