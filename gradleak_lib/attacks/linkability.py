"""Whose update is it, and do two updates come from one user? (Orekondy et al. 2018)"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from gradleak_lib.federated import Observations
from gradleak_lib.seeding import seeded

Attack = Literal["chance", "knn", "svm", "mlp"]
ATTACKS: tuple[str, ...] = get_args(Attack)
Array = NDArray[np.float32]

_BATCH, _EPOCHS, _PATIENCE, _VALIDATION = 32, 300, 20, 0.1
_ENOUGH, _STEPS = 5, 1000


def features(observed: Observations, layer: str | None = None) -> Array:
    """What the attacks look at: one layer of each update, flattened, scaled to length 1.

    Parameters
    ----------
    observed
        The updates.
    layer
        Name of a layer or parameter, usually the last one; None: everything observed.

    Returns
    -------
    np.ndarray
        float32 ``[N, D]``. An update that is zero stays zero.

    Raises
    ------
    ValueError
        If the layer was not observed, or an update holds NaN or infinity.

    References
    ----------
    Orekondy et al. 2018, Sec. 6 (flattened and L2-normalised parameters of the last layer).
    """
    flat = _finite(observed.matrix(layer).float().cpu().numpy())
    # Not scikit-learn's normalize, which leaves what is shorter than a millionth as it is.
    lengths = np.sqrt(np.einsum("nd,nd->n", flat, flat, dtype=np.float64)).astype(np.float32)
    return (flat / np.where(lengths == 0, 1, lengths)[:, None]).astype(np.float32, copy=False)


def span_coordinates(known: Array, unknown: Array) -> tuple[Array, Array]:
    """Coordinates of wide features in the space that the known ones span: N numbers instead of D.

    Distances between known features, and which known ones lie closest to an unknown one, stay as they are, and so
    do the planes of a linear support vector machine; a network only starts elsewhere.

    Parameters
    ----------
    known
        ``[N, D]``.
    unknown
        ``[M, D]``.

    Returns
    -------
    tuple of np.ndarray
        ``[N, min(N, D)]`` and ``[M, min(N, D)]``.
    """
    basis, _ = np.linalg.qr(known.T)
    return known @ basis, unknown @ basis


def identify(
    attack: Attack, known: Array, users: ArrayLike, unknown: Array, *, classes: int, seed: int = 0
) -> NDArray[np.float64]:
    """Score each user for each update, after learning from updates whose users are known.

    Parameters
    ----------
    attack
        ``"chance"``: uniform random scores. ``"knn"``: shares among the ten nearest. ``"svm"``: distances to the
        planes of a linear support vector machine, one against the rest, C = 1. ``"mlp"``: log probabilities of a
        network with 128 hidden units, ReLU and dropout 0.2, trained by SGD (rate 0.01, momentum 0.9, batches of
        32) until the loss on a tenth of the known updates has not fallen for 20 epochs, at most 300. With fewer than
        five known updates of a user nothing is held out, and the training takes 1,000 steps.
    known
        ``[N, D]``, from `features`.
    users
        int ``[N]``: their users, 0 to ``classes`` - 1. In an open world the last class stands for all users that
        the attacker does not know, trained on held-out ones.
    unknown
        ``[M, D]``.
    classes
        Number of users U (with the unknown class, if there is one), at least 2.
    seed
        Seed of everything random.

    Returns
    -------
    np.ndarray
        float64 ``[M, U]``; higher is likelier. A class without known updates has the lowest score of its row.

    Raises
    ------
    ValueError
        If the attack is unknown, shapes disagree, an entry is NaN or infinite, or fewer than two users are known.

    References
    ----------
    Orekondy et al. 2018, Sec. 6.1 and 6.3. The weights of the network start as Keras starts them, which is what
    the paper used; its number of epochs is not given.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> known = np.repeat(np.eye(3), 10, axis=0) + 0.1 * rng.standard_normal((30, 3))
    >>> identify("knn", known, np.repeat([0, 1, 2], 10), np.eye(3), classes=3)
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    known, unknown = _finite(known), _finite(unknown)
    owners = np.asarray(users)
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r}: it must be one of {', '.join(ATTACKS)}")
    shapes = known.shape, owners.shape, unknown.shape
    if not known.ndim == unknown.ndim == 2 or shapes[0][1] != shapes[2][1] or owners.shape != (len(known),):
        raise ValueError(f"known [N, D], users [N] and unknown [M, D] do not fit: {shapes}")
    present, place = np.unique(owners, return_inverse=True)
    if len(present) < 2 or present[0] < 0 or present[-1] >= classes:
        raise ValueError(f"users must be two or more, numbered 0 to {classes - 1}; got {present.tolist()}")
    if attack == "chance":
        return np.random.default_rng(seed).random((len(unknown), classes))
    table = {"knn": _knn, "svm": _svm, "mlp": _mlp}[attack](known, place, unknown, len(present), seed)
    scores = np.repeat(table.min(axis=1, keepdims=True), classes, axis=1)
    scores[:, present] = table
    return scores


