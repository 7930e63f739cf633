"""Time of a client's update: our engines against plain PyTorch and against Flower's simulation.

    python benchmarks/federated.py [--device cuda] [--without-flower] [--quick] [--json FILE]

Exit code 1 where a bar fails. The README beside this file says what each contestant does.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our engines' time for a client's update, and others'.")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100], help="how many train in a round")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each contestant, and rounds")
    parser.add_argument("--without-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--flower-cores", type=int, default=CORES, help="processes of Flower's clients")
    parser.add_argument("--quick", action="store_true", help="three calls of each, 10 clients")
    parser.add_argument("--json", type=Path, help="also write the comparisons into this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.clients = 3, [10]
    if min(arguments.repeats, arguments.flower_cores, *(count - 1 for count in arguments.clients)) < 1:
        parser.error("--repeats and --flower-cores must be 1 or more, --clients 2 or more")
    return arguments


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MODELS: dict[str, dict[str, Any]] = {
    "small": {"title": "small CNN", "name": "cnn", "shape": (1, 16, 16)},
    "lenet": {"title": "LeNet-sized CNN", "name": "cnn", "shape": (1, 28, 28), "width": 32},
    "mobilenet": {
        "title": "MobileNetV2",
        "name": "mobilenet-v2",
        "shape": (3, 64, 64),
        "images": 32,
        "trained": ("features.17", "features.18", "classifier"),
    },
}

if __name__ == "__main__":
    ARGUMENTS = _arguments()
    environment.one_thread()

import comparisons
import plain
import torch
from federated_race import (
    AUTO,
    BARS,
    CACHED,
    CLOSE,
    COMPILED,
    PASS,
    PLAIN,
    ROUNDS,
    SEQUENTIAL,
    TRAINING,
    VECTORIZED,
    Race,
    ratio,
    rows,
)
from torch import Tensor, nn

from gradleak_lib.data.users import ClientData, UserDataset
from gradleak_lib.federated import choose_engine, local_updates, split_frozen
from gradleak_lib.federated.frozen import cached

SLOW = 10  # clients of the MobileNet


def run(contestants: Mapping[str, Callable[[], Any]], race: Race, repeats: int, device: torch.device) -> None:
    """Call all in turn, each time another one first; every one of them has been called before."""
    names = list(contestants)
    race.seconds, race.wall = {name: [] for name in names}, {name: [] for name in names}
    for repeat in range(repeats):
        for place in range(len(names)):
            name = names[(repeat + place) % len(names)]
            synchronize(device)
            start = time.process_time(), time.perf_counter()
            contestants[name]()
            synchronize(device)
            cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
            race.seconds[name].append(cpu if device.type == "cpu" else wall)
            race.wall[name].append(wall)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def client_data(case: plain.Case) -> ClientData:
    """The samples of a case as our library holds them."""
    inputs, targets = (part.flatten(0, 1) for part in case.samples())
    count = len(inputs)
    owners = torch.arange(case.clients).repeat_interleave(case.images)
    nothing = torch.zeros(count, dtype=torch.int64)
    data = UserDataset(
        inputs,
        targets,
        users=owners,
        items=torch.arange(count),
        albums=nothing,
        times=torch.arange(count, dtype=torch.float64),
        sources=nothing[:, None] - 1,
        classes=tuple(map(str, range(plain.LABELS))),
        user_names=tuple(map(str, range(case.clients))),
        name="random",
    )
    rows = torch.arange(count).split(case.images)
    return ClientData(data, rows, torch.arange(case.clients), torch.zeros(case.clients, dtype=torch.int64))


def in_double(clients: ClientData) -> ClientData:
    """The same samples in double precision."""
    return replace(clients, data=replace(clients.data, inputs=clients.data.inputs.double()))


def ours(model: nn.Module, clients: ClientData, case: plain.Case, engine: Any, **options: Any) -> Any:
    """All clients' updates, each client's samples in an order of its own."""
    settings: dict[str, Any] = {
        "learning_rate": case.learning_rate,
        "batch_size": case.batch_size,
        "epochs": case.epochs,
        "seeds": range(case.clients),
    }
    return local_updates(model, clients, range(case.clients), engine=engine, **settings | options)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest distance of two updates of one client, relative to the length of the second."""
    apart, length = (
        torch.cat([part[name].flatten(1) for name in second], dim=1).norm(dim=1)
        for part in ({name: first[name] - second[name] for name in second}, second)
    )
    return float((apart / length).max())


