"""Attacks on federated learning, the defences against them, and the chapters that explain both."""

from gradleak_lib import _torchvision  # noqa: F401  (first: torchvision must be importable everywhere below)

__version__ = "0.1.0"