def match_by_identity(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Probability that the two updates of each pair have one user, from an identification of both.

    Parameters
    ----------
    first, second
        ``[P, U]``: log probabilities, from ``identify("mlp", ...)``.

    Returns
    -------
    np.ndarray
        float64 ``[P]``: the largest over users of the product of both probabilities.

    Raises
    ------
    ValueError
        If shapes disagree, or a log probability is positive or NaN.

    References
    ----------
    Orekondy et al. 2018, Sec. 6.2 (MLP).
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"first and second must both be [P, U], got {one.shape} and {other.shape}")
    if not (np.maximum(one, other) <= 1e-6).all():
        raise ValueError("these are no log probabilities: take what identify('mlp', ...) returns")
    return np.exp((one + other).max(axis=1))


def match_by_cosine(first: Array, second: Array) -> NDArray[np.float64]:
    """Cosine of the two updates of each pair (``[P, D]`` and ``[P, D]`` of length 1): a matcher without training."""
    _check_pairs(first, second)
    return np.einsum("pd,pd->p", first, second, dtype=np.float64)


def train_siamese(
    known: Array,
    users: ArrayLike,
    clients: ArrayLike,
    *,
    epochs: int = 20,
    seed: int = 0,
) -> Callable[[Array, Array], NDArray[np.float64]]:
    """Learn from known updates to tell whether two updates come from one user.

    Two layers of 128 units with ReLU, shared by both updates, the absolute differences of what they give, and one
    sigmoid unit; binary cross-entropy, RMSprop (rate 0.001, batches of 32). In each epoch every update meets
    one of the same user and one of another.

    Parameters
    ----------
    known
        ``[N, D]``, from `features`.
    users, clients
        int ``[N]``. Pairs of one user come from two of its clients; where only one is known, two updates of that
        one; where only one update is known, that one twice.
    epochs
        Passes over the known updates.
    seed
        Seed of weights and pairs.

    Returns
    -------
    callable
        From two times ``[P, D]`` to the probabilities float64 ``[P]``; it knows no users, so that it works on users
        never seen.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is NaN or infinite, ``epochs`` is out of range, or fewer than two users are
        known.

    References
    ----------
    Orekondy et al. 2018, Sec. 6.2 (Siamese) and App. A.
    """
    known = _finite(known)
    owners, senders = np.asarray(users), np.asarray(clients)
    if known.ndim != 2 or not owners.shape == senders.shape == (len(known),) or epochs < 1:
        raise ValueError(
            "known must be [N, D], users and clients [N] and epochs 1 or more, got "
            f"{known.shape}, {owners.shape}, {senders.shape}, {epochs}"
        )
    if len(np.unique(owners)) < 2:
        raise ValueError("the Siamese network needs updates of two users or more")
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(known)
    with seeded(seed):
        network = _Siamese(known.shape[1])
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3)
    partners = [_partners(owners, senders, row) for row in range(len(owners))]
    for _ in range(epochs):
        same = np.array([rng.choice(choices) for choices in partners])
        other = rng.integers(len(owners), size=len(owners))
        while (clash := owners[other] == owners).any():
            other[clash] = rng.integers(len(owners), size=clash.sum())
        for batch in torch.from_numpy(rng.permutation(len(owners))).split(_BATCH):
            rows = batch.numpy()
            left = inputs[batch].repeat(2, 1)
            right = torch.cat([inputs[same[rows]], inputs[other[rows]]])
            truth = torch.arange(2.0).flip(0).repeat_interleave(len(batch))
            loss = nn.functional.binary_cross_entropy_with_logits(network(left, right), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def match(first: Array, second: Array) -> NDArray[np.float64]:
        _check_pairs(first, second)
        pairs = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (first, second))
        logits = network(*pairs)
        return logits.sigmoid().double().numpy()

    return match