def in_plain(model: nn.Module, case: plain.Case, device: torch.device) -> dict[str, Tensor]:
    """Updates of plain PyTorch, without shuffling."""
    rows = plain.updates(model, *case.samples(), case, device, shuffle=False)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def race_engines(case: plain.Case, repeats: int, device: torch.device, *, compiler: bool) -> Race:
    """All engines of `local_updates` against plain PyTorch."""
    model, clients, race = case.model(device), client_data(case), Race(case.clients)
    engines = (SEQUENTIAL, VECTORIZED, *([COMPILED] if compiler else []), AUTO)
    calls = {engine: partial(ours, model, clients, case, engine) for engine in engines}
    # In double precision: in single, rounding turns the winner of a max pooling around now and then.
    exact = copy.deepcopy(model).double(), in_double(clients)
    reference = ours(*exact, case, SEQUENTIAL)
    for engine in engines:
        start = time.perf_counter()
        calls[engine]()
        if engine == COMPILED:
            print(f"The first call of compiled took {time.perf_counter() - start:.1f} s; not counted.")
        if engine != SEQUENTIAL:
            race.differences[engine] = difference(ours(*exact, case, engine), reference)
    unshuffled = ours(model, clients, case, SEQUENTIAL, seeds=None)
    race.differences[f"{PLAIN}, unshuffled"] = difference(in_plain(model, case, device), unshuffled)
    run({PLAIN: plain.contestant(model, case, device)} | calls, race, repeats, device)
    return race


def race_flower(race: Race, case: plain.Case, repeats: int, cores: int, device: torch.device) -> None:
    """Flower's rounds, half of them before ours and half after, and ours in as many threads as it has processes."""
    before = flower_rounds(case, repeats, cores, str(device))
    model, clients = case.model(device), client_data(case)
    engines = [name for name in race.seconds if name != PLAIN]
    calls = {name: partial(ours, model, clients, case, name) for name in engines}
    torch.set_num_threads(cores)
    for call in calls.values():
        call()  # what was compiled for one thread is compiled again
    together = Race(case.clients)
    run(calls, together, repeats, device)
    race.all_cores = together.wall
    torch.set_num_threads(1)
    after = flower_rounds(case, repeats, cores, str(device))
    race.flower, race.flower_cpu = (first + second for first, second in zip(before, after, strict=True))


def race_frozen(case: plain.Case, repeats: int, device: torch.device) -> Race:
    """The last layers of a network, with the frozen ones computed at every step or once."""
    model, clients, race = case.model(device), client_data(case), Race(case.clients)
    start, rest = split_frozen(model)
    if start is None:
        raise RuntimeError("nothing of the model is frozen in front of what is trained")
    held = cached(start, clients)
    calls: dict[str, Callable[[], Any]] = {
        PLAIN: plain.contestant(model, case, device),
        AUTO: partial(ours, model, clients, case, AUTO),
        PASS: lambda: cached(start, clients),
        TRAINING: partial(ours, rest, held, case, AUTO),
        CACHED: lambda: ours(rest, cached(start, clients), case, AUTO),
    }
    reference = ours(model, clients, case, SEQUENTIAL)
    for name in (AUTO, CACHED):
        race.differences[name] = difference(calls[name](), reference)
    unshuffled = ours(model, clients, case, SEQUENTIAL, seeds=None)
    race.differences[f"{PLAIN}, unshuffled"] = difference(in_plain(model, case, device), unshuffled)
    run(calls, race, repeats, device)
    return race


def flower_rounds(case: plain.Case, repeats: int, cores: int, device: str) -> list[list[float]]:
    """Wall and CPU seconds of Flower's rounds, without the first one, in which its processes start."""
    python = environment.make(environment.FLOWER)
    settings = {"case": asdict(case), "rounds": repeats + 1, "cores": cores, "device": device}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("flower_peer.py")), json.dumps(settings)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"Flower failed:\n{done.stderr}")
    return [seconds[1:] for seconds in json.loads(done.stdout.splitlines()[-1])]


