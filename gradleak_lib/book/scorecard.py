"""The scorecard: every claim of every paper, with what the executed chapters found, and where on their pages."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradleak_lib.book.claims import (
    KEY,
    Claim,
    Finding,
    each_setting,
    from_json,
    headline,
    judge,
    load_claims,
    number,
)
from gradleak_lib.book.claims import (
    as_json as claims_as_json,
)

SHOWN = 4  # settings that a row spells out


@dataclass(frozen=True)
class Section:
    """Where a claim is checked: the chapter's file name without its ending, its title, and the section's heading."""

    chapter: str
    title: str
    heading: str


@dataclass(frozen=True)
class Row:
    """One claim with what was found, in one chapter or in several, and where."""

    finding: Finding
    sections: tuple[Section, ...]


def read_chapter(notebook: Path, claims: Mapping[str, Claim]) -> list[Row]:
    """Return the findings of one executed chapter, each with the section that checks it.

    Raises
    ------
    ValueError
        If the notebook shows a finding for a claim that is not among ``claims``.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    title, heading = "", ""
    found: dict[str, Row] = {}  # by claim; the last check counts, as it does in the chapter
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for marks, text in re.findall(r"^(#{1,3}) (.+)$", source, re.MULTILINE):
                title, heading = (text, text) if marks == "#" else (title, text)
            continue
        for output in cell.get("outputs", []):
            for one in from_json(output.get("metadata", {}).get(KEY, {}), claims):
                found[one.claim.id] = Row(one, (Section(notebook.stem, title, heading),))
    return [found[name] for name in claims if name in found]


def merge(rows: Sequence[Row]) -> Row:
    """One row of several on the same claim: all settings count, each under the name of its chapter."""
    if len(rows) == 1:
        return rows[0]
    settings = {
        ", ".join(filter(None, (row.sections[0].title, name))): values
        for row in rows
        for name, values in row.finding.settings.items()
    }
    finding = judge(
        rows[0].finding.claim,
        settings,
        reason=" ".join(filter(None, (row.finding.reason for row in rows))),
        data=", ".join(dict.fromkeys(name for row in rows for name in row.finding.data.split(", ") if name)),
    )
    return Row(finding, tuple(section for row in rows for section in row.sections))


def read(notebooks: Iterable[Path], claims: Mapping[str, Claim] | None = None) -> list[Row]:
    """Return one row per claim, in the order of the list of claims.

    Parameters
    ----------
    notebooks
        The executed chapters, as in ``book/chapters/``.
    claims
        By id; all of ``book/claims.yaml`` unless given.

    Raises
    ------
    ValueError
        If a claim has no finding in any of the notebooks, or as `read_chapter` does.
    """
    claims = load_claims() if claims is None else claims
    rows = collect((row for notebook in notebooks for row in read_chapter(notebook, claims)), claims)
    found = {row.finding.claim.id for row in rows}
    missing = [name for name in claims if name not in found]
    if missing:
        more = f" and {len(missing) - 5} more claims" if len(missing) > 5 else ""
        raise ValueError(
            f"no executed chapter has a finding for {', '.join(missing[:5])}{more}; type `gradleak run`"
        )
    return rows


def collect(rows: Iterable[Row], claims: Mapping[str, Claim]) -> list[Row]:
    """Return one row for each claim that has any, in the order of ``claims``."""
    found: dict[str, list[Row]] = {name: [] for name in claims}
    for row in rows:
        found[row.finding.claim.id].append(row)
    return [merge(some) for some in found.values() if some]


def select(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """Return the rows that some words name: a claim's id, the start of a paper's ids, or a verdict; all for no words.

    Raises
    ------
    ValueError
        If a word names no row.
    """
    found = [] if words else list(rows)
    for word in words:
        named = [row for row in rows if word in (_id(row), _id(row)[:-3], row.finding.verdict)]
        if not named:
            papers = ", ".join(dict.fromkeys(_id(row)[:-3] for row in rows))
            raise ValueError(
                f"no claim is called {word!r}, and no verdict of one: name a claim, such as {_id(rows[0])}, "
                f"or all of a paper: {papers}"
            )
        found += [row for row in named if row not in found]
    return found


def _id(row: Row) -> str:
    return row.finding.claim.id


def by_paper(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the key of their paper, in the order of the list of claims."""
    papers: dict[str, list[Row]] = {}
    for row in rows:
        papers.setdefault(row.finding.claim.paper, []).append(row)
    return papers


def ours(finding: Finding) -> str:
    """What we measured, in a line: each setting, or the range where there are many."""
    if not finding.settings:
        return ""
    if len(finding.settings) <= SHOWN:
        return "; ".join(each_setting(finding))
    means = [sum(values) / len(values) for values in finding.settings.values()]
    text = f"{min(means):.4g} to {max(means):.4g} {finding.claim.unit}".strip()
    return f"{text}, as claimed in {finding.held} of {len(means)} settings"


def as_json(rows: Sequence[Row], runs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scorecard as JSON holds it: headlines, rows with their verdicts, and provenance by chapter.

    Parameters
    ----------
    rows
        As from `read`.
    runs
        Provenance of each chapter's execution, by the chapter's name.
    """
    return {
        "headline": headline(row.finding for row in rows),
        "papers": {key: headline(row.finding for row in some) for key, some in by_paper(rows).items()},
        "claims": {
            row.finding.claim.id: {
                "verdict": row.finding.verdict,
                "claim": row.finding.claim.claim,
                "paper": number(row.finding.claim),
                "ours": ours(row.finding),
                **claims_as_json([row.finding])[row.finding.claim.id],
                "sections": [f"{one.chapter}: {one.heading}" for one in row.sections],
            }
            for row in rows
        },
        "runs": dict(runs),
    }
