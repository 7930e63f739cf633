"""Computing the points of studies: what is missing, or some of them again to see whether a record can be repeated."""

import contextlib
import functools
import hashlib
import json
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any

import pandas as pd

from gradleak_lib.book import cluster, keys, results
from gradleak_lib.book.chapters import UsageError
from gradleak_lib.book.studies import POINT, Record, Study, experiment, read_record
from gradleak_lib.files import write_whole

RELATIVE = 1e-5  # how far a repetition may be off on another machine, where a study says nothing else


@dataclass(frozen=True)
class Ended:
    """A point that has ended: its study, its parameters, seconds, and the error, empty if there is none."""

    study: Study
    point: Mapping[str, Any]
    seconds: float
    error: str = ""


def check_data(studies: Sequence[Study], size: str, data: Path | None = None) -> dict[str, str]:
    """Return why studies cannot run here, by name: what each misses.

    Studies that are not named can. The smoke size takes what comes with gradleak.
    """
    from gradleak_lib.data import datasets

    why: dict[str, str] = {}
    for name in dict.fromkeys(name for study in studies for name in study.data if size != "smoke"):
        try:
            datasets.check(name, root=datasets.data_root(data))
        except (OSError, ValueError) as error:
            why[name] = str(error)
    found = {one.name: "; ".join(why[name] for name in one.data if name in why) for one in studies}
    return {name: said for name, said in found.items() if said and size != "smoke"}


def run(
    studies: Sequence[Study],
    *,
    size: str = "paper",
    device: str = "cpu",
    jobs: int = 1,
    address: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
    minutes: float | None = None,
    on_end: Callable[[Ended], None] | None = None,
) -> list[Record]:
    """Compute the points that are missing, study after study, and write each as it ends.

    Every point computes in a process of its own kind with one thread, so that it gives the same numbers however many
    run side by side.

    Parameters
    ----------
    studies
        In the order in which they are to run.
    size, device
        Which points, and where they compute.
    jobs
        How many at a time on this machine; of no meaning with an ``address``, where workers decide.
    address
        Of a dask scheduler; None: this machine alone.
    data
        Where workers look for data sets; None: the usual folder.
    out
        Folder for the results, a subfolder a study; None: where `Study.results` says.
    minutes
        No point begins after so many; None: all points run.
    on_end
        Called with each point that ends.

    Returns
    -------
    list of Record
        What is there now.

    Raises
    ------
    UsageError
        If data is missing, a record cannot stand for the study, or `cluster.connect` fails; before anything runs.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; it must be 1 or more")
    if missing := check_data(studies, size, data):
        raise UsageError("\n".join(f"{name}: {why}" for name, why in missing.items()))
    folders = {one.name: one.results(size) if out is None else out / one.name for one in studies}
    records = {one.name: read_record(one, size, folders[one.name]) for one in studies}
    books = {name: _Book(record, folders[name], device, data) for name, record in records.items()}
    by_name = {one.name: one for one in studies}
    due = [
        *((name, key, compute) for name, record in records.items() for key in record.missing),
        *((name, key, draw) for name, record in records.items() for key in record.missing_pictures),
    ]
    due.sort(key=lambda one: list(by_name).index(one[0]))
    end = math.inf if minutes is None else time.time() + 60 * minutes
    where = None if data is None else str(data.resolve())  # workers run in other folders
    if due:
        run_id = uuid.uuid4().hex
        calls, named = {}, {}
        for name, key, function in due:
            study = by_name[name]
            if function is compute:
                called, given = study.experiment, books[name].points[key]
            else:
                given = dict(study.pictures[key])
                called = given.pop("experiment")
            task = f"gradleak-{run_id}-{name}-{key}"
            named[task] = (name, key, given)
            calls[task] = (function, called, given, device, where, end)
        with (
            cluster.connect(address, jobs, processes=True) as client,
            contextlib.closing(cluster.each(client, _in_time, calls)) as ends,
        ):
            for task, outcome in ends:
                name, key, given = named[task]
                if outcome is None:  # the time was over
                    continue
                if isinstance(outcome, BaseException):
                    said = f"{type(outcome).__name__}: {' '.join(str(outcome).split())}"
                    ended = Ended(by_name[name], given, 0.0, said)
                else:
                    found, seconds = outcome
                    books[name].add(key, found, seconds)
                    ended = Ended(by_name[name], given, seconds)
                if on_end is not None:
                    on_end(ended)
    return [read_record(one, size, folders[one.name]) for one in studies]


def _in_time(
    function: Callable[..., Any],
    name: str,
    given: Mapping[str, Any],
    device: str,
    data: str | None,
    end: float,
) -> tuple[Any, float] | None:
    """Call `compute` or `draw`, and take the seconds; None after the ``end``."""
    if time.time() > end:
        return None
    begun = time.perf_counter()
    return function(name, given, device, data), round(time.perf_counter() - begun, 2)


def compute(name: str, point: Mapping[str, Any], device: str, data: str | None) -> list[dict[str, Any]]:
    """Compute one point in this process, with one thread, and return its rows."""
    with _alone(data):
        return list(experiment(name)(**point, device=device))


def draw(name: str, given: Mapping[str, Any], device: str, data: str | None) -> dict[str, bytes]:
    """Compute the panels of a picture: mosaics as WebP files, by title."""
    from gradleak_lib.book import plots

    with _alone(data):
        panels = experiment(name)(**given, device=device)
    return {
        title: plots.encode(
            plots.mosaic(images, zoom=max(1, 48 // images.shape[-1])), kind="webp", quality=80
        )
        for title, images in panels.items()
    }


@contextlib.contextmanager
def _alone(data: str | None) -> Iterator[None]:
    """One thread of torch, and data sets from a folder."""
    import torch

    if data is not None:
        os.environ["GRADLEAK_DATA"] = data
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Book:
    """The rows, the pictures and the record of one study, written whole after every point."""

    def __init__(self, record: Record, folder: Path, device: str, data: Path | None) -> None:
        self.study, self.size, self.folder = record.study, record.size, folder
        self.points = record.study.points(record.size)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for row in record.rows.to_dict("records"):
            self.rows.setdefault(row[POINT], []).append(row)
        self.seconds = dict(record.seconds)
        self.runs = [dict(one) for one in record.runs]
        self.rules, self.pictures, self.checked = record.rules, dict(record.pictures), dict(record.checked)
        self.begun: dict[str, Any] | None = None
        self.device, self.data = device, data

    def add(self, key: str, found: Any, seconds: float) -> None:
        """Add a point or a picture, and write."""
        if self.begun is None:
            self.begun = _provenance(self.study, self.size, self.device, self.data)
            self.runs.append(self.begun)
        if key in self.study.pictures:
            files = {title: f"{key}-{number}.webp" for number, title in enumerate(found)}
            for title, file in files.items():
                write_whole(self.folder / file, functools.partial(_write, content=found[title]))
            self.pictures[key] = files
        else:
            self.rows[key] = [{POINT: key, **self.points[key], **row} for row in found]
            self.seconds[key] = seconds
            self.begun["points"] += 1
        self.begun["until"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.write()

    def write(self) -> None:
        """Write what is there."""
        order = [key for key in self.points if key in self.seconds]
        content = {
            "study": self.study.name,
            "size": self.size,
            "rules": self.rules,
            "runs": self.runs,
            "checked": self.checked,
            "pictures": self.pictures,
            "seconds": {key: self.seconds[key] for key in order},
        }
        # The rows first: a point counts as finished when the record names it.
        if order:
            table = pd.DataFrame([row for key in order for row in self.rows[key]])
            write_whole(self.folder / "rows.csv", table.to_csv(index=False))
        write_whole(self.folder / "record.json", json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _provenance(study: Study, size: str, device: str, data: Path | None) -> dict[str, Any]:
    return {
        **results.provenance(device=device),
        "cores": os.cpu_count(),
        "code": code_of(study),
        "data": {} if size == "smoke" else {name: data_hash(name, data) for name in study.data},
        "points": 0,
    }


def code_of(study: Study) -> str:
    """Return the hash of the code that decides a study's numbers: the science, and the experiments that it calls."""
    module = study.experiment.rpartition(".")[0]
    decided = keys.decides(
        f"```{{code-cell}}\nfrom gradleak_lib.experiments import {module}\n```\n", study.folder.parents[1]
    )
    return hashlib.sha256("".join(decided[name] for name in ("science", "experiments")).encode()).hexdigest()


