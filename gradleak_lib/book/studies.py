"""Studies: experiments that are registered before their numbers are known, recorded after, and that decide claims.

``studies/<name>/study.yaml`` says what is asked, which experiment runs at which points, and by which rule each claim
is decided. `gradleak_lib.book.study_run` computes the points and writes ``rows.csv`` and ``record.json`` beside it.
The rules are hashed: a record that was made under other rules than the file's is refused, unless ``amended`` says
what was changed, and gives the rule that stood there before, word for word. Rules of the build that stood before the
study was registered are given there, too.
"""

import copy
import functools
import hashlib
import importlib
import inspect
import io
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from gradleak_lib.book import chapters
from gradleak_lib.book.chapters import UsageError
from gradleak_lib.book.estimates import Estimand, Rule, Verdict, judge

SIZES = ("smoke", "cpu", "paper")
POINT = "point"  # column of a table of rows that says which point a row is of
_NOTHING = object()
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_KEYS = {"question", "paper", "where", "chapter", "experiment", "needs", "sizes", "claims"}
_MORE = {"amended", "remarks", "pictures", "tolerance"}


@dataclass(frozen=True)
class Amendment:
    """What was changed after a number was known.

    Parameters
    ----------
    date, why
        When, and for which reason.
    claim
        The claim whose rule was changed; empty where the points were.
    before
        What stood there before: the rule, or the points at the paper's size; None for a rule that was added.
    """

    date: str
    why: str
    claim: str
    before: Any


@dataclass(frozen=True)
class Study:
    """One study, as registered.

    Parameters
    ----------
    folder
        Where it lies; its name is the study's.
    question
        In one sentence.
    paper, where
        The paper's key in ``book/references.bib``, and the place in it.
    chapter
        The chapter that it belongs to.
    experiment
        ``"imprint.one_shot"``, a function of ``gradleak_lib.experiments``.
    data
        Data sets that it needs, as `gradleak_lib.data.datasets.check` takes them.
    minutes, memory
        Estimated for the paper's size on two cores; memory in GiB a process.
    gpu
        Whether it is to run on a GPU only.
    grids
        Points by size: mappings of parameter values.
    claims
        Rules by claim.
    amended
        From the first change to the last.
    remarks
        What the page says of an outcome, by claim. No rule: it may be written when the number is known.
    pictures
        By name: an experiment that returns images by title, and its parameters.
    tolerance
        By column, how far a repetition on another machine may be off; a column without one must be equal there, too,
        but for a relative 1e-5.
    """

    folder: Path
    question: str
    paper: str
    where: str
    chapter: str
    experiment: str
    data: tuple[str, ...]
    minutes: float
    memory: float
    gpu: bool
    grids: Mapping[str, tuple[Mapping[str, Any], ...]]
    claims: Mapping[str, Rule]
    amended: tuple[Amendment, ...]
    remarks: Mapping[str, str]
    pictures: Mapping[str, Mapping[str, Any]]
    tolerance: Mapping[str, float]
    written: Mapping[str, Any]  # the file's content, of which the rules are hashed

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def points(self, size: str) -> dict[str, dict[str, Any]]:
        """Return the points of a size by key: all parameters that any grid of the study sets, with their values."""
        if size not in self.grids:
            raise UsageError(f"{self.name} has no size {size!r}; it has: {', '.join(self.grids)}")
        varied = dict.fromkeys(name for grid in self.grids.values() for point in grid for name in point)
        # Not from its signature, in which the documentation puts text in the place of defaults.
        defaults = inspect.unwrap(self.function).__kwdefaults__ or {}
        # Named by what is not the default: a study that varies another parameter later keeps its points.
        return {
            point_key({name: given[name] for name in given if given[name] != defaults.get(name, _NOTHING)}): {
                name: given[name] if name in given else defaults[name] for name in varied
            }
            for given in self.grids[size]
        }

    @property
    def function(self) -> Callable[..., Any]:
        """The experiment."""
        return experiment(self.experiment)

    @property
    def rules(self) -> str:
        """Hash of the rules as they stand in the file."""
        return _hash(_rules(self.written))

    @property
    def versions(self) -> list[str]:
        """Hashes of the rules as they stood before the first amendment, between any two, and now."""
        count = len(self.amended)
        return [_hash(_unamended(_rules(self.written), self.amended[n:])) for n in range(count + 1)]

    def results(self, size: str) -> Path:
        """The folder of rows and record: beside the study for the paper's size, under ``_build`` for others."""
        if size == "paper":
            return self.folder
        return self.folder.parents[1] / "_build" / "studies" / self.name / size


