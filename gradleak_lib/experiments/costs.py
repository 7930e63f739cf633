"""What the attacks cost at sizes that nobody has run: formulas that carry what was measured at one size to another.

Each function says what it assumes. Measured numbers go in as arguments; none stands here. `benchmarks/scale.py`
measures them, and `gradleak_lib.experiments.costs_tables` puts both together.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from gradleak_lib.attacks.occupancy import one_shot_probability

# What the attacks are made of: hidden units and batches of the network that identifies users, and how many units in
# the last place of the largest bias gradient `imprint.recover` takes for rounding.
HIDDEN, BATCH, UNITS = 128, 32, 4


# --- in general ---


def scaled(value: float, measured_size: float, size: float) -> float:
    """Carry a measured value that grows linearly to another size: ``value * size / measured_size``.

    Parameters
    ----------
    value
        What was measured (seconds, bytes), 0 or more.
    measured_size, size
        Sizes in one unit (samples, operations), positive.

    Notes
    -----
    Assumes that the price of a unit stays what it was: no cache, memory or disk that a larger size leaves.
    """
    _positive(measured_size=measured_size, size=size)
    return value * (size / measured_size)


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Power with which values grow between the last two sizes: 1 is linear, 2 quadratic.

    Parameters
    ----------
    sizes, values
        Two or more of each, positive, ascending in size.
    """
    if len(sizes) != len(values) or len(sizes) < 2:
        raise ValueError(f"two or more sizes, and as many values: got {len(sizes)} and {len(values)}")
    _positive(sizes=min(sizes), values=min(values))
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def tensor_bytes(rows: int, numbers: int, *, bits: int = 32) -> int:
    """Bytes of ``rows`` updates (or scores) of so many numbers each, held in one tensor: 32 bits for float32."""
    _positive(rows=rows, numbers=numbers, bits=bits)
    return rows * numbers * bits // 8


# --- linkability: U users, N known and M tested updates of D numbers ---


def client_updates(users: int, *, devices: int = 2, per_client: int) -> int:
    """Updates that an observer sees: ``users * devices * per_client``, linear in users.

    Parameters
    ----------
    users, devices
        Users, and devices of each.
    per_client
        Updates of each device. With rounds in which a share C of the clients takes part, it is ``C * rounds``,
        whatever the number of users.

    Notes
    -----
    Assumes that all clients send equally many updates, as `gradleak_lib.federated.simulate` has it.
    """
    _positive(users=users, devices=devices, per_client=per_client)
    return users * devices * per_client


