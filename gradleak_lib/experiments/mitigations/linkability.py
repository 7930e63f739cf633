"""What a mitigation leaves of user linkability, and what it costs the task that the updates train."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import nn

from gradleak_lib import metrics, models
from gradleak_lib.attacks import linkability as attacks
from gradleak_lib.data import Population, UserDataset, digit_scenes, split_clients
from gradleak_lib.experiments.mitigations.mitigation import Mitigation
from gradleak_lib.experiments.mitigations.training import HEAD, promise, trained_under
from gradleak_lib.federated import Diverged, Observations
from gradleak_lib.federated.central import predict, train_centrally
from gradleak_lib.federated.frozen import split_frozen, train_only
from gradleak_lib.show import summary

Background = Literal["in-domain", "shifted"]
_SUMS, _PAIRS = 400, 1000


@dataclass(frozen=True)
class People:
    """A population of users, and the model that their devices receive first.

    Parameters
    ----------
    population
        From `gradleak_lib.data.digit_scenes`; in place of the images what frozen convolutions make of them, computed
        once.
    shifted
        The same of the negatives of the public images: a background from somewhere else.
    network
        The layers behind these convolutions, warm-started on the public part, with a new last layer.
    seed
        Seed of both.
    """

    population: Population
    shifted: UserDataset
    network: nn.Module
    seed: int

    __repr__ = summary

    def features(self, data: UserDataset) -> NDArray[np.float32]:
        """What the network sees below its last layer, ``[N, D]``: where mm-aug looks for modes."""
        below = nn.Sequential(*list(self.network.children())[:-1])
        return predict(below, data.inputs).numpy()


def draw_people(
    seed: int,
    *,
    users: int = 40,
    scenes: int = 128,
    drift: float = 0.5,
    warm_epochs: int = 5,
    device: torch.device | str = "cpu",
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
    device
        Where the network lies.

    References
    ----------
    Orekondy et al. 2018, Sec. 8.1.
    """
    population = digit_scenes(seed=seed, users=users, scenes=scenes, drift=drift)
    public = population.public
    network = models.build("cnn", public.inputs.shape[1:], classes=len(public.classes), seed=seed)
    trained = train_centrally(
        network.to(device),
        public.inputs,
        public.targets,
        epochs=warm_epochs,
        learning_rate=3e-3,
        batch_size=64,
        seed=seed,
    )
    network = train_only(
        models.with_new_head(trained, classes=len(public.classes), seed=seed), ("fc1", "fc2")
    )
    convolutions, rest = split_frozen(network)
    assert convolutions is not None

    def seen(part: UserDataset) -> UserDataset:
        return replace(part, inputs=predict(convolutions, part.inputs))

    parts = (seen(part) for part in (population.train, population.test, public))
    return People(Population(*parts), seen(replace(public, inputs=1 - public.inputs)), rest, seed)


