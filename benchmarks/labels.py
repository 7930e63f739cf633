"""Labels read from gradients: every strategy of breaching 0.1.2 and ours, on the same gradients, in one thread.

    python benchmarks/labels.py [--quick] [--json FILE]

Exit code 1 where a bar fails. The README beside this file says what each contestant does.
"""

# ruff: noqa: E402  (torch must not be imported before the threads are set)

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from statistics import fmean, median

import environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Labels read from gradients: breaching's strategies and ours."
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many networks, each with images of its own")
    parser.add_argument("--batches", type=int, default=4, help="batches of each kind for each network")
    parser.add_argument("--quick", action="store_true", help="two seeds, two batches")
    parser.add_argument("--json", type=Path, help="also write the comparisons into this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = arguments.batches = 2
    if min(arguments.seeds, arguments.batches) < 1:
        parser.error("--seeds and --batches must be 1 or more")
    return arguments


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    environment.enter()

import comparisons
import peer_labels
import torch
from labels_record import (
    COUNTING,
    FROM,
    LLG,
    SOLVING,
    THEIR_DEFAULT,
    THEIR_LLG,
    Kind,
    Outcome,
    Record,
    always_enough,
    never_below,
    rows,
)
from torch import Tensor, nn

from gradleak_lib import metrics
from gradleak_lib.attacks import labels as attacks
from gradleak_lib.data import ImageDataset, draw_images, draw_labels, load
from gradleak_lib.federated import Update, fedsgd
from gradleak_lib.models import build

SHAPE = (3, 32, 32)
CLASSES, SAMPLES = (10, 100), (1, 8, 32, 128)
MODELS: dict[str, int | None] = {"lenet": None, "convnet": 16, "mlp": None}
# Images of each class, on average. The client's suffice for half of the largest batch without repetition.
PRIVATE, AUXILIARY = 100, 10
DUMMIES = 64
CHANCE = "chance"


@dataclass(frozen=True)
class Server:
    """A model that was sent out, and what the attackers learn from it before any update arrives."""

    model: nn.Module
    dummies: attacks.Probe
    auxiliary: attacks.Probe
    readers: peer_labels.Readers

    def calls(self, update: Update) -> dict[str, Callable[[], Tensor]]:
        """Our attacks on an update; each call returns counts."""
        model = self.model
        found: dict[str, Callable[[], Tensor]] = {
            LLG: partial(attacks.llg, update, model),
            "llg, probe from gradient": lambda: attacks.llg(
                update, model, attacks.probe_from_gradient(update, model)
            ),
            "llg*": partial(attacks.llg, update, model, self.dummies),
            "llg+": partial(attacks.llg, update, model, self.auxiliary),
            COUNTING: partial(attacks.bias_counts, update, model, self.dummies),
            "bias counts, auxiliary": partial(attacks.bias_counts, update, model, self.auxiliary),
            SOLVING: partial(attacks.ilrg, update, model),
        }
        return {"idlg": partial(attacks.idlg, update, model), **found} if update.samples == 1 else found


def load_images(classes: int, each: int, seed: int) -> ImageDataset:
    """Independent windows: of the ten photographs, or of ten places in each."""
    if classes == 10:
        return load("photos", SHAPE[1], sample=each * classes, seed=seed, distinct=False)
    return load("places", SHAPE[1], sample=each * classes, seed=seed)


def make_server(record: Record, name: str, auxiliary: ImageDataset, seed: int) -> Server:
    """Build a network, and probe it with dummies and with auxiliary images."""
    classes = len(auxiliary.classes)
    model = build(name, SHAPE, classes=classes, seed=seed, width=MODELS[name])
    return Server(
        model,
        timed_probe(record, name, model, attacks.dummies("random", SHAPE, DUMMIES, seed=seed), None),
        timed_probe(record, name, model, auxiliary.images, auxiliary.labels),
        peer_labels.Readers(model, SHAPE),
    )


def timed_probe(
    record: Record, name: str, model: nn.Module, images: Tensor, labels: Tensor | None
) -> attacks.Probe:
    """Probe a network, and record the time under the number of its classes and its name."""
    start = time.process_time()
    probe = attacks.probe(model, images, labels)
    seconds = time.process_time() - start
    what = f"{len(images)} {'dummies' if labels is None else 'auxiliary images'}"
    record.probes[len(probe.offset), what, name].append(seconds)
    return probe


def updates(
    model: nn.Module, private: ImageDataset, batches: int, generator: torch.Generator
) -> Iterator[tuple[Kind, Tensor, Update]]:
    """For each batch its kind, how often it holds each label, and its gradient."""
    classes = len(private.classes)
    for balanced, samples, _ in product((True, False), SAMPLES, range(batches)):
        labels = draw_labels(samples, classes, balanced=balanced, generator=generator)
        batch = draw_images(private, labels, generator=generator)
        update = fedsgd(model, batch.images, batch.labels)
        yield Kind(classes, samples, balanced), labels.bincount(minlength=classes), update


def attack(server: Server, update: Update, true: Tensor, seed: int, *, backwards: bool) -> dict[str, Outcome]:
    """Let all contestants read the same update, ours and theirs in turn."""
    ours, theirs = server.calls(update), server.readers.calls(update)
    order = [name for pair in zip_longest(ours, theirs) for name in pair if name]
    found = {}
    for name in reversed(order) if backwards else order:
        torch.manual_seed(seed)  # theirs draw the labels that they do not find
        found[name] = outcome(ours.get(name) or theirs[name], true, counts=name in ours)
    return {name: found[name] for name in (*theirs, *ours)}


def outcome(call: Callable[[], Tensor], true: Tensor, *, counts: bool) -> Outcome:
    """Make one call and compare the counts, or the labels, that it returns with the true counts."""
    start = time.process_time()
    try:
        found = call()
    except RuntimeError as error:
        return Outcome(0.0, time.process_time() - start, 0, f"{type(error).__name__}: {error}")
    seconds = time.process_time() - start
    if counts:
        return Outcome(metrics.attack_success_rate(found, true), seconds, int(found.sum()))
    found = found.bincount(minlength=len(true))
    # Some of theirs can give more labels than there are samples: only those that are right count.
    return Outcome(float(found.minimum(true).sum() / true.sum()), seconds, int(found.sum()))


def measure(record: Record, classes: int, seed: int, batches: int) -> None:
    """Attack every kind of batch on every network, all of one seed."""
    private, auxiliary = (
        load_images(classes, each, 2 * seed + owner) for owner, each in enumerate((PRIVATE, AUXILIARY))
    )
    generator = torch.Generator().manual_seed(seed)
    for name in MODELS:
        server = make_server(record, name, auxiliary, seed)
        for number, (kind, true, update) in enumerate(updates(server.model, private, batches, generator)):
            guess = int(torch.randint(2**31, (), generator=generator))
            with contextlib.redirect_stdout(io.StringIO()):  # one of theirs prints at every call
                found = attack(server, update, true, guess, backwards=number % 2 == 1)
            chance = {CHANCE: Outcome(metrics.chance_success_rate(true), 0.0, kind.samples)}
            for contestant, result in (chance | found).items():
                record.outcomes[kind][contestant].append(result)
                if kind.samples >= FROM:
                    record.by_network[classes, name][contestant].append(result)


def title(name: str) -> str:
    """Say whose a contestant is."""
    if name == CHANCE:
        return "random guess, closed form"
    return f"{'breaching' if name in peer_labels.STRATEGIES else 'ours'}: {name}"


def rates(name: str, groups: list[list[Outcome]], width: int = 7) -> str:
    """One line of mean success rates; where every call failed, how."""
    results = [result for group in groups for result in group]
    if all(result.error for result in results):
        return f"{title(name):33}  fails: {results[0].error.partition(':')[0]}"
    cells = [f"{fmean(result.rate for result in group):.3f}" if group else "-" for group in groups]
    return row(title(name), cells, width)


def row(heading: str, cells: list[str], width: int = 7) -> str:
    """One line of a table; a gap divides its two halves."""
    half = len(cells) // 2
    parts = ("".join(f"{cell:>{width}}" for cell in part) for part in (cells[:half], cells[half:]))
    return f"{heading:33}" + "  ".join(parts)


def print_rates(record: Record, classes: int) -> None:
    """Mean success rate of each contestant in each kind of batch, and what went wrong."""
    kinds = [Kind(classes, samples, balanced) for balanced, samples in product((True, False), SAMPLES)]
    width = 7 * len(SAMPLES)
    print(f"\n{f'{classes} classes: labels found':33}{'balanced':>{width}}  {'unbalanced':>{width}}")
    print(row("", [f"B={kind.samples}" for kind in kinds]))
    notes = []
    for name in record.names():
        groups = [record.outcomes[kind].get(name, []) for kind in kinds]
        print(rates(name, groups))
        calls = sum(map(len, groups))
        failed = [result.error for group in groups for result in group if result.error]
        if failed:
            notes.append(f"{title(name)}: {len(failed)} of {calls} calls fail: {failed[0]}")
        many = sum(record.excess(kind, name) for kind in kinds)
        if many:
            notes.append(f"{title(name)}: more labels than samples in {many} of {calls} calls")
    print(*notes, sep="\n", flush=True)


def print_networks(record: Record) -> None:
    """Mean success rate of each contestant on each network, over all batches from the size of the bars up."""
    width = 10 * len(MODELS)
    print(f"\n{f'labels found, from B={FROM} up':33}{'10 classes':>{width}}  {'100 classes':>{width}}")
    print(row("", [name for _, name in record.by_network], 10))
    for name in record.names():
        groups = [outcomes[name] for outcomes in record.by_network.values() if name in outcomes]
        if groups:  # one reads single samples only
            print(rates(name, groups, 10))


def print_times(record: Record) -> None:
    """Median CPU milliseconds of a call, over compositions and networks, and of a probe."""
    columns = list(product(CLASSES, SAMPLES))
    width = 7 * len(SAMPLES)
    print(f"\n{'milliseconds for one update':33}{'10 classes':>{width}}  {'100 classes':>{width}}")
    print(row("", [f"B={samples}" for _, samples in columns]))
    for name in record.names()[1:]:
        print(row(title(name), [record.milliseconds(*column, name) for column in columns]))
    print("\nmilliseconds for one probe, once for each model (`llg*`, `llg+` and the bias counts need one)")
    for (classes, what, name), seconds in record.probes.items():
        print(f"  {classes:3} classes, {what:22}{name:9}{1000 * median(seconds):8.1f}")


def report_bars(record: Record) -> dict[str, bool]:
    """Print each bar and whether it holds, and the same for what is no bar; return the bars."""
    bars = [never_below(record, THEIR_LLG), always_enough(record, COUNTING)]
    others = [never_below(record, THEIR_DEFAULT), always_enough(record, SOLVING)]
    for heading, lines, otherwise in (("Bars", bars, "FAILS"), ("Looked at, but no bars", others, "no")):
        print(f"\n{heading}:")
        for text, holds in lines:
            print(f"  {'holds' if holds else otherwise:5}  {text}")
    return dict(bars)


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 0 where every bar holds, else 1."""
    torch.set_num_threads(1)
    print(
        f"Untrained {', '.join(MODELS)} on images of {'x'.join(map(str, SHAPE))}; {arguments.seeds} seeds, "
        f"{arguments.batches} batches of each kind for each network and seed; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread.",
        flush=True,
    )
    record = Record()
    for classes in CLASSES:
        for seed in range(arguments.seeds):
            measure(record, classes, seed, arguments.batches)
        print_rates(record, classes)
    print_networks(record)
    print_times(record)
    return comparisons.finish(arguments.json, list(rows(record)), report_bars(record))


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