def point_key(point: Mapping[str, Any]) -> str:
    """Return a short name of a point, which its parameters decide."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]


def experiment(name: str) -> Callable[..., Any]:
    """Return the function of ``gradleak_lib.experiments`` that a study names, such as ``"imprint.one_shot"``.

    Raises
    ------
    UsageError
        If there is none.
    """
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(f"gradleak_lib.experiments.{module}"), function)
    except (ImportError, AttributeError, ValueError):
        raise UsageError(f"gradleak_lib.experiments has no {name!r}") from None


def _rules(written: Mapping[str, Any]) -> dict[str, Any]:
    """What is registered: the experiment, its points at the paper's size, and the rules."""
    return copy.deepcopy(
        {
            "experiment": written["experiment"],
            "points": written["sizes"]["paper"],
            "claims": written["claims"],
        }
    )


def _unamended(rules: dict[str, Any], amended: Sequence[Amendment]) -> dict[str, Any]:
    for change in reversed(amended):
        if not change.claim:
            rules["points"] = change.before
        elif change.before is None:
            rules["claims"].pop(change.claim, None)
        else:
            rules["claims"][change.claim] = change.before
    return rules


def _hash(rules: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _grid(content: Any) -> tuple[dict[str, Any], ...]:
    """All combinations of the values of each mapping; ``"0..9"`` stands for the whole numbers from 0 to 9."""
    found = []
    for grid in content if isinstance(content, list) else [content]:
        choices = []
        for value in grid.values():
            bounds = _RANGE.fullmatch(value) if isinstance(value, str) else None
            if bounds:
                choices.append(list(range(int(bounds[1]), int(bounds[2]) + 1)))
            else:
                choices.append(value if isinstance(value, list) else [value])
        found += [dict(zip(grid, values, strict=True)) for values in itertools.product(*choices)]
    return tuple(found)


def _estimand(content: Mapping[str, Any]) -> Estimand:
    return Estimand(**{**content, "holds": tuple(content["holds"])})


def _rule(content: Mapping[str, Any]) -> Rule:
    setup = content["setup"]
    if setup != "faithful" and set(setup) != {"reduced"}:
        raise ValueError("setup must be `faithful`, or `reduced:` with what is smaller than in the paper")
    return Rule(
        {name: _estimand(one) for name, one in content["estimands"].items()},
        content["why"],
        "" if setup == "faithful" else setup["reduced"],
        {name: _estimand(one) for name, one in content.get("controls", {}).items()},
    )


def load_study(folder: Path) -> Study:
    """Read ``study.yaml`` of a folder.

    Raises
    ------
    UsageError
        If it is missing or says something that cannot be.
    """
    path = folder / "study.yaml"
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        if wrong := (_KEYS - set(written)) | (set(written) - _KEYS - _MORE):
            raise ValueError(f"missing or unknown: {', '.join(sorted(wrong))}")
        if missing := set(SIZES) - set(written["sizes"]):
            raise ValueError(f"sizes must have {', '.join(sorted(missing))}")
        needs = written["needs"]
        changes = [
            Amendment(str(one["date"]), one["why"], one.get("claim", ""), one["before"])
            for one in written.get("amended") or ()
        ]
        return Study(
            folder,
            written["question"],
            written["paper"],
            written["where"],
            written["chapter"],
            written["experiment"],
            tuple(needs.get("data", ())),
            float(needs["minutes"]),
            float(needs["memory"]),
            bool(needs.get("gpu", False)),
            {size: _grid(written["sizes"][size]) for size in SIZES},
            {name: _rule(one) for name, one in written["claims"].items()},
            tuple(changes),
            written.get("remarks") or {},
            written.get("pictures") or {},
            written.get("tolerance") or {},
            written,
        )
    except OSError as error:
        raise UsageError(f"no study in {folder}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: {' '.join(repr(error).split())}") from None


def load_studies(names: Sequence[str] = (), *, root: Path | None = None) -> list[Study]:
    """Return studies by name, or by the start of their names (``"rtf"``); all of the clone for no names.

    Raises
    ------
    UsageError
        If a name stands for none, or two studies decide one claim.
    """
    root = chapters.project_root() if root is None else root
    every = [load_study(path.parent) for path in sorted((root / "studies").glob("*/study.yaml"))]
    decides: dict[str, str] = {}
    for one in every:
        for claim in one.claims:
            if claim in decides:
                raise UsageError(
                    f"{claim} is decided by {decides[claim]} and by {one.name}: one claim, one verdict"
                )
            decides[claim] = one.name
    if not names:
        return every
    found = []
    for name in names:
        named = [one for one in every if name == one.name] or [
            one for one in every if one.name.startswith(f"{name}-")
        ]
        if not named:
            raise UsageError(
                f"no study {name!r}; there are: {', '.join(one.name for one in every) or 'none'}"
            )
        found += [one for one in named if one not in found]
    return found


@dataclass(frozen=True)
class Record:
    """What was computed of a study at one size.

    Parameters
    ----------
    study, size
        What it is of.
    rows
        The table of rows, in the order of the grid; see `POINT`.
    seconds
        What each point took, by key.
    runs
        Provenance of each run that added points, from the first to the last.
    rules
        Hash of the rules under which the first was made.
    pictures
        Of each picture, the file of each panel, by title.
    checked
        When points were last computed again by other code, and agreed: date, commit and hash of the code.
    """

    study: Study
    size: str
    rows: pd.DataFrame
    seconds: Mapping[str, float]
    runs: tuple[Mapping[str, Any], ...]
    rules: str
    pictures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    checked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all points of the size are there."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """Keys of the points that are not there."""
        return [key for key in self.study.points(self.size) if key not in self.seconds]

    @property
    def missing_pictures(self) -> list[str]:
        """Names of the pictures that are not there; they belong to the paper's size."""
        return [name for name in self.study.pictures if name not in self.pictures and self.size == "paper"]

    @property
    def minutes(self) -> float:
        """What all points took, one after the other."""
        return sum(self.seconds.values()) / 60

    @property
    def cost(self) -> str:
        """That in words; for the CPU of two processes side by side, as studies are planned."""
        if self.runs[-1]["device"].startswith("CPU"):
            return f"{max(self.minutes / 2, 1):.0f} min on two cores"
        return f"{max(self.minutes, 1):.0f} min"

    def verdict(self, claim: str) -> Verdict:
        """Return what the rule of a claim makes of the rows."""
        try:
            return judge(self.study.claims[claim], self.rows)
        except ValueError as error:
            raise UsageError(f"{self.study.name}, {claim}: {error}") from None


def read_record(study: Study, size: str = "paper", folder: Path | None = None) -> Record:
    """Return what is recorded of a study, which may be nothing or a part.

    Points that no grid names any more are left out.

    Raises
    ------
    UsageError
        If the record was made under other rules than those of the file, and no amendment says so; or if it cannot be
        read.
    """
    folder = study.results(size) if folder is None else folder
    path = folder / "record.json"
    if not path.is_file():
        return Record(study, size, pd.DataFrame(), {}, (), study.rules)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = (folder / "rows.csv").read_text(encoding="utf-8")
        rows = pd.read_csv(io.StringIO(text), dtype={POINT: str}, engine="python")  # floats to the digit
        seconds, runs, rules = content["seconds"], tuple(content["runs"]), content["rules"]
        if content["size"] != size:
            raise ValueError(f"it is of size {content['size']}, and not {size}")
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} holds no record of {study.name}: {error!r}") from None
    check_rules(study, rules)
    points = study.points(size)
    known = [key for key in points if key in seconds]
    rows = rows[rows[POINT].isin(known)]
    for name in {name for point in points.values() for name in point} - set(rows):
        rows.insert(1, name, rows[POINT].map({key: point[name] for key, point in points.items()}))
    order = {key: number for number, key in enumerate(known)}
    rows = rows.sort_values(POINT, key=lambda column: column.map(order), kind="stable", ignore_index=True)
    times = {key: seconds[key] for key in known}
    more = content.get("pictures", {}), content.get("checked", {})
    return Record(study, size, rows, times, runs, rules, *more)


