"""Inverting gradients against breaching 0.1.2: CPU time of one iteration, exactness, and how good the images are.

    python benchmarks/inversion.py [--quick | --quality | --compiled]

Exit code 1 where a bar fails. The README beside this file says what is compared.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median, quantiles


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Inverting gradients: our CPU time and images, and breaching's."
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--quick", action="store_true", help="3 pairs of runs instead of 9, 2 images instead of 8"
    )
    only.add_argument("--quality", action="store_true", help="only how good the images are")
    only.add_argument("--compiled", action="store_true", help="only the time, ours with torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, photographs and starts")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    import environment

    environment.enter()

import peer_inversion
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradleak_lib import metrics
from gradleak_lib.attacks.inversion import invert
from gradleak_lib.attacks.matching import Target, one_by_one, together
from gradleak_lib.attacks.search import Search
from gradleak_lib.data import load
from gradleak_lib.federated import Update, fedsgd
from gradleak_lib.models import build

SHAPE, CLASSES = (3, 32, 32), 10
# Of CIFAR-10, as the peer has them.
MEAN, STD = (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)
TV = 0.2  # the peer's own; where its speed is measured
UNTIMED = 2  # iterations at the start of each timed run
FLOOR = 7  # forward passes' worth of arithmetic that the chain rule needs
NOWHERE_BELOW = 0.95
# Relative errors of the derivative, against plain autograd in the same precision.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-10}
DECIBELS = 0.5


def relu_net(seed: int) -> nn.Module:
    """The sigmoid LeNet's shape, with ReLU and 32 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, CLASSES),
        )
    return model.eval()


def _built(name: str, width: int | None, seed: int) -> nn.Module:
    return build(name, SHAPE, classes=CLASSES, seed=seed, width=width)


def _model(name: str, width: int | None = None) -> Callable[[int], nn.Module]:
    """Network of that name, as a function of its seed."""
    return partial(_built, name, width)


@dataclass(frozen=True)
class Case:
    """What is timed.

    Parameters
    ----------
    title
        As it is printed.
    make
        The network, from a seed.
    bar
        How many times faster ours has to be.
    iterations
        Timed iterations of each run, the same in both libraries.
    restarts
        Of ours, in one pass; theirs run one after the other, so one of them is timed.
    samples
        Images of the batch.
    compiled_bar
        The same with ``torch.compile``; None: not looked at.
    """

    title: str
    make: Callable[[int], nn.Module]
    bar: float
    iterations: int
    restarts: int = 1
    samples: int = 1
    compiled_bar: float | None = None


CASES = (
    Case("LeNet", _model("lenet"), 4.0, 60, restarts=8, compiled_bar=6.0),
    Case("ReLU net", relu_net, 1.8, 40, restarts=8, compiled_bar=4.0),
    Case("ConvNet, width 8", _model("convnet", 8), 1.4, 12, restarts=8, compiled_bar=2.5),
    Case("ConvNet, width 64", _model("convnet", 64), 1.05, 4),
    Case("ResNet-18", partial(peer_inversion.resnet18, CLASSES), 1.3, 4),
    Case("LeNet", _model("lenet"), NOWHERE_BELOW, 100),
    Case("ReLU net", relu_net, NOWHERE_BELOW, 80),
    Case("ConvNet, width 32", _model("convnet", 32), NOWHERE_BELOW, 8),
    Case("ResNet-20", _model("resnet20"), NOWHERE_BELOW, 12),
    Case("ResNet-18", partial(peer_inversion.resnet18, CLASSES), NOWHERE_BELOW, 3, samples=4),
)


@dataclass(frozen=True)
class Recipe:
    """Settings under which the images of both libraries are compared."""

    title: str
    make: Callable[[int], nn.Module]
    iterations: int
    tv: float
    restarts: int = 4


RECIPES = (Recipe("ReLU net", relu_net, 400, 1e-3), Recipe("LeNet", _model("lenet"), 1000, 1e-2))


@dataclass(frozen=True)
class Problem:
    """A network and what one client sent of it."""

    model: nn.Module
    update: Update
    images: Tensor
    labels: Tensor

    def ours(self, search: Search, *, compiled: bool = False) -> Tensor:
        """Our attack: images in [0, 1]."""
        found = invert(
            self.update, self.model, SHAPE, self.labels, search, mean=MEAN, std=STD, compiled=compiled
        )
        return found.images

    def theirs(self, search: Search) -> peer_inversion.Attacker:
        """Their attack, under the same settings."""
        return peer_inversion.Attacker(
            self.model,
            self.update,
            self.labels,
            SHAPE,
            mean=MEAN,
            std=STD,
            tv=search.tv,
            iterations=search.iterations,
            restarts=search.restarts,
        )


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def pose(model: nn.Module, images: Tensor, labels: Tensor) -> Problem:
    """Let a client compute its gradient."""
    inputs = (images - _channels(MEAN)) / _channels(STD)
    return Problem(model, fedsgd(model, inputs, labels), images, labels)


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

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours was in each pair of neighbouring runs: both met the same load."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return median(self.ratios)


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


