"""Cases of the attacks."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import (
    CLASSES,
    SHAPE,
    add,
    batch,
    case,
    clients,
    drawing,
    gradient,
    images,
    labels,
    moved,
    network,
)
from scipy.stats import norm
from torch import nn

from gradleak_lib import models
from gradleak_lib.attacks import analytic, disguise, imprint, inversion, linkability, placement
from gradleak_lib.attacks import labels as counting
from gradleak_lib.attacks.dlg import dlg
from gradleak_lib.attacks.matching import Target, one_by_one, together, vectorized
from gradleak_lib.attacks.products import Patches, Product, Rows
from gradleak_lib.attacks.search import Search, total_variation
from gradleak_lib.attacks.spear import spear
from gradleak_lib.federated import fedavg, fedsgd, simulate
from gradleak_lib.seeding import seeded

# --- imprints ---

PUBLIC, PRIVATE = 200, 6


def imprinted(device: str, bins: int = 8, **options: Any) -> nn.Module:
    """A linear classifier behind an imprint of its own public images."""
    with seeded(0):
        layer = imprint.from_public(images("cpu", PUBLIC, seed=3), bins, **options)
    return placement.before_input(network(device, "linear"), layer.to(device))


def recovered(device: str, data: str, **options: Any) -> imprint.Recovered:
    model = imprinted(device, **options)
    return imprint.recover(gradient(model, data, PRIVATE), model)


for variant in ("cumulative", "sparse"):
    for connection in ("addition", "linear"):
        options = {"variant": variant, "connection": connection}
        add(f"recover, {variant}, {connection}", partial(recovered, **options))


@case()
def recover_from_noise(device: str, data: str) -> Any:
    model = imprinted(device)
    sent = gradient(model, data, 3)
    draw = torch.Generator().manual_seed(0)
    noisy = {
        name: value + 0.01 * torch.randn(value.shape, generator=draw).to(value)
        for name, value in sent.tensors.items()
    }
    return imprint.recover(replace(sent, tensors=noisy), model)


def arming(device: str, data: str, *, measured_on_device: bool) -> Any:
    model = imprinted(device)
    brightness = imprint.mean_brightness(SHAPE).to(device if measured_on_device else data)
    values = imprint.measure(images(data, PUBLIC, seed=4), brightness)
    imprint.arm(imprint.find(model)[1], brightness, imprint.bins_from_public(values, 8).to(data))
    return model, values, imprint.one_shot_bins(values, 4)


add("arm, measurement with the model", partial(arming, measured_on_device=True))
add("arm, measurement with the data", partial(arming, measured_on_device=False))


@case()
def arm_by_a_distribution(device: str, data: str) -> Any:
    layer = imprint.find(imprinted(device))[1]
    edges = imprint.bins_from_cdf(norm(0.5, 0.04), 8)
    return imprint.arm(layer, imprint.random_projection(SHAPE).to(device), edges)


@case(draws=True)  # a module that torch makes
def from_public(device: str, data: str) -> Any:
    return imprint.from_public(
        images(data, PUBLIC, seed=3), 8, measurement=imprint.mean_brightness(SHAPE).to(device)
    )


@case()
def alone_in_bin(device: str, data: str) -> Any:
    layer = imprint.find(imprinted(device))[1]
    return imprint.alone_in_bin(layer, images(data, PRIVATE)), imprint.ascending(layer)


@case()
def disguised(device: str, data: str) -> Any:
    model = imprinted(device, connection="linear", variant="sparse")
    layer = imprint.find(model)[1]
    disguise.decoy_rows(layer, 3, seed=0)
    disguise.permute_rows(layer, seed=1)
    disguise.randomise_rows(layer, 1e-3, seed=2, orthogonal_to=images(data, 10, seed=5))
    return model, imprint.recover(gradient(model, data, PRIVATE), model)


@case(on="model")
def before_a_layer(device: str, data: str) -> Any:
    shape = (3, 32, 32)
    resnet = placement.pass_through(network(device, "resnet18", shape), "layer1")
    seen = placement.layer_inputs(resnet, "layer1", images(data, 3, shape))
    brightness = imprint.mean_brightness(seen.shape[1:], channels=3)
    edges = imprint.bins_from_public(imprint.measure(seen, brightness), 2)
    with seeded(0):
        layer = imprint.Imprint(seen.shape[1:], 2).to(device)
    placement.before_layer(resnet, "layer1", imprint.arm(layer, brightness, edges))
    return seen, imprint.recover(fedsgd(resnet, *batch(data, 3, shape)), resnet).inputs


# --- one layer's input ---


@case()
def stack_input(device: str, data: str) -> Any:
    with seeded(0):
        stack = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Tanh(), nn.Linear(8, CLASSES))
    stack.to(device)
    return analytic.stack_input(gradient(stack, data, 1), stack)


@case(tolerance=1e-3)
def spear_of_a_batch(device: str, data: str) -> Any:
    model = network(device, "mlp", width=64)
    found = spear(gradient(model, data, 3), model, "1", trials=64)
    order = found.inputs.sum(1).argsort()
    return found.inputs[order], found.agreement


# --- labels ---


def counted(device: str, data: str, *, samples: int, attack: str) -> Any:
    model = network(device, "cnn")
    sent = gradient(model, data, samples)
    seen = {
        "*": counting.probe(model, counting.dummies("random", SHAPE, 3).to(data)),
        "+": counting.probe(model, *batch(data, 8)),
    }
    if attack == "bias_counts":
        return [counting.bias_counts(sent, model, probe) for probe in seen.values()]
    if attack == "llg":
        own = counting.probe_from_gradient(sent, model)
        return [counting.llg(sent, model, probe) for probe in (None, own, *seen.values())]
    return getattr(counting, attack)(sent, model)


for attack in ("class_gradients", "idlg", "llg", "bias_counts", "ilrg"):
    add(attack, partial(counted, samples=1 if attack == "idlg" else 6, attack=attack))


@case()
def probe(device: str, data: str) -> Any:
    model = network(device, "convnet", (3, 9, 9)).train()
    shape = (3, 9, 9)
    return counting.probe(model, images(data, 5, shape)), counting.probe(model, *batch(data, 5, shape))


@case()
def probe_of_a_network_that_draws(device: str, data: str) -> None:
    counting.probe(drawing(device), images(data))


# --- searches ---


def searched(
    device: str,
    data: str,
    *,
    model: str = "lenet",
    shape: tuple[int, int, int] = SHAPE,
    training: bool = False,
    known: bool = True,
    clients: int = 1,
    search: Search = Search(iterations=3),  # noqa: B008
    **options: Any,
) -> Any:
    net = models.with_activation(network("cpu", model, shape), nn.ReLU) if model == "lenet" else None
    net = (network(device, model, shape) if net is None else net.to(device)).train(training)
    sent = [gradient(net, data, 2, shape) for _ in range(clients)]
    given = [labels(data, 2)] * clients if known else None
    return inversion.invert_all(sent, net, shape, given, search, **options)


SEARCHES: dict[str, dict[str, Any]] = {
    "a LeNet": {},
    "an MLP": {"model": "mlp"},
    "a ConvNet": {"model": "convnet", "shape": (3, 9, 9), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    "a ConvNet in training": {"model": "convnet", "shape": (3, 9, 9), "training": True},
    "unknown labels": {"known": False},
    "two clients": {"clients": 2, "search": Search("euclidean", iterations=3, restarts=2, tv=0.0)},
    "snapshots": {"snapshots": (0, 3)},
}
for name, options in SEARCHES.items():
    add(f"invert, {name}", partial(searched, **options), tolerance=1e-2, on="model")


@case(tolerance=1e-2, on="model")
def invert_local_steps(device: str, data: str) -> Any:
    net = network(device)
    sent = moved(fedavg(net, *batch("cpu"), learning_rate=0.1, batch_size=2, epochs=2), data)
    return inversion.invert(sent, net, SHAPE, labels(data), Search(iterations=3), batch_size=2)


@case(tolerance=1e-2, on="model")
def invert_and_go_on(device: str, data: str) -> Any:
    net = network(device)
    sent = gradient(net, data, 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "search.pt")
        options = {"search": Search(iterations=3), "checkpoint": file, "snapshots": (1,)}
        first = inversion.invert(sent, net, SHAPE, labels(data, 2), **options)
        assert file.exists()
        return first, inversion.invert(sent, net, SHAPE, labels(data, 2), **options)


@case(on="model")
def invert_a_network_that_draws(device: str, data: str) -> None:
    net = drawing(device)
    inversion.invert(gradient(network(device), data, 2), network(device), SHAPE, search=Search(iterations=2))
    with seeded(0, [torch.device(device)]):
        sent = gradient(net, data, 2)
    inversion.invert(sent, net, SHAPE, labels(data, 2), Search(iterations=2))


for known in (True, False):

    def leaked(device: str, data: str, known: bool = known) -> Any:
        model = network(device, "lenet")
        sent = gradient(model, data, 2)
        return dlg(sent, model, SHAPE, labels(data, 2) if known else None, iterations=1).trace[:5]

    add(f"dlg, labels {'' if known else 'un'}known", leaked, tolerance=1e-2)


def matched(device: str, data: str, *, way: Any, steps: bool = False) -> Any:
    net = network(device, "mlp")
    local = partial(fedavg, net, *batch("cpu"), learning_rate=0.1, batch_size=2)
    sent = local() if steps else gradient(net, device)
    target = Target(
        {name: value[None] for name, value in sent.tensors.items()},
        labels(device)[None],
        restarts=2,
        distance="cosine",
        steps=torch.arange(4).to(device).split(2) if steps else None,
        learning_rate=0.1,
    )
    return way(net, target)(images(device, 8, seed=7))


for way in (together, vectorized, one_by_one):
    add(f"distance, {way.__name__}", partial(matched, way=way))
    if way is not together:
        add(f"distance after local steps, {way.__name__}", partial(matched, way=way, steps=True))


KERNELS = {
    "Rows": (Rows(2, (4, 6)), (4, 3)),
    "Patches": (Patches(2, (4, 2, 5, 5), (3, 3), (1, 1), (1, 1), (1, 1)), (4, 3, 5, 5)),
    "Patches with strides": (Patches(2, (4, 2, 5, 5), (3, 3), (2, 2), (1, 1), (1, 1)), (4, 3, 3, 3)),
}


def multiplied(device: str, data: str, *, kernel: Product, produced: tuple[int, ...]) -> Any:
    rows = kernel.read(images(device, shape=kernel.shape[1:]))
    signal = kernel.signal(images(device, shape=produced[1:], seed=1))
    weight = images(device, 3, (18 if isinstance(kernel, Patches) else 6,), seed=2)
    products, back = kernel.times(weight, rows), kernel.back(weight, signal)
    return (
        kernel.outputs(kernel.add_times(kernel.add_bias(products, weight[:, 0]), weight, rows)),
        kernel.write(kernel.add_back(back, weight, signal)),
        kernel.gradient(signal, rows),
        kernel.bias_gradient(signal),
    )


for name, (kernel, produced) in KERNELS.items():
    add(f"products, {name}", partial(multiplied, kernel=kernel, produced=produced), on="model")


@case(on="model")
def variation(device: str, data: str) -> Any:
    return total_variation(images(device))


# --- linkability ---


@case()
def features_of_observations(device: str, data: str) -> Any:
    seen = simulate(network(device), clients(data), rounds=2, learning_rate=0.1, fraction=0.5).observed
    there = replace(seen, tensors={name: value.to(device) for name, value in seen.tensors.items()})
    first = there.subset(torch.tensor([0, 2]))
    return linkability.features(first), linkability.features(seen, models.last_layer(network("cpu")))


@case()
def identify(device: str, data: str) -> Any:
    """Arrays on the CPU, and networks that must not seed the device's generator."""
    rng = np.random.default_rng(0)
    known, users = rng.random((12, 5), dtype=np.float32), np.arange(12) % 2
    scores = [linkability.identify(name, known, users, known, classes=2) for name in ("svm", "mlp")]
    match = linkability.train_siamese(known, users, np.arange(12) % 4, epochs=1)
    return scores, match(known, known[::-1])