def report(case: plain.Case, race: Race, cores: int, device: torch.device) -> None:
    """Print the table of one case, and how far the updates are apart."""
    on_cpu = device.type == "cpu"
    header = f"{'ms per client':24}{'CPU' if on_cpu else 'wall':>8}{'x plain':>9}"
    print(header + (f"{f'wall, {cores} cores':>16}{'x Flower':>10}" if race.flower else ""))
    for name, seconds in race.seconds.items():
        line = f"{name:24}{1e3 * median(seconds) / race.clients:8.2f}{race.faster(name):9.2f}"
        if name in race.all_cores:
            wall = 1e3 * median(race.all_cores[name]) / race.clients
            line += f"{wall:16.2f}{race.faster_than_flower(name):10.2f}"
        print(line)
    if race.flower:
        cpu, wall = (1e3 * median(part) / race.clients for part in (race.flower_cpu, race.flower))
        print(f"{'Flower':24}{cpu:8.2f}{'':9}{wall:16.2f}")
    if CACHED in race.seconds:
        amortised = race.amortised()
        name, cost = f"one pass for {ROUNDS} rounds", 1e3 * median(amortised) / race.clients
        print(f"{name:24}{cost:8.2f}{ratio(race.seconds[PLAIN], amortised):9.2f}")
    apart = ", ".join(f"{name} {value:.0e}" for name, value in race.differences.items())
    print(f"Largest relative difference of updates: {apart}", flush=True)


def report_bars(races: dict[tuple[str, int], Race]) -> dict[str, bool]:
    """Print each bar and whether it holds; return those that compare no times."""
    held: list[tuple[str, bool]] = []
    checks: dict[str, bool] = {}
    for (model, clients), race in races.items():
        title = f"{MODELS[model]['title']}, {clients} clients"
        for where, name, over_plain, over_flower in BARS:
            if where != model or name not in race.seconds:
                continue
            faster = race.faster(name)
            held.append((f"{title}: {name} {over_plain:g} x plain (here {faster:.2f})", faster >= over_plain))
            if over_flower and race.flower:
                faster = race.faster_than_flower(name)
                bar = f"{title}: {name} {over_flower:g} x Flower by wall time (here {faster:.2f})"
                held.append((bar, faster >= over_flower))
        agree = max(race.differences.values()) <= CLOSE
        checks[f"{title}: all updates agree within {CLOSE:g}"] = agree
        held.append((f"{title}: all updates agree within {CLOSE:g}", agree))
    for bar, holds in held:
        print(f"bar {bar}: {'passed' if holds else 'FAILED'}")
    return checks


def cases(arguments: argparse.Namespace) -> dict[tuple[str, int], plain.Case]:
    """Models and numbers of clients; the MobileNet is slow and has only ten clients."""
    found = {}
    for model in arguments.models:
        for clients in [SLOW] if model == "mobilenet" else arguments.clients:
            found[model, clients] = plain.Case(clients=clients, **MODELS[model])
    return found


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 0 where every bar holds, else 1."""
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    compiler = shutil.which("g++") is not None
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, {device}; batches of 8, one epoch; "
        f"medians of {arguments.repeats} alternated calls; x plain: median over neighbouring calls."
    )
    if not arguments.without_flower:
        environment.make(environment.FLOWER)
        print(
            f"{environment.FLOWER.pin} in {arguments.flower_cores} processes of one thread; "
            f"twice {arguments.repeats} rounds after its first; its CPU time is that of all its processes."
        )
    if not compiler:
        print("There is no g++: the compiled engine and its bars are left out.")
    races: dict[tuple[str, int], Race] = {}
    for key, case in cases(arguments).items():
        model = case.model(torch.device("cpu"))
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters()) - count
        print(
            f"\n{case.title}, {'x'.join(map(str, case.shape))}: {count:,} trained parameters"
            f"{f', {frozen:,} frozen' if frozen else ''}; {case.clients} clients of {case.images} images; "
            f"auto is {choose_engine(model.to(device))}",
            flush=True,
        )
        if case.trained:
            races[key] = race_frozen(case, arguments.repeats, device)
        else:
            race = race_engines(case, arguments.repeats, device, compiler=compiler)
            if not arguments.without_flower:
                race_flower(race, case, arguments.repeats, arguments.flower_cores, device)
            races[key] = race
        report(case, races[key], arguments.flower_cores, device)
    print()
    found = [
        row
        for (model, _), race in races.items()
        for row in rows(race, model, MODELS[model]["title"], on_cpu=device.type == "cpu")
    ]
    return comparisons.finish(arguments.json, found, report_bars(races))


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
