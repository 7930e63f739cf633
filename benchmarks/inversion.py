"""Inverting gradients against breaching 0.1.2: CPU time of one iteration, exactness, and how good the images are.

    python benchmarks/inversion.py [--quick | --quality | --compiled] [--json FILE]

Exit code 1 where a bar fails. The README beside this file says what is compared.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Inverting gradients: our CPU time and images, and breaching's."
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--quick",
        action="store_true",
        help="3 pairs of runs instead of 9, 2 images on one network, not 8 on two",
    )
    only.add_argument("--quality", action="store_true", help="only how good the images are")
    only.add_argument("--compiled", action="store_true", help="only the time, ours with torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, photographs and starts")
    parser.add_argument("--json", type=Path, help="also write the comparisons into this file")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    environment.enter()

import comparisons
import torch
from inversion_cases import CASES, CLASSES, MEAN, RECIPES, SHAPE, STD, Case, Problem, Recipe, channels, pose
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradleak_lib import metrics
from gradleak_lib.attacks.matching import Target, one_by_one, together
from gradleak_lib.attacks.search import Search
from gradleak_lib.data import load
from gradleak_lib.federated import fedsgd

TV = 0.2  # the peer's own; where its speed is measured
UNTIMED = 2  # iterations at the start of each timed run
FLOOR = 7  # forward passes' worth of arithmetic that the chain rule needs
# Relative errors of the derivative, against plain autograd in the same precision.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-10}
DECIBELS = 0.5


@contextlib.contextmanager
def stamps() -> Iterator[list[float]]:
    """CPU time after each step of an optimizer: both libraries take one step of torch's Adam in each iteration."""
    found: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: found.append(time.process_time()))
    try:
        yield found
    finally:
        hook.remove()


def seconds_each(attack: Callable[[], object], iterations: int) -> float:
    """CPU seconds of one iteration, the mean over all but the first few; set-up lies before, choosing after them."""
    with stamps() as found:
        attack()
    if len(found) != iterations + UNTIMED:
        raise RuntimeError(f"{len(found)} steps of an optimizer in {iterations + UNTIMED} iterations")
    return (found[-1] - found[UNTIMED - 1]) / iterations


def forward_seconds(model: nn.Module, samples: int, calls: int) -> float:
    """CPU seconds of one forward pass."""
    inputs = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(inputs)
        start = time.process_time()
        for _ in range(calls):
            model(inputs)
    return (time.process_time() - start) / calls


@dataclass(frozen=True)
class Timing:
    """CPU seconds of one iteration, of each repeat.

    Parameters
    ----------
    ours
        Divided by the restarts.
    theirs
        Of one restart.
    our_forward, their_forward
        A forward pass of all restarts, divided by them, and of one.
    """

    ours: list[float]
    theirs: list[float]
    our_forward: list[float]
    their_forward: list[float]


def race(case: Case, problem: Problem, repeats: int, *, compiled: bool) -> Timing:
    """Run both in turn, changing who goes first, and a forward pass beside them."""
    search = Search(tv=TV, iterations=case.iterations + UNTIMED, restarts=case.restarts)
    attacker = problem.theirs(search)

    def ours() -> float:
        if compiled:
            torch.compiler.reset()  # each call compiles anew, and torch gives up after the eighth
        attack = partial(problem.ours, search, compiled=compiled)
        return seconds_each(attack, case.iterations) / case.restarts

    def theirs() -> float:
        return seconds_each(attacker.trial, case.iterations)

    ours(), theirs()  # not counted: the first run pays for caches and compiling
    timing = Timing([], [], [], [])
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 else (1, 0):
            (timing.ours, timing.theirs)[side].append((ours, theirs)[side]())
        lanes = case.restarts
        timing.our_forward.append(
            forward_seconds(problem.model, case.samples * lanes, case.iterations) / lanes
        )
        timing.their_forward.append(forward_seconds(problem.model, case.samples, case.iterations))
    return timing


def named(case: str, measure: str) -> tuple[str, str, str, str, str]:
    """What a comparison of times is about."""
    return "inversion", case, measure, "breaching", environment.BREACHING.version