@dataclass(frozen=True)
class Linked:
    """User linkability under one mitigation.

    Parameters
    ----------
    identification, matching
        Average precision of the attack, in [0, 1]; NaN where it was not measured.
    svm
        Average precision of identification by the linear support vector machine, whichever the attack.
    chance, null
        Average precision of random scores, and after permuting the clients among users (sums: only chance).
    task
        Average precision of the model that was trained.
    size
        Standard deviation of the entries of what was sent of the last layer.
    epsilon
        What the mitigation promises each client, at delta = 1e-5, over all its updates; infinite without noise, and
        where nothing bounds what one sample (DP-SGD) or one client (clipping and noise) can change. Batches come from
        a shuffled data set: DP-SGD is granted no amplification by sampling, which would need Poisson sampling.
    confusion
        ``[U, U]``: how often an update of a user (row) was taken for one of another (column).
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

    __repr__ = summary


def link_users(
    people: People,
    mitigation: Mitigation,
    *,
    background: Background = "in-domain",
    rounds: int = 30,
    learning_rate: float = 0.1,
    modes: int = 100,
    matching: bool = False,
    attack: Literal["mlp", "svm"] = "mlp",
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
        Whether to attack by matching, too: by the cosine, which needs no training.
    attack
        What identifies: ``"mlp"``, the paper's network, or ``"svm"``, a linear support vector machine, in a tenth of
        the time.

    Returns
    -------
    Linked or None
        None if the training diverged.

    Raises
    ------
    ValueError
        If an argument is out of range for what it goes to, or a sum has no fewer clients than there are users.

    References
    ----------
    Orekondy et al. 2018, Sec. 9 and Fig. 11.
    """
    if background not in get_args(Background):
        raise ValueError(f"background={background!r}: it must be one of {', '.join(get_args(Background))}")
    users = len(people.population.train.user_names)
    if mitigation.clients >= users:
        raise ValueError(
            f"a sum of {mitigation.clients} clients needs more than {mitigation.clients} users, there are {users}"
        )
    public = people.shifted if background == "shifted" else people.population.public
    held = split_clients(people.population.train, "random", seed=people.seed)
    features = people.features(public) if mitigation.name == "mm-aug" else np.empty((len(public), 0))
    mixed = mitigation.on_data(public, features, modes=modes, seed=people.seed)(held)
    try:
        run = trained_under(
            people.network,
            mixed,
            mitigation,
            public,
            rounds=rounds,
            fraction=0.1,
            learning_rate=learning_rate,
            batch_size=8,
            seed=people.seed,
        )
        outputs = predict(run.model, people.population.test.inputs)
        if not (outputs.isfinite().all() and run.observed.matrix(HEAD).isfinite().all()):
            return None
    except Diverged:
        return None
    task = float(average_precision_score(people.population.test.targets, outputs))
    budget = promise(mitigation, rounds, clients=len(mixed), fraction=0.1)
    seen = run.observed
    known, unknown = seen.subset(seen.devices == 0), seen.subset(seen.devices == 1)
    if mitigation.clients > 1:
        return _linked_in_sums(known, unknown, mitigation.clients, users, attack, task, budget, people.seed)
    learnt, faced = attacks.features(known, HEAD), attacks.features(unknown, HEAD)
    owners, senders = unknown.users.numpy(), unknown.clients.numpy()
    found = {
        name: attacks.identify(name, learnt, known.users.numpy(), faced, classes=users, seed=people.seed)
        for name in {attack, "svm"}
    }
    score, svm = (
        metrics.identification(found[name], owners, senders, seed=people.seed) for name in (attack, "svm")
    )
    confusion = np.zeros((users, users), dtype=np.int64)
    np.add.at(confusion, (owners, found[attack].argmax(1)), 1)
    return Linked(
        score.ap,
        _matched(known, unknown, rounds, people.seed) if matching else float("nan"),
        svm.ap,
        score.chance,
        float(score.null.mean()),
        task,
        float(seen.matrix(HEAD).double().std()),
        budget,
        confusion,
    )


def _matched(known: Observations, unknown: Observations, rounds: int, seed: int) -> float:
    """AP of matching late updates of known devices with those of unknown ones, by their cosine."""
    late = known.subset(known.rounds >= rounds // 2)
    first, second, same = metrics.balanced_pairs(
        (late.users, late.clients), (unknown.users, unknown.clients), count=_PAIRS, seed=seed
    )
    one, other = attacks.features(late, HEAD)[first], attacks.features(unknown, HEAD)[second]
    return metrics.matching_ap(same, attacks.match_by_cosine(one, other))


def _linked_in_sums(
    known: Observations,
    unknown: Observations,
    clients: int,
    users: int,
    attack: Literal["mlp", "svm"],
    task: float,
    budget: float,
    seed: int,
) -> Linked:
    """Who is in a sum of several clients' updates? Known updates are single ones, of the attacker's making."""
    raw, owners = unknown.matrix(HEAD).numpy(), unknown.users.numpy()
    if len(np.unique(owners)) < users:
        raise ValueError("rounds must be more: not every user's second device has sent an update")
    rng = np.random.default_rng(seed)
    members = np.stack([rng.choice(users, clients, replace=False) for _ in range(_SUMS)])
    rows = np.array([[rng.choice(np.flatnonzero(owners == user)) for user in sum_] for sum_ in members])
    sums = raw[rows].sum(axis=1, dtype=np.float64)
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    truth = np.zeros((_SUMS, users), dtype=int)
    np.put_along_axis(truth, members, 1, axis=1)
    drawn = truth.any(axis=0)  # a user who is in no sum has no AP
    score = {}
    for name in ("svm", attack):
        scores = attacks.identify(
            name, attacks.features(known, HEAD), known.users.numpy(), sums, classes=users, seed=seed
        )
        score[name] = float(average_precision_score(truth[:, drawn], scores[:, drawn]))
        if name == attack:
            confusion = np.zeros((users, users), dtype=np.int64)
            for sum_, best in zip(members, scores.argmax(1), strict=True):
                confusion[sum_, best] += 1
    chance = float(average_precision_score(truth[:, drawn], rng.random((_SUMS, int(drawn.sum())))))
    size = float(raw.std(dtype=np.float64))
    return Linked(score[attack], float("nan"), score["svm"], chance, chance, task, size, budget, confusion)
