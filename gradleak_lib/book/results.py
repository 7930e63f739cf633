"""Where numbers come from, and numbers that were recorded where the data was."""

import contextlib
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradleak_lib import __version__
from gradleak_lib.files import write_whole

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "scikit-learn")  # named in a run's provenance
GLUED = "application/papermill.record/text/plain"  # where myst-nb keeps what is glued and not shown


def provenance(*, device: "str | torch.device" = "cpu", started: datetime | None = None) -> dict[str, Any]:
    """What a number depends on besides parameters: date, commit, device, and versions by package.

    Parameters
    ----------
    device
        Where it was computed.
    started
        When that began; None: now.
    """
    import torch

    device = torch.device(device)
    return {
        "date": (started or datetime.now(UTC)).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({platform.machine()})",
        "versions": {"python": platform.python_version(), "gradleak": __version__}
        | {name: metadata.version(name) for name in PACKAGES},
    }


def as_text(value: Any) -> str:
    """One entry of `provenance` for people: versions in one line."""
    return (
        ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
    )


# What gradleak itself writes into its clone, study after study; it decides no number.
RECORDED = ("studies/*/rows.csv", "studies/*/record.json", "studies/*/*.webp")


@functools.cache  # the code that was loaded, though a file be recorded meanwhile
def commit() -> str:
    """Short id of the commit of this clone, marked where files but records have changed; "unknown" outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        command = [*git, "rev-parse", "--short=12", "HEAD"]
        head = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        command = [*git, "diff", "--quiet", "HEAD", "--", ".", *(f":(exclude){name}" for name in RECORDED)]
        changed = subprocess.run(command, capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


@dataclass(frozen=True)
class Result:
    """Numbers of one section, and where they come from.

    Parameters
    ----------
    values
        Numbers, text and lists of them, as JSON holds them.
    provenance
        As from `provenance`, with the data set and the command added.
    fresh
        Whether they were computed in this run; otherwise they were recorded earlier.
    """

    values: dict[str, Any]
    provenance: dict[str, str]
    fresh: bool

    @property
    def label(self) -> str:
        """Name of the data set, with the day of the record where the values are recorded ones."""
        name = self.provenance["data"]
        return name if self.fresh else f"{name} (recorded {self.provenance['date'][:10]})"

    def line(self) -> str:
        """One line of Markdown for the page: computed now, or recorded where and how to repeat it."""
        source = self.provenance
        if self.fresh:
            return f"*Computed in this run on {source['data']}.*"
        return (
            f"*{source['data']} was not found, so this shows a recorded result ({source['date'][:10]}, "
            f"commit {source['commit']}, {source['device']}, seed {source['seed']}). "
            f"To run it here: `{source['command']}`.*"
        )


def compute_or_recall(
    name: str,
    compute: Callable[[], dict[str, Any]],
    *,
    data: str,
    available: bool,
    chapter: str,
    device: "str | torch.device",
    seed: int,
    get: str | None = None,
    folder: Path = ROOT / "results",
) -> Result:
    """Run a section where its data is, and recall its recorded result where it is not.

    With ``GRADLEAK_RECORD`` set (``gradleak run --record``) a computed result is written to
    ``<folder>/<profile>/<name>.json``, the profile being that of the run. A profile that has no record of its own
    recalls that of ``cpu``.

    Parameters
    ----------
    name
        File name of the record, without its ending: letters, digits and ``-``.
    compute
        Returns the values; called only where the data is available.
    data, chapter
        Names of the data set and the chapter, for the page and the command that repeats the result.
    available
        Whether the data was found.
    device, seed
        For the provenance.
    get
        How to get the data, for the command that repeats the result; None: ``gradleak data``.
    folder
        Where records lie.

    Raises
    ------
    FileNotFoundError
        If the data is not available and nothing is recorded.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"name must consist of small letters, digits and -, got {name!r}")
    profile = os.environ.get("GRADLEAK_PROFILE", "cpu")
    path = folder / profile / f"{name}.json"
    command = f"{get or f'gradleak data {data}'} && gradleak run {chapter}"
    if available:
        source = {name: as_text(value) for name, value in provenance(device=device).items()}
        source |= {"seed": str(seed), "data": data, "command": command}
        result = Result(compute(), source, fresh=True)
        if os.environ.get("GRADLEAK_RECORD"):
            write_whole(path, json.dumps(asdict(result) | {"fresh": False}, indent=1) + "\n")
        return result
    if not path.exists():
        path = folder / "cpu" / path.name
    if not path.exists():
        raise FileNotFoundError(f"{data} was not found and {path.name} is not recorded: run {command}")
    recorded = Result(**json.loads(path.read_text(encoding="utf-8")))
    # The command is today's: a record is older than the code that would repeat it.
    return replace(recorded, provenance=recorded.provenance | {"command": command})


def read_glued(notebook: Path) -> dict[str, float]:
    """Return the numbers that an executed notebook glued, by name; text and pictures are left out."""
    numbers: dict[str, float] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            data = output.get("data", {})
            text = data.get(GLUED) or data.get("text/plain") or ""
            for kind in (int, float) if name else ():
                with contextlib.suppress(ValueError):
                    numbers[name] = kind("".join(text))
                    break
    return numbers


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB; NaN where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