def report_speed(seed: int, repeats: int, *, compiled: bool) -> list[comparisons.Row]:
    """Time every case and print it; return the comparisons."""
    print(
        f"CPU milliseconds of one iteration and restart, medians of {repeats} runs in turn"
        f"{', ours compiled' if compiled else ''}. Ratio: median over pairs of runs, and the\n"
        f"middle half of them. F: forward passes of the same batch that an iteration costs; the chain rule needs "
        f"{FLOOR}.\n"
    )
    print(
        f"{'':20}{'n':>3}{'R':>3}{'breaching':>11}{'ours':>8}{'ratio':>8}{'middle half':>14}{'bar':>6}"
        f"{'breaching':>13}{'ours':>8}"
    )
    rows = []
    measure = f"CPU time, an iteration{', compiled' if compiled else ''}"
    for case in CASES:
        bar = case.compiled_bar if compiled else case.bar
        if bar is None:
            continue
        data = load("photos", SHAPE[1], sample=case.samples, seed=seed)
        problem = pose(case.make(seed), data.images, data.labels)
        timing = race(case, problem, repeats, compiled=compiled)
        title = f"{case.title}, {case.samples} image{'s' * (case.samples > 1)}, R={case.restarts}"
        row = comparisons.timed(named(title, measure), timing.theirs, timing.ours, bar=bar)
        rows.append(row)
        floors = (
            f"{median(a / b for a, b in zip(times, forward, strict=True)):.1f} F"
            for times, forward in (
                (timing.theirs, timing.their_forward),
                (timing.ours, timing.our_forward),
            )
        )
        print(
            f"{case.title:20}{case.samples:3}{case.restarts:3}{row.theirs:11.2f}"
            f"{row.ours:8.2f}{row.ratio:8.2f}{f'{row.low:.2f}-{row.high:.2f}':>14}{bar:6.2f}"
            "{:>13}{:>8}".format(*floors),
            flush=True,
        )
    return rows


def compare(case: Case, seed: int, dtype: torch.dtype) -> tuple[float, int]:
    """Relative error of the derivative in the worst restart, and how many of its signs are wrong.

    A sign counts where the derivative is larger than the tolerated error of all of it.
    """
    data = load("photos", SHAPE[1], sample=case.samples, seed=seed)
    model = copy.deepcopy(case.make(seed)).to(dtype)
    inputs = ((data.images - channels(MEAN)) / channels(STD)).to(dtype)
    update = fedsgd(model, inputs, data.labels)
    sent = {name: value[None] for name, value in update.tensors.items()}
    target = Target(sent, data.labels[None], case.restarts, "cosine")
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(case.restarts * case.samples, *SHAPE, generator=generator).to(dtype)
    found, wanted = (
        way(model, target)(start)[1].reshape(case.restarts, -1) for way in (together, one_by_one)
    )
    length = wanted.norm(dim=1, keepdim=True)
    error = float(((found - wanted).norm(dim=1, keepdim=True) / length).max())
    flips = (found.sign() != wanted.sign()) & (wanted.abs() > TOLERANCES[dtype] * length)
    return error, int(flips.sum())


def report_exactness(seed: int) -> dict[str, bool]:
    """Compare the derivative in one pass with plain autograd's, and print it; return the bars."""
    print(
        "\nThe distance's derivative by the images, `together` against plain autograd: relative error, signs\n"
    )
    print(f"{'':20}{'n':>3}{'R':>3}{'single':>12}{'signs':>7}{'double':>12}{'signs':>7}")
    worst = dict.fromkeys(TOLERANCES, 0.0)
    flipped = 0
    for case in CASES:
        found = {dtype: compare(case, seed, dtype) for dtype in TOLERANCES}
        cells = "".join(f"{error:12.1e}{flips:7}" for error, flips in found.values())
        print(f"{case.title:20}{case.samples:3}{case.restarts:3}{cells}", flush=True)
        worst = {dtype: max(worst[dtype], error) for dtype, (error, _) in found.items()}
        flipped += found[torch.float64][1]
    bars = {
        f"derivative, {dtype}: error at most {TOLERANCES[dtype]:g} (here {error:.1e})": error
        <= TOLERANCES[dtype]
        for dtype, error in worst.items()
    }
    return bars | {f"derivative, float64: no sign is wrong (here {flipped})": flipped == 0}


