"""What a mitigation costs the model that is trained, and what it leaves of user linkability."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import normalize
from torch import nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import linkability as attacks
from gradleak_lib.data import ClientData, Population, UserDataset, digit_scenes, load, split_clients, unowned
from gradleak_lib.defenses import epsilon
from gradleak_lib.defenses.private_training import dp_fedavg
from gradleak_lib.federated import Observations, Simulation, fedavg, multilabel_loss, simulate
from gradleak_lib.federated.central import predict, train_centrally
from gradleak_lib.tradeoff.mitigation import Mitigation

Background = Literal["in-domain", "shifted"]
HEAD = "fc2"  # last layer of the network
_SUMS, _PAIRS = 400, 1000


@dataclass(frozen=True)
class People:
    """A population of users, and the model that their devices receive first.

    Parameters
    ----------
    population
        From `gradleak_lib.data.digit_scenes`.
    network
        Warm-started on the public part, with a new last layer. Its convolutions are frozen.
    seed
        Seed of both.
    """

    population: Population
    network: nn.Module
    seed: int

    def features(self, data: UserDataset) -> NDArray[np.float32]:
        """What the network sees below its last layer, ``[N, D]``: where mm-aug looks for modes."""
        below = nn.Sequential(*list(self.network.children())[:-1])
        return predict(below, data.inputs).numpy()


def draw_people(
    seed: int, *, users: int = 40, scenes: int = 128, drift: float = 0.5, warm_epochs: int = 5
) -> People:
    """Draw a population, and train its first model on public images; see `gradleak_lib.data.digit_scenes`.

    Parameters
    ----------
    seed
        Seed, 0 or more.
    users, scenes, drift
        Of `gradleak_lib.data.digit_scenes`.
    warm_epochs
        Passes over the public images, in place of the paper's ImageNet weights. Then the convolutions are frozen; the
        paper freezes all but the last four.

    References
    ----------
    Orekondy et al. 2018, Sec. 8.1.
    """
    population = digit_scenes(seed=seed, users=users, scenes=scenes, drift=drift)
    public = population.public
    network = models.build("cnn", public.inputs.shape[1:], classes=len(public.classes), seed=seed)
    trained = train_centrally(
        network,
        public.inputs,
        public.targets,
        epochs=warm_epochs,
        learning_rate=3e-3,
        batch_size=64,
        seed=seed,
    )
    network = models.with_new_head(trained, classes=len(public.classes), seed=seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith("conv"))
    return People(population, network, seed)


@dataclass(frozen=True)
class Linked:
    """User linkability under one mitigation.

    Parameters
    ----------
    identification, matching
        Average precision of the MLP, in [0, 1]; NaN where it was not measured.
    svm
        Average precision of identification by the linear support vector machine.
    chance, null
        Average precision of random scores, and after permuting the clients among users (sums: only chance).
    task
        Average precision of the model that was trained.
    size
        Standard deviation of the entries of what was sent of the last layer.
    epsilon
        What the mitigation promises each client, at delta = 1e-5, over all its updates; infinite without noise, and
        where nothing bounds what one sample (DP-SGD) or one client (clipping and noise) can change.
    confusion
        ``[U, U]``: how often an update of a user (row) was taken for one of another (column) by the MLP.
    """

    identification: float
    matching: float
    svm: float
    chance: float
    null: float
    task: float
    size: float
    epsilon: float
    confusion: NDArray[np.int64]


def link(
    people: People,
    mitigation: Mitigation,
    *,
    background: Background = "in-domain",
    rounds: int = 30,
    learning_rate: float = 0.1,
    modes: int = 100,
    matching: bool = False,
) -> Linked | None:
    """Train a federation under a mitigation, and attack its updates.

    Parameters
    ----------
    people
        Users with two devices each, cut at random; the first devices are known to the attacker, who faces the
        same mitigation in both (Orekondy et al. 2018, Sec. 9).
    mitigation
        What every client does.
    background
        The public images that are mixed in: ``"in-domain"``, drawn like the users'; ``"shifted"``, their negatives.
    rounds, learning_rate
        Of federated averaging, a tenth of the clients in a round.
    modes
        Number of modes M of the background.
    matching
        Whether to attack by matching, too.

    Returns
    -------
    Linked or None
        None if the training diverged.

    References
    ----------
    Orekondy et al. 2018, Sec. 9 and Fig. 11.
    """
    public = people.population.public
    if background == "shifted":
        public = replace(public, inputs=1 - public.inputs)
    held = split_clients(people.population.train, "random", seed=people.seed)
    features = people.features(public) if mitigation.name == "mm-aug" else np.empty((len(public), 0))
    mixed = mitigation.on_data(public, features, modes=modes, seed=people.seed)(held)
    try:
        run = _trained(people.network, mixed, mitigation, public, rounds, 0.1, learning_rate, 8, people.seed)
        outputs = predict(run.model, people.population.test.inputs)
        if not (outputs.isfinite().all() and run.observed.layer(HEAD).isfinite().all()):
            return None
    except ValueError as error:
        if "NaN or infinity" in str(error):
            return None
        raise
    task = float(average_precision_score(people.population.test.targets, outputs))
    promise = _epsilon(mitigation, rounds, clients=len(mixed), fraction=0.1, rate=8 / int(mixed.counts.max()))
    users = len(people.population.train.user_names)
    seen = run.observed
    known, unknown = seen.subset(seen.devices == 0), seen.subset(seen.devices == 1)
    if mitigation.clients > 1:
        return _linked_in_sums(known, unknown, mitigation.clients, users, task, promise, people.seed)
    found = {}
    for attack in ("mlp", "svm"):
        scores = attacks.identify(
            attack,
            attacks.features(known, HEAD),
            known.users.numpy(),
            attacks.features(unknown, HEAD),
            classes=users,
            seed=people.seed,
        )
        found[attack] = (
            metrics.identification(scores, unknown.users.numpy(), unknown.clients.numpy(), seed=people.seed),
            scores,
        )
    score, scores = found["mlp"]
    confusion = np.zeros((users, users), dtype=np.int64)
    np.add.at(confusion, (unknown.users.numpy(), scores.argmax(1)), 1)
    return Linked(
        score.ap,
        _matched(known, unknown, users, rounds, people.seed) if matching else float("nan"),
        found["svm"][0].ap,
        score.chance,
        float(score.null.mean()),
        task,
        float(seen.layer(HEAD).std()),
        promise,
        confusion,
    )


def _trained(
    network: nn.Module,
    clients: ClientData,
    mitigation: Mitigation,
    public: UserDataset,
    rounds: int,
    fraction: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    unit: float = 1.0,
) -> Simulation:
    """Federated averaging under a mitigation; what is usual is measured on public samples."""
    loss = multilabel_loss if public.multilabel else nn.functional.cross_entropy
    size = int(clients.counts.median())
    rows = torch.arange(min(4 * size, len(public))).split(size)
    usual = np.median(
        [
            fedavg(
                network,
                public.inputs[part],
                public.targets[part],
                learning_rate=learning_rate,
                batch_size=batch_size,
                loss=loss,
            )
            .flat()
            .double()
            .norm()
            for part in rows
        ]
    )
    of_samples = [
        fedavg(
            network,
            public.inputs[[row]],
            public.targets[[row]],
            learning_rate=1.0,
            batch_size=1,
            loss=loss,
        )
        .flat()
        .double()
        .norm()
        for row in range(16)
    ]
    private = partial(dp_fedavg, bound=float(np.median(of_samples)), noise_multiplier=mitigation.strength)
    return simulate(
        network,
        clients,
        rounds=rounds,
        fraction=fraction,
        learning_rate=learning_rate,
        batch_size=batch_size,
        observe=(HEAD,),
        seed=seed,
        defense=lambda s: mitigation.on_update(head=HEAD, usual=float(usual), unit=unit, seed=s),
        client=private if mitigation.name == "DP-SGD" else None,
    )


def _epsilon(mitigation: Mitigation, rounds: int, *, clients: int, fraction: float, rate: float) -> float:
    """What each client, or each sample of it, is promised over all updates of a client."""
    turns = -(-rounds * max(1, int(fraction * clients)) // clients)
    if mitigation.name == "clipping and noise":
        return epsilon(mitigation.strength, steps=turns)
    if mitigation.name == "DP-SGD":
        return epsilon(mitigation.strength, rate=min(1.0, rate), steps=turns * round(1 / min(1.0, rate)))
    return float("inf")


def _matched(known: Observations, unknown: Observations, users: int, rounds: int, seed: int) -> float:
    """AP of matching by identity: learnt from early updates of known devices, tested on late ones of both."""
    early, late = known.subset(known.rounds < rounds // 2), known.subset(known.rounds >= rounds // 2)
    first, second, same = metrics.balanced_pairs(
        (late.users, late.clients), (unknown.users, unknown.clients), count=_PAIRS, seed=seed
    )
    pairs = np.concatenate([attacks.features(late, HEAD)[first], attacks.features(unknown, HEAD)[second]])
    shares = attacks.identify(
        "mlp", attacks.features(early, HEAD), early.users.numpy(), pairs, classes=users, seed=seed
    )
    return metrics.matching_ap(same, attacks.match_by_identity(*np.split(shares, 2)))


def _linked_in_sums(
    known: Observations,
    unknown: Observations,
    clients: int,
    users: int,
    task: float,
    promise: float,
    seed: int,
) -> Linked:
    """Who is in a sum of several clients' updates? Known updates are single ones, of the attacker's making."""
    if clients >= users:
        raise ValueError(f"a sum of {clients} clients needs more than {clients} users, there are {users}")
    raw, owners = unknown.layer(HEAD).numpy(), unknown.users.numpy()
    rng = np.random.default_rng(seed)
    members = np.stack([rng.choice(users, clients, replace=False) for _ in range(_SUMS)])
    rows = np.array([[rng.choice(np.flatnonzero(owners == user)) for user in sum_] for sum_ in members])
    sums = normalize(raw[rows].sum(axis=1))
    truth = np.zeros((_SUMS, users), dtype=int)
    np.put_along_axis(truth, members, 1, axis=1)
    drawn = truth.any(axis=0)  # a user who is in no sum has no AP
    score = {}
    for attack in ("mlp", "svm"):
        scores = attacks.identify(
            attack, attacks.features(known, HEAD), known.users.numpy(), sums, classes=users, seed=seed
        )
        score[attack] = float(average_precision_score(truth[:, drawn], scores[:, drawn]))
        if attack == "mlp":
            confusion = np.zeros((users, users), dtype=np.int64)
            for sum_, best in zip(members, scores.argmax(1), strict=True):
                confusion[sum_, best] += 1
    chance = float(average_precision_score(truth[:, drawn], rng.random((_SUMS, int(drawn.sum())))))
    size = float(raw.std())
    return Linked(score["mlp"], float("nan"), score["svm"], chance, chance, task, size, promise, confusion)


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
    """
    digits = load("digits", 8, n=1797, seed=seed)
    count = clients * samples
    own, test = unowned(digits.subset(range(count))), digits.subset(range(count, count + 500))
    public = unowned(digits.subset(range(count + 500, len(digits))))
    rows = torch.arange(count).split(samples)
    held = ClientData(own, rows, torch.arange(clients), torch.zeros(clients, dtype=torch.int64))
    features = public.inputs.flatten(1).numpy()
    mixed = mitigation.on_data(public, features, modes=modes, seed=seed)(held)
    rate = batch_size / int(mixed.counts.max())
    promise = _epsilon(mitigation, rounds, clients=clients, fraction=1.0, rate=rate)
    network = digits_network(seed)
    try:
        unit = learning_rate * -(-samples // batch_size)  # a change of parameters is so many gradients
        model = _trained(
            network, mixed, mitigation, public, rounds, 1.0, learning_rate, batch_size, seed, unit
        ).model
        right = predict(model, test.images).argmax(1) == test.labels
        return Accuracy(float(right.double().mean()), promise)
    except ValueError as error:
        if "NaN or infinity" not in str(error):
            raise
        return Accuracy(float(test.labels.bincount().max()) / len(test), promise)


def digits_network(seed: int) -> nn.Module:
    """A small convolutional network for digits of 8 x 8 pixels, untrained."""
    return models.build("cnn", (1, 8, 8), classes=10, seed=seed)
