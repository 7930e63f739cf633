"""Cases of clients, servers and defenses."""

import tempfile
from collections.abc import Callable
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
    network,
    people,
)
from torch import nn

from gradleak_lib import defenses, federated
from gradleak_lib.federated import Update
from gradleak_lib.federated.central import predict, train_centrally
from gradleak_lib.federated.checkpoint import digest
from gradleak_lib.federated.frozen import cached
from gradleak_lib.seeding import seeded

LOCAL = {"learning_rate": 0.1, "batch_size": 2}

# --- one client ---


@case(on="model")
def fedsgd(device: str, data: str) -> Any:
    return [
        federated.fedsgd(network(device, name, shape), *batch(data, 5, shape), microbatch=2)
        for name, shape in (("cnn", SHAPE), ("convnet", (3, 9, 9)))
    ]


@case(on="model")
def fedavg(device: str, data: str) -> Any:
    draw = torch.Generator().manual_seed(0)
    return federated.fedavg(network(device, "cnn"), *batch(data, 5), **LOCAL, epochs=2, generator=draw)


@case(on="model")
def fedavg_of_words(device: str, data: str) -> Any:
    words = people(data, words=True)
    return federated.fedavg(network(device, "nplm", (3,)), words.inputs, words.targets, **LOCAL)


@case(on="model")
def dp_sgd(device: str, data: str) -> Any:
    private = {"bound": 0.5, "noise_multiplier": 0.1, "microbatch": 2}
    return defenses.dp_sgd(network(device, "cnn"), *batch(data, 5), **private)


@case(on="model")
def dp_fedavg(device: str, data: str) -> Any:
    return defenses.dp_fedavg(
        network(device, "cnn"), *batch(data, 5), **LOCAL, bound=0.5, noise_multiplier=0.1
    )


@case()
def dp_sgd_of_a_network_that_draws(device: str, data: str) -> None:
    defenses.dp_sgd(drawing(device), *batch(data), bound=0.5, noise_multiplier=0.1)


@case(tolerance=1e-3, on="model")
def train(device: str, data: str) -> Any:
    return train_centrally(network(device, "cnn"), *batch(data, 6), epochs=2, batch_size=4)


@case(on="cpu")
def predictions(device: str, data: str) -> Any:
    return predict(network(device, "cnn"), images(data, 5))


@case()
def train_a_network_that_draws(device: str, data: str) -> None:
    train_centrally(drawing(device), *batch(data), epochs=1)


# --- many clients ---

ENGINES = ("sequential", "vectorized", "auto")
MODELS: dict[str, Callable[[str], nn.Module]] = {
    "an MLP": network,
    "a CNN": partial(network, name="cnn"),
    "words": partial(network, name="nplm", shape=(3,)),
}


def trained_by(device: str, data: str, *, model: str, engine: Any) -> Any:
    held = clients(data, words=model == "words")
    return federated.local_updates(MODELS[model](device), held, [2, 0], **LOCAL, seeds=[1, 2], engine=engine)


for model in MODELS:
    for engine in ENGINES:
        chosen = partial(trained_by, model=model, engine=engine)
        add(f"local_updates, {model}, {engine}", chosen, on="model")


@case(on="model")
def local_updates_through_vmap(device: str, data: str) -> Any:
    shape = (3, 9, 9)
    few = replace(people("cpu"), inputs=images("cpu", 12, shape))
    held = replace(clients(data), data=replace(few, inputs=few.inputs.to(data), targets=few.targets.to(data)))
    model = network(device, "convnet", shape)
    return federated.local_updates(model, held, [0, 1], **LOCAL, engine="vectorized")


@case()
def local_updates_that_draw(device: str, data: str) -> None:
    federated.local_updates(drawing(device), clients(data), [0, 1], **LOCAL, seeds=[1, 2])


def _first_sum(model: nn.Module) -> float:
    return float(next(model.parameters()).detach().sum())


SIMULATIONS: dict[str, dict[str, Any]] = {
    "one by one": {"engine": "sequential"},
    "side by side": {"engine": "vectorized", "track": _first_sum},
    "defended": {"defense": lambda update, seed: defenses.gaussian_noise(0.01, seed=seed)(update)},
    "private": {"client": partial(defenses.dp_fedavg, bound=1.0, noise_multiplier=0.1)},
    "one layer": {"observe": ("5",)},
}


def simulated(device: str, data: str, **options: Any) -> Any:
    run = federated.simulate(network(device), clients(data), rounds=2, fraction=0.5, **LOCAL, **options)
    seen, one = run.observed, run.observed.update(1)
    return run.model, run.tracked, seen.subset(seen.devices == 0), seen.keep("5").matrix(), one


for name, options in SIMULATIONS.items():
    add(f"simulate, {name}", partial(simulated, **options))


