"""Experiments of *Robbing the Fed* (Fowl et al. 2022): each call is one point of a study, and returns its rows.

A row holds what one batch, one image or one round gave. Images come from three sets. ``"imagenet"`` is a folder of
photographs that is laid out as ImageNet's validation set, at 224 pixels; ``"cifar10"`` is the test set of CIFAR-10;
``"photos"``, crops of the ten photographs that come with this book's packages, is for trying things out. What a
server is told of the clients' data never comes from the clients' own: it fits a Gaussian to the brightness of the
photographs that are not in the batch, or takes quantiles of the half of CIFAR-10 that no client holds.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import analytic, disguise, imprint, occupancy, placement
from gradleak_lib.data import ImageDataset, load, load_tabular
from gradleak_lib.data.corpora import read_shakespeare
from gradleak_lib.data.root import data_root
from gradleak_lib.data.texts import words_of
from gradleak_lib.defenses import laplacian_noise
from gradleak_lib.federated import Diverged, Update, aggregate, fedavg, fedsgd
from gradleak_lib.seeding import seeded

Row = dict[str, Any]
Data = Literal["imagenet", "cifar10", "photos"]

IMAGENET = "imagenet-sample/val"  # a folder of photographs, one folder a class
FROM_OUTSIDE = (
    "cifar100-sample"  # photographs of another data set, for a server whose clients hold all of CIFAR-10
)
SIDE = 224
HALF = 5_000  # images of CIFAR-10's test set that the server has; the clients hold the others
CLASSES = {"imagenet": 1000, "cifar10": 10, "photos": 10}


@functools.lru_cache(maxsize=2)
def _whole(name: str, size: int | None = None) -> ImageDataset:
    return load(name, size)


@functools.lru_cache(maxsize=1)
def _public_photos() -> ImageDataset:
    return load("photos", 64, sample=2000, seed=10_000, distinct=False)


def _pool(data: Data, public: ImageDataset) -> Tensor:
    """What an image is to be told from: all photographs, or those that the server has."""
    return _whole(IMAGENET, SIDE).images if data == "imagenet" else public.images


def _order(count: int, number: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


def draw(data: Data, images: int, batch: int) -> tuple[ImageDataset, ImageDataset]:
    """A client's batch, and what the server has that the client has not.

    Parameters
    ----------
    data
        ``"imagenet"``: the batch is drawn from all photographs, and the server has the rest of them. ``"cifar10"``:
        both hold halves of the test set, and batches in a row share no image until the half is used up.
        ``"photos"``: both hold crops of the same photographs, at 64 pixels.
    images
        Size of the batch.
    batch
        Number of the batch, which decides what is drawn.
    """
    if data == "photos":
        return load("photos", 64, sample=images, seed=batch, distinct=False), _public_photos()
    if data == "imagenet":
        whole = _whole(IMAGENET, SIDE)
        order = _order(len(whole), batch)
        return whole.subset(order[:images]), whole.subset(order[images:])
    whole = _whole("cifar10")
    order = _order(len(whole), 10_000)  # the files are in no order that we know of
    at_once = HALF // images
    mine = order[HALF:][_order(HALF, batch // at_once)]
    start = batch % at_once * images
    return whole.subset(mine[start : start + images]), whole.subset(order[:HALF])


def _edges(data: Data, public: Tensor, measurement: Tensor, bins: int) -> Tensor:
    values = imprint.measure(public, measurement)
    if data == "imagenet":  # too few for quantiles: the paper takes the quantity for Gaussian, too
        return imprint.bins_from_cdf(norm(*norm.fit(values.cpu().numpy())), bins)
    return imprint.bins_from_public(values, bins)


def planted(data: Data, public: Tensor, bins: int, **options: Any) -> imprint.Imprint:
    """An imprint that measures brightness against bins of equal mass on public images ``[P, C, H, W]``.

    ``options`` are those of `gradleak_lib.attacks.imprint.Imprint`.
    """
    shape = public.shape[1:]
    brightness = imprint.mean_brightness(shape)
    with seeded(0):
        layer = imprint.Imprint(shape, bins, **options)
    return imprint.arm(layer, brightness, _edges(data, public, brightness, bins))


def _summary(score: metrics.Score, alone: Tensor) -> Row:
    """What a batch gave: how many images were alone in their bin, and what came back."""
    return {
        "alone": int(alone.sum()),
        "exact": int(score.exact.sum()),
        "alone_exact": int((score.exact & alone).sum()),
        "lowest_alone": float(score.psnr[alone].min()) if alone.any() else float("nan"),
        "psnr": float(score.psnr.mean()),
        "median": float(score.psnr.median()),
    }


# --- Fig. 1: a linear model ---


def linear_gradient(batch: ImageDataset, labels: Tensor, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of a linear model of 1,000 classes that knows nothing yet, and which of its rows are of a label."""
    model = models.build("linear", batch.images.shape[1:], classes=1000)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    layer = fedsgd(model.to(device), batch.images, labels).layer("1")
    return layer, layer["bias"] < 0