def report_speed(seed: int, repeats: int, *, compiled: bool) -> dict[str, bool]:
    """Time every case and print it; return the bars."""
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
    bars = {}
    for case in CASES:
        bar = case.compiled_bar if compiled else case.bar
        if bar is None:
            continue
        data = load("photos", SHAPE[1], n=case.samples, seed=seed)
        problem = pose(case.make(seed), data.images, data.labels)
        timing = race(case, problem, repeats, compiled=compiled)
        low, _, high = quantiles(timing.ratios, n=4)
        floors = (
            f"{median(a / b for a, b in zip(times, forward, strict=True)):.1f} F"
            for times, forward in (
                (timing.theirs, timing.their_forward),
                (timing.ours, timing.our_forward),
            )
        )
        print(
            f"{case.title:20}{case.samples:3}{case.restarts:3}{1000 * median(timing.theirs):11.2f}"
            f"{1000 * median(timing.ours):8.2f}{timing.ratio:8.2f}{f'{low:.2f}-{high:.2f}':>14}{bar:6.2f}"
            "{:>13}{:>8}".format(*floors),
            flush=True,
        )
        what = f"{case.title}, n={case.samples}, R={case.restarts}"
        bars[f"{what}: at least {bar:g} times as fast (here {timing.ratio:.2f})"] = timing.ratio >= bar
    return bars


def compare(case: Case, seed: int, dtype: torch.dtype) -> tuple[float, int]:
    """Relative error of the derivative in the worst restart, and how many of its signs are wrong.

    A sign counts where the derivative is larger than the tolerated error of all of it.
    """
    data = load("photos", SHAPE[1], n=case.samples, seed=seed)
    model = copy.deepcopy(case.make(seed)).to(dtype)
    inputs = ((data.images - _channels(MEAN)) / _channels(STD)).to(dtype)
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


def report_quality(seed: int, images: int) -> dict[str, bool]:
    """Reconstruct photographs one by one with both libraries, and print the PSNR; return the bars."""
    bars = {}
    for recipe in RECIPES:
        print(
            f"\n{recipe.title}: best of {recipe.restarts} restarts by each library's own objective, "
            f"{recipe.iterations} iterations, total variation {recipe.tv:g}"
        )
        search = Search(tv=recipe.tv, iterations=recipe.iterations, restarts=recipe.restarts, seed=seed)
        model = recipe.make(seed)
        data = load("photos", SHAPE[1], n=images, seed=seed)
        scores: dict[str, list[float]] = {"breaching": [], "ours": []}
        seconds = dict.fromkeys(scores, 0.0)
        for number in range(images):
            problem = pose(model, data.images[number : number + 1], data.labels[number : number + 1])
            for name in scores:
                start = time.process_time()
                if name == "ours":
                    found = problem.ours(search)
                else:
                    found = problem.theirs(search).reconstruct(seed) * _channels(STD) + _channels(MEAN)
                seconds[name] += time.process_time() - start
                scores[name].append(float(metrics.psnr(found, problem.images)))
        for name, values in scores.items():
            each = " ".join(f"{value:5.1f}" for value in values)
            print(
                f"  {name:10} PSNR {fmean(values):6.2f} dB ({each}); {seconds[name] / images:6.2f} CPU seconds each"
            )
        margin = fmean(scores["ours"]) - fmean(scores["breaching"])
        bars[f"{recipe.title}: PSNR at most {DECIBELS} dB lower (here {margin:+.2f})"] = margin >= -DECIBELS
        sys.stdout.flush()
    return bars


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 0 where every bar holds, else 1."""
    torch.set_num_threads(1)
    print(
        f"Untrained networks, {CLASSES} classes, photographs of {'x'.join(map(str, SHAPE))}, labels known; "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread.\n",
        flush=True,
    )
    bars: dict[str, bool] = {}
    if arguments.compiled:
        bars |= report_speed(arguments.seed, 3, compiled=True)
    elif not arguments.quality:
        bars |= report_speed(arguments.seed, 3 if arguments.quick else 9, compiled=False)
        bars |= report_exactness(arguments.seed)
    if not arguments.compiled:
        bars |= report_quality(arguments.seed, 2 if arguments.quick else 8)
    print("\nBars:")
    for bar, holds in bars.items():
        print(f"  {'holds' if holds else 'FAILS'}  {bar}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