def _finite(rows: ArrayLike) -> Array:
    table = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(table).all():
        raise ValueError("an update holds NaN or infinity: leave it out, or lower the clients' learning rate")
    return table


def _check_pairs(first: Array, second: Array) -> None:
    if np.shape(first) != np.shape(second) or np.ndim(first) != 2:
        raise ValueError(
            f"the sides of the pairs must both be [P, D], got {np.shape(first)}, {np.shape(second)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("the updates hold NaN or infinity")


class _Siamese(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dimensions, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 1)
        self.apply(_start_like_keras)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head((self.encoder(first) - self.encoder(second)).abs()).squeeze(1)


def _partners(owners: NDArray[np.int64], senders: NDArray[np.int64], row: int) -> NDArray[np.int64]:
    """Updates of the same user, from another client where there is one, else other ones of its client."""
    same = np.flatnonzero(owners == owners[row])
    elsewhere = same[senders[same] != senders[row]]
    others = same[same != row]
    return elsewhere if len(elsewhere) else others if len(others) else same


def _knn(
    known: Array, place: NDArray[np.int64], unknown: Array, classes: int, seed: int
) -> NDArray[np.float64]:
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(10, len(known))).fit(known, place)
    return model.predict_proba(unknown)


def _svm(
    known: Array, place: NDArray[np.int64], unknown: Array, classes: int, seed: int
) -> NDArray[np.float64]:
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=1.0, random_state=seed).fit(known, place)
    margins = model.decision_function(unknown)
    return margins if classes > 2 else np.stack([-margins, margins], axis=1)


def _mlp(
    known: Array, place: NDArray[np.int64], unknown: Array, classes: int, seed: int
) -> NDArray[np.float64]:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(known), torch.from_numpy(place)
    order = torch.randperm(len(inputs), generator=generator)
    # Holding out the only updates of some users would teach the network that they do not exist.
    enough = np.bincount(place).min() >= _ENOUGH
    held = round(_VALIDATION * len(order)) if enough else 0
    validation, training = order[:held], order[held:]
    steps = -(-len(training) // _BATCH)
    with seeded(seed):
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, classes)
        ).apply(_start_like_keras)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        best, state, waited = float("inf"), None, 0
        for _ in range(_EPOCHS if held else -(-_STEPS // steps)):
            shuffled = training[torch.randperm(len(training), generator=generator)]
            for batch in shuffled.split(_BATCH):
                loss = nn.functional.cross_entropy(network(inputs[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not held:
                continue
            with torch.no_grad():
                outputs = network.eval()(inputs[validation])
                now = nn.functional.cross_entropy(outputs, targets[validation]).item()
            network.train()
            waited += 1
            if now < best:
                best, waited = now, 0
                state = {name: value.clone() for name, value in network.state_dict().items()}
            if waited >= _PATIENCE:
                break
    network.load_state_dict(state or network.state_dict())
    with torch.no_grad():
        return network.eval()(torch.from_numpy(unknown)).log_softmax(1).double().numpy()


def _start_like_keras(module: nn.Module) -> None:
    """Glorot's uniform weights and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