def report_quality(seed: int, recipes: Sequence[Recipe], images: int) -> list[comparisons.Row]:
    """Reconstruct photographs one by one with both libraries, and print the PSNR; return the comparisons."""
    rows = []
    for recipe in recipes:
        print(
            f"\n{recipe.title}: best of {recipe.restarts} restarts by each library's own objective, "
            f"{recipe.iterations} iterations, total variation {recipe.tv:g}"
        )
        search = Search(tv=recipe.tv, iterations=recipe.iterations, restarts=recipe.restarts, seed=seed)
        scores, seconds = reconstruct(recipe, search, seed, images)
        for name, values in scores.items():
            each = " ".join(f"{value:5.1f}" for value in values)
            print(
                f"  {name:10} PSNR {fmean(values):6.2f} dB ({each}); {fmean(seconds[name]):6.2f} CPU seconds each"
            )
        sys.stdout.flush()
        title = f"{recipe.title}, {recipe.iterations} iterations, R={recipe.restarts}"
        theirs, ours = (fmean(scores[name]) for name in ("breaching", "ours"))
        attack, case, measure, *peer = named(title, f"mean PSNR, {images} images")
        values = theirs, ours, ours - theirs
        rows.append(comparisons.Row(attack, case, measure, "dB", *peer, *values, bar=-DECIBELS))
        times = seconds["breaching"], seconds["ours"]
        rows.append(comparisons.timed(named(title, "CPU time, an image"), *times, unit="s"))
    return rows


def reconstruct(
    recipe: Recipe, search: Search, seed: int, images: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """PSNR and CPU seconds of each photograph, by whose attack it was."""
    model = recipe.make(seed)
    data = load("photos", SHAPE[1], sample=images, seed=seed)
    scores: dict[str, list[float]] = {"breaching": [], "ours": []}
    seconds: dict[str, list[float]] = {"breaching": [], "ours": []}
    for number in range(images):
        problem = pose(model, data.images[number : number + 1], data.labels[number : number + 1])
        for name in scores:
            start = time.process_time()
            if name == "ours":
                found = problem.ours(search)
            else:
                found = problem.theirs(search).reconstruct(seed) * channels(STD) + channels(MEAN)
            seconds[name].append(time.process_time() - start)
            scores[name].append(float(metrics.psnr(found, problem.images)))
    return scores, seconds


def said(row: comparisons.Row) -> str:
    """A bar of a comparison, as it is printed."""
    if row.unit == "dB":
        return f"{row.case}: PSNR at most {DECIBELS} dB lower (here {row.ratio:+.2f})"
    return f"{row.case}: at least {row.bar:g} times as fast (here {row.ratio:.2f})"


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 0 where every bar holds, else 1."""
    torch.set_num_threads(1)
    print(
        f"Untrained networks, {CLASSES} classes, photographs of {'x'.join(map(str, SHAPE))}, labels known; "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread.\n",
        flush=True,
    )
    rows: list[comparisons.Row] = []
    checks: dict[str, bool] = {}
    if arguments.compiled:
        rows += report_speed(arguments.seed, 3, compiled=True)
    elif not arguments.quality:
        rows += report_speed(arguments.seed, 3 if arguments.quick else 9, compiled=False)
        checks = report_exactness(arguments.seed)
    if not arguments.compiled:
        much = (RECIPES[:1], 2) if arguments.quick else (RECIPES, 8)
        rows += report_quality(arguments.seed, *much)
    print("\nBars:")
    for bar, holds in ({said(row): row.holds for row in rows if row.bar is not None} | checks).items():
        print(f"  {'holds' if holds else 'FAILS'}  {bar}")
    return comparisons.finish(arguments.json, rows, checks)


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
