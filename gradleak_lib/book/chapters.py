"""The chapters: which there are, what parameters they take, and what decides the outcome of running one."""

import ast
import contextlib
import functools
import hashlib
import json
import math
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import yaml

PROFILES = ("smoke", "cpu", "paper")
# What comes after the chapters, or around them, decides nothing in them.
AFTERWARDS = ("cli.py", "costs.py", "costs.json", "records.py", "scorecard.py", "sweep.py")


class UsageError(ValueError):
    """What was asked for makes no sense here; the message says what would."""


@dataclass(frozen=True)
class Run:
    """One chapter with everything that decides what its execution gives."""

    source: Path
    target: Path
    failed: Path  # where the notebook goes if a cell fails: what was executed before stays
    parameters: Mapping[str, Any]  # those that differ from the notebook's own
    defaults: Mapping[str, Any]  # those that the notebook declares
    key: str
    command: str
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """The chapter's name, such as ``04-robbing-the-fed``."""
        return self.source.stem

    @property
    def up_to_date(self) -> bool:
        """Whether the executed notebook that is there came from this very run."""
        return provenance_of(self.target).get("key") == self.key


def project_root() -> Path:
    """Return the folder of the clone that this library was installed from.

    Raises
    ------
    UsageError
        If the library was installed without its clone, so that there are no chapters.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks").is_dir() or not (root / "_toc.yml").is_file():
        raise UsageError(f"no chapters in {root}: clone the repository and run `pip install -e .` there")
    return root


def chapter_sources(root: Path) -> list[Path]:
    """Return the chapters' sources, in the book's order."""
    return sorted((root / "notebooks").glob("[0-9]*-*.md"))


def executed_chapters(root: Path) -> list[Path]:
    """Return the executed notebook of each chapter, in the book's order.

    Raises
    ------
    UsageError
        If a chapter has none.
    """
    executed = [root / "book" / "chapters" / f"{source.stem}.ipynb" for source in chapter_sources(root)]
    missing = [path.stem for path in executed if not path.is_file()]
    if missing:
        raise UsageError(f"{', '.join(missing)} is not executed; type `gradleak run`")
    return executed


def find_chapter(name: str, root: Path) -> Path:
    """Return the source of the chapter that ``name`` stands for.

    Parameters
    ----------
    name : str
        A number ("4" or "04"), a name ("04-robbing-the-fed") or the path of the source.
    root : Path
        The clone.

    Raises
    ------
    UsageError
        If no chapter has that name.
    """
    sources = chapter_sources(root)
    for source in sources:
        stem = source.stem
        if name == stem or name.zfill(2) == stem.split("-")[0] or Path(name).resolve() == source.resolve():
            return source
    known = ", ".join(source.stem for source in sources) or "none"
    raise UsageError(f"no chapter {name!r}; there are: {known}")


def declared_parameters(source: Path) -> dict[str, Any]:
    """Return what the notebook's ``parameters`` cell declares, with the defaults.

    A default that is not a literal is given as ``None``.
    """
    return dict(_declared(source.read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=16)  # a sweep plans the same chapter many times
def _declared(notebook: str) -> Mapping[str, Any]:
    cells = jupytext.reads(notebook, fmt="md").cells
    text = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    declared: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            targets: list[ast.expr] = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        try:
            value = ast.literal_eval(statement.value) if statement.value else None
        except ValueError:
            value = None
        declared.update({target.id: value for target in targets if isinstance(target, ast.Name)})
    return declared


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of parameters.

    Raises
    ------
    UsageError
        If the file is missing, is no YAML, or holds anything but names with values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read parameters from {path}: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def checked_parameters(
    chapter: str, given: Mapping[str, Any], *, declared: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``given`` with numbers in the declared type, after checking names and types.

    Raises
    ------
    UsageError
        If a name is not declared by the notebook, or a value cannot stand where the default stands: it is of
        another type, or negative, infinite or NaN where the default is not.
    """
    unknown = [name for name in given if name not in declared]
    if unknown:
        known = ", ".join(declared) or "none"
        raise UsageError(
            f"{chapter} declares no parameter {', '.join(map(repr, unknown))}; it declares: {known}"
        )
    checked = {}
    for name, value in given.items():
        default = declared[name]
        if type(default) is float and type(value) in (int, str):  # YAML 1.1 reads 1e-3 as a string
            with contextlib.suppress(ValueError):
                value = float(value)
        if default is not None and value is not None and type(value) is not _yaml_type(default):
            allowed = _yaml_type(default).__name__
            raise UsageError(f"{chapter}: parameter {name!r} is {value!r}; it must be of type {allowed}")
        try:
            json.dumps(value)
        except TypeError:
            raise UsageError(
                f"{chapter}: parameter {name!r} is {value!r}, which is no value for it"
            ) from None
        if (
            any(not 0 <= number < math.inf for number in _numbers(value))
            and min(_numbers(default), default=0) >= 0
        ):
            raise UsageError(
                f"{chapter}: parameter {name!r} is {value!r}; it must not be negative, infinite or NaN"
            )
        checked[name] = value
    return checked


