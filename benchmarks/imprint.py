"""CPU time of the imprint attack against breaching 0.1.2: the same 64 images, in one thread, in four parts.

    python benchmarks/imprint.py [--size 224] [--json FILE]

Exit code 1 where a bar fails. The README beside this file says what each part holds.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The imprint attack: our CPU time against breaching's.")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images, 32 to 224")
    parser.add_argument("--bins", type=int, default=128, help="bins of both modules")
    parser.add_argument("--connection", choices=("addition", "linear"), default="addition")
    parser.add_argument(
        "--repeats", type=int, help="timed calls of the gradient; default 101, or 3 from 128 pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the photographs and the network")
    parser.add_argument("--json", type=Path, help="also write the comparisons into this file")
    arguments = parser.parse_args()
    if not 32 <= arguments.size <= 224 or arguments.bins < 2:
        parser.error("--size must be in 32..224 and --bins at least 2")
    arguments.repeats = arguments.repeats or (101 if arguments.size < 128 else 3)
    return arguments


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    environment.enter()

import comparisons
import peer
import torch
from scipy.stats import laplace
from torch import Tensor, nn

from gradleak_lib import metrics
from gradleak_lib.attacks.imprint import Imprint, arm, bins_from_cdf, find, recover
from gradleak_lib.attacks.placement import before_input
from gradleak_lib.data import load
from gradleak_lib.federated import fedsgd
from gradleak_lib.models import build

IMAGES = 64
# The peer's own settings: normalised as for ImageNet, measured by this mode of a cosine transform.
MEAN, DEVIATION, MODE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32
# On larger images most of the matching is one pass of each through the network of LPIPS, which both need.
FASTER, LARGEST = 10.0, 64
GRADIENT = "the client's gradient"
MATCHING = "matching"
# Calls of what takes milliseconds, and of matching, whose ratio is far from any bar.
OFTEN, SELDOM = 25, 3


@dataclass(frozen=True)
class Case:
    """One attack: the batch in both scales, and the network before anything is put into it."""

    images: Tensor
    inputs: Tensor
    labels: Tensor
    resnet: nn.Module
    bins: int
    connection: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def seen(self, reconstructions: Tensor) -> Tensor:
        """Reconstructions of inputs as images in [0, 1]."""
        return (reconstructions * _channels(DEVIATION) + _channels(MEAN)).clamp(0, 1)


@dataclass(frozen=True)
class Timing:
    """CPU seconds of each call, in the order in which they were made."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring calls: both met the same load of the machine."""
        return median(a / b for a, b in zip(self.ours, self.theirs, strict=True))


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def race(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[Timing, Any, Any]:
    """Call both in turn, changing who goes first; return the times, and what the first calls gave."""
    results = ours(), theirs()  # not timed: the first call pays for caches and allocations
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 else (1, 0):
            start = time.process_time()
            (ours, theirs)[side]()
            seconds[side].append(time.process_time() - start)
    return Timing(*seconds), *results


def build_ours(case: Case) -> nn.Sequential:
    """Our module with the peer's measurement and the peer's bins, in front of the network."""
    size = math.prod(case.shape)
    wave = torch.cos(math.pi / size * (torch.arange(size) + 0.5) * MODE)
    edges = bins_from_cdf(laplace(0, 1 / math.sqrt(2)), case.bins)
    imprint = Imprint(case.shape, case.bins, connection=case.connection)
    return before_input(case.resnet, arm(imprint, wave / size * (4 * MODE), edges))


def build_theirs(case: Case) -> nn.Module:
    """Their module in front of the network."""
    return peer.build(case.resnet, case.shape, case.bins, mode=MODE, connection=case.connection)


def our_bins(model: nn.Module, inputs: Tensor) -> Tensor:
    """Bin of each sample by our module's own arithmetic: int64 ``[N]``, -1 below the first edge."""
    with torch.no_grad():
        return (find(model)[1].linear(inputs.flatten(1)) > 0).sum(1) - 1


def alone(bins: Tensor, *, last: int) -> Tensor:
    """Bool ``[N]``: no other sample is in the same bin, and the bin is one that the read-out separates."""
    return (bins[:, None] == bins).sum(1).eq(1) & (bins >= 0) & (bins <= last)


def load_case(arguments: argparse.Namespace) -> Case:
    """Photographs, and a ResNet-18 with one output for each of the photographs' classes."""
    data = load("photos", arguments.size, sample=IMAGES, seed=arguments.seed)
    inputs = (data.images - _channels(MEAN)) / _channels(DEVIATION)
    resnet = build("resnet18", inputs.shape[1:], classes=len(data.classes), seed=arguments.seed)
    return Case(data.images, inputs, data.labels, resnet, arguments.bins, arguments.connection)


def run(case: Case, repeats: int, seed: int) -> tuple[list[comparisons.Row], dict[str, bool]]:
    """Time the four parts, print the table and the checks; return the comparisons, and bars that compare nothing."""
    timings: dict[str, Timing] = {}
    timings["building the module"], ours, theirs = race(
        lambda: build_ours(case), lambda: build_theirs(case), OFTEN
    )
    timings[GRADIENT], update, shared = race(
        lambda: fedsgd(ours, case.inputs, case.labels),
        peer.client(theirs, case.inputs, case.labels),
        repeats,
    )
    metadata = peer.Metadata(shape=case.shape, mean=MEAN, std=DEVIATION, modality="vision")
    bare, whole = peer.reader(theirs, shared, metadata)
    timings["read-out"], recovered, padded = race(lambda: recover(update, ours), bare, OFTEN)
    as_called, *_ = race(lambda: recover(update, ours), whole, SELDOM)

    found = case.seen(padded)
    network = peer.perceptual_scorer(seed)
    # They give the network images in [0, 1], where it expects [-1, 1]; ours changes from the one to the other.
    lpips = metrics.lpips(network)
    timings[MATCHING], order, their_order = race(
        lambda: metrics.match((found + 1) / 2, (case.images + 1) / 2, cost=lpips),
        lambda: peer.match(network, found, case.images),
        SELDOM,
    )
    default, default_order, _ = race(lambda: metrics.match(found, case.images), lambda: None, SELDOM)
    print_table(timings)
    print(f"Their read-out as users call it, which copies the model: {median(as_called.theirs):.4f} s.")
    print(
        f"Our matching on PSNR, the default, instead of LPIPS: {median(default.ours):.4f} s, "
        f"{median(timings[MATCHING].theirs) / median(default.ours):.0f} times faster than theirs on LPIPS.\n"
    )
    complete = report_recovery(case, ours, theirs, case.seen(recovered.inputs), found)
    identical = report_matching(case, found, their_order, order, default_order)
    checks = {
        "matching: identical assignment": identical,
        "our attack recovers every image alone in its bin": complete,
    }
    report_bars(timings, case.shape[-1], checks)
    exact = [int(recovered_exactly(x, case.images).sum()) for x in (found, case.seen(recovered.inputs))]
    return rows(case, timings, *exact), checks


def bar(part: str, size: int) -> float:
    """How many times faster than breaching a part has to be, on images of this size."""
    return FASTER if part == MATCHING and size <= LARGEST else 1.0


def rows(case: Case, timings: dict[str, Timing], theirs: int, ours: int) -> list[comparisons.Row]:
    """The parts, and how many images each attack recovered exactly, as comparisons."""
    which = f"{IMAGES} images of {case.shape[-1]} pixels, {case.bins} bins"
    peer_named = "breaching", environment.BREACHING.version
    found = [
        comparisons.timed(
            ("imprint", which, f"CPU time, {part}", *peer_named),
            timing.theirs,
            timing.ours,
            bar=bar(part, case.shape[-1]),
        )
        for part, timing in timings.items()
    ]
    if theirs:
        recovered = "images recovered exactly"
        counts = theirs, ours, ours / theirs
        found.append(comparisons.Row("imprint", which, recovered, "images", *peer_named, *counts))
    return found


def print_table(timings: dict[str, Timing]) -> None:
    """Median CPU seconds of each part, and each part's share of its own column's total."""
    totals = (
        sum(median(timing.ours) for timing in timings.values()),
        sum(median(timing.theirs) for timing in timings.values()),
    )
    print(f"{'part':24}{'ours, s':>10}{'breaching, s':>14}{'ratio':>8}{'share of ours':>15}{'of theirs':>11}")
    for part, timing in timings.items():
        ours, theirs = median(timing.ours), median(timing.theirs)
        print(
            f"{part:24}{ours:10.4f}{theirs:14.4f}{timing.ratio:8.3f}"
            f"{ours / totals[0]:15.1%}{theirs / totals[1]:11.1%}"
        )
    print(f"{'total':24}{totals[0]:10.4f}{totals[1]:14.4f}{totals[0] / totals[1]:8.3f}\n")
    gradient, matching = timings[GRADIENT], timings[MATCHING]
    ours = median(gradient.ours) / (totals[0] - median(matching.ours))
    theirs = median(gradient.theirs) / (totals[1] - median(matching.theirs))
    print(f"Without the matching, the client's gradient is {ours:.1%} of ours, {theirs:.1%} of theirs.")


def report_recovery(case: Case, ours: nn.Module, theirs: nn.Module, *found: Tensor) -> bool:
    """Compare what each attack recovered with the images alone in their bins; True if ours has them all."""
    our_hits, their_hits = our_bins(ours, case.inputs), peer.bins_hit(theirs, case.inputs)
    print(f"Same bin in both attacks: {(our_hits == their_hits).sum()} of {IMAGES} images.")
    complete = []
    # Their differences leave no row for what lies above the last edge.
    for name, hits, last, images in (
        ("ours", our_hits, case.bins - 1, found[0]),
        ("breaching", their_hits, case.bins - 2, found[1]),
    ):
        single = alone(hits, last=last)
        exact = recovered_exactly(images, case.images)
        complete.append(not (single & ~exact).any())
        print(
            f"{name:10} recovered exactly (PSNR over 60 dB): {exact.sum()}; "
            f"alone in a bin that it reads: {single.sum()}; "
            f"the same images: {'yes' if exact.equal(single) else 'no'}"
        )
    return complete[0]


def recovered_exactly(found: Tensor, originals: Tensor) -> Tensor:
    """Bool ``[N]``: some reconstruction shows the original at a PSNR over 60 dB, however they are matched."""
    return metrics.squared_distances(found, originals).amin(0) < 10 ** (-metrics.EXACT_DB / 10)


def report_matching(case: Case, found: Tensor, theirs: Tensor, ours: Tensor, by_default: Tensor) -> bool:
    """Compare the assignments; True if ours on LPIPS is theirs."""
    exact = recovered_exactly(found, case.images)
    blank = same_image(found, case.seen(torch.zeros(1, *case.shape)))
    print(f"\nMatching breaching's {IMAGES} reconstructions, {blank.sum()} of which are blank:")
    for name, order in (("LPIPS, as theirs", ours), ("PSNR, the default", by_default)):
        same = same_image(found[order], found[theirs])
        print(
            f"  ours on {name}: the reconstruction that breaching assigns for {same.sum()} of {IMAGES} images, "
            f"{(same & exact).sum()} of the {exact.sum()} recovered exactly"
        )
    for name, order in (("breaching", theirs), ("ours on LPIPS", ours), ("ours on PSNR", by_default)):
        right = metrics.psnr(found[order], case.images) > metrics.EXACT_DB
        print(f"  {name} gives {right.sum()} of the {exact.sum()} to their originals")
    return bool(same_image(found[ours], found[theirs]).all())


def same_image(first: Tensor, second: Tensor) -> Tensor:
    """Bool ``[N]``: equal images, be they under different indices, as the blank ones are."""
    return (first == second).flatten(1).all(1)


def report_bars(timings: dict[str, Timing], size: int, checks: dict[str, bool]) -> None:
    """Print each bar and whether it holds."""
    bars = {}
    for part, timing in timings.items():
        wanted, faster = bar(part, size), 1 / timing.ratio
        bars[f"{part}: at least {wanted:g} times as fast (here {faster:.2f})"] = faster >= wanted
    print("\nBars:")
    for text, holds in (bars | checks).items():
        print(f"  {'holds' if holds else 'FAILS'}  {text}")


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 0 where every bar holds, else 1."""
    torch.set_num_threads(1)
    case = load_case(arguments)
    print(
        f"{IMAGES} photographs of {'x'.join(map(str, case.shape))}, ResNet-18, {case.bins} bins, "
        f"connection by {case.connection}; torch {torch.__version__}, {torch.get_num_threads()} thread; "
        f"CPU time: medians of alternated calls, {arguments.repeats} of the gradient, "
        f"{SELDOM} of the matching, {OFTEN} of the rest; ratio: median over neighbouring calls.\n"
        "LPIPS has an AlexNet of random weights (the trained ones are a download): the same work.\n",
        flush=True,
    )
    return comparisons.finish(arguments.json, *run(case, arguments.repeats, arguments.seed))


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