def mlp_steps(known: int, *, epochs: int) -> int:
    """Optimisation steps of ``identify("mlp")``: batches of 32, a tenth of the known updates held out."""
    _positive(known=known, epochs=epochs)
    return epochs * -(-(known - round(0.1 * known)) // BATCH)


def mlp_operations(samples: int, features: int, users: int) -> int:
    """Multiplications and additions of one pass of the identifier over its samples: ``N (4 D h + 6 h U)``.

    For each weight and sample two forward, two for the gradient of the weights, and two for that of the layer's
    input, which the first layer does not need. With N proportional to U, the second term is quadratic in users: each
    new user is both more samples and one more output.

    Parameters
    ----------
    samples
        Updates that are trained on, N.
    features
        Numbers of each, D.
    users
        Outputs, U.

    Notes
    -----
    Counts the two matrix products only, with h = 128 hidden units, as in `attacks.linkability.identify`.

    References
    ----------
    Orekondy et al. 2018, Sec. 6.1 (the network).
    """
    _positive(samples=samples, features=features, users=users)
    return samples * HIDDEN * (4 * features + 6 * users)


def mlp_seconds(
    known: int, features: int, users: int, *, epochs: int, per_step: float, per_operation: float
) -> float:
    """Seconds to train the identifier: so much for each step, and so much for each operation.

    Parameters
    ----------
    known, features, users
        N, D, U; a tenth of the known updates is held out.
    epochs
        Passes over the others.
    per_step, per_operation
        Measured seconds.

    Notes
    -----
    Assumes that the number of epochs does not grow with the users, and that the weights (``h (D + U)`` numbers) fit
    into memory.
    """
    samples = known - round(0.1 * known)
    operations = epochs * mlp_operations(samples, features, users)
    return mlp_steps(known, epochs=epochs) * per_step + operations * per_operation


def product_operations(known: int, tested: int, features: int) -> int:
    """Operations that compare each tested update with each known one (or one mean for each user): ``2 N M D``.

    Nearest neighbours and cosines are this product. With N and M proportional to U it is quadratic in users.
    """
    _positive(known=known, tested=tested, features=features)
    return 2 * known * tested * features


def svm_operations(known: int, features: int, users: int) -> int:
    """Operations of one pass of a linear support vector machine, one against the rest: ``2 U N D``.

    Notes
    -----
    Each user's plane is fitted to all known updates. How many passes that takes is measured with the seconds.
    """
    _positive(known=known, features=features, users=users)
    return 2 * users * known * features


def top_bytes(tested: int, kept: int) -> int:
    """Bytes of the best ``kept`` users of each tested update (an int32 and a float32 each): linear in users.

    What an attacker keeps who scores block by block, in place of all ``tested * users`` scores.
    """
    _positive(tested=tested, kept=kept)
    return tested * kept * 8


def pairs(updates: int) -> int:
    """Pairs of different updates, ``N (N - 1) / 2``: what matching everything with everything compares."""
    _positive(updates=updates)
    return updates * (updates - 1) // 2


# --- one-shot imprint: M samples, fished in aggregates of n ---


def aggregates(samples: int, aggregate: int) -> int:
    """Aggregates of n samples in a total of M: ``M / n``, the last one may be smaller. One bin is read in each."""
    _positive(samples=samples, aggregate=aggregate)
    return -(-samples // aggregate)


def one_shot_images(samples: int, aggregate: int) -> float:
    """Images expected from M samples in aggregates of n: ``(M / n) (1 - 1/n)^(n - 1)``, about ``M / (e n)``.

    Parameters
    ----------
    samples, aggregate
        M and n.

    Notes
    -----
    Counts one bin of mass 1/n in each aggregate, which takes two rows; a few bins give as many times more.
    Assumes independent samples, and a server that knows n and the distribution of what it measures. A mass that is
    wrong by a factor of two still gives about three quarters of it.

    References
    ----------
    The quantity of Fowl et al. 2022, Sec. 4.2, for independent samples: see `attacks.occupancy`.
    """
    _positive(samples=samples, aggregate=aggregate)
    return samples / aggregate * one_shot_probability(aggregate, 1 / aggregate)


def traffic(samples: int, per_client: int, model_bytes: int) -> int:
    """Bytes that travel: each client of so many samples receives the model once and sends one update of its size.

    Whatever the size of the aggregates: secure aggregation adds up what the clients send, after they have sent it.
    Its own messages, and compression, are left out.
    """
    _positive(samples=samples, per_client=per_client, model_bytes=model_bytes)
    return 2 * model_bytes * -(-samples // per_client)


def bin_width(aggregate: int, density: float) -> float:
    """Width of a bin of mass 1/n where the measured quantity has this density: ``1 / (n f)``, in units of h."""
    _positive(aggregate=aggregate, density=density)
    return 1 / (aggregate * density)


def float_resolution(value: float, dtype: torch.dtype) -> float:
    """Distance from a value of h to the next number of this precision: 3e-8 for 0.4 in float32."""
    number = torch.tensor(abs(value), dtype=dtype)
    return float(torch.nextafter(number, torch.full_like(number, math.inf)) - number)


def level_resolution(entries: int) -> float:
    """Distance between two values of the mean brightness of images in 8 bits of so many entries: ``1 / (255 M)``.

    Such images have no brightness in between, so that a narrower bin separates nothing, in any precision. A
    random projection has no such steps.
    """
    _positive(entries=entries)
    return 1 / (255 * entries)


def largest_aggregate(density: float, resolution: float) -> float:
    """Samples n whose bin of mass 1/n is as wide as the resolution of h: ``1 / (f resolution)``."""
    _positive(density=density, resolution=resolution)
    return 1 / (density * resolution)


def one_shot_at_resolution(aggregate: int, density: float, resolution: float) -> float:
    """Probability of exactly one sample in a bin that cannot be narrower than the resolution of h.

    ``n p (1 - p)^(n - 1)`` with ``p = max(1/n, f resolution)``: beyond `largest_aggregate` it falls exponentially.

    Parameters
    ----------
    aggregate
        Samples n.
    density
        Density f of h at the bin, in samples per unit of h, for one sample.
    resolution
        From `float_resolution` or `level_resolution`, or measured.

    Notes
    -----
    Assumes that samples that cannot be told apart fall into the bin together.
    """
    _positive(aggregate=aggregate, density=density, resolution=resolution)
    return one_shot_probability(aggregate, min(1.0, max(1 / aggregate, density * resolution)))


def largest_read(above: float, dtype: torch.dtype) -> float:
    """Samples n at which `imprint.recover` takes one sample for rounding: ``1 / (4 eps above)``.

    It leaves out what is smaller than four units in the last place of the largest bias gradient, which holds a share
    ``above`` (in (0, 1]) of all samples.

    Notes
    -----
    Assumes signals of one sign and size. Where signs differ, sums are smaller and the limit lies higher.
    """
    _positive(above=above)
    return 1 / (UNITS * torch.finfo(dtype).eps * above)


def psnr_of_difference(psnr: float, measured_size: float, size: float, *, power: float = 1.0) -> float:
    """PSNR in decibels of a one-shot image read as a difference of two rows, carried to another size of aggregate.

    Both rows hold all samples above the bin, and each addition rounds the sum so far. For signals of both signs the
    sums grow like the root of n, and what n roundings add up to like n: 6 dB for each doubling. For signals of one
    sign the sums grow like n, and the error like ``n ** 1.5``: 9 dB.

    Parameters
    ----------
    psnr
        Measured at ``measured_size`` samples, in decibels.
    measured_size, size
        Samples behind the update.
    power
        1 for signals of both signs, 1.5 for signals of one sign.

    Notes
    -----
    Assumes that samples, or parts of equal size, are added one after the other, in one precision throughout. It
    says nothing of the sparse variant, whose row holds no other sample. Below 0 the image is noise.
    """
    _positive(measured_size=measured_size, size=size)
    return psnr - 20 * power * math.log10(size / measured_size)


def precision_gain(coarse: torch.dtype, fine: torch.dtype) -> float:
    """Decibels that rounding errors lose from one precision to a finer one: 175 from float32 to float64."""
    return 20 * math.log10(torch.finfo(coarse).eps / torch.finfo(fine).eps)


def fit_step(operations: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a step as ``per_step + per_operation * operations``: least squares of relative errors.

    Parameters
    ----------
    operations, seconds
        Of a step, at three sizes or more.

    Returns
    -------
    tuple of float
        Seconds for each step, and for each operation; neither below 0.
    """
    counts, times = np.asarray(operations, dtype=float), np.asarray(seconds, dtype=float)
    if counts.shape != times.shape or len(counts) < 3:
        raise ValueError(f"three or more sizes, and as many times: got {counts.shape} and {times.shape}")
    _positive(operations=counts.min(), seconds=times.min())
    unit = counts.max()
    design = np.stack([1 / times, counts / unit / times], axis=1)
    per_step, per_unit = np.linalg.lstsq(design, np.ones(len(times)), rcond=None)[0]
    return max(0.0, float(per_step)), max(0.0, float(per_unit / unit))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
