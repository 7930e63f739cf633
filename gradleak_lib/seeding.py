"""What draws from torch's own generators, such as initial weights and dropout: seeded, and without a trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Let torch draw as after `reseed`; afterwards its generators are as they were.

    Parameters
    ----------
    seed
        Seed; None goes on from where the generators are.
    devices
        Where something may be drawn besides the CPU. The generators of other GPUs stay as they are all the time.
    """
    gpus = {device for device in devices if device.type == "cuda"}
    with torch.random.fork_rng(gpus):
        if seed is not None:
            reseed(seed, gpus)
        yield


def reseed(seed: int, devices: Iterable[torch.device] = ()) -> None:
    """Seed the generators of the CPU and of some GPUs; ``torch.manual_seed`` would seed those of all GPUs."""
    torch.default_generator.manual_seed(int(seed))
    for device in {device for device in devices if device.type == "cuda"}:
        torch.cuda.default_generators[device.index or 0].manual_seed(int(seed))
