"""What a client computes and what the server sees of it."""

from gradleak_lib.federated.clients import fedavg, fedsgd
from gradleak_lib.federated.engines import choose_engine, local_updates, multilabel_loss, task_loss
from gradleak_lib.federated.frozen import split_frozen, train_only
from gradleak_lib.federated.simulation import Observations, Simulation, cohort, simulate
from gradleak_lib.federated.update import Diverged, Update, aggregate, apply_update

__all__ = [
    "Diverged",
    "Observations",
    "Simulation",
    "Update",
    "aggregate",
    "apply_update",
    "choose_engine",
    "cohort",
    "fedavg",
    "fedsgd",
    "local_updates",
    "multilabel_loss",
    "simulate",
    "split_frozen",
    "task_loss",
    "train_only",
]
