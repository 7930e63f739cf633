"""SPEAR: a whole batch, read exactly from the gradient of a linear layer that a ReLU follows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradleak_lib.attacks.access import sent_layer
from gradleak_lib.federated.update import Update
from gradleak_lib.show import summary

# How far beyond its standard error a signal may lie and still count as zero: thousands of them are looked at.
_SURE = 10.0
# A sign that rounding blurs is one in thousands; a wrong direction costs more.
_EXACT = 1 - 1e-3
# Steps of a descent, how much each narrows the smooth stand-in for a count of zeros, and the last fits at no width.
_STEPS, _NARROWER, _FITS = 40, 0.85, 3
# Noise of the double precision in which all is computed, with a margin for the solves.
_COMPUTED = 1e-13


@dataclass(frozen=True)
class Spear:
    """What `spear` finds.

    Parameters
    ----------
    inputs
        ``[R, M]``, the inputs of the layer in any order, in the model's dtype and on its device. R is the number of
        samples, or lower where the gradient has a lower rank.
    agreement
        In [0, 1]: share of the entries of the layer's outputs ``[R, K]`` that are positive just where the signal is
        not zero. Above 0.999 for an exact recovery, where rounding blurs the odd entry. With many samples, one wrong
        direction spoils most inputs and still leaves 0.99.
    """

    inputs: Tensor
    agreement: float
    __repr__ = summary


@dataclass(frozen=True)
class _Factors:
    """Gradient ``[K, M + 1]`` of weights and biases, each row scaled to length 1, as ``left * sizes @ right``.

    Without rows of zeros, which say nothing. ``live`` bool ``[K]`` are the others; ``noise`` is the standard error of
    a row's entries.
    """

    left: Tensor
    sizes: Tensor
    right: Tensor
    noise: Tensor
    live: Tensor


@torch.no_grad()
def spear(update: Update, model: nn.Module, layer: str, *, trials: int = 2**13, seed: int = 0) -> Spear:
    """Recover every input of a linear layer that a ReLU follows, from the gradient of its weights and biases.

    The gradient is a product DᵀX of signals D, the gradient by the layer's outputs, and inputs X. Any factors of the
    same rank have the columns of Dᵀ in the span of its left factor, and they are the sparse vectors there: the
    signal is zero wherever the ReLU's input is negative. A vector that is zero in R - 1 rows drawn at random is often
    such a column, if R is small; it gives itself away by many more zeros. R independent ones give D up to the length
    of its columns, hence X up to that of its rows, and the gradient of the biases, an input that is always 1, those.

    Parameters
    ----------
    update
        A gradient, or a change of parameters after one step.
    model
        The model that the server sent out; left as it was.
    layer
        Name of an ``nn.Linear`` with biases, as in ``model.named_modules()``. That a ReLU follows is not checked.
    trials
        Row subsets to draw, 1 or more, rounded up. The search ends earlier, once the signs of all outputs agree.
    seed
        Seed of the draws.

    Returns
    -------
    Spear
        Look at its ``agreement``: without enough zeros, or after too few trials, the inputs are mixtures. Equal
        inputs come back as one, and a sample without a signal does not come back.

    Raises
    ------
    ValueError
        If the update has several steps, holds NaN, is zero or does not fit the model, the layer is not linear with
        biases, a number is out of range, or there are more samples than the layer has inputs or outputs.

    References
    ----------
    Dimitrov et al. 2024 (SPEAR): the low rank, the sparse columns, the draws, the greedy choice, the check of signs.
    Ours: the biases as one more input; descents from the vectors drawn, and differences of pairs, where the paper
    draws until it hits, about 2 ** R times; tolerances from what of the gradient exceeds that rank.

    Examples
    --------
    >>> from gradleak_lib import data, models
    >>> from gradleak_lib.federated import fedsgd
    >>> digits, model = data.load("digits", sample=3), models.build("mlp", (1, 8, 8), classes=10)
    >>> found = spear(fedsgd(model, digits.images, digits.labels), model, "1")
    >>> found.inputs.shape, found.agreement
    (torch.Size([3, 64]), 1.0)
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    linear, gradient = _read(update, model, layer)
    factors = _factorise(gradient, update.samples)
    generator = torch.Generator().manual_seed(seed)
    rank, drawn = len(factors.sizes), 0
    found = factors.left.new_zeros(0, rank)
    inputs = gradient.new_zeros(0, gradient.shape[1] - 1, dtype=torch.float64)
    agreement = 0.0
    while drawn < trials and agreement < _EXACT:
        bundles = -(-min(trials - drawn, 96) // rank)
        # Keep the sparsest found, or none, in every bundle. The others may be mixtures, which would stand in the way.
        known = found[: int(torch.randint(rank, (1,), generator=generator))]
        candidates = _descend(factors, _draw(factors, bundles * rank, generator), known)
        found = _sparsest(factors, torch.cat([found, candidates]))
        candidates, before = torch.cat([found, candidates]), -1
        while before < (total := int(_zeros(factors, found).sum())):
            candidates, before = _fit(factors, _differences(factors, candidates, found)), total
            candidates = found = _sparsest(factors, torch.cat([found, candidates]))
        drawn += bundles * rank
        if len(found) == rank:
            inputs, agreement = _invert(factors, found, linear)
    return Spear(inputs.to(linear.weight.dtype), agreement)


def _read(update: Update, model: nn.Module, layer: str) -> tuple[nn.Linear, Tensor]:
    """The layer, and the gradient of its weights and biases side by side, ``[K, M + 1]``."""
    if update.local_steps > 1:
        raise ValueError(f"spear reads the gradient of one step, and the update has {update.local_steps}")
    linear = dict(model.named_modules()).get(layer)
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        given = "nothing" if linear is None else f"{linear}"
        raise ValueError(f"layer must name an nn.Linear with biases of the model, got {layer!r}: {given}")
    sent = sent_layer(update, model, layer)
    if update.samples > min(linear.weight.shape):
        raise ValueError(
            f"spear takes at most as many samples as the layer has inputs and outputs, {min(linear.weight.shape)}, "
            f"got {update.samples}"
        )
    if not any(tensor.any() for tensor in sent.values()):
        raise ValueError(
            f"the gradient of layer {layer!r} is zero: it is frozen, or no sample has a signal there"
        )
    return linear, torch.cat([sent["weight"], sent["bias"][:, None]], 1)


def _factorise(gradient: Tensor, samples: int) -> _Factors:
    """Cut the gradient down to the rank of its samples, and measure the noise in what is cut off."""
    rows = gradient.double()
    # Relative rounding errors make long rows noisy. With all of one length, one level of noise fits them.
    lengths = rows.norm(dim=1)
    live = lengths > 0
    rows = rows[live] / lengths[live, None]
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    # At least what the dtype rounds off, in each of the independent entries of a row, and what the SVD does.
    width = rows.shape[1]
    floor = torch.finfo(gradient.dtype).eps / math.sqrt(width) + torch.finfo(rows.dtype).eps * sizes[0]
    # A matrix of nothing but noise has sizes up to this (Bai and Yin 1993); here is the first that must be noise.
    edge = float(floor) * (math.sqrt(len(rows)) + math.sqrt(width))
    if len(sizes) > samples:
        edge = max(edge, float(sizes[samples]))
    rank = max(1, int((sizes[:samples] > 8 * edge).sum()))
    right = right[:rank]
    rest = (rows - rows @ right.T @ right).norm(dim=1) / math.sqrt(max(1, width - rank))
    return _Factors(left[:, :rank], sizes[:rank], right, rest.clamp_min(max(float(floor), _COMPUTED)), live)


def _draw(factors: _Factors, count: int, generator: torch.Generator) -> Tensor:
    """Directions ``[count, R]`` along which the signals are zero in R - 1 random rows."""
    left, rank = factors.left, len(factors.sizes)
    rows = torch.rand(count, len(left), generator=generator).topk(rank - 1, dim=1).indices.to(left.device)
    # One more equation, which fixes the length.
    last = torch.randn(count, 1, rank, generator=generator, dtype=left.dtype).to(left.device)
    right = torch.zeros(count, rank, dtype=left.dtype, device=left.device)
    right[:, -1] = 1
    return _unit(torch.linalg.solve_ex(torch.cat([left[rows], last], 1), right)[0])


def _descend(factors: _Factors, directions: Tensor, known: Tensor) -> Tensor:
    """Lower the sum of log(signal ** 2 + width ** 2) for ever smaller widths, R directions in a bundle.

    The logarithm lies below its tangents in signal ** 2, so that each step solves a weighted least-squares problem
    (Daubechies et al. 2010): the next direction has the least weighted signals of all that are as far from the span
    of the bundle's others. That keeps a bundle from falling into one direction. Its first ones are those ``known``.
    """
    left, rank = factors.left, len(factors.sizes)
    bundles = directions.unflatten(0, (-1, rank))
    for step in range(_STEPS):
        bundles = torch.cat([known.expand(len(bundles), -1, -1), bundles[:, len(known) :]], 1)
        # Each row of the inverse is at right angles to all of the bundle but one.
        tiny = _COMPUTED * torch.eye(rank, dtype=left.dtype, device=left.device)
        beside = _unit(torch.linalg.inv_ex(bundles + tiny)[0].mT.flatten(0, 1))
        width = torch.full_like(factors.noise, _NARROWER**step / math.sqrt(len(left)))
        bundles = _reweighted(factors, bundles.flatten(0, 1), beside, width).unflatten(0, (-1, rank))
    return _fit(factors, bundles.flatten(0, 1))


def _fit(factors: _Factors, directions: Tensor) -> Tensor:
    """Fit directions to the signals that are zero but for noise, and to no others."""
    for _ in range(_FITS):
        directions = _reweighted(factors, directions, directions, _SURE * _noise(factors, directions))
    return directions


def _reweighted(factors: _Factors, directions: Tensor, beside: Tensor, width: Tensor) -> Tensor:
    """Directions with the least squared signals, weighted by what they were, at a fixed product with ``beside``."""
    left = factors.left
    squares = (left[:, :, None] * left[:, None, :]).flatten(1)
    weights = 1 / ((directions @ left.T).square() + width.square())
    systems = ((weights / weights.amax(1, keepdim=True)) @ squares).unflatten(1, (-1, left.shape[1]))
    # Along a perfect direction a system is singular: a rounding error more keeps it solvable.
    ridge = torch.finfo(left.dtype).eps * torch.eye(left.shape[1], dtype=left.dtype, device=left.device)
    return _unit(torch.linalg.solve_ex(systems + ridge, beside)[0])


def _differences(factors: _Factors, directions: Tensor, others: Tensor) -> Tensor:
    """Take from each direction the multiple of each other one that sets four or more signals to zero at once.

    A mixture a + c b of two columns has the same ratio to b wherever a is zero: taking c b away leaves a.
    """
    first, second = (
        (found @ factors.left.T).masked_fill(_zeros(factors, found), torch.nan)
        for found in (directions, others)
    )
    ratios = (first[:, None] / second).nan_to_num(torch.inf).sort(-1).values
    spread = ((ratios[..., 3:] - ratios[..., :-3]) / ratios[..., :-3].abs()).nan_to_num(torch.inf)
    if spread.shape[-1] == 0:
        return directions[:0]
    least = spread.min(-1, keepdim=True)
    ratio = ratios.gather(-1, least.indices + 1)
    close = (least.values < 1e-3).squeeze(-1)
    return _unit((directions[:, None] - ratio * others)[close])


def _noise(factors: _Factors, directions: Tensor) -> Tensor:
    """Standard error ``[B, K]`` of the signals along directions ``[B, R]``: the left factor has noise / sizes."""
    return (directions / factors.sizes).norm(dim=1, keepdim=True) * factors.noise


def _zeros(factors: _Factors, directions: Tensor) -> Tensor:
    """Whether each signal ``[B, K]`` is zero but for noise."""
    return (directions @ factors.left.T).abs() <= _SURE * _noise(factors, directions)


def _sparsest(factors: _Factors, directions: Tensor) -> Tensor:
    """Choose independent directions greedily, most zeros first: no other independent ones have more in total."""
    if len(directions) == 0:
        return directions
    zeros = _zeros(factors, directions).sum(1)
    # Two estimates of one direction differ by their errors, which are of the size of the noise in all rows.
    blur = (_SURE * _noise(factors, directions).norm(dim=1)).clamp_min(1e-7)
    rest, chosen = directions, []
    for _ in range(len(factors.sizes)):
        open_ = rest.norm(dim=1) > blur
        best = int(torch.where(open_, zeros, -1).argmax())
        if not open_[best]:
            break
        chosen.append(best)
        axis = rest[best] / rest[best].norm()
        rest = rest - (rest @ axis)[:, None] * axis
    return directions[chosen]


def _invert(factors: _Factors, found: Tensor, linear: nn.Linear) -> tuple[Tensor, float]:
    """Inputs ``[R, M]`` from as many directions, and how far their outputs agree with the zeros of the signals."""
    rows = torch.linalg.solve(found.T, factors.sizes[:, None] * factors.right)
    scale = rows[:, -1:]  # the input that is always 1
    inputs = rows[:, :-1] / torch.where(scale == 0, 1, scale)
    outputs = nn.functional.linear(inputs, linear.weight.to(inputs), linear.bias.to(inputs))
    signals = torch.zeros_like(outputs, dtype=torch.bool)
    signals[:, factors.live] = ~_zeros(factors, found)
    return inputs, float((signals == (outputs > 0)).double().mean())


def _unit(directions: Tensor) -> Tensor:
    """Scale to length 1; what a singular system gave becomes zero."""
    return nn.functional.normalize(directions.nan_to_num(0, 0, 0), dim=1)
