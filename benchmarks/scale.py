"""What the attacks cost as they grow: seconds, bytes and quality, from which the book's page on costs goes on.

    python benchmarks/scale.py [--device cuda] [--chapters] [--quick]

Writes results/<cpu or cuda>/costs.json whole. Run it with the book's interpreter (.venv/bin/python); it takes some
minutes in one thread, and some more with --chapters, which executes every chapter at the profile smoke.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the attacks cost as they grow.")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the numbers mean nothing")
    parser.add_argument("--chapters", action="store_true", help="time the chapters at the profile smoke, too")
    parser.add_argument("--output", type=Path, help="folder of the record; default results/<cpu or cuda>")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    environment.one_thread()

import jupytext
import numpy as np
import papermill
import scale_imprint
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradleak_lib import metrics, models
from gradleak_lib.attacks import linkability
from gradleak_lib.book.chapters import chapter_sources
from gradleak_lib.book.results import ROOT, Result, as_text, provenance
from gradleak_lib.data import digit_scenes, split_clients
from gradleak_lib.federated import Observations, local_updates, simulate
from gradleak_lib.files import write_whole

HEAD, FRACTION, PER_CLIENT, SCENES, KNOWN = "fc2", 0.1, 6, 128, 0
KEPT, BLOCK = 10, 1024  # best users kept of each tested update, and updates scored at a time


class Clock:
    """Seconds of a call: CPU time of this process, or wall time where a GPU works for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = "CPU time of one thread" if device.type == "cpu" else "wall time"

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, float]:
        """What the function gives, and its seconds."""
        begin = self._now()
        given = function()
        return given, self._now() - begin

    def best(self, function: Callable[[], Any], calls: int = 3) -> float:
        """The median of some calls, after one that does not count."""
        function()
        return float(np.median([self(function)[1] for _ in range(calls)]))

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


# --- linkability ---


def linkability_costs(clock: Clock, seed: int, quick: bool) -> dict[str, Any]:
    """One federation of users who photograph digits, and attacks on growing parts of it."""
    users = (20, 40) if quick else (50, 100, 200, 400)
    crowd = digit_scenes(users=users[-1], scenes=32 if quick else SCENES, seed=seed)
    held = split_clients(crowd.train, "random", seed=seed)
    network = models.build("cnn", crowd.train.inputs.shape[1:], classes=10, seed=seed).to(clock.device)
    each = {"learning_rate": 0.1, "batch_size": 8}
    some = list(range(min(40, len(held))))
    engines: dict[str, float] = {}
    for engine in ("sequential", "vectorized"):
        call = clock.best(lambda e=engine: local_updates(network, held, some, engine=e, **each))
        engines[engine] = call / len(some)
    rounds = round(PER_CLIENT / FRACTION)
    run, seconds = clock(
        lambda: simulate(
            network, held, rounds=rounds, fraction=FRACTION, observe=(HEAD,), seed=seed, learning_rate=0.1
        )
    )
    seen = run.observed
    # The first call of each imports what it needs, and does not count.
    attack(clock, seen.subset(seen.users < users[0]), users[0], seed)
    rows = [attack(clock, seen.subset(seen.users < count), count, seed) for count in users]
    return {
        "devices": 2,
        "per_client": PER_CLIENT,
        "images": int(held.counts[0]),
        "features": seen.matrix(HEAD).shape[1],
        "parameters": sum(value.numel() for value in network.parameters()),
        "engines": engines,
        "simulation": {"users": users[-1], "updates": len(seen), "seconds": seconds},
        "feature_bytes": sum(value.nbytes for value in seen.tensors.values()),
        "identify": rows,
        "synthetic": [synthetic(clock, count, seed) for count in ((50, 60) if quick else (800, 1600))],
        "metric": [metric(clock, count, seed) for count in ((20, 40) if quick else (50, 200, 800))],
        "steps": [step(clock, count, seed) for count in ((50, 100, 200) if quick else (50, 1600, 6400))],
        "blocks": blocks(clock, 2 * BLOCK if quick else 64 * BLOCK, seed),
    }


