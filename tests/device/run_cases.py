"""Run all cases on a device and on the CPU; as a program, on `cuda`, for a Python that is told it has one."""

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import gradleak_lib._torchvision  # (first: it lets torchvision import beside a CPU build of torch)

# isort: split
import cases_attacks  # noqa: F401
import cases_federated  # noqa: F401
import cases_rest  # noqa: F401
import numpy as np
import torch
from cases import CASES
from torch import Tensor, nn

# What holds tensors, in the types of parameters.
_HOLD = ("Tensor", "Update", "Module", "Imprint", "ResNet", "Observations", "Probe", "Dataset", "ClientData")


@contextmanager
def full_precision() -> Iterator[None]:
    """On a GPU, convolutions round their inputs to ten bits by default, and would differ from the CPU's."""
    cudnn = torch.backends.cudnn
    place, name, full = (
        (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    )
    before = getattr(place, name)
    setattr(place, name, full)
    try:
        yield
    finally:
        setattr(place, name, before)


SIDES = (
    "model and data there",
    "model there",
    "data there",
    "the CPU",
)  # the last is what others are compared with


def outcomes_on(device: str) -> dict[str, Any]:
    """Run every case on every side.

    Returns
    -------
    dict
        ``found``: by case and for each of `SIDES` what came out, as tensors on the CPU, where tensors among it lay,
        which global random states changed, and the error in full if there was one; ``public``: the functions that
        take tensors; ``missing``: those of them that no case has called with something on the device.
    """
    public = takers()
    unseen = {inspect.unwrap(function).__code__: name for name, function in public.items()}
    places = ((device, device), (device, "cpu"), ("cpu", device), ("cpu", "cpu"))
    found: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        found[name] = {}
        for side, place in zip(SIDES, places, strict=True):
            torch.manual_seed(2**31 + 1)  # a state that no seed in the library leads to, on every device
            states = _states()
            sys.setprofile(_watching(unseen) if side == SIDES[0] else None)
            error = ""
            values: list[Tensor | np.ndarray | float] = []
            try:
                with full_precision():
                    values = list(leaves(case.run(*place)))
            except Exception:
                error = traceback.format_exc()
            finally:
                sys.setprofile(None)
            moved = [kind for kind, state in _states().items() if not np.array_equal(state, states[kind])]
            where = sorted({value.device.type for value in values if isinstance(value, Tensor)})
            cpu = [torch.as_tensor(value).cpu() for value in values]
            found[name][side] = {"values": cpu, "where": where, "moved": moved, "error": error}
    return {"found": found, "public": sorted(public), "missing": sorted(unseen.values())}


def leaves(value: Any) -> Iterator[Tensor | np.ndarray | float]:
    """Tensors and numbers in whatever holds them, in order."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, nn.Module):
        yield from leaves([*value.parameters(), *value.buffers()])
    elif isinstance(value, Mapping):
        yield from leaves(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from leaves(part)
    elif dataclasses.is_dataclass(value):
        yield from leaves(list(vars(value).values()))
    elif isinstance(value, np.ndarray):
        yield np.array(value.tolist())
    elif isinstance(value, bool | int | float):
        yield value


def takers() -> dict[str, Callable[..., Any]]:
    """Public functions and methods of the library, but for the book's, with a parameter that is or holds a tensor."""
    found = {}
    for module in pkgutil.walk_packages(gradleak_lib.__path__, "gradleak_lib."):
        if module.name.startswith("gradleak_lib.book") or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        prefix = module.name.removeprefix("gradleak_lib.")
        for name, thing in vars(loaded).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.name:
                continue
            parts = vars(thing).items() if inspect.isclass(thing) else [("", thing)]
            for part, function in parts:
                if inspect.isfunction(function) and not part.startswith("_") and _takes_tensors(function):
                    found[f"{prefix}.{name}.{part}".rstrip(".")] = function
    return found


def _takes_tensors(function: Callable[..., Any]) -> bool:
    types = (str(parameter.annotation) for parameter in inspect.signature(function).parameters.values())
    return any(kind in annotation for annotation in types for kind in _HOLD)


def _watching(unseen: dict[CodeType, str]) -> Callable[[FrameType, str, Any], None]:
    """For `sys.setprofile`: strike a function off once it is called with something on a device."""

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in unseen and _on_device(list(frame.f_locals.values())):
            del unseen[frame.f_code]

    return watch


def _on_device(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Tensor):
        return value.is_cuda
    if isinstance(value, nn.Module):
        return any(parameter.is_cuda for parameter in value.parameters())
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(_on_device(part, depth - 1) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_on_device(part, depth - 1) for part in value)
    return hasattr(value, "__dict__") and any(_on_device(part, depth - 1) for part in vars(value).values())


def _states() -> dict[str, np.ndarray]:
    states = {"CPU": torch.get_rng_state().numpy(), "NumPy": np.random.get_state()[1]}  # noqa: NPY002
    if torch.cuda.is_available():
        states["GPU"] = torch.cuda.get_rng_state().numpy()
    return {kind: state.copy() for kind, state in states.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(outcomes_on("cuda"), sys.argv[1])