def _numbers(value: object) -> list[float]:
    """Return the numbers in a parameter, which may be a list of lists."""
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) else []


def _yaml_type(default: object) -> type:
    """Return the type in which YAML writes a value like ``default`` (it has lists, but no tuples)."""
    return list if isinstance(default, tuple) else type(default)


def plan(
    names: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    profile: str = "cpu",
    root: Path | None = None,
    data: Path | None = None,
    record: bool = False,
) -> list[Run]:
    """Decide what to run, and check all of it before anything starts.

    Parameters
    ----------
    names : sequence of str
        The chapters; none means all of them.
    parameters : mapping
        Values over those of the profile.
    profile : str
        "smoke" (seconds), "cpu" (the defaults in the notebooks) or "paper" (a GPU and the real data).
    root : Path, optional
        The clone; the one that this library belongs to unless given.
    data : Path, optional
        Where the kernels look for data sets.
    record : bool
        Whether the chapters write what they measure to ``results/``.

    Returns
    -------
    list of Run

    Raises
    ------
    UsageError
        If a chapter, a profile, a parameter or a data set does not exist, or a value cannot be right.
    """
    root = project_root() if root is None else root
    sources = [find_chapter(name, root) for name in dict.fromkeys(names)] if names else chapter_sources(root)
    check_needs(sources, profile=profile, root=root, data=data)
    depends = depends_on(root, data)
    return [
        plan_one(source, parameters, profile=profile, root=root, data=data, record=record, depends=depends)
        for source in dict.fromkeys(sources)
    ]


def check_needs(sources: Iterable[Path], *, profile: str, root: Path, data: Path | None = None) -> None:
    """Look for the data that a profile of some chapters needs, as ``needs.yaml`` beside its parameters says.

    Raises
    ------
    UsageError
        If a data set is missing or damaged; the message has a line for each.
    """
    from gradleak_lib.data import datasets

    path = root / "notebooks" / "params" / profile / "needs.yaml"
    needs = read_parameters(path) if path.exists() else {}
    wanted: dict[str, list[str]] = {}
    for source in sources:
        for name in needs.get(source.stem, ()):
            wanted.setdefault(name, []).append(source.stem.split("-")[0])
    said = []
    for name, numbers in wanted.items():
        try:
            _check_data(name, datasets.data_root(data))
        except (OSError, ValueError) as error:
            said.append(f"for {', '.join(numbers)}: {error}")
    if said:
        raise UsageError("\n".join(said))


# A sweep plans the same data sets many times. What is missing is not remembered.
@functools.lru_cache(maxsize=64)
def _check_data(name: str, folder: Path) -> None:
    from gradleak_lib.data import datasets

    datasets.check(name, root=folder)


