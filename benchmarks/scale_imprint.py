"""The part of `scale.py` that reads images: seconds of a sample, and quality against the size of the aggregate."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradleak_lib import metrics
from gradleak_lib.attacks import imprint, placement
from gradleak_lib.data import load
from gradleak_lib.experiments import costs
from gradleak_lib.federated import Update, fedsgd
from gradleak_lib.models import build

# A small image, a linear host: cheap enough for a million samples. Ten classes.
SHAPE, HOST, CLASSES = (3, 16, 16), "linear", 10
PART = 2**14  # samples that are in memory at a time: one client's, say
BINS = 32  # one-shot bins read from each aggregate, for a median
NEAR = 64  # samples drawn around a bin
PRECISIONS = {"single": torch.float32, "double": torch.float64}


def imprint_costs(clock: Any, seed: int, quick: bool) -> dict[str, Any]:
    """Seconds of a sample by host, one fishing trip, and quality by size of the aggregate."""
    hosts = (
        (("lenet", 32, 64),) if quick else (("lenet", 32, 1024), ("resnet18", 64, 64), ("resnet18", 224, 16))
    )
    crops = load("photos", SHAPE[1], sample=512 if quick else 4096, seed=seed + 1).images
    h = imprint.mean_brightness(SHAPE).double()
    known = imprint.measure(torch.cat([x for x, _ in stream(crops, 4 * PART, seed)]), h)
    sizes = (2**8, 2**10) if quick else tuple(2**power for power in range(8, 21, 2))
    near_sizes = (2**10, 10**9) if quick else (2**10, 2**16, 2**20, 2**22, 2**24, 2**26, 10**9)
    low, middle, high = known.quantile(torch.tensor([0.45, 0.5, 0.55]).double()).tolist()
    density = 0.1 / (high - low)
    return {
        "hosts": [host_costs(clock, *host, seed) for host in hosts],
        "fishing": fishing(clock, 512 if quick else 8192, 64, seed),
        "entries": math.prod(SHAPE),
        "density": density,
        "value": middle,
        "quality": [row for n in sizes for row in quality(clock, crops, known, n, seed)],
        "near": [
            near(clock, crops, (middle, density), n, name, seed, 10 if quick else 400)
            for n in near_sizes
            for name in PRECISIONS
        ],
    }


def armed(
    shape: tuple[int, ...], edges: Tensor, variant: str, host: str = HOST, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A network behind an imprint that measures brightness against these edges."""
    layer = imprint.Imprint(shape, len(edges) - 1, variant=variant).to(dtype)
    imprint.arm(layer, imprint.mean_brightness(shape), edges)
    return placement.before_input(build(host, shape, classes=CLASSES, seed=0).to(dtype), layer)


def host_costs(clock: Any, host: str, size: int, samples: int, seed: int) -> dict[str, Any]:
    """Seconds of a sample's gradient and of a read-out, and the bytes of the model, for one host."""
    batch = load("photos", size, sample=samples, seed=seed)
    h = imprint.mean_brightness(batch.images.shape[1:])
    edges = imprint.one_shot_bins(imprint.measure(batch.images, h), samples)
    model = armed(batch.images.shape[1:], edges, "sparse", host).to(clock.device)
    labels = batch.labels % CLASSES
    plain = build(host, batch.images.shape[1:], classes=CLASSES, seed=0).to(clock.device)
    update = fedsgd(model, batch.images, labels)
    return {
        "host": host,
        "size": size,
        "samples": samples,
        "sample_seconds": clock.best(lambda: fedsgd(model, batch.images, labels)) / samples,
        "plain_seconds": clock.best(lambda: fedsgd(plain, batch.images, labels)) / samples,
        "read_seconds": clock.best(lambda: imprint.recover(update, model), calls=9),
        "model_bytes": sum(value.nbytes for value in update.tensors.values()),
        "imprint_bytes": sum(value.nbytes for value in update.layer("imprint.linear").values()),
    }


