"""What a mitigation costs a model that is trained on digits."""

from dataclasses import dataclass

import torch
from torch import nn

from gradleak_lib import models
from gradleak_lib.data import ClientData, load, unowned
from gradleak_lib.experiments.mitigations.mitigation import Mitigation
from gradleak_lib.experiments.mitigations.training import promise, trained_under
from gradleak_lib.federated import Diverged
from gradleak_lib.federated.central import predict


@dataclass(frozen=True)
class Accuracy:
    """What a mitigation costs a model that is trained on digits.

    Parameters
    ----------
    accuracy
        On held-out digits, in [0, 1]; that of a constant guess where the training diverged.
    epsilon
        As in `Linked`.
    """

    accuracy: float
    epsilon: float


def train_digits(
    mitigation: Mitigation,
    *,
    rounds: int = 50,
    clients: int = 10,
    samples: int = 60,
    learning_rate: float = 0.5,
    batch_size: int = 20,
    modes: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Accuracy:
    """Train the network of `digits_network` on handwritten digits, by federated averaging.

    Parameters
    ----------
    mitigation
        What every client does, in every round. Absolute strengths are those of a gradient.
    rounds
        Rounds; all clients take part in each.
    clients, samples
        Number of clients, and of digits that each holds, all drawn at random.
    learning_rate, batch_size
        Of the local steps, one pass a round.
    modes
        As for `Mitigation.on_data`; modes of the pixels.
    seed
        Seed of everything that is random.
    device
        Where the network lies.

    Raises
    ------
    ValueError
        If an argument is out of range for what it goes to, or too few digits are left to test on (500) and as public.
    """
    digits = load("digits", 8, sample=1797, seed=seed)
    count = clients * samples
    if min(clients, samples, batch_size) < 1 or count + 500 + max(16, modes) > len(digits):
        raise ValueError(
            "clients, samples and batch_size must be 1 or more, and clients * samples at most "
            f"{len(digits) - 500 - max(16, modes)}; got {clients}, {samples}, {batch_size}"
        )
    own, test = unowned(digits.subset(range(count))), digits.subset(range(count, count + 500))
    public = unowned(digits.subset(range(count + 500, len(digits))))
    rows = torch.arange(count).split(samples)
    held = ClientData(own, rows, torch.arange(clients), torch.zeros(clients, dtype=torch.int64))
    features = public.inputs.flatten(1).numpy()
    mixed = mitigation.on_data(public, features, modes=modes, seed=seed)(held)
    budget = promise(mitigation, rounds, clients=clients, fraction=1.0)
    network = digits_network(seed).to(device)
    try:
        unit = learning_rate * -(-samples // batch_size)  # a change of parameters is so many gradients
        run = trained_under(
            network,
            mixed,
            mitigation,
            public,
            rounds=rounds,
            fraction=1.0,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            unit=unit,
        )
        outputs = predict(run.model, test.images)
        if outputs.isfinite().all():
            return Accuracy(float((outputs.argmax(1) == test.labels).double().mean()), budget)
    except Diverged:
        pass  # what such a model guesses is constant
    return Accuracy(float(test.labels.bincount().max()) / len(test), budget)


def digits_network(seed: int) -> nn.Module:
    """A small convolutional network for digits of 8 x 8 pixels, untrained."""
    return models.build("cnn", (1, 8, 8), classes=10, seed=seed)