def linear_model(*, batch: int, images: int = 64, data: Data = "imagenet", device: str = "cpu") -> list[Row]:
    """Fig. 1, left: photographs with a label each, read from the rows of a linear model; a row an image.

    Returns
    -------
    list of dict
        ``image`` (its class, of which it is the only one), ``psnr``, and ``cleaned``: the PSNR after the row of an
        absent class has been subtracted, which takes away what the softmax sends to all rows.
    """
    some, _ = draw(data, images, batch)
    labels = some.labels if data == "imagenet" else torch.arange(images)  # there, no class occurs twice
    layer, present = linear_gradient(some, labels, device)
    weight, bias = layer["weight"], layer["bias"]
    absent = int((~present).nonzero()[0])
    rows = labels.to(weight.device)

    def against(inputs: Tensor) -> list[float]:
        return metrics.psnr(inputs.reshape(some.images.shape).cpu(), some.images).tolist()

    naive = against(weight[rows] / bias[rows, None])
    cleaned = against((weight[rows] - weight[absent]) / (bias[rows] - bias[absent])[:, None])
    return [
        {"image": int(label), "psnr": p, "cleaned": c}
        for label, p, c in zip(labels, naive, cleaned, strict=True)
    ]


def of_one_class(data: Data, images: int, batch: int) -> ImageDataset:
    """Images of one class, which changes from batch to batch."""
    if data == "photos":
        return draw(data, images, batch)[0]
    whole = _whole("cifar10")
    same = (whole.labels == batch % 10).nonzero().squeeze(1)
    return whole.subset(same[_order(len(same), batch)[:images]])


def one_class(*, batch: int, images: int = 64, data: Data = "cifar10", device: str = "cpu") -> list[Row]:
    """Fig. 1, right: images of one class, which share a row of the linear model.

    Returns
    -------
    list of dict
        ``psnr`` of what the row gives against each image, on average, and ``to_mean``: against their mean image.
    """
    some = of_one_class(data, images, batch)
    layer, present = linear_gradient(some, torch.zeros(images, dtype=torch.long), device)
    mixture = (layer["weight"][present] / layer["bias"][present, None]).reshape(-1, *some.images.shape[1:])
    mean = some.images.double().mean(0, keepdim=True).to(some.images)
    return [
        {
            "psnr": metrics.psnr(mixture.expand_as(some.images), some.images).mean().item(),
            "to_mean": metrics.psnr(mixture, mean).item(),
        }
    ]


def single_input(
    *, batch: int, host: str = "lenet", data: Data = "cifar10", device: str = "cpu"
) -> list[Row]:
    """Eq. 2: one image, read from every row of an ordinary linear layer before a network.

    Returns
    -------
    list of dict
        ``rows`` that have a signal, and the lowest ``psnr`` over them.
    """
    some, _ = draw(data, 1, batch)
    with seeded(batch):
        front = imprint.Imprint(some.images.shape[1:], 64, connection="linear")
    model = placement.before_input(
        models.build(host, some.images.shape[1:], classes=10, seed=batch), front
    ).to(device)
    layer = fedsgd(model, some.images, some.labels).layer("imprint.linear")
    inputs, _ = analytic.linear_input(layer["weight"], layer["bias"])
    inputs = inputs.reshape(-1, *some.images.shape[1:])
    psnr = metrics.psnr(inputs, some.images.expand(len(inputs), -1, -1, -1))
    return [{"rows": len(inputs), "psnr": psnr.min().item()}]


# --- Prop. 1, Figs. 2a, 3, 5 left, 9, 10: one gradient of a batch ---


