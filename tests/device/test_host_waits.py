"""How often the host would wait for a GPU: counted on the CPU, where the same operators run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SHAPE, batch, clients, drawing, gradient, labels, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradleak_lib import defenses, federated, models
from gradleak_lib.attacks.inversion import invert
from gradleak_lib.attacks.search import Search
from gradleak_lib.federated import Update
from gradleak_lib.seeding import seeded

aten = torch.ops.aten
# A number leaves a tensor, or the size of a result depends on what is in a tensor.
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.bincount,
    aten.repeat_interleave,
}


class Waiting(TorchDispatchMode):
    """Counts, while it is entered, what would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket is aten.index and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        self.count += masks or func.overloadpacket in WAITS
        return func(*args, **(kwargs or {}))


def waits(function: Callable[..., Any], *given: Any, **options: Any) -> int:
    """How often the host would wait in one call."""
    with Waiting() as waiting:
        function(*given, **options)
    return waiting.count


def test_what_is_counted():
    mask = torch.tensor([True, False])
    assert waits(lambda: mask[mask].sum().item()) == 2
    assert waits(lambda: bool(mask.any()) and mask.nonzero()) == 2
    assert waits(lambda: mask.float().sum() + mask[torch.tensor([0])]) == 0


LOCAL = {"learning_rate": 0.01, "batch_size": 2}
MODEL = network("cpu", "cnn")  # eight tensors
SENT = gradient(MODEL, "cpu")

# One look at all of its tensors is enough to refuse NaN.
LOOKS: dict[str, Callable[[], Any]] = {
    "fedsgd": lambda: federated.fedsgd(MODEL, *batch("cpu")),
    "fedavg": lambda: federated.fedavg(MODEL, *batch("cpu"), **LOCAL, epochs=2),
    "layer": lambda: SENT.layer("fc1"),
    "flat": SENT.flat,
    "from_tensors": lambda: Update.from_tensors(MODEL, SENT.tensors, kind="gradient", samples=4),
    "apply_update": lambda: federated.apply_update(network("cpu", "cnn"), SENT),
    "clip": lambda: defenses.clip(0.1)(SENT),
    "gaussian_noise": lambda: defenses.gaussian_noise(0.1)(SENT),
    "quantize": lambda: defenses.quantize(8)(SENT),
    "sign": lambda: defenses.sign()(SENT),
    "compress, each tensor": lambda: defenses.compress(0.5, within="tensor")(SENT),
}


@pytest.mark.parametrize("name", LOOKS)
def test_an_update_is_looked_at_once(name):
    assert waits(LOOKS[name]) == 1


def test_an_aggregate_is_looked_at_once_for_each_update():
    assert waits(federated.aggregate, [SENT] * 3) <= 3


def test_dp_sgd_waits_once_a_microbatch():
    private = {"bound": 1.0, "noise_multiplier": 0.1}
    few, many = (
        waits(defenses.dp_sgd, MODEL, *batch("cpu", 8), **private, microbatch=size) for size in (8, 2)
    )
    assert many - few <= 3
    assert few <= 2  # the microbatch, and what is sent


@pytest.mark.parametrize(("engine", "most"), [("sequential", 4), ("vectorized", 1)])
def test_a_round_waits_once_an_update(engine, most):
    few, many = (
        waits(federated.simulate, MODEL, clients("cpu"), rounds=n, fraction=1.0, engine=engine, **LOCAL)
        for n in (1, 3)
    )
    assert many - few <= 2 * most


@pytest.mark.parametrize(
    "defense", [None, lambda update, seed: defenses.gaussian_noise(0.1, seed=seed)(update)]
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_of_clients_side_by_side_do_not_wait(epochs, defense):
    options = {**LOCAL, "rounds": 1, "fraction": 1.0, "engine": "vectorized", "defense": defense}
    assert waits(federated.simulate, MODEL, clients("cpu"), epochs=epochs, **options) == waits(
        federated.simulate, MODEL, clients("cpu"), **options
    )


SEARCHED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "together": (lambda: models.with_activation(network("cpu", "lenet"), nn.ReLU), {}),
    "vectorized": (lambda: network("cpu"), {"batch_size": 2}),
    "one by one": (lambda: drawing("cpu"), {}),
}


@pytest.mark.parametrize("way", SEARCHED)
def test_an_iteration_of_a_search_does_not_wait(way):
    make, options = SEARCHED[way]
    model = make()
    with seeded(0):  # dropout
        sent = federated.fedavg(model, *batch("cpu"), **LOCAL) if options else gradient(model, "cpu")

    def search(iterations: int) -> None:
        invert(sent, model, SHAPE, labels("cpu"), Search(iterations=iterations), **options)

    assert waits(search, 8) == waits(search, 3)