def sides(observed: Observations) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of the first devices' updates and of the others', with their users, as in chapter 1."""
    known = (observed.devices == KNOWN).numpy()
    own = linkability.features(observed, HEAD)
    first, second = linkability.span_coordinates(own[known], own[~known])
    owners = observed.users.numpy()
    return first, second, owners[known], owners[~known]


def attack(clock: Clock, observed: Observations, users: int, seed: int) -> dict[str, Any]:
    """Seconds and average precision of each attack that learns, on real updates of so many users."""
    (known, tested, owners, truth), prepare = clock(lambda: sides(observed))
    row: dict[str, Any] = {
        "users": users,
        "known": len(known),
        "tested": len(tested),
        "features": known.shape[1],
        "prepare_seconds": prepare,
    }
    clients = observed.clients.numpy()[(observed.devices != KNOWN).numpy()]
    for name in ("knn", "svm", "mlp"):
        counted = Steps()
        scores, seconds = clock(
            lambda n=name: linkability.identify(n, known, owners, tested, classes=users, seed=seed)
        )
        ap = metrics.identification(scores, truth, clients, draws=1, seed=seed).ap
        row[name] = {"seconds": seconds, "ap": ap, "steps": counted.stop()}
    return row


class Steps:
    """Counts the steps of all optimizers from its making on."""

    def __init__(self) -> None:
        self.count = 0
        self._hook = register_optimizer_step_post_hook(self._one)

    def _one(self, *_: Any) -> None:
        self.count += 1

    def stop(self) -> int:
        """Stop counting, and give the count."""
        self._hook.remove()
        return self.count


def random_features(rows: int, seed: int, features: int = 650) -> np.ndarray:
    """Unit vectors without meaning: time and memory hardly depend on what the numbers are."""
    drawn = np.random.default_rng(seed).standard_normal((rows, features), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def synthetic(clock: Clock, users: int, seed: int) -> dict[str, Any]:
    """Seconds of nearest neighbours on random features of so many users."""
    count = users * PER_CLIENT
    known, tested = random_features(count, seed), random_features(count, seed + 1)
    owners = np.arange(count) % users
    _, seconds = clock(lambda: linkability.identify("knn", known, owners, tested, classes=users))
    return {"users": users, "known": count, "tested": count, "features": 650, "knn": {"seconds": seconds}}


def metric(clock: Clock, users: int, seed: int) -> dict[str, Any]:
    """Seconds and memory of scoring random scores, and the bytes of the scores alone."""
    count = users * PER_CLIENT
    scores = np.random.default_rng(seed).random((count, users))
    owners = np.arange(count) % users
    _, seconds = clock(lambda: metrics.identification(scores, owners, owners))
    tracemalloc.start()
    metrics.identification(scores, owners, owners, draws=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "users": users,
        "tested": count,
        "seconds": seconds,
        "scores_bytes": scores.nbytes,
        "added_bytes": peak,
    }


def step(clock: Clock, users: int, seed: int) -> dict[str, Any]:
    """Seconds of one step of the identifying network with so many outputs, on random features."""
    known = random_features(2 * users, seed)  # fewer than five of a user: 1,000 steps, and nothing held out
    counted = Steps()
    _, seconds = clock(
        lambda: linkability.identify("mlp", known, np.arange(2 * users) % users, known[:1], classes=users)
    )
    return {"users": users, "features": 650, "seconds": seconds / counted.stop()}


def blocks(clock: Clock, known: int, seed: int) -> dict[str, Any]:
    """Seconds of comparing a block of updates with all known ones, keeping the best only."""
    there = torch.from_numpy(random_features(known, seed)).to(clock.device)
    here = torch.from_numpy(random_features(BLOCK, seed + 1)).to(clock.device)

    def best() -> None:
        top = [(here @ part.T).topk(KEPT) for part in there.split(8 * BLOCK)]
        values = torch.cat([found.values for found in top], dim=1)
        values.topk(KEPT)

    return {"known": known, "tested": BLOCK, "features": 650, "seconds": clock.best(best)}


# --- all of it ---


def environment_bytes() -> int:
    """Bytes of the interpreter's environment, each file once."""
    files = (path.lstat() for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(found.st_dev, found.st_ino): found.st_size for found in files}.values())


def chapters(profile: str = "smoke") -> dict[str, Any]:
    """Wall seconds of the chapters at a profile, one after the other, outside of the book."""
    found = {}
    for source in chapter_sources(ROOT):
        text = (ROOT / "notebooks" / "params" / profile / f"{source.stem}.yaml").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{source.stem}.ipynb")
            jupytext.write(jupytext.read(source), path)
            began = time.perf_counter()
            cwd = str(source.parent)
            papermill.execute_notebook(path, path, yaml.safe_load(text), cwd=cwd, progress_bar=False)
            # Its own word on memory is not taken: Linux lets a process begin with the peak of the one that starts it.
            found[source.stem] = {"seconds": time.perf_counter() - began, "memory": None}
    return found


def main(arguments: argparse.Namespace) -> Path:
    """Measure, and write the record."""
    device = torch.device(arguments.device)
    clock, began = Clock(device), time.perf_counter()
    load = [os.getloadavg()[0]]
    values: dict[str, Any] = {
        "linkability": linkability_costs(clock, arguments.seed, arguments.quick),
        "imprint": scale_imprint.imprint_costs(clock, arguments.seed, arguments.quick),
    }
    values |= {
        "clock": clock.name,
        "load": [*load, os.getloadavg()[0]],
        "minutes": (time.perf_counter() - began) / 60,
        "environment_bytes": environment_bytes(),
    }
    path = (arguments.output or ROOT / "results" / device.type) / "costs.json"
    record(path, values, device, arguments.seed, "")
    if arguments.chapters:
        values["chapters"] = {"smoke": chapters()}
        record(path, values, device, arguments.seed, " --chapters")
    return path


def record(path: Path, values: dict[str, Any], device: torch.device, seed: int, options: str) -> None:
    """Write the record whole."""
    command = "python benchmarks/scale.py" + (f" --device {device}" if device.type != "cpu" else "") + options
    source = {name: as_text(value) for name, value in provenance(device=device).items()} | {"seed": str(seed)}
    source |= {"data": "digit scenes, photographs, random features", "command": command}
    write_whole(path, json.dumps(asdict(Result(values, source, fresh=False)), indent=1) + "\n")


if __name__ == "__main__":
    print(main(ARGUMENTS))
