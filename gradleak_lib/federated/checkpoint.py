"""A federated training on disk, in parts, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradleak_lib.data.users import ClientData
from gradleak_lib.files import write_whole


@dataclass(frozen=True)
class Part:
    """Consecutive rounds: ``start`` up to, not including, ``end``.

    Parameters
    ----------
    start, end
        Rounds from 0.
    cohorts, local_steps
        For each round int64 ``[M]``, who trained, and in how many steps.
    updates
        By parameter name, for each round ``[M, ...]``, what was observed.
    tracked
        The numbers that were followed.
    """

    start: int
    end: int
    cohorts: tuple[Tensor, ...]
    local_steps: tuple[Tensor, ...]
    updates: Mapping[str, tuple[Tensor, ...]]
    tracked: tuple[float, ...]

    def then(
        self, chosen: Tensor, steps: Tensor, updates: Mapping[str, Tensor], tracked: tuple[float, ...]
    ) -> Part:
        """Return the part with one more round."""
        longer = {name: (*self.updates.get(name, ()), value) for name, value in updates.items()}
        cohorts, local_steps = (*self.cohorts, chosen), (*self.local_steps, steps)
        return Part(self.start, self.end + 1, cohorts, local_steps, longer, self.tracked + tracked)

    @staticmethod
    def joined(parts: Sequence[Part]) -> Part:
        """Return several parts, one after the other, as one."""
        names = {name: None for part in parts for name in part.updates}
        return Part(
            parts[0].start,
            parts[-1].end,
            tuple(chosen for part in parts for chosen in part.cohorts),
            tuple(steps for part in parts for steps in part.local_steps),
            {name: tuple(value for part in parts for value in part.updates.get(name, ())) for name in names},
            tuple(value for part in parts for value in part.tracked),
        )


def fingerprint(model: nn.Module, clients: ClientData, settings: Mapping[str, Any]) -> str:
    """Hash of all that a run depends on: first model, data, who holds them, settings."""
    text = json.dumps(settings, sort_keys=True, default=_plain) + described(model)
    return digest(
        text, [*model.state_dict().values(), clients.data.inputs, clients.data.targets, *clients.rows]
    )


def described(model: nn.Module) -> str:
    """Say what is not in a model's state: its layers, which parameters are trained, which layers are in training."""
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    training = [name for name, module in model.named_modules() if module.training]
    return repr((repr(model), trained, training))


def digest(settings: str, tensors: Iterable[Tensor]) -> str:
    """Hash of settings in words and of tensors."""
    found = hashlib.sha256(settings.encode())
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    write_whole(path, partial(torch.save, dict(content)))


def read_whole(path: Path, key: str) -> dict[str, Any]:
    """Read a checkpoint, without its key.

    Raises
    ------
    ValueError
        If it is no file or a damaged one, or its key is another one.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a checkpoint is a file: name another one")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at its checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content.pop("key")
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): remove it and start again") from error
    if found != key:
        raise ValueError(
            f"{path} is the checkpoint of another run (other data, model, seed or settings): "
            "remove it, or name another one"
        )
    return content


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item()


def save(folder: Path, key: str, part: Part, model: nn.Module) -> None:
    """Write a part, with the model's trained parameters after it, whole or not at all."""
    content = {
        "key": key,
        "start": part.start,
        "end": part.end,
        "cohorts": part.cohorts,
        "local_steps": part.local_steps,
        "updates": dict(part.updates),
        "tracked": part.tracked,
        "parameters": {n: value.detach() for n, value in model.named_parameters() if value.requires_grad},
    }
    save_whole(folder / f"rounds-{part.start:06d}-{part.end:06d}.pt", content)


def load(folder: Path, key: str, model: nn.Module, rounds: int) -> list[Part]:
    """Read the parts of a run that lie in a folder, and set the model to where they end.

    Parameters
    ----------
    folder
        Need not exist.
    key
        The run's fingerprint.
    model
        Its trained parameters are set in place.
    rounds
        Rounds of the run; parts after them are not read.

    Raises
    ------
    ValueError
        If the folder holds another run, or a file is damaged.
    """
    parts: list[Part] = []
    parameters = dict(model.named_parameters())
    for stray in folder.glob(".whole-*"):  # what a killed run was writing
        stray.unlink(missing_ok=True)
    for path in sorted(folder.glob("rounds-[0-9]*-[0-9]*.pt"), key=_longest_first):
        content = read_whole(path, key)
        values = content.pop("parameters")
        part = Part(**content)
        if part.start != (parts[-1].end if parts else 0) or part.end > rounds:
            continue  # of a run with other rounds, or another interval
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
        parts.append(part)
    return parts


def _longest_first(path: Path) -> tuple[int, int]:
    start, end = path.stem.split("-")[1:]
    return int(start), -int(end)
