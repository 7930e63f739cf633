"""What all that trains asks of its arguments."""

import math
from collections.abc import Sized

from torch import nn


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not trained:
        raise ValueError("every parameter of the model is frozen: call model.requires_grad_(True)")
    return trained


def check_samples(**samples: Sized) -> None:
    """Raise ValueError unless both, by their names, are equally many and not none."""
    (one, first), (other, second) = samples.items()
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(
            f"{one} and {other} must be equally many and not none, got {len(first)}, {len(second)}"
        )


def check_training(learning_rate: float, batch_size: int, epochs: int) -> None:
    """Raise ValueError at numbers with which nobody can train."""
    if not 0 < learning_rate < math.inf or batch_size < 1 or epochs < 1:
        raise ValueError(
            "learning_rate must be positive and finite, batch_size and epochs 1 or more, "
            f"got {learning_rate}, {batch_size}, {epochs}"
        )
