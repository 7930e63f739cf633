"""What a client computes and what the server sees of it."""

from gradleak_lib.federated.clients import fedavg, fedsgd
from gradleak_lib.federated.update import Update, aggregate, apply

__all__ = ["Update", "aggregate", "apply", "fedavg", "fedsgd"]