def one_gradient(
    *,
    batch: int,
    bins: int,
    images: int = 64,
    data: Data = "cifar10",
    host: str = "resnet18",
    known: int | None = None,
    variant: imprint.Variant = "cumulative",
    connection: imprint.Connection = "addition",
    outgoing: Literal["equal", "random"] = "equal",
    iip: bool = False,
    device: str = "cpu",
) -> list[Row]:
    """The attack on one batch, by one gradient: how many images had a bin to themselves, and which came back.

    Parameters
    ----------
    batch, images, data
        As for `draw`.
    bins, variant, connection
        Of the imprint. The activations are summed, as in the paper.
    known
        How many of its images the server has measured, others for each batch; None: all.
    host
        The network behind the imprint.
    outgoing
        Weights of the layer behind the imprint: equal for all rows, or drawn at random.
    iip
        Identify the images among all others of the data set that are here.

    Returns
    -------
    list of dict
        One row: ``alone`` in a bin, ``exact`` (over 60 dB), ``alone_exact`` (both), ``lowest_alone`` and mean
        ``psnr`` and ``median`` (dB, 0 where nothing came back), ``gap`` (that mean less the PSNR of the mean error),
        ``first_bin`` (whether an image is alone in the bin at the dark end), what Proposition 1 promises
        (``printed``), and ``iip`` where it was asked for.
    """
    some, public = draw(data, images, batch)
    seen = public.images if known is None else public.images[_order(len(public), batch)[:known]]
    layer = planted(data, seen, bins, variant=variant, connection=connection, reduction="sum")
    if outgoing == "random":
        assert layer.back is not None
        generator = torch.Generator().manual_seed(batch)
        nn.init.normal_(layer.back.weight, std=bins**-0.5, generator=generator)
    pool = _pool(data, public) if iip else None
    score, alone = attack(some, layer, host, classes=CLASSES[data], pool=pool, device=device)
    brightness = imprint.mean_brightness(some.images.shape[1:])
    h = imprint.measure(some.images, brightness)
    edges = _edges(data, seen, brightness, bins)
    error = (score.images.double() - some.images.double()).square().flatten(1).mean(1).mean()
    row = _summary(score, alone) | {
        "gap": float(score.psnr.mean() + 10 * error.log10()),
        "first_bin": int(((h > edges[0]) & (h <= edges[1])).sum() == 1),
        "printed": occupancy.proposition_1(images, bins) if bins > images else float("nan"),
    }
    return [row | ({"iip": score.iip} if iip else {})]


