"""Sweeps: one chapter at many points of a parameter grid, on this machine or on a cluster.

Points go out through dask.distributed (the extra ``scale``): the text of the notebook travels to a worker, and the
executed text comes back, so that no disk is shared. A point that fails takes no other down, and one that is finished
never runs again.
"""

import contextlib
import platform
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from gradleak_lib.book import chapters, cluster, keys, planning
from gradleak_lib.book.chapters import UsageError
from gradleak_lib.book.execution import Kernels, Outcome, check_writable, execute, write
from gradleak_lib.book.planning import Run
from gradleak_lib.book.results import PACKAGES, read_glued
from gradleak_lib.files import write_whole

if TYPE_CHECKING:
    from distributed import Client

# Of this process: the kernel of each point that runs, by its sweep and its key, and the sweeps that were interrupted.
_kernels: dict[tuple[str, str], Kernels] = {}
_stopped: set[str] = set()


@dataclass(frozen=True)
class Point:
    """One point of a grid: the values of what is varied anywhere in the grid, and the run."""

    varied: Mapping[str, Any]
    run: Run

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.varied.items())


def read_grid(path: Path) -> list[dict[str, Any]]:
    """Return the points of a grid: all combinations of the values that each parameter is given.

    Parameters
    ----------
    path : Path
        A YAML file of ``name: [value, ...]`` lines; or a list of such mappings, whose points follow one another. What
        is no list stands for one value, and a list that is itself a value is written ``[[1, 2]]``.

    Raises
    ------
    UsageError
        If the file is missing, names a parameter twice or holds no point.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read a grid from {path}: {' '.join(str(error).split())}") from None
    grids = content if isinstance(content, list) else [content]
    if not all(isinstance(grid, dict) and all(isinstance(name, str) for name in grid) for grid in grids):
        raise UsageError(f"{path} must hold `name: [value, ...]` lines, or a list of such mappings")
    tree = yaml.compose(text)  # in the content, the last of two values has replaced the first
    for node in tree.value if isinstance(tree, yaml.SequenceNode) else [tree]:
        names = [name.value for name, _ in node.value]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(f"{path} gives {', '.join(twice)} twice in one mapping")
    points = []
    for grid in grids:
        choices = [values if isinstance(values, list) else [values] for values in grid.values()]
        points += [dict(zip(grid, values, strict=True)) for values in product(*choices) if values]
    if not points:
        raise UsageError(f"{path} holds no point: give at least one parameter at least one value")
    return points


def plan_sweep(
    chapter: str,
    grid: Sequence[Mapping[str, Any]],
    *,
    out: Path,
    profile: str = "cpu",
    root: Path | None = None,
    data: Path | None = None,
) -> list[Point]:
    """Decide what to run for each point, and check all of them before anything starts.

    Parameters
    ----------
    chapter : str
        As for `gradleak_lib.book.chapters.find_chapter`.
    grid : sequence of mapping
        From `read_grid`. A point that occurs twice is taken once.
    out : Path
        Folder for the executed notebooks, which are named after their keys.
    profile, root, data
        As for `gradleak_lib.book.chapters.plan`.

    Raises
    ------
    UsageError
        As `gradleak_lib.book.chapters.plan` does.
    """
    root = chapters.project_root() if root is None else root
    source = chapters.find_chapter(chapter, root)
    planning.check_needs([source], profile=profile, root=root, data=data)
    depends = keys.decides(source.read_text(encoding="utf-8"), root, data)
    names = list(dict.fromkeys(name for values in grid for name in values))
    points = {}
    for values in grid:
        run = planning.plan_one(source, values, profile=profile, root=root, data=data, depends=depends)
        file = f"{run.key}.ipynb"
        run = replace(run, target=out / "points" / file, failed=out / "failed" / file)
        points[run.key] = Point({name: {**run.defaults, **run.parameters}[name] for name in names}, run)
    return list(points.values())


def sweep(
    points: Sequence[Point],
    *,
    jobs: int = 1,
    address: str | None = None,
    data: Path | None = None,
    on_end: Callable[[Point, Outcome], None] | None = None,
) -> list[Outcome]:
    """Execute the points that are not finished yet.

    Each notebook is written as soon as it is executed. Kernels compute in one thread, however many run side by side,
    so that a point gives the same numbers wherever it runs on machines of one kind.

    Parameters
    ----------
    points : sequence of Point
        From `plan_sweep`.
    jobs : int
        How many at a time on this machine, 1 or more; of no meaning with an ``address``, where workers decide.
    address : str, optional
        Of a dask scheduler, such as ``tcp://10.0.0.5:8786``; this machine alone unless given.
    data : Path, optional
        As for `plan_sweep`.
    on_end : callable, optional
        Called with each point that was executed and what became of it.

    Returns
    -------
    list of Outcome
        One for each point, in their order; finished ones took no time.

    Raises
    ------
    UsageError
        If dask.distributed is not installed, ``jobs`` is less than 1, the notebooks cannot be written where they
        belong, or nobody answers at the address.
    KeyboardInterrupt
        After the kernels of the sweep have been stopped.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; it must be 1 or more")
    outcomes = {
        point.run.key: Outcome(point.run.name, 0.0, notebook=point.run.target)
        for point in points
        if point.run.up_to_date
    }
    due = [point for point in points if point.run.key not in outcomes]

    def ended(point: Point, outcome: Outcome) -> None:
        outcomes[point.run.key] = outcome
        if on_end is not None:
            on_end(point, outcome)

    if due:
        data = None if data is None else data.resolve()  # workers run in other folders
        # Threads suffice: each waits for a kernel, which is a process of its own.
        with cluster.connect(address, jobs, processes=False) as client:
            check_writable(path.parent for point in due for path in (point.run.target, point.run.failed))
            _execute_all(client, due, data=data, on_end=ended)
    return [outcomes[point.run.key] for point in points]