def data_hash(name: str, data: Path | None = None) -> str:
    """Return a hash of the images of a data set; empty for what is no images, whose files are checked when read."""
    from gradleak_lib.data import datasets

    if name in datasets.SOURCES and name not in datasets.NAMES:
        return ""
    images = datasets.load(name, root=datasets.data_root(data)).images
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]


def check(
    study: Study,
    count: int,
    *,
    size: str = "paper",
    device: str = "cpu",
    data: Path | None = None,
    longest: float = math.inf,
    seed: int | None = None,
    note: bool = False,
) -> list[str]:
    """Compute some recorded points again, drawn at random, and say what differs; nothing where all agrees.

    Parameters
    ----------
    count
        How many.
    longest
        Only points that took at most so many seconds.
    seed
        Of the draw; None: another one each time.
    note
        Write into the record that today's code gives the same, if it is other code or files had changed at the time.

    Raises
    ------
    UsageError
        If nothing is recorded, or data is missing.
    """
    if missing := check_data([study], size, data):
        raise UsageError(f"{study.name}: {missing[study.name]}")
    record = read_record(study, size)
    able = [key for key, seconds in record.seconds.items() if seconds <= longest]
    if not able:
        raise UsageError(f"{study.name}: no recorded point to compute again")
    said = []
    points = study.points(size)
    for key in random.Random(seed).sample(able, min(count, len(able))):
        again = pd.DataFrame(
            compute(study.experiment, points[key], device, None if data is None else str(data))
        )
        before = record.rows[record.rows[POINT] == key].reset_index(drop=True)
        told = ", ".join(f"{name}={value}" for name, value in points[key].items())
        said += [f"{study.name}, {told}: {one}" for one in _differences(study, before, again)]
    code = code_of(study)
    other = any(run["code"] != code or run["commit"].endswith("-dirty") for run in record.runs)
    if note and not said and other:
        book = _Book(record, study.results(size), device, data)
        book.checked = {"date": date.today().isoformat(), "commit": results.commit(), "code": code}
        book.write()
    return said


def _differences(study: Study, before: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    if len(before) != len(again):
        return [f"{len(before)} rows were recorded, and there are {len(again)}"]
    said = []
    for column in again:
        for first, second in zip(before[column], again[column], strict=True):
            if isinstance(second, str) or isinstance(first, str):
                same = first == second
            else:
                first, second = float(first), float(second)
                allowed = study.tolerance.get(str(column), 0.0)
                same = (math.isnan(first) and math.isnan(second)) or math.isclose(
                    first, second, rel_tol=RELATIVE, abs_tol=allowed
                )
            if not same:
                said.append(f"{column} was {first}, and is {second}")
    return said