def attack(
    some: ImageDataset,
    layer: imprint.Imprint,
    host: str,
    *,
    classes: int,
    pool: Tensor | None = None,
    client: Callable[..., Update] = fedsgd,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[metrics.Score, Tensor]:
    """The client's update with an imprint before a network, what the server reads from it, and who was alone."""
    shape = some.images.shape[1:]
    model = placement.before_input(models.build(host, shape, classes=classes), layer).to(device, dtype)
    recovered = imprint.recover(client(model, some.images, some.labels), model)
    alone = imprint.alone_in_bin(layer, some.images.to(dtype))
    return metrics.score(recovered.inputs, some.images, pool=pool), alone.cpu()


def naive_read_out(
    *, batch: int, images: int = 64, data: Data = "cifar10", host: str = "resnet18", device: str = "cpu"
) -> list[Row]:
    """Fig. 9: Eq. 2 on an ordinary linear layer before a network, with as many candidates as images."""
    some, _ = draw(data, images, batch)
    score = naive_score(some, host, batch, device)
    return [{"exact": int(score.exact.sum()), "psnr": float(score.psnr.mean())}]


def naive_score(some: ImageDataset, host: str, seed: int, device: str) -> metrics.Score:
    """The score of as many rows of an ordinary linear layer before a network as there are images."""
    shape = some.images.shape[1:]
    with seeded(seed):
        front = imprint.Imprint(shape, 300, connection="linear")
    model = placement.before_input(models.build(host, shape, classes=10), front).to(device)
    layer = fedsgd(model, some.images, some.labels).layer("imprint.linear")
    inputs, _ = analytic.linear_input(layer["weight"], layer["bias"])
    return metrics.score(inputs[: len(some)].reshape(-1, *shape), some.images)


# --- Figs. 2b and 4: one bin ---


def one_shot_round(data: Data, images: int, number: int, mass: float) -> tuple[ImageDataset, Tensor, Tensor]:
    """A crowd of clients' images, the edges of a one-shot bin at a random place, and who lies in it."""
    if data == "photos":
        crowd, outside = draw(data, images, number)
    else:
        whole, outside = _whole("cifar10"), _whole(FROM_OUTSIDE, 32)
        crowd = whole.subset(_order(len(whole), number)[:images])
    brightness = imprint.mean_brightness(crowd.images.shape[1:])
    place = float(np.random.default_rng(number).uniform(0.1, 0.9))
    known = imprint.measure(outside.images, brightness)
    edges = imprint.one_shot_bins(known, max(1, round(images / mass)), position=place)
    h = imprint.measure(crowd.images, brightness).double()
    return crowd, edges, (h > edges[0]) & (h <= edges[1])


def one_shot(
    *,
    images: int,
    block: int,
    mass: float = 1.0,
    rounds: int = 50,
    data: Data = "cifar10",
    device: str = "cpu",
) -> list[Row]:
    """Fig. 2b: rounds of the one-shot attack, each with another crowd and a bin at another place; a row a round.

    Parameters
    ----------
    images
        Size of the crowd, drawn from the 10,000 images of CIFAR-10's test set.
    mass
        Expected number of images in the bin, by the server's knowledge of other photographs.
    block, rounds
        Which rounds: block 2 of 50 is those from 100 to 149.

    Returns
    -------
    list of dict
        ``round``, how many images were ``inside`` the bin, ``candidates`` read from it, and ``success``: whether
        that was one, and over 60 dB. A linear classifier stands behind the two rows.
    """
    found = []
    for number in range(block * rounds, (block + 1) * rounds):
        crowd, edges, inside = one_shot_round(data, images, number, mass)
        candidate = shoot(crowd, edges, "cumulative", "linear", device)
        exact = False
        if len(candidate) == 1:
            gaps = metrics.squared_distances(candidate, crowd.images)
            exact = metrics.psnr(candidate, crowd.images[gaps.argmin()][None]).item() > metrics.EXACT_DB
        found.append(
            {
                "round": number,
                "inside": int(inside.sum()),
                "candidates": len(candidate),
                "success": int(exact),
            }
        )
    return found


def shoot(crowd: ImageDataset, edges: Tensor, variant: imprint.Variant, host: str, device: str) -> Tensor:
    """What the server reads from the first of two rows, on the CPU."""
    shape = crowd.images.shape[1:]
    with seeded(0):
        layer = imprint.Imprint(shape, 2, variant=variant, reduction="sum")
    imprint.arm(layer, imprint.mean_brightness(shape), edges)
    model = placement.before_input(models.build(host, shape, classes=len(crowd.classes)), layer).to(device)
    recovered = imprint.recover(fedsgd(model, crowd.images, crowd.labels, microbatch=512), model)
    return recovered.inputs[recovered.bins == 0].cpu()


def one_of_thousands(
    *,
    number: int,
    images: int = 8192,
    data: Data = "cifar10",
    host: str = "resnet18",
    device: str = "cpu",
) -> list[Row]:
    """Fig. 4: a round of the one-shot attack through a deep network, by both variants; a row a variant.

    A round in which the bin does not hold exactly one image gives nothing to measure, and its gradient is left out.

    Returns
    -------
    list of dict
        ``variant``, ``inside``, and ``psnr`` of the one image (NaN where there is not one).
    """
    crowd, edges, inside = one_shot_round(data, images, number, 1.0)
    found = []
    for variant in ("cumulative", "sparse"):
        psnr = float("nan")
        if int(inside.sum()) == 1:
            candidate = shoot(crowd, edges, variant, host, device)
            psnr = metrics.psnr(candidate, crowd.images[inside]).item() if len(candidate) == 1 else 0.0
        found.append({"variant": variant, "inside": int(inside.sum()), "psnr": psnr})
    return found


# --- Figs. 5 right, 11 to 15: deeper in the network ---


def read_at_place(
    place: str, batch: int, bins: int, images: int, data: Data, offsets: bool, device: str
) -> tuple[ImageDataset, Tensor, Tensor, Tensor]:
    """The batch, the pixels that reached the place, those that were read there, and who was alone."""
    some, public = draw(data, images, batch)
    network = models.build("resnet18", some.images.shape[1:], classes=CLASSES[data])
    name = placement.POSITIONS.get(place)
    if name:
        network = placement.pass_through(network, name, offsets=offsets)
    seen, known = (
        placement.layer_inputs(network, name, one.images) if name else one.images for one in (some, public)
    )
    square = placement.OFFSETS[name] if name and offsets else 1
    brightness = imprint.mean_brightness(seen.shape[1:], channels=3 * square**2)
    with seeded(0):
        layer = imprint.Imprint(seen.shape[1:], bins, reduction="sum")
    imprint.arm(layer, brightness, _edges("imagenet", known, brightness, bins))
    model = placement.before_layer(network, name, layer) if name else placement.before_input(network, layer)
    recovered = imprint.recover(fedsgd(model.to(device), some.images, some.labels), model)
    alone = imprint.alone_in_bin(layer, seen).cpu()

    def pixels(features: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(features[:, : 3 * square**2].cpu(), square)

    return some, pixels(seen), pixels(recovered.inputs), alone


def at_place(
    *,
    place: str,
    batch: int,
    bins: int,
    images: int = 64,
    data: Data = "imagenet",
    offsets: bool = False,
    device: str = "cpu",
) -> list[Row]:
    """Figs. 5 (right) and 11: an imprint somewhere in a ResNet-18 whose layers before it let the image through.

    ``offsets`` puts pixels beside those that arrive into the channels that are free
    (`gradleak_lib.attacks.placement.pass_through`).

    Returns
    -------
    list of dict
        One row: as of `one_gradient`, against what reaches the place, with its ``side`` in pixels; ``iip``, of
        what was read, enlarged, among all photographs; and ``detail``: the mean PSNR of the enlarged images against
        the photographs themselves, over those alone in their bin.
    """
    some, seen, read, alone = read_at_place(place, batch, bins, images, data, offsets, device)
    score = metrics.score(read, seen)
    enlarged = nn.functional.interpolate(read, size=some.images.shape[-1], mode="bilinear")
    against = metrics.score(enlarged, some.images, pool=_pool(data, draw(data, images, batch)[1]))
    return [
        _summary(score, alone)
        | {"side": seen.shape[-1], "iip": against.iip, "detail": float(against.psnr[alone].mean())}
    ]


# --- Fig. 16: local steps ---


def after_local_steps(
    *,
    batch: int,
    gain: float,
    reduction: imprint.Reduction = "sum",
    connection: imprint.Connection = "addition",
    variant: imprint.Variant = "sparse",
    precision: Literal["float32", "float64"] = "float32",
    steps: int = 8,
    images: int = 64,
    bins: int = 128,
    data: Data = "imagenet",
    device: str = "cpu",
) -> tuple[ImageDataset, metrics.Score, Tensor]:
    """Fig. 16: the client trains for some steps with learning rate 1e-4 and sends the change of its parameters.

    ``steps=1`` is one step on the whole batch.

    Returns
    -------
    tuple
        The batch, the score of what is read, and which images were alone in their bin.

    Raises
    ------
    Diverged
        If the training leaves the range of numbers.
    """
    some, public = draw(data, images, batch)
    layer = planted(
        data,
        public.images,
        bins,
        variant=variant,
        connection=connection,
        reduction=reduction,
        gain=gain,
    )

    def client(model: nn.Module, inputs: Tensor, labels: Tensor) -> Update:
        return fedavg(model, inputs, labels, learning_rate=1e-4, batch_size=-(-len(inputs) // steps))

    score, alone = attack(
        some,
        layer,
        "resnet18",
        classes=CLASSES[data],
        pool=_pool(data, public),
        client=client,
        dtype=getattr(torch, precision),
        device=device,
    )
    return some, score, alone


@functools.wraps(after_local_steps, assigned=())  # one list of parameters for both
def local_steps(**setting: Any) -> list[Row]:
    """Fig. 16: what is read from a client that trains for some steps; see `after_local_steps`.

    Returns
    -------
    list of dict
        One row: as of `one_gradient`, and ``iip`` among all photographs. Where the training leaves the range of
        numbers (``diverged``), nothing is read.
    """
    try:
        _, score, alone = after_local_steps(**setting)
    except Diverged:
        nothing = dict.fromkeys(("alone", "exact", "alone_exact", "psnr", "median", "iip"), 0)
        return [nothing | {"lowest_alone": float("nan"), "diverged": 1}]
    return [_summary(score, alone) | {"iip": score.iip, "diverged": 0}]


# --- Fig. 6: noise ---


def with_noise(
    *,
    batch: int,
    scale: str,
    variant: imprint.Variant = "cumulative",
    images: int = 64,
    bins: int = 128,
    data: Data = "imagenet",
    sigmas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    device: str = "cpu",
) -> Iterator[tuple[float, float, metrics.Score]]:
    """Fig. 6: for each scale of noise, the largest entry of the imprint's gradient, and the score of what is read.

    Parameters
    ----------
    scale
        What decides how large the gradient is: ``"released"`` (the authors' code: a second linear layer, the sum of
        activations, gain 0.001), ``"text"`` (the sum of activations, added) or ``"mean"`` (their mean, added).
    """
    scales: dict[str, dict[str, Any]] = {
        "released": {"connection": "linear", "reduction": "sum", "gain": 1e-3},
        "text": {"reduction": "sum"},
        "mean": {"reduction": "mean"},
    }
    some, public = draw(data, images, batch)
    layer = planted(data, public.images, bins, variant=variant, **scales[scale])
    shape = some.images.shape[1:]
    model = placement.before_input(models.build("resnet18", shape, classes=CLASSES[data]), layer).to(device)
    update = fedsgd(model, some.images, some.labels)
    # The server reads the imprint alone, so that noise on everything else would change nothing.
    mine = {name: tensor for name, tensor in update.tensors.items() if "imprint.linear" in name}
    largest = float(mine["imprint.linear.weight"].abs().max())
    for sigma in sigmas:
        noisy = laplacian_noise(sigma, seed=batch)(replace(update, tensors=mine))
        sent = replace(update, tensors={**update.tensors, **noisy.tensors})
        recovered = imprint.recover(sent, model)
        yield sigma, largest, metrics.score(recovered.inputs, some.images, pool=_pool(data, public))


@functools.wraps(with_noise, assigned=())
def noise(**setting: Any) -> list[Row]:
    """Fig. 6: Laplacian noise of several scales on one and the same gradient; see `with_noise`.

    Returns
    -------
    list of dict
        A row a scale: ``sigma``, ``largest`` entry of the imprint's gradient, ``exact`` and ``iip`` among all
        photographs.
    """
    return [
        {"sigma": sigma, "largest": largest, "exact": int(score.exact.sum()), "iip": score.iip}
        for sigma, largest, score in with_noise(**setting)
    ]


# --- Sec. 5: secure aggregation, inspection ---


def secure_aggregation(
    *, batch: int, users: int = 10, each: int = 6, data: Data = "cifar10", device: str = "cpu"
) -> list[Row]:
    """Sec. 5: images recovered from the sum over users, and from one user who holds all of them."""
    some, public = draw(data, users * each, batch)
    shape = some.images.shape[1:]
    layer = planted(data, public.images, 128, reduction="sum")
    model = placement.before_input(models.build("lenet", shape, classes=10), layer).to(device)
    parts = [some.subset(range(user * each, user * each + each)) for user in range(users)]
    by_sum = aggregate([fedsgd(model, part.images, part.labels) for part in parts])
    by_one = fedsgd(model, some.images, some.labels)
    sums, ones = (
        int(metrics.score(imprint.recover(update, model).inputs, some.images).exact.sum())
        for update in (by_sum, by_one)
    )
    return [{"aggregate": sums, "one_user": ones}]


def hidden_rank(
    *, batch: int, way: str, images: int = 64, data: Data = "cifar10", device: str = "cpu"
) -> list[Row]:
    """Sec. 5: the rank of an imprint that has been disguised, and what the disguise costs the attack.

    Parameters
    ----------
    way
        ``"none"``, ``"noise"`` (a thousandth of a row's norm on every row), ``"rows"`` (as many ordinary random rows
        again, at random places), or ``"next layer"`` (random weights in the layer behind, which the paper does not
        propose).

    Returns
    -------
    list of dict
        ``rank`` of the layer (double precision) and ``exact`` images.
    """
    some, public = draw(data, images, batch)
    layer = planted(data, public.images, 128, connection="linear", reduction="sum")
    if way == "noise":
        disguise.randomise_rows(layer, 1e-3, seed=batch)
    elif way == "rows":
        disguise.decoy_rows(layer, 128, seed=batch)
    elif way == "next layer":
        assert layer.back is not None
        nn.init.normal_(layer.back.weight, std=128**-0.5, generator=torch.Generator().manual_seed(batch))
    elif way != "none":
        raise ValueError(f"way must be 'none', 'noise', 'rows' or 'next layer', got {way!r}")
    shape = some.images.shape[1:]
    model = placement.before_input(models.build("lenet", shape, classes=10), layer).to(device)
    recovered = imprint.recover(fedsgd(model, some.images, some.labels), model)
    rank = int(torch.linalg.matrix_rank(layer.linear.weight.detach().double().cpu()))
    return [{"rank": rank, "exact": int(metrics.score(recovered.inputs, some.images).exact.sum())}]


# --- Sec. 4.3: other data ---


def other_data(*, kind: str, batch: int, count: int = 32, bins: int = 128, device: str = "cpu") -> list[Row]:
    """Sec. 4.3: the attack on rows of a table, or on sentences, both measured by a random projection.

    Parameters
    ----------
    kind
        A table, as for `gradleak_lib.data.load_tabular`; or ``"shakespeare"``: runs of 16 words of his plays, as the
        embeddings that the first layer of a language model gets. The server sends the embedding, 32 random numbers a
        word, and reads a word where the recovered numbers are nearest to its own.
    count
        Rows or sentences that the client holds.

    Returns
    -------
    list of dict
        One row: ``alone`` in a bin, and how many of those came back ``exact``: every column to 1/10,000 of its range,
        or every word right. The activations are averaged: their sum would be far larger than any row, and a network
        without normalisation would be so sure of itself that no signal is left.
    """
    if kind == "shakespeare":
        windows, vocabulary = _windows(16)
        order = _order(len(windows), batch)
        mine, others = windows[order[:count]], windows[order[count : count + 5000]]
        embedding = torch.rand(vocabulary, 32, generator=torch.Generator().manual_seed(batch))
        rows, public = (embedding[one].flatten(1) for one in (mine, others))
        labels, classes = torch.arange(count) % 2, 2
    else:
        whole = load_tabular(kind)
        order = _order(len(whole), batch)
        private = whole.subset(order[:count])
        rows, public = private.features, whole.features[order[count:]]
        labels, classes = private.labels, len(whole.classes)
    projection = imprint.random_projection(rows.shape[1:], seed=batch)
    values = imprint.measure(public, projection).unique()
    with seeded(0):
        layer = imprint.Imprint(rows.shape[1:], bins)
    imprint.arm(layer, projection, imprint.bins_from_public(values, bins))
    model = placement.before_input(models.build("mlp", rows.shape[1:], classes=classes), layer).to(device)
    read = imprint.recover(fedsgd(model, rows, labels), model).inputs.cpu()
    partner = metrics.match(read, rows)
    alone = imprint.alone_in_bin(layer, rows).cpu()
    found = alone & (partner >= 0)
    if kind == "shakespeare":
        nearest = torch.cdist(read[partner].reshape(-1, 32), embedding).argmin(1).reshape(mine.shape)
        same = (nearest == mine).all(1)
    else:
        same = (rows - read[partner]).abs().amax(1) < 1e-4
    return [{"alone": int(alone.sum()), "exact": int((same & found).sum())}]


@functools.lru_cache(maxsize=1)
def _windows(words: int) -> tuple[Tensor, int]:
    """All runs of so many words in Shakespeare's plays, and how many different words there are."""
    posts = read_shakespeare(data_root())
    text = [word for post in posts for word in words_of(post.text)]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(text))}
    whole = torch.tensor([numbers[word] for word in text])
    return whole[: len(whole) // words * words].reshape(-1, words), len(numbers)


# --- counts: nothing is drawn at random ---


def parameter_counts(*, device: str = "cpu") -> list[Row]:
    """Parameters of the networks and layers that the paper counts, at 224 pixels."""
    pixels = 3 * SIDE * SIDE
    resnet18 = sum(p.numel() for p in models.build("resnet18", (3, SIDE, SIDE), classes=1000).parameters())
    return [{"linear_model": (pixels + 1) * 1000, "resnet18": resnet18, "two_rows": 2 * (pixels + 1)}]