def _execute_all(
    client: "Client", points: Sequence[Point], *, data: Path | None, on_end: Callable[[Point, Outcome], None]
) -> None:
    """Submit points and write each as it ends."""
    source = points[0].run.source.read_text(encoding="utf-8")
    here = versions(source, data)
    # Each sweep names its own tasks: another one of the same points, on the same cluster, may be interrupted.
    name = uuid.uuid4().hex
    by_task = {f"gradleak-{name}-{point.run.key}": point for point in points}
    calls = {key: (point.run, source, here, data, name) for key, point in by_task.items()}
    try:
        with contextlib.closing(cluster.each(client, execute_point, calls)) as ends:
            for key, result in ends:
                point = by_task[key]
                if isinstance(result, BaseException):
                    said = " ".join(str(result).split())
                    outcome = Outcome(point.run.name, 0.0, f"{type(result).__name__}: {said}")
                else:
                    outcome = write(point.run, *result)
                on_end(point, outcome)
    except BaseException:
        with contextlib.suppress(Exception):
            client.run(stop_points, name)
        raise


def execute_point(
    run: Run, source: str, expected: Mapping[str, str], data: Path | None, sweep: str
) -> tuple[Outcome, str]:
    """Execute one point in this process, a worker's: what became of it, and the executed notebook as JSON.

    Parameters
    ----------
    run, source
        The point, and the text of the chapter.
    expected : mapping
        What `versions` says where the sweep was started.
    data : Path, optional
        As for `plan_sweep`.
    sweep : str
        Name of the sweep, for `stop_points`.

    Raises
    ------
    RuntimeError
        If this machine has another Python, other packages, another version of the library or other data: its numbers
        would be kept under a wrong name. If the sweep has been stopped.
    """
    here = versions(source, data)
    others = [name for name, version in expected.items() if here[name] != version]
    if others:
        raise RuntimeError(
            f"{platform.node()} has other {' and '.join(others)} than the machine that started the sweep: "
            "install the same commit there with constraints.txt, with the same data sets"
        )
    kernels = _kernels[sweep, run.key] = Kernels()
    try:
        if sweep in _stopped:
            raise RuntimeError("the sweep has been stopped")
        with tempfile.TemporaryDirectory(prefix="gradleak-") as folder:
            return execute(run, source, folder=Path(folder), threads=1, kernels=kernels)
    finally:
        del _kernels[sweep, run.key]


def versions(source: str, data: Path | None = None) -> dict[str, str]:
    """Return what a chapter's numbers depend on here: what its key holds, and the packages that compute.

    ``source`` is the text of the chapter. A build of torch for the CPU and one for a GPU are the same version: a
    cluster may have both.
    """
    packages = {name: metadata.version(name).partition("+")[0] for name in PACKAGES}
    return keys.decides(source, chapters.project_root(), data) | packages


def stop_points(sweep: str) -> None:
    """Stop the points of a sweep that run in this process, and those that would still begin."""
    _stopped.add(sweep)
    for (name, _), kernels in list(_kernels.items()):
        if name == sweep:
            kernels.stop()


def tables(points: Sequence[Point], outcomes: Sequence[Outcome]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the results of a sweep, and what its runs took.

    Returns
    -------
    tuple of DataFrame
        A row for each point, with the parameters that the grid varies. The first one goes on with ``error`` (empty
        where there is none) and all numbers that the notebook glued under other names: the same in every sweep on
        machines of one kind.
        The second goes on with the notebook, date, seconds, commit and device, and the numbers whose names begin with
        ``run_``, which tell of the machine.
    """
    found, took = [], []
    for point, outcome in zip(points, outcomes, strict=True):
        glued = {} if outcome.error else read_glued(point.run.target)
        record = {} if outcome.error else chapters.provenance_of(point.run.target)
        of_machine = {name: value for name, value in glued.items() if name.startswith("run_")}
        found.append({**point.varied, "error": " ".join(outcome.error.split())})
        found[-1] |= {name: value for name, value in glued.items() if name not in of_machine | found[-1]}
        notebook = outcome.notebook.name if outcome.notebook else ""
        took.append({**point.varied, "notebook": notebook})
        took[-1] |= {name: record.get(name) for name in ("date", "seconds", "commit", "device")} | of_machine
    return pd.DataFrame(found), pd.DataFrame(took)


def write_tables(points: Sequence[Point], outcomes: Sequence[Outcome], out: Path) -> Path:
    """Write what `tables` returns to ``results.csv`` and ``runs.csv`` in a folder, and return the first path."""
    found, took = tables(points, outcomes)
    write_whole(out / "runs.csv", took.to_csv(index=False))
    write_whole(out / "results.csv", found.to_csv(index=False))
    return out / "results.csv"