def plan_one(
    source: Path,
    parameters: Mapping[str, Any],
    *,
    profile: str,
    root: Path,
    data: Path | None,
    depends: Mapping[str, str],
    record: bool = False,
) -> Run:
    """Decide how to run one chapter, and check it, as `plan` does for several.

    ``source`` is the chapter as from `find_chapter`, ``depends`` what `depends_on` returns; all other parameters,
    and the errors, are those of `plan`.
    """
    if profile not in PROFILES:
        raise UsageError(f"profile is {profile!r}; it must be one of: {', '.join(PROFILES)}")
    environment = {"GRADLEAK_EXECUTION": "1", "GRADLEAK_PROFILE": profile}
    if data is not None:
        environment["GRADLEAK_DATA"] = str(data.resolve())
    if record:
        environment["GRADLEAK_RECORD"] = "1"
    declared = declared_parameters(source)
    given = {**profile_parameters(profile, source, root), **parameters}
    if "profile" in declared and profile != "cpu":
        given.setdefault("profile", profile)
    changed = checked_parameters(source.stem, given, declared=declared)
    changed = _with_folders(source.stem, changed, declared=declared, data=data)
    command = _command(source.stem, parameters, profile=profile, record=record)
    environment["GRADLEAK_COMMAND"] = command
    decides = json.dumps([depends, profile, declared | changed], sort_keys=True, default=str)
    key = hashlib.sha256(decides.encode() + source.read_bytes()).hexdigest()
    file = f"{source.stem}.ipynb"
    target, failed = root / "book" / "chapters" / file, root / "_build" / "failed" / file
    return Run(source, target, failed, changed, declared, key, command, environment)


def _with_folders(
    chapter: str, given: Mapping[str, Any], *, declared: Mapping[str, Any], data: Path | None
) -> dict[str, Any]:
    """Return ``given`` with folders of images, where one stands for a data set, as the kernel finds them.

    The kernel runs in another folder than the shell in which a relative path was typed. Data sets that a parameter
    names are looked for, too.
    """
    from gradleak_lib.data import datasets

    found = dict(given)
    for name, value in given.items():
        if declared[name] in datasets.NAMES and value is not None:
            try:
                if value not in datasets.NAMES:
                    found[name] = str(datasets.find_folder(value, data).resolve())
                _check_data(found[name], datasets.data_root(data))
            except (OSError, ValueError) as error:
                raise UsageError(f"{chapter}: parameter {name!r}: {error}") from None
    return found


def profile_parameters(profile: str, source: Path, root: Path) -> dict[str, Any]:
    """Return what a profile sets in a chapter; nothing for "cpu", whose values are the notebook's own."""
    path = root / "notebooks" / "params" / profile / f"{source.stem}.yaml"
    if profile == "cpu" and not path.exists():
        return {}
    return read_parameters(path)


def _command(chapter: str, parameters: Mapping[str, Any], *, profile: str, record: bool) -> str:
    """Return the command line that repeats a run."""
    words = ["gradleak", "run", chapter]
    words += [] if profile == "cpu" else ["--profile", profile]
    for name, value in parameters.items():
        words += ["-p", name, value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words + (["--record"] if record else []))


def depends_on(root: Path, data: Path | None = None) -> dict[str, str]:
    """Return what every run depends on, whatever its chapter: Python, the library with its records, the data found.

    Names and hashes of them: two machines that agree in all three compute the same points of a sweep.
    """
    from gradleak_lib.data import data_root  # here: a list of chapters needs no torch

    library, sets = hashlib.sha256(), hashlib.sha256()
    files = [*(root / "gradleak_lib").rglob("*.py"), *(root / "results").rglob("[!0-9]*.json")]
    files += [root / "constraints.txt", root / "book" / "claims.yaml"]
    for path in sorted(path for path in files if path.is_file() and path.name not in AFTERWARDS):
        text = path.read_bytes()
        library.update(f"{path.relative_to(root).as_posix()} {len(text)} ".encode() + text)
    # The pages differ where a data set has come or gone. Names and sizes of what lies two levels deep tell.
    folder = data_root(data)
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("[!.]*/*")]):
        sets.update(f"{path.relative_to(folder)} {path.stat().st_size if path.is_file() else ''}\n".encode())
    return {
        "Python": platform.python_version(),
        "gradleak": library.hexdigest(),
        "data sets": sets.hexdigest(),
    }


def provenance_of(notebook: Path) -> dict[str, Any]:
    """Return the provenance that an executed notebook carries; empty where it has none or is not there."""
    try:
        record = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["gradleak"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}