def check_rules(study: Study, rules: str) -> None:
    """Look whether a record was made under the rules of a study.

    Raises
    ------
    UsageError
        If not, with what to do.
    """
    if rules not in study.versions:
        raise UsageError(
            f"{study.name}: the rules in study.yaml are not those under which its numbers were recorded. Put the "
            "registered rule back, or, if it was wrong, add an entry to `amended` with `date`, `why`, `claim` and "
            "`before`, the rule as it was registered, word for word (`git log -p` shows it)"
        )


def amended_verdicts(record: Record, claim: str) -> list[tuple[Amendment, Verdict | None]]:
    """Return each amendment of a claim, with the verdict of the rule that stood before; None where there was none."""
    found: list[tuple[Amendment, Verdict | None]] = []
    for change in record.study.amended:
        if change.claim == claim:
            before = None if change.before is None else judge(_rule(change.before), record.rows)
            found.append((change, before))
    return found


@functools.lru_cache(maxsize=1)
def _of_clone(root: Path, stamp: tuple[Any, ...]) -> tuple[Record, ...]:
    return tuple(read_record(one) for one in load_studies(root=root))


def recorded(root: Path | None = None) -> tuple[Record, ...]:
    """Return the records of all studies of the clone at the paper's size."""
    root = chapters.project_root() if root is None else root
    files = sorted((root / "studies").glob("*/*.*"))
    return _of_clone(root, tuple((str(path), path.stat().st_mtime_ns) for path in files))
