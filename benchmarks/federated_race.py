"""What `federated.py` measured in one case, and what it says about ours and the others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import comparisons
import environment
import torch

PLAIN, SEQUENTIAL, VECTORIZED, COMPILED, AUTO = (
    "plain PyTorch",
    "sequential",
    "vectorized",
    "compiled",
    "auto",
)
PASS, TRAINING, CACHED = "caching pass alone", "auto on the cache", "pass, then auto"
ROUNDS = 10  # that share a caching pass
# How many times faster at least: the contestant, on which model, against plain PyTorch and against Flower.
BARS = (
    ("small", VECTORIZED, 1.5, 4.0),
    ("small", COMPILED, 2.5, 7.0),
    ("small", AUTO, 0.95, None),
    ("lenet", AUTO, 0.95, None),
    ("mobilenet", AUTO, 0.95, None),
    ("mobilenet", CACHED, 1.8, None),
)
CLOSE = 1e-4  # relative difference of whole updates


@dataclass
class Race:
    """What one case gave.

    Parameters
    ----------
    clients
        Clients of a call.
    seconds
        By contestant, in the order of the calls: CPU seconds, or wall seconds on a GPU.
    wall
        Wall seconds of the same calls.
    all_cores
        Wall seconds of calls in as many threads as Flower has processes; empty without Flower.
    differences
        Relative differences between updates that should agree, by what was compared with the sequential engine; in
        double precision, but for plain PyTorch and what is cached.
    flower, flower_cpu
        Wall and CPU seconds of Flower's rounds but the first; empty without it.
    """

    clients: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    all_cores: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    flower: list[float] = field(default_factory=list)
    flower_cpu: list[float] = field(default_factory=list)

    def faster(self, name: str) -> float:
        """How many times faster than plain PyTorch: the median over neighbouring calls."""
        return ratio(self.seconds[PLAIN], self.seconds[name])

    def faster_than_flower(self, name: str) -> float:
        """How many times faster than Flower, by the clock on the wall, on as many cores."""
        return median(self.flower) / median(self.all_cores[name])

    def amortised(self) -> list[float]:
        """Seconds of a round on the cache, with its share of one caching pass for `ROUNDS` rounds."""
        both = zip(self.seconds[PASS], self.seconds[TRAINING], strict=True)
        return [once / ROUNDS + training for once, training in both]


def ratio(first: list[float], second: list[float]) -> float:
    """Median of the ratios of neighbouring calls: both met the same load of the machine."""
    return median(a / b for a, b in zip(first, second, strict=True))


def rows(race: Race, model: str, title: str, *, on_cpu: bool) -> Iterator[comparisons.Row]:
    """The case as comparisons, of what trains a whole round from the model that the server sends."""
    bars = {name: (plain, flower) for where, name, plain, flower in BARS if where == model}
    loop = f"{'CPU' if on_cpu else 'wall'} time, a client", PLAIN, torch.__version__.partition("+")[0]
    simulation = "wall time, a client", "Flower", environment.FLOWER.version
    plain = [seconds / race.clients for seconds in race.seconds[PLAIN]]
    contestants = {
        name: seconds for name, seconds in race.seconds.items() if name not in (PLAIN, PASS, TRAINING)
    }
    if CACHED in contestants:
        contestants[f"one pass for {ROUNDS} rounds"] = race.amortised()
    for name, seconds in contestants.items():
        over_plain, over_flower = bars.get(name, (None, None))
        case = f"{title}, {race.clients} clients, {name}"
        ours = [each / race.clients for each in seconds]
        yield comparisons.timed(("federated", case, *loop), plain, ours, bar=over_plain)
        if name in race.all_cores:
            values = (1000 * median(part) / race.clients for part in (race.flower, race.all_cores[name]))
            ratio = race.faster_than_flower(name)
            measure, *peer = simulation
            yield comparisons.Row("federated", case, measure, "ms", *peer, *values, ratio, bar=over_flower)
