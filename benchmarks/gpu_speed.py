"""Inverting gradients on a GPU and on the CPU of the same machine: time of one iteration, by the clock on the wall.

    python benchmarks/gpu_speed.py [--device cuda] [--quick] [--json FILE]

It compares with no other library, needs none, and has no bar. `make gpu` runs it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from gradleak_lib import models
from gradleak_lib.attacks.inversion import invert
from gradleak_lib.attacks.search import Search
from gradleak_lib.data import load
from gradleak_lib.federated import fedsgd
from gradleak_lib.files import write_whole

SHAPE, CLASSES = (3, 32, 32), 10
WARM = 2  # iterations of the shorter run, whose time is taken off: a search also begins and ends


@dataclass(frozen=True)
class Case:
    """What is timed: a network, images of the batch, restarts side by side, iterations, and how often."""

    network: str
    samples: int
    restarts: int
    iterations: int
    repeats: int = 3
    width: int | None = None


@dataclass(frozen=True)
class Row:
    """Milliseconds of an iteration of one restart: medians of some runs on the CPU and on the device."""

    case: Case
    cpu: float
    device: float

    @property
    def faster(self) -> float:
        """How many times."""
        return self.cpu / self.device


CASES = (
    Case("lenet", 1, 8, 40),
    Case("convnet", 1, 8, 10, width=64),
    Case("resnet20", 1, 8, 10),
    Case("resnet18", 4, 2, 4),
)
QUICK = (Case("lenet", 1, 2, 6, repeats=1), Case("resnet20", 1, 2, 2, repeats=1))


def milliseconds(case: Case, device: str, seed: int = 0) -> float:
    """Time of an iteration of one restart on a device: what some more take, divided by how many they are."""
    model = models.build(case.network, SHAPE, classes=CLASSES, seed=seed, width=case.width).to(device)
    data = load("photos", SHAPE[1], sample=case.samples, seed=seed)
    labels = data.labels.to(device)
    update = fedsgd(model, data.images.to(device), labels)

    def seconds(iterations: int) -> float:
        begun = time.perf_counter()
        found = invert(
            update, model, SHAPE, labels, Search(iterations=iterations, restarts=case.restarts, seed=seed)
        )
        found.images.cpu()  # and so whatever the device has still to do
        return time.perf_counter() - begun

    seconds(WARM)  # not counted: the first run pays for libraries and caches
    times = [seconds(WARM + case.iterations) - seconds(WARM) for _ in range(case.repeats)]
    return 1e3 * median(times) / case.iterations / case.restarts


def main(words: Sequence[str] | None = None) -> int:
    """Time every case and print it."""
    parser = argparse.ArgumentParser(description="An iteration of our attack on a GPU and on the CPU.")
    parser.add_argument("--device", default="cuda", help="a GPU (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="also write the numbers into this file, after each case")
    given = parser.parse_args(words)
    name = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else given.device
    print(
        f"torch {torch.__version__}; {name}, and {torch.get_num_threads()} threads of the CPU; photographs of "
        f"{'x'.join(map(str, SHAPE))}. Milliseconds on the wall of one iteration and restart.\n"
    )
    print(f"{'network':12}{'images':>7}{'restarts':>9}{'CPU':>10}{'GPU':>10}{'times faster':>14}")
    rows = []
    for case in QUICK if given.quick else CASES:
        row = Row(case, milliseconds(case, "cpu"), milliseconds(case, given.device))
        rows.append(asdict(row))
        print(
            f"{case.network:12}{case.samples:7}{case.restarts:9}{row.cpu:10.2f}{row.device:10.2f}{row.faster:14.2f}",
            flush=True,
        )
        if given.json is not None:
            content = {"device": name, "torch": torch.__version__, "cores": os.cpu_count(), "rows": rows}
            write_whole(given.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
