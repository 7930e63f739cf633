"""`Update`: the only thing that a server sees of a client's data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradleak_lib.show import summary

Kind = Literal["gradient", "delta"]


class Diverged(ValueError):
    """A training has diverged: what it trains, or sends, holds NaN or infinity."""


@dataclass(frozen=True)
class Update:
    """The tensors that one client (or a secure aggregate of clients) sends to the server.

    No value is looked at when an update is made: one pass over all of them would cost a client more than a percent
    of its gradient. NaN and infinity are refused by whatever reads the tensors: `layer`, `flat`, `aggregate`,
    `apply_update`, and `from_tensors` for what comes from elsewhere.

    Parameters
    ----------
    tensors
        By parameter name: the gradient of the mean loss (``kind="gradient"``, FedSGD), or the parameters after
        local training minus the parameters received (``kind="delta"``, FedAvg).
    kind
        ``"gradient"`` or ``"delta"``.
    samples
        Number of samples behind the update, which the protocol tells the server. At least 1.
    local_steps
        Number of local optimisation steps, 1 for FedSGD.
    learning_rate
        Local learning rate of FedAvg; None for a gradient.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    tensors: Mapping[str, Tensor]
    kind: Kind
    samples: int
    local_steps: int = 1
    learning_rate: float | None = None

    __repr__ = summary

    def __post_init__(self) -> None:
        if self.kind not in ("gradient", "delta"):
            raise ValueError(f"kind must be 'gradient' or 'delta', got {self.kind!r}")
        if self.samples < 1 or self.local_steps < 1:
            raise ValueError(
                f"samples and local_steps must be 1 or more, got {self.samples}, {self.local_steps}"
            )
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @classmethod
    def from_tensors(
        cls,
        model: nn.Module,
        tensors: Mapping[str, Any] | Sequence[Any] | str | Path,
        *,
        kind: Kind,
        samples: int,
        local_steps: int = 1,
        learning_rate: float | None = None,
    ) -> Update:
        """Build an update from what any other federated stack sends, on the device of the model.

        Parameters
        ----------
        model
            The model that the server sent out; names and shapes are checked against it.
        tensors
            Tensors or arrays by parameter name (a state-dict difference; buffers are ignored), or a list in the
            order of ``model.parameters()`` or of ``model.state_dict()`` (Flower), or the path of either saved
            with ``torch.save``.
        kind, samples, local_steps, learning_rate
            As for `Update`.

        Raises
        ------
        ValueError
            Naming the first tensor that is missing, unknown, of another shape, or holds NaN, infinity, or no
            floating-point numbers.

        Examples
        --------
        >>> from gradleak_lib import models
        >>> model = models.build("linear", (4,), classes=2)
        >>> arrays = [value.detach().numpy() for value in model.parameters()]  # in place of what Flower sends
        >>> Update.from_tensors(model, arrays, kind="delta", samples=8, local_steps=2, learning_rate=0.1).flat().shape
        torch.Size([10])
        """
        sent: Any = tensors
        if isinstance(tensors, str | Path):
            sent = torch.load(tensors, map_location="cpu", weights_only=True)
        parameters = dict(model.named_parameters())
        state = model.state_dict()
        if not isinstance(sent, Mapping):
            orders = {len(state): list(state), len(parameters): list(parameters)}
            if len(sent) not in orders:
                raise ValueError(
                    f"got {len(sent)} tensors; the model has {len(parameters)} parameters "
                    f"({len(state)} entries with buffers)"
                )
            sent = dict(zip(orders[len(sent)], sent, strict=True))
        for name in sent:
            if name not in parameters and name not in state:
                raise ValueError(f"the model has no parameter {name!r}")
        kept = {
            name: torch.as_tensor(sent[name], device=parameter.device)
            for name, parameter in parameters.items()
            if name in sent
        }
        update = cls(kept, kind, samples, local_steps, learning_rate)
        update.check(model)
        for name, tensor in kept.items():
            if not tensor.is_floating_point():
                raise ValueError(f"{name!r} must hold floating-point numbers, got {tensor.dtype}")
        check_finite(kept)
        return update

    def check(self, model: nn.Module) -> None:
        """Raise ValueError, naming the first mismatch, unless the update belongs to this model."""
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if name not in self.tensors:
                raise ValueError(f"the update is of another architecture: it lacks {name!r}")
            if self.tensors[name].shape != parameter.shape:
                raise ValueError(
                    f"the update is of another architecture: {name!r} has shape {tuple(self.tensors[name].shape)}, "
                    f"the model's has {tuple(parameter.shape)}"
                )
        for name in self.tensors:
            if name not in parameters:
                raise ValueError(f"the update is of another architecture: the model has no {name!r}")

    def layer(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one layer: ``update.layer("fc")`` has keys ``weight`` and ``bias``.

        Raises
        ------
        ValueError
            If no parameter belongs to a layer of that name, or one holds NaN or infinity.
        """
        found = {key: tensor for key, tensor in self.tensors.items() if key.startswith(name + ".")}
        if not found:
            layers = sorted({key.rpartition(".")[0] for key in self.tensors})
            raise ValueError(f"no layer {name!r} in the update: it has {', '.join(layers)}")
        check_finite(found)
        return {key.removeprefix(name + "."): tensor for key, tensor in found.items()}

    def flat(self) -> Tensor:
        """Return all tensors as one vector, in their order here; clients keep that of the model's parameters.

        Raises
        ------
        ValueError
            If one holds NaN or infinity.
        """
        check_finite(self.tensors)
        return torch.cat([tensor.flatten() for tensor in self.tensors.values()])


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise Diverged, naming the first tensor that holds NaN or infinity, if one does."""
    if not all_finite(tensors.values()):
        name = next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
        raise Diverged(
            f"the update holds NaN or infinity in {name!r}: "
            "lower the client's learning rate, or check its inputs"
        )


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; the host waits for a GPU once."""
    tensors = list(tensors)
    if not tensors:
        return True
    # A sum keeps NaN and infinity and takes an eighth of the time; it can overflow, hence the second look.
    sums = torch.stack([tensor.sum().to(tensors[0].device, torch.float32) for tensor in tensors])
    return bool(sums.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def rounding_error(values: Tensor) -> Tensor:
    """Size of a difference of sums that rounding alone explains, given the sums: a few units in the last place."""
    if values.numel() == 0:
        return torch.zeros((), dtype=values.dtype, device=values.device)
    return 4 * torch.finfo(values.dtype).eps * values.abs().max()


def aggregate(updates: Sequence[Update]) -> Update:
    """Return the mean update, weighted by samples: all that a server sees under secure aggregation.

    Parameters
    ----------
    updates
        One or more updates of one kind and one model.

    Returns
    -------
    Update
        On the device of the first update. Its local steps are the mean over samples, rounded, of the clients' own;
        its learning rate is theirs, or None if they differ.

    Raises
    ------
    ValueError
        If there is none, they differ in kind or names, or one holds NaN or infinity.

    References
    ----------
    Bonawitz et al. 2017 (secure aggregation); McMahan et al. 2017, Alg. 1 (weights).

    Examples
    --------
    >>> one = Update({"weight": torch.tensor([1.0])}, "gradient", samples=1)
    >>> other = Update({"weight": torch.tensor([4.0])}, "gradient", samples=2)
    >>> aggregate([one, other]).tensors["weight"]
    tensor([3.])
    """
    if not updates:
        raise ValueError("aggregate needs at least one update")
    first = updates[0]
    for update in updates:
        if update.kind != first.kind or update.tensors.keys() != first.tensors.keys():
            raise ValueError("all updates must be of one kind and of one model")
    for update in updates:
        check_finite(update.tensors)
    samples = sum(update.samples for update in updates)
    tensors = {
        name: torch.stack([u.tensors[name].to(value.device) * (u.samples / samples) for u in updates]).sum(0)
        for name, value in first.tensors.items()
    }
    steps = round(sum(update.local_steps * update.samples for update in updates) / samples)
    rates = {update.learning_rate for update in updates}
    return Update(tensors, first.kind, samples, steps, rates.pop() if len(rates) == 1 else None)


@torch.no_grad()
def apply_update(model: nn.Module, update: Update, *, learning_rate: float = 1.0) -> nn.Module:
    """Take the server's step, in place: descend along a gradient, or add a parameter difference.

    Parameters
    ----------
    model
        The global model, changed in place and returned.
    update
        Usually from `aggregate`.
    learning_rate
        The server's step size, positive and finite.

    Raises
    ------
    ValueError
        If the learning rate is out of range, or the update is of another architecture or holds NaN or infinity in
        the model's dtype. The model is then unchanged.

    References
    ----------
    McMahan et al. 2017, Sec. 2 (FedSGD) and Alg. 1 (FedAvg).
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    update.check(model)
    tensors = {name: update.tensors[name].to(parameter) for name, parameter in model.named_parameters()}
    check_finite(tensors)
    step = -learning_rate if update.kind == "gradient" else learning_rate
    for name, parameter in model.named_parameters():
        parameter.add_(tensors[name], alpha=step)
    return model