@case(on="model")
def simulate_behind_frozen_layers(device: str, data: str) -> Any:
    model = federated.train_only(network(device, "cnn"), ("fc1", "fc2"))
    start, _ = federated.split_frozen(model)
    assert start is not None
    run = federated.simulate(model, clients(data), rounds=1, **LOCAL)
    return run.model, cached(start, clients(data)).data.inputs


@case()
def simulate_and_go_on(device: str, data: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        options = {"checkpoint": Path(folder), **LOCAL}
        federated.simulate(network(device), clients(data), rounds=1, **options)
        assert list(Path(folder).iterdir())
        return federated.simulate(network(device), clients(data), rounds=2, **options).model


@case()
def simulate_a_network_that_draws(device: str, data: str) -> None:
    federated.simulate(drawing(device), clients(data), rounds=1, **LOCAL)


@case()
def losses(device: str, data: str) -> Any:
    scores, hot = images(device, 3, (CLASSES,)), images(device, 3, (CLASSES,), seed=1).round()
    multilabel = federated.task_loss(hot)
    return multilabel(scores, hot), federated.task_loss(labels(device, 3))(scores, labels(device, 3))


# --- updates ---


@case(on="model")
def aggregate(device: str, data: str) -> Any:
    """One update was computed, the other came in a file."""
    model = network(device)
    return federated.aggregate([gradient(model, device), gradient(model, data, 3)])


@case(on="model")
def aggregate_from_elsewhere_first(device: str, data: str) -> Any:
    """As above, and then the server's step."""
    model = network(device)
    both = federated.aggregate([gradient(model, data, 3), gradient(model, device)])
    return federated.apply_update(model, both)


@case(on="model")
def apply_update(device: str, data: str) -> Any:
    model = network(device)
    return federated.apply_update(model, gradient(model, data), learning_rate=0.5)


@case()
def update_from_elsewhere(device: str, data: str) -> Any:
    model = network(device)
    sent = gradient(model, data).tensors
    numbers = {name: value.cpu().numpy() for name, value in sent.items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(dict(sent), Path(folder, "sent.pt"))
        ways = (sent, numbers, list(sent.values()), Path(folder, "sent.pt"))
        made = [Update.from_tensors(model, way, kind="gradient", samples=4) for way in ways]
    return [(update.flat(), update.layer("1")) for update in made]


@case()
def fingerprint(device: str, data: str) -> Any:
    return int(digest("settings", network(device).parameters())[:8], 16)


# --- defenses ---

DEFENSES: dict[str, Callable[[], defenses.UpdateDefense]] = {
    "clip": lambda: defenses.clip(0.1),
    "clip, each tensor": lambda: defenses.clip(0.1, within="tensor"),
    "compress": lambda: defenses.compress(0.5),
    "compress, each tensor": lambda: defenses.compress(0.5, within="tensor"),
    "compress_classes": lambda: defenses.compress_classes(0.5, "5"),
    "compress_as_released": lambda: defenses.compress_as_released(0.5, "5"),
    "gaussian_noise": lambda: defenses.gaussian_noise(0.1),
    "gaussian_noise, relative": lambda: defenses.gaussian_noise(0.1, relative=True),
    "laplacian_noise": lambda: defenses.laplacian_noise(0.1),
    "quantize": lambda: defenses.quantize(8),
    "sign": defenses.sign,
    "chain": lambda: defenses.chain(defenses.clip(0.1), defenses.gaussian_noise(0.1)),
}


def defended(device: str, data: str, *, made: Callable[[], defenses.UpdateDefense]) -> Any:
    return made()(gradient(network(device), device))


for name, made in DEFENSES.items():
    add(name, partial(defended, made=made), on="model")


def mixed(device: str, data: str, *, kind: str) -> Any:
    """The clients' samples where the model is, the public ones on either side."""
    public = people(data, 20, seed=3)
    made = {
        "replace_with_background": lambda: defenses.replace_with_background(public, 0.5),
        "add_background": lambda: defenses.add_background(public, 1.0),
        "add_background_mode": lambda: defenses.add_background_mode(
            public, np.random.default_rng(0).random((20, 3)), 1.0, modes=2
        ),
    }[kind]()
    held = made(clients(device))
    return [held.samples(client) for client in range(len(held))]


for kind in ("replace_with_background", "add_background", "add_background_mode"):
    add(kind, partial(mixed, kind=kind), on="model")


@case()
def inspect_layers(device: str, data: str) -> Any:
    return defenses.inspect_layers(network(device, "cnn"))


@case(tolerance=1e-3, on="cpu")
def inspect_update(device: str, data: str) -> Any:
    model = network(device)
    sent = gradient(model, data)
    return [
        (leak.single, leak.paired, leak.exposed)
        for multiple in (False, True)
        for leak in defenses.inspect_update(sent, model, images(data), any_multiple=multiple)
    ]


@case()
def inspect_update_of_a_network_that_draws(device: str, data: str) -> None:
    model = drawing(device)
    with seeded(0, [torch.device(device)]):
        sent = gradient(model, data)
    defenses.inspect_update(sent, model, images(data))
