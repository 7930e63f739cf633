"""Recorded runs: what an executed chapter measured and where that comes from, in a small file under ``results/``.

The pages show them beside this build's numbers: runs on another machine, or at the papers' own sizes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradleak_lib.book import scorecard
from gradleak_lib.book.chapters import UsageError, provenance_of
from gradleak_lib.book.claims import Claim, Finding, as_json, from_json
from gradleak_lib.book.parameters import declared
from gradleak_lib.book.planning import profile_parameters
from gradleak_lib.book.results import read_glued
from gradleak_lib.book.scorecard import Row, Section
from gradleak_lib.files import write_whole

FACTS = {"date", "seconds", "commit", "device", "versions", "parameters", "command", "key"}


@dataclass(frozen=True)
class Record:
    """What one execution of a chapter measured.

    Parameters
    ----------
    chapter
        Its name.
    run
        Provenance: date, seconds, commit, device, versions, parameters, command.
    numbers
        All that it glued, by name. Those that begin with ``run_`` tell of the machine.
    rows
        What it found for each claim that it checks.
    """

    chapter: str
    run: Mapping[str, Any]
    numbers: Mapping[str, float]
    rows: tuple[Row, ...]

    @property
    def profile(self) -> str:
        """The set of parameters that it ran with."""
        return str(self.run["parameters"].get("profile", "cpu"))


def from_notebook(notebook: Path, claims: Mapping[str, Claim]) -> Record:
    """Return the record of an executed chapter.

    Raises
    ------
    UsageError
        If the file is no chapter that `gradleak run` executed to its end.
    """
    run = provenance_of(notebook)
    if not set(run) >= FACTS or not isinstance(run["parameters"], dict):
        raise UsageError(f"{notebook} is no chapter that `gradleak run` executed to its end")
    facts = {name: value for name, value in run.items() if name != "key"}
    rows = scorecard.read_chapter(notebook, claims)
    return Record(notebook.stem, facts, read_glued(notebook), tuple(rows))


def check(record: Record, root: Path) -> None:
    """Look whether a record can stand for a chapter at its profile.

    Raises
    ------
    UsageError
        If there is no such chapter in the clone, or it did not run with the parameters of its profile.
    """
    if not (root / "notebooks" / f"{record.chapter}.md").is_file():
        raise UsageError(
            f"{record.chapter}.ipynb is called like no chapter; give it the name of the one that it is"
        )
    others = _other_parameters(record, root)
    if others:
        raise UsageError(
            f"{record.chapter} ran with another {', '.join(others)} than its profile {record.profile!r} has, for "
            f"which a record stands: `gradleak run {record.chapter} --profile {record.profile}`"
        )


def write(record: Record, root: Path) -> Path:
    """Write a record to ``results/<profile>/<chapter>.json`` of a clone, and return that path."""
    found: dict[str, Any] = {}
    for row in record.rows:
        [section] = row.sections
        assert isinstance(row.finding, Finding)  # of the build: what a study decides has a record of its own
        found |= as_json([row.finding])
        found[row.finding.claim.id] |= {"title": section.title, "heading": section.heading}
    content = {"run": record.run, "numbers": record.numbers, "claims": found}
    path = root / "results" / record.profile / f"{record.chapter}.json"
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def _other_parameters(record: Record, root: Path) -> list[str]:
    """Names of the parameters that are not those of the profile; a folder may lie anywhere."""
    source = root / "notebooks" / f"{record.chapter}.md"
    defaults = {name: parameter.default for name, parameter in declared(source).items()}
    wanted = defaults | profile_parameters(record.profile, source, root)
    ran = record.run["parameters"]
    return [
        name
        for name, value in wanted.items()
        if json.dumps(ran.get(name)) != json.dumps(value) and not str(ran.get(name)).endswith(f"/{value}")
    ]


def read(path: Path, claims: Mapping[str, Claim]) -> Record:
    """Return what `write` wrote; what was measured is judged by the claims as they are now."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, run, numbers = content["claims"], content["run"], content["numbers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no record that `gradleak record` wrote: {error!r}") from None
    rows = tuple(
        Row(finding, (Section(path.stem, found[name]["title"], found[name]["heading"]),))
        for name, finding in zip(found, from_json(found, claims), strict=True)
    )
    return Record(path.stem, run, numbers, rows)


def read_all(folder: Path, claims: Mapping[str, Claim]) -> list[Record]:
    """Return the recorded chapters of one profile, such as ``results/cpu``, in the book's order."""
    return [read(path, claims) for path in sorted(folder.glob("[0-9]*.json"))]


def differences(record: Record, other: Record) -> list[str]:
    """Say what two runs of one chapter measured differently, down to the last digit; not their times and memory."""
    first, second = _measured(record), _measured(other)
    return [
        f"{record.chapter}: {name} is {first.get(name, 'missing')} and {second.get(name, 'missing')}"
        for name in first | second
        if first.get(name) != second.get(name)
    ]


def _measured(record: Record) -> dict[str, Any]:
    # Of a folder the last part: it may lie anywhere.
    numbers: dict[str, Any] = {
        f"parameter {name}": value.rpartition("/")[2] if isinstance(value, str) else value
        for name, value in record.run["parameters"].items()
    }
    numbers |= {name: value for name, value in record.numbers.items() if not name.startswith("run_")}
    for row in record.rows:
        assert isinstance(row.finding, Finding)
        for name, values in row.finding.settings.items():
            numbers[", ".join(filter(None, (row.finding.claim.id, name)))] = list(values)
    return numbers
