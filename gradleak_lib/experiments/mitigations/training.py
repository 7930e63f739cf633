"""Training a federation under one mitigation, and what that promises in privacy."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak_lib.data import ClientData, UserDataset
from gradleak_lib.defenses import dp_fedavg, epsilon
from gradleak_lib.experiments.mitigations.mitigation import Mitigation
from gradleak_lib.federated import Simulation, Update, fedavg, multilabel_loss, simulate
from gradleak_lib.federated.simulation import cohort

HEAD = "fc2"  # last layer of the networks here


def trained_under(
    network: nn.Module,
    clients: ClientData,
    mitigation: Mitigation,
    public: UserDataset,
    *,
    rounds: int,
    fraction: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    unit: float = 1.0,
) -> Simulation:
    """Federated averaging under a mitigation, with the updates of the last layer observed.

    Parameters
    ----------
    network, clients, rounds, fraction, learning_rate, batch_size, seed
        As for `gradleak_lib.federated.simulate`.
    mitigation
        What every client does; defences on the data have been applied to ``clients`` before.
    public
        Public samples, on which is measured what is usual: the norm of an update, and of one sample's gradient.
    unit
        As for `Mitigation.on_update`.
    """
    loss = multilabel_loss if public.multilabel else nn.functional.cross_entropy

    def norm(rows: Tensor, **options: Any) -> float:
        sent = fedavg(network, public.inputs[rows], public.targets[rows], loss=loss, **options)
        return float(sent.flat().double().norm())

    size = int(clients.counts.median())
    batches = torch.arange(min(4 * size, len(public))).split(size)
    usual = np.median([norm(rows, learning_rate=learning_rate, batch_size=batch_size) for rows in batches])
    samples = torch.arange(min(16, len(public))).split(1)
    bound = np.median([norm(row, learning_rate=1.0, batch_size=1) for row in samples])

    def defense(update: Update, number: int) -> Update:
        return mitigation.on_update(head=HEAD, usual=float(usual), unit=unit, seed=number)(update)

    private = partial(dp_fedavg, bound=float(bound), noise_multiplier=mitigation.strength)
    return simulate(
        network,
        clients,
        rounds=rounds,
        fraction=fraction,
        learning_rate=learning_rate,
        batch_size=batch_size,
        observe=(HEAD,),
        seed=seed,
        defense=defense,
        client=private if mitigation.name == "DP-SGD" else None,
    )


def promise(mitigation: Mitigation, rounds: int, *, clients: int, fraction: float) -> float:
    """Privacy budget epsilon, at delta = 1e-5, of all updates of a client, or of a sample of it.

    Parameters
    ----------
    mitigation
        The defence. Infinite for all but clipping and noise (a client) and DP-SGD (a sample).
    rounds, fraction
        Of federated averaging.
    clients
        Number of clients.

    Notes
    -----
    A sample is in one batch of a pass: a pass, as one step with all samples. That grants nothing for the secrecy of
    the batches, and holds for shuffled ones, whatever their size.
    """
    groups = -(-clients // len(cohort(0, clients, fraction=fraction)))
    if mitigation.name in ("clipping and noise", "DP-SGD"):
        return epsilon(mitigation.strength, steps=-(-rounds // groups))
    return float("inf")
