"""What is to be run: a chapter with its parameters, checked before anything starts."""

import functools
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradleak_lib.book import chapters
from gradleak_lib.book.chapters import UsageError, chapter_sources, find_chapter, provenance_of
from gradleak_lib.book.keys import decides
from gradleak_lib.book.parameters import checked, declared, read_file

PROFILES = ("smoke", "cpu", "paper")


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
    root = chapters.project_root() if root is None else root
    sources = [find_chapter(name, root) for name in dict.fromkeys(names)] if names else chapter_sources(root)
    check_needs(sources, profile=profile, root=root, data=data)
    runs = [
        plan_one(source, parameters, profile=profile, root=root, data=data, record=record)
        for source in dict.fromkeys(sources)
    ]
    # Not where a sweep is planned, whose workers may have what this machine has not.
    if any(run.parameters.get("device") == "cuda" for run in runs):
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                "device is 'cuda', and torch finds no GPU here; 'auto' takes one where there is one"
            )
    return runs


def check_needs(sources: Iterable[Path], *, profile: str, root: Path, data: Path | None = None) -> None:
    """Look for the data that a profile of some chapters needs, as ``needs.yaml`` beside its parameters says.

    Raises
    ------
    UsageError
        If a data set is missing or damaged; the message has a line for each.
    """
    from gradleak_lib.data import datasets

    path = root / "notebooks" / "params" / profile / "needs.yaml"
    needs = read_file(path) if path.exists() else {}
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
    record: bool = False,
    depends: Mapping[str, str] | None = None,
) -> Run:
    """Decide how to run one chapter, and check it, as `plan` does for several.

    ``source`` is the chapter as from `find_chapter`, ``depends`` what `keys.decides` returns, for those who plan many
    runs of one chapter; all other parameters, and the errors, are those of `plan`.
    """
    if profile not in PROFILES:
        raise UsageError(f"profile is {profile!r}; it must be one of: {', '.join(PROFILES)}")
    if parameters.get("profile", profile) != profile:
        raise UsageError(
            f"{source.stem}: parameter 'profile' is {parameters['profile']!r}, which alone would change nothing but "
            "the name: choose a profile with --profile"
        )
    environment = {"GRADLEAK_PROFILE": profile}
    if data is not None:
        environment["GRADLEAK_DATA"] = str(data.resolve())
    if record:
        environment["GRADLEAK_RECORD"] = "1"
    there = declared(source)
    given = {**profile_parameters(profile, source, root), **parameters}
    if "profile" in there and profile != "cpu":
        given.setdefault("profile", profile)
    defaults = {name: parameter.default for name, parameter in there.items()}
    changed = _with_folders(source.stem, checked(source.stem, given, there), defaults=defaults, data=data)
    environment["GRADLEAK_COMMAND"] = command_of(source.stem, parameters, profile=profile, record=record)
    depends = decides(source.read_text(encoding="utf-8"), root, data) if depends is None else depends
    all_of_it = json.dumps([depends, profile, defaults | changed], sort_keys=True)
    file = f"{source.stem}.ipynb"
    return Run(
        source,
        root / "book" / "chapters" / file,
        root / "_build" / "failed" / file,
        changed,
        defaults,
        hashlib.sha256(all_of_it.encode()).hexdigest(),
        environment["GRADLEAK_COMMAND"],
        environment,
    )


def _with_folders(
    chapter: str, given: Mapping[str, Any], *, defaults: Mapping[str, Any], data: Path | None
) -> dict[str, Any]:
    """Return ``given`` with folders of images, where one stands for a data set, as the kernel finds them.

    The kernel runs in another folder than the shell in which a relative path was typed. Data sets that a parameter
    names are looked for, too.
    """
    from gradleak_lib.data import datasets

    found = dict(given)
    for name, value in given.items():
        if defaults[name] in datasets.NAMES and value is not None:
            try:
                if value not in datasets.NAMES:
                    found[name] = str(datasets.find_folder(value, data).resolve())
                _check_data(found[name], datasets.data_root(data))
            except (OSError, ValueError) as error:
                raise UsageError(f"{chapter}: parameter {name!r}: {error}") from None
    return found


def profile_parameters(profile: str, source: Path, root: Path) -> dict[str, Any]:
    """Return what a profile sets in a chapter; nothing for "cpu", whose values are the notebook's own.

    A replication page draws what is recorded, whatever the profile.
    """
    path = root / "notebooks" / "params" / profile / f"{source.stem}.yaml"
    if (profile == "cpu" or source.stem.endswith(chapters.REPLICATION)) and not path.exists():
        return {}
    return read_file(path)


def command_of(
    chapter: str, parameters: Mapping[str, Any], *, profile: str = "cpu", record: bool = False
) -> str:
    """Return the command line that repeats a run."""
    words = ["gradleak", "run", chapter]
    words += [] if profile == "cpu" else ["--profile", profile]
    for name, value in parameters.items():
        words += ["-p", name, value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words + (["--record"] if record else []))
