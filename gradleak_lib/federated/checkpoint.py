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
class Round:
    """What came of one round.

    Parameters
    ----------
    clients, local_steps
        int64 ``[M]``: who trained, and in how many steps.
    updates
        By parameter name ``[M, ...]``, what was observed.
    tracked
        The number that was followed, after the round; before and after the first one.
    """

    clients: Tensor
    local_steps: Tensor
    updates: Mapping[str, Tensor]
    tracked: tuple[float, ...]


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


def save(folder: Path, key: str, rounds: Sequence[Round], start: int, model: nn.Module) -> None:
    """Write consecutive rounds, with the model's trained parameters after them, whole or not at all."""
    end = start + len(rounds)
    parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    content = {"key": key, "start": start, "end": end, "parameters": parameters}
    content["rounds"] = [dict(vars(one)) for one in rounds]
    save_whole(folder / f"rounds-{start:06d}-{end:06d}.pt", content)


def load(folder: Path, key: str, model: nn.Module, rounds: int) -> list[Round]:
    """Read the rounds of a run that lie in a folder, and set the model to where they end.

    Parameters
    ----------
    folder
        Need not exist.
    key
        The run's fingerprint.
    model
        Its trained parameters are set in place.
    rounds
        Rounds of the run; those after them are not read.

    Raises
    ------
    ValueError
        If the folder holds another run, or a file is damaged.
    """
    done: list[Round] = []
    parameters = dict(model.named_parameters())
    for stray in folder.glob(".whole-*"):  # what a killed run was writing
        stray.unlink(missing_ok=True)
    for path in sorted(folder.glob("rounds-[0-9]*-[0-9]*.pt"), key=_longest_first):
        content = read_whole(path, key)
        if content["start"] != len(done) or content["end"] > rounds:
            continue  # of a run with fewer or more rounds
        with torch.no_grad():
            for name, value in content["parameters"].items():
                parameters[name].copy_(value)
        done += [Round(**one) for one in content["rounds"]]
    return done


def _longest_first(path: Path) -> tuple[int, int]:
    start, end = path.stem.split("-")[1:]
    return int(start), -int(end)
