"""Federated averaging over many rounds, with every client's update observed."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.data.images import row_index
from gradleak_lib.data.users import ClientData
from gradleak_lib.federated import checkpoint as saved
from gradleak_lib.federated.checks import check_training, trained_parameters
from gradleak_lib.federated.clients import Loss
from gradleak_lib.federated.engines import Engine, choose_engine, local_updates, task_loss
from gradleak_lib.federated.frozen import cached, split_frozen
from gradleak_lib.federated.update import Update, check_finite
from gradleak_lib.show import summary

_EVERY = 10  # rounds from one save to the next


@dataclass(frozen=True)
class Observations:
    """What a server, or whoever reads its traffic, has seen: the updates, and what the protocol tells of each.

    Parameters
    ----------
    tensors
        By parameter name ``[N, ...]``, on the CPU: the observed part of each of N updates, in the order of arrival.
    clients
        int64 ``[N]``: which client sent it.
    users
        int64 ``[N]``: whose client that is. The attacker knows it for the clients that it trains on; for the others
        it is what the evaluation asks for.
    devices
        int64 ``[N]``: 0 for a user's first client, 1 for the second.
    rounds
        int64 ``[N]``: round of the update, from 0.
    samples
        int64 ``[N]``: number of samples behind it.
    local_steps
        int64 ``[N]``: number of local steps behind it.
    learning_rate
        Learning rate of the local steps.
    """

    tensors: Mapping[str, Tensor]
    clients: Tensor
    users: Tensor
    devices: Tensor
    rounds: Tensor
    samples: Tensor
    local_steps: Tensor
    learning_rate: float

    __repr__ = summary

    def __len__(self) -> int:
        return len(self.clients)

    def subset(self, indices: Tensor) -> "Observations":
        """Return the updates at ``indices`` (int64 ``[M]`` or bool ``[N]``)."""
        index = row_index(indices, len(self))
        tensors = {name: value[index] for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, **{field: getattr(self, field)[index] for field in _ROWS})

    def keep(self, layer: str) -> "Observations":
        """Return the same updates with the part of one layer only."""
        return replace(self, tensors={name: self.tensors[name] for name in self._of(layer)})

    def matrix(self, layer: str | None = None) -> Tensor:
        """One layer's part of all updates, as float ``[N, D]`` on the CPU; None: everything that was observed.

        Raises
        ------
        ValueError
            If that layer was not observed.
        """
        found = [self.tensors[key] for key in self._of(layer)]
        return torch.cat([value.flatten(1) for value in found], dim=1).cpu()

    def _of(self, layer: str | None) -> list[str]:
        names = list(self.tensors) if layer is None else _within(layer, self.tensors)
        if not names:
            what = "nothing" if layer is None else f"no layer {layer!r}"
            raise ValueError(f"{what} was observed here: there are {', '.join(self.tensors) or 'no tensors'}")
        return names

    def update(self, index: int) -> Update:
        """One update by its place, with the observed tensors only."""
        tensors = {name: value[index] for name, value in self.tensors.items()}
        samples, steps = int(self.samples[index]), int(self.local_steps[index])
        return Update(tensors, "delta", samples, steps, self.learning_rate)


_ROWS = ("clients", "users", "devices", "rounds", "samples", "local_steps")


@dataclass(frozen=True)
class Simulation:
    """What came of a federated training.

    Parameters
    ----------
    model
        The global model after the last round, in the mode of the one that was given.
    observed
        The updates of all rounds.
    tracked
        ``track(model)`` before the first round and after every round; empty without it.
    """

    model: nn.Module
    observed: Observations
    tracked: tuple[float, ...]

    __repr__ = summary


def cohort(number: int, clients: int, *, fraction: float, seed: int = 0) -> Tensor:
    """Clients that train in one round.

    The clients are shuffled and cut into groups of ``max(1, fraction * clients)``; when all groups have had their
    round, they are shuffled anew. So every client sends equally many updates, as the attacks' data sets need it.

    Parameters
    ----------
    number
        The round, from 0.
    clients
        How many there are, K.
    fraction
        C, in (0, 1].
    seed
        Seed, 0 or more.

    Returns
    -------
    Tensor
        int64 numbers of clients; the last group of a shuffle may be smaller.

    References
    ----------
    Orekondy et al. 2018, Alg. 1 and Sec. 6 ("each client produces an equal number of updates").
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if number < 0 or clients < 1:
        raise ValueError(f"number must be 0 or more and clients 1 or more, got {number}, {clients}")
    size = max(1, int(fraction * clients + 1e-9))
    groups = -(-clients // size)
    order = np.random.default_rng([seed, number // groups]).permutation(clients)
    return torch.from_numpy(order[number % groups * size :][:size].copy())


def simulate(
    model: nn.Module,
    clients: ClientData,
    *,
    rounds: int,
    learning_rate: float,
    fraction: float = 0.1,
    batch_size: int = 8,
    epochs: int = 1,
    loss: Loss | None = None,
    observe: Sequence[str] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    defense: Callable[[Update, int], Update] | None = None,
    client: Callable[..., Update] | None = None,
    track: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
) -> Simulation:
    """Federated averaging (Algorithm 1 of the paper), with every sampled client's update observed.

    Clients are stateless: each starts from the global model of its round. It makes as many steps as its own samples
    fill batches, times ``epochs``; so clients differ in their steps, and the average is weighted by samples, not by
    steps. Buffers, such as the statistics of batch norm, stay those of the model that is given. Layers in front of
    the first trained parameter of a chain are computed once per sample.

    Parameters
    ----------
    model
        The first global model; left as it was. Its device is used.
    clients
        Who holds what, K clients.
    rounds
        Rounds T, at least 1. With ``fraction=0.1``, every client trains once in ten rounds.
    learning_rate, batch_size, epochs, loss, engine
        As for `gradleak_lib.federated.local_updates`; the paper's B is 8, E is 1.
    fraction
        Share C of the clients that train in a round, in (0, 1].
    observe
        Names of the layers (or parameters) whose updates are kept; None: all trained ones; empty: none.
    seed
        Seed of the cohorts, of the order of each client's samples and of the defense.
    defense
        What a client does to its update before sending it: ``defense(update, seed)`` gives what it sends, such as
        ``lambda update, seed: gaussian_noise(0.1, seed=seed)(update)``. The seed differs for every round and client.
    client
        How a client trains, if not by `fedavg`: ``client(model, inputs, targets, learning_rate=, batch_size=,
        epochs=, loss=, seed=)`` gives its update, for instance ``partial(dp_fedavg, bound=1.0,
        noise_multiplier=1.0)``.
    track
        A number to follow, such as the loss on some data, from the global model.
    checkpoint
        A folder to save to every ten rounds, and to go on from; the result is the same bit for bit. It does not tell
        one defense, one client, one ``track`` or one loss without a name of its own from another.

    Raises
    ------
    ValueError
        If an argument is out of range, a layer of ``observe`` is unknown or frozen, ``client`` gives no change of
        this model's parameters, the training diverges (`Diverged`), or the checkpoint is of another run.

    References
    ----------
    McMahan et al. 2017, Alg. 1; Orekondy et al. 2018, Alg. 1 (weights: samples of the sampled clients).

    Examples
    --------
    >>> from gradleak_lib import data, models
    >>> people = data.digit_scenes(4, scenes=32, public_users=1)
    >>> held = data.split_clients(people.train, "random")
    >>> model = models.build("linear", (1, 16, 16), classes=10)
    >>> seen = simulate(model, held, rounds=4, learning_rate=0.1, fraction=0.25).observed
    >>> seen.matrix("1").shape, seen.update(0).local_steps
    (torch.Size([8, 2570]), 2)
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    check_training(learning_rate, batch_size, epochs)
    if (clients.counts == 0).any():
        raise ValueError(f"client {int(clients.counts.argmin())} holds no samples")
    if checkpoint is not None and Path(checkpoint).is_file():
        raise ValueError(f"checkpoint={str(checkpoint)!r} is a file: name a folder")
    loss = loss or task_loss(clients.data.targets)
    whole = copy.deepcopy(model)
    start, trained = split_frozen(whole)
    kept = _kept(trained, observe)
    options: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
    kind = choose_engine(trained, engine, clients=len(cohort(0, len(clients), fraction=fraction, seed=seed)))
    done: list[saved.Round] = []
    if checkpoint is not None:
        settings = options | {
            "format": 2,
            "fraction": fraction,
            "seed": seed,
            "kept": kept,
            "engine": kind,
            "loss": getattr(loss, "__name__", "loss"),
            "defended": defense is not None,
            "client": client is not None,
            "tracked": track is not None,
        }
        key = saved.fingerprint(whole, clients, settings)
        done = saved.load(Path(checkpoint), key, trained, rounds)
    if start is not None:
        clients = cached(start, clients)
    on_disk = len(done)
    before = () if done else _followed(track, whole)
    for number in range(len(done), rounds):
        chosen = cohort(number, len(clients), fraction=fraction, seed=seed)
        seeds = [_seed(seed, number, one) for one in chosen.tolist()]
        samples = clients.counts[chosen]
        steps = epochs * -(-samples // batch_size)
        if client is None:
            updates = local_updates(
                trained, clients, chosen.tolist(), loss=loss, seeds=seeds, engine=kind, **options
            )
        else:
            own = partial(client, trained, loss=loss, **options)
            sent = [own(*clients.samples(k), seed=s) for k, s in zip(chosen.tolist(), seeds, strict=True)]
            updates = _stacked(sent, trained, learning_rate)
            steps = torch.tensor([update.local_steps for update in sent])
        if defense is not None:
            told = zip(samples.tolist(), steps.tolist(), strict=True)
            plain = [
                Update({name: value[row] for name, value in updates.items()}, "delta", *one, learning_rate)
                for row, one in enumerate(told)
            ]
            updates = _defended(list(map(defense, plain, seeds)), updates)
        _average(trained, updates, samples)
        seen = {name: updates[name].cpu() for name in kept}
        done.append(saved.Round(chosen, steps, seen, before + _followed(track, whole)))
        before = ()
        if checkpoint is not None and (len(done) == on_disk + _EVERY or len(done) == rounds):
            saved.save(Path(checkpoint), key, done[on_disk:], on_disk, trained)
            on_disk = len(done)
    tracked = tuple(value for one in done for value in one.tracked)
    return Simulation(whole, _observations(done, clients, kept, learning_rate), tracked)


def _seed(seed: int, number: int, client: int) -> int:
    return int(np.random.SeedSequence([seed, number, client]).generate_state(1)[0])


def _followed(track: Callable[[nn.Module], float] | None, model: nn.Module) -> tuple[float, ...]:
    """The number to follow; of a copy, since whoever measures may put the model into another mode."""
    return () if track is None else (float(track(copy.deepcopy(model))),)


def _within(layer: str, names: Iterable[str]) -> list[str]:
    """Names of the parameters of a layer, or of the one parameter of that name."""
    return [name for name in names if name == layer or name.startswith(f"{layer}.")]


def _kept(model: nn.Module, observe: Sequence[str] | None) -> list[str]:
    trained = list(trained_parameters(model))
    if observe is None:
        return trained
    observe = (observe,) if isinstance(observe, str) else observe
    wanted = {layer: _within(layer, trained) for layer in observe}
    for layer, names in wanted.items():
        if not names:
            raise ValueError(
                f"observe={layer!r}: no trained layer of that name; there are {', '.join(trained)}"
            )
    return [name for name in trained if any(name in names for names in wanted.values())]


def _stacked(sent: Sequence[Update], model: nn.Module, learning_rate: float) -> dict[str, Tensor]:
    """Updates of several clients as one tensor for each trained parameter, ``[M, ...]``."""
    for update in sent:
        if update.kind != "delta" or update.learning_rate not in (None, learning_rate):
            raise ValueError(
                "client must return an update of kind 'delta', the change of the parameters, at the learning rate "
                f"{learning_rate}, got {update.kind!r}, {update.learning_rate}"
            )
        update.check(model)
        check_finite(update.tensors)
    return {
        name: torch.stack([update.tensors[name].to(value.device) for update in sent])
        for name, value in trained_parameters(model).items()
    }


def _defended(sent: Sequence[Update], updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the clients send after their defences, stacked as the updates were before."""
    for name, value in updates.items():
        for update in sent:
            if name not in update.tensors or update.tensors[name].shape != value.shape[1:]:
                raise ValueError(
                    f"the defense must return an update with {name} of shape {tuple(value.shape[1:])}"
                )
    return {name: torch.stack([update.tensors[name] for update in sent]) for name in updates}


@torch.no_grad()
def _average(model: nn.Module, updates: Mapping[str, Tensor], samples: Tensor) -> None:
    """Add the mean update, weighted by samples."""
    parameters = trained_parameters(model)
    weights = (samples.double() / samples.sum()).to(next(iter(parameters.values())).device)
    for name, update in updates.items():
        parameters[name].add_(torch.tensordot(weights.to(update.dtype), update, dims=1))


def _observations(
    done: Sequence[saved.Round], clients: ClientData, kept: list[str], learning_rate: float
) -> Observations:
    who = torch.cat([one.clients for one in done])
    return Observations(
        {name: torch.cat([one.updates[name] for one in done]) for name in kept},
        who,
        clients.users[who],
        clients.devices[who],
        torch.arange(len(done)).repeat_interleave(torch.tensor([len(one.clients) for one in done])),
        clients.counts[who],
        torch.cat([one.local_steps for one in done]),
        learning_rate,
    )