def fishing(clock: Any, samples: int, aggregate: int, seed: int) -> dict[str, Any]:
    """Read one image, or none, out of each aggregate of photographs, with the bin at a place drawn anew."""
    batch, public = (load("photos", 32, sample=samples, seed=seed + number) for number in (3, 4))
    h = imprint.mean_brightness(batch.images.shape[1:])
    known = imprint.measure(public.images, h)
    places = torch.rand(samples // aggregate, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1
    read, seconds = 0, 0.0
    parts = zip(batch.images.split(aggregate), batch.labels.split(aggregate), places.tolist(), strict=True)
    for images, labels, place in parts:
        edges = imprint.one_shot_bins(known, aggregate, position=place)
        model = armed(images.shape[1:], edges, "sparse", "lenet").to(clock.device)

        def attack(x: Tensor = images, y: Tensor = labels, sent: nn.Module = model) -> imprint.Recovered:
            return imprint.recover(fedsgd(sent, x, y % CLASSES), sent)

        found, took = clock(attack)
        seconds += took
        candidate = found.inputs[found.bins == 0].cpu()
        read += len(candidate) == 1 and bool(decibels(candidate, images).max() > metrics.EXACT_DB)
    expected = costs.one_shot_images(samples, aggregate)
    return {
        "samples": samples,
        "aggregate": aggregate,
        "read": read,
        "expected": expected,
        "seconds": seconds,
    }


def stream(crops: Tensor, samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images that are mixtures of two photographs each, never twice the same, with random labels, in parts."""
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, samples, PART):
        count = min(PART, samples - begin)
        pick = torch.randint(len(crops), (2, count), generator=generator)
        share = torch.rand(count, 1, 1, 1, generator=generator)
        images = torch.lerp(crops[pick[0]], crops[pick[1]], share)
        yield images, torch.randint(CLASSES, (count,), generator=generator)


def decibels(candidates: Tensor, originals: Tensor) -> Tensor:
    """PSNR of one candidate, clamped to [0, 1], to each original, in double precision; identical ones have 400 dB."""
    error = (candidates.double().clamp(0, 1) - originals.double()).flatten(1).square().mean(1)
    return -10 * error.clamp_min(1e-40).log10()


def quality(clock: Any, crops: Tensor, known: Tensor, samples: int, seed: int) -> list[dict[str, Any]]:
    """How well images that are alone in their bin come back from one aggregate of so many samples."""
    generator = torch.Generator().manual_seed(seed + samples)
    positions = torch.linspace(0.12, 0.88, BINS) + 0.005 * torch.rand(BINS, generator=generator)
    each = [imprint.one_shot_bins(known, samples, position=place) for place in positions.tolist()]
    edges = torch.cat([*(both[:2] for both in each), each[0][2:]])
    kinds = [(variant, name) for variant in ("cumulative", "sparse") for name in PRECISIONS]
    sent = {kind: armed(SHAPE, edges, kind[0], dtype=PRECISIONS[kind[1]]).to(clock.device) for kind in kinds}
    sums: dict[Any, dict[str, Tensor]] = {kind: {} for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    inside: dict[int, list[Tensor]] = {number: [] for number in range(0, 2 * BINS, 2)}
    h = imprint.mean_brightness(SHAPE).double()
    for images, labels in stream(crops, samples, seed + samples):
        place = torch.searchsorted(edges, imprint.measure(images, h)) - 1
        for number, found in inside.items():
            found += list(images[place == number])
        for kind in kinds:
            update, took = clock(lambda m=sent[kind], x=images, y=labels: fedsgd(m, x, y, microbatch=256))
            seconds[kind] += took
            add(sums[kind], update, len(images) / samples)
    alone = {number: found[0] for number, found in inside.items() if len(found) == 1}
    rows = []
    for kind in kinds:
        update = Update(sums[kind], "gradient", samples)
        found = imprint.recover(update, sent[kind])
        ours = dict(zip(found.bins.tolist(), found.inputs.cpu(), strict=True))
        hand = {number: by_hand(update, number, kind[0]) for number in alone}
        scores = [decibels(hand[number][None], image[None]).item() for number, image in alone.items()]
        read = [
            number in ours and torch.equal(ours[number].flatten(), hand[number].flatten()) for number in alone
        ]
        rows.append(row(kind, samples, scores, read, seconds[kind] / samples))
    return rows


def by_hand(update: Update, number: int, variant: str) -> Tensor:
    """What a bin holds, whatever its size: `imprint.recover` leaves out what rounding alone could explain."""
    layer = update.layer("imprint.linear")
    weight, bias = layer["weight"][number], layer["bias"][number]
    if variant == "cumulative":
        weight, bias = weight - layer["weight"][number + 1], bias - layer["bias"][number + 1]
    return (weight / bias).nan_to_num(0.5).reshape(SHAPE).cpu()


def add(total: dict[str, Tensor], update: Update, weight: float) -> None:
    """Add a client's update to what has arrived so far, as `aggregate` weighs it, without keeping it."""
    for name, value in update.tensors.items():
        total[name] = value * weight + total[name] if name in total else value * weight


def row(
    kind: tuple[str, str], samples: int, scores: list[float], read: list[bool], seconds: float
) -> dict[str, Any]:
    """One line of the record."""
    ordered = torch.tensor(scores or [0.0]).sort().values
    exact = [score > metrics.EXACT_DB for score in scores]
    return {
        "samples": samples,
        "variant": kind[0],
        "precision": kind[1],
        "bins": BINS,
        "alone": len(scores),
        "exact": sum(exact),
        "read": sum(both and found for both, found in zip(exact, read, strict=True)),
        "psnr_median": ordered.median().item(),
        "psnr_lowest": ordered[0].item(),
        "sample_seconds": seconds,
    }


def near(
    clock: Any, crops: Tensor, law: tuple[float, float], samples: int, name: str, seed: int, rounds: int
) -> dict[str, Any]:
    """Rounds of the sparse one-shot attack on an aggregate of which only what lies near the bin is computed.

    All other samples send an exact zero to the row that is read. The bin has mass 1/n, and 64 samples fall around
    it, uniformly, where 64 are expected.
    """
    value, density = law
    generator, dtype = torch.Generator().manual_seed(seed + samples), PRECISIONS[name]
    h, width = imprint.mean_brightness(SHAPE).double(), costs.bin_width(samples, density)
    alone = read = 0
    for _ in range(rounds):
        centre = value + 0.01 * torch.rand(1, generator=generator).item()
        crop = crops[torch.randint(len(crops), (NEAR,), generator=generator)].double()
        wanted = centre + width * NEAR * (torch.rand(NEAR, generator=generator).double() - 0.5)
        flat = 0.3 * (
            crop - imprint.measure(crop, h)[:, None, None, None]
        )  # stays in [0, 1] wherever it is moved
        images = (flat + wanted[:, None, None, None]).float()
        edges = torch.tensor([centre - width / 2, centre + width / 2, 4.0], dtype=torch.float64)
        model = armed(SHAPE, edges, "sparse", dtype=dtype).to(clock.device)
        labels = torch.randint(CLASSES, (NEAR,), generator=generator)
        found = imprint.recover(fedsgd(model, images, labels), model)
        candidate = found.inputs[found.bins == 0].cpu()
        truth = imprint.measure(images, h)
        alone += int(((truth >= edges[0]) & (truth <= edges[1])).sum()) == 1
        read += len(candidate) == 1 and bool(decibels(candidate, images).max() > metrics.EXACT_DB)
    return {"samples": samples, "precision": name, "rounds": rounds, "alone": alone, "read": read}
