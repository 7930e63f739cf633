"""Attacks on federated learning, the defences against them, and the chapters that explain both."""

__version__ = "0.1.0"
