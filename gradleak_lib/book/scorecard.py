"""The scorecard: every claim of every paper, with its verdict, what was measured, and where on the pages.

A study decides where there is one. Claims that have none yet keep the verdict that the executed chapters give them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradleak_lib.book import studies
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
from gradleak_lib.book.claims import (
    rule as rule_of_build,
)
from gradleak_lib.book.estimates import Estimate, Verdict
from gradleak_lib.book.studies import Amendment, Record

# What the units of a study are called where they are counted; a number is that of a round.
UNITS = {"batch": "batches", "image": "images", "round": "rounds", "number": "rounds", "seed": "seeds"}
SHOWN = 4  # settings that a row spells out
STUDIES = "gradleak-studies"  # names of studies that a cell draws from, in the metadata of a hidden output
FROM_BUILD = "from the build"  # said of a verdict that no study gives


@dataclass(frozen=True)
class Section:
    """Where a claim is checked: the chapter's file name without its ending, its title, and the section's heading."""

    chapter: str
    title: str
    heading: str


@dataclass(frozen=True)
class Decision:
    """What a study makes of one claim.

    Parameters
    ----------
    claim
        The claim.
    record
        What was recorded of the study that decides it.
    judged
        The verdict with its estimates; None while points are missing.
    """

    claim: Claim
    record: Record
    judged: Verdict | None

    @property
    def verdict(self) -> str:
        """The grade; undecided while points are missing."""
        return "undecided" if self.judged is None else self.judged.grade

    @property
    def data(self) -> str:
        """Names of the data sets."""
        return ", ".join(self.record.study.data)

    @property
    def ours(self) -> list[str]:
        """Each estimate with its interval and its units, and where it has to lie."""
        if self.judged is None:
            return []
        return [
            f"{said(one, name)} (holds {interval_of(one.estimand.holds)})"
            for name, one in {**self.judged.estimates, **self.judged.controls}.items()
        ]

    @property
    def rules(self) -> list[str]:
        """Why it has to lie there, and in what the set-up is reduced."""
        rule = self.record.study.claims[self.claim.id]
        return [rule.why, f"Reduced: {rule.reduced}."] if rule.reduced else [rule.why]

    @property
    def reason(self) -> str:
        """What would decide it, and what the page says of the outcome."""
        if self.judged is None:
            done, total = len(self.record.seconds), len(self.record.seconds) + len(self.record.missing)
            return f"{done} of {total} points of the study are recorded."
        others = dict.fromkeys(old.grade for _, old in self.amended if old and old.grade != self.judged.grade)
        earlier = f"By an earlier rule: {', '.join(others)}." if others else ""
        remark = self.record.study.remarks.get(self.claim.id, "")
        return " ".join(filter(None, (self.judged.would_decide, remark, earlier)))

    @property
    def amended(self) -> list[tuple[Amendment, Verdict | None]]:
        """Each change of its rule, with the verdict of the rule before."""
        return [] if self.judged is None else studies.amended_verdicts(self.record, self.claim.id)


def decide(claims: Mapping[str, Claim], records: Iterable[Record]) -> dict[str, Decision]:
    """Return what studies make of the claims that they decide, by claim.

    Raises
    ------
    ValueError
        If a study decides a claim that is not among ``claims``.
    """
    found = {}
    for record in records:
        for name in record.study.claims:
            if name not in claims:
                raise ValueError(f"{record.study.name} decides {name}, which is no known claim")
            judged = record.verdict(name) if record.complete else None
            found[name] = Decision(claims[name], record, judged)
    return found


def short(estimate: Estimate) -> str:
    """Return an estimate as text: ``"38.7 [37.9, 39.4]"``; an exact number without an interval."""
    if estimate.estimand.statistic == "exact":
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def said(estimate: Estimate, name: str = "") -> str:
    """Return an estimate with its name and its units as text: ``"exact: 38.7 [37.9, 39.4], 100 batches"``."""
    unit = estimate.estimand.unit
    units = f", {estimate.units:,} {UNITS.get(unit, unit)}" if unit else ""
    return f"{name}: {short(estimate)}{units}" if name else f"{short(estimate)}{units}"


def interval_of(holds: tuple[float | None, float | None]) -> str:
    """Return an interval as words: ``"from 0.24 to 0.26"``."""
    low, high = holds
    if low is None or high is None:
        return f"from {low:g} on" if high is None else f"up to {high:g}"
    return f"exactly {low:g}" if low == high else f"from {low:g} to {high:g}"


@dataclass(frozen=True)
class Row:
    """One claim with what was found, by a study, in one chapter or in several, and where."""

    finding: Finding | Decision
    sections: tuple[Section, ...]

    @property
    def study(self) -> str:
        """Name of the study that decides it; empty where the build does."""
        return self.finding.record.study.name if isinstance(self.finding, Decision) else ""

    @property
    def rules(self) -> list[str]:
        """By which rule it is judged."""
        if isinstance(self.finding, Decision):
            return self.finding.rules
        return list(filter(None, [self.finding.claim.measured, rule_of_build(self.finding.claim)]))


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


def sections_of(notebook: Path) -> dict[str, Section]:
    """Return the section of an executed notebook in which each study is drawn first."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    title, heading = "", ""
    found: dict[str, Section] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            for marks, text in re.findall(r"^(#{1,3}) (.+)$", "".join(cell["source"]), re.MULTILINE):
                title, heading = (text, text) if marks == "#" else (title, text)
        for output in cell.get("outputs", []):
            for name in output.get("metadata", {}).get(STUDIES, ()):
                found.setdefault(name, Section(notebook.stem, title, heading))
    return found


def merge(rows: Sequence[Row]) -> Row:
    """One row of several on the same claim: all settings count, each under the name of its chapter."""
    if len(rows) == 1:
        return rows[0]
    findings = [row.finding for row in rows if isinstance(row.finding, Finding)]
    settings = {
        ", ".join(filter(None, (row.sections[0].title, name))): values
        for row, finding in zip(rows, findings, strict=True)
        for name, values in finding.settings.items()
    }
    finding = judge(
        findings[0].claim,
        settings,
        reason=" ".join(filter(None, (one.reason for one in findings))),
        data=", ".join(dict.fromkeys(name for one in findings for name in one.data.split(", ") if name)),
    )
    return Row(finding, tuple(section for row in rows for section in row.sections))


def read(
    notebooks: Iterable[Path],
    claims: Mapping[str, Claim] | None = None,
    records: Iterable[Record] | None = None,
) -> list[Row]:
    """Return one row per claim, in the order of the list of claims.

    Parameters
    ----------
    notebooks
        The executed chapters, as in ``book/chapters/``.
    claims
        By id; all of ``book/claims.yaml`` unless given.
    records
        Of the studies; those of the clone unless given, and none where ``claims`` are.

    Raises
    ------
    ValueError
        If a claim has neither a study nor a finding in any of the notebooks, or as `read_chapter` and `decide` do.
    """
    notebooks = list(notebooks)
    if records is None:
        records = studies.recorded() if claims is None else ()
    claims = load_claims() if claims is None else claims
    decided = decide(claims, records)
    drawn: dict[str, Section] = {}
    for notebook in notebooks if decided else ():
        for name, section in sections_of(notebook).items():
            # A replication page shows all of a study; the chapter itself may draw from it, too.
            if name not in drawn or section.chapter.endswith("-replication"):
                drawn[name] = section
    by_study = {
        name: Row(one, tuple(filter(None, [drawn.get(one.record.study.name)])))
        for name, one in decided.items()
    }
    rows = collect((row for notebook in notebooks for row in read_chapter(notebook, claims)), claims)
    found = {row.finding.claim.id: row for row in rows} | by_study
    missing = [name for name in claims if name not in found]
    if missing:
        more = f" and {len(missing) - 5} more claims" if len(missing) > 5 else ""
        raise ValueError(
            f"no executed chapter has a finding for {', '.join(missing[:5])}{more}; type `gradleak run`"
        )
    return [found[name] for name in claims]


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


def ours(finding: Finding | Decision) -> str:
    """What we measured, in a line: each setting or estimate, or the range where there are many settings."""
    if isinstance(finding, Decision):
        return "; ".join(finding.ours)
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
                "decided by": row.study or FROM_BUILD,
                **_details(row.finding),
                "sections": [f"{one.chapter}: {one.heading}" for one in row.sections],
            }
            for row in rows
        },
        "runs": dict(runs),
    }


def _details(finding: Finding | Decision) -> dict[str, Any]:
    """What stands behind a verdict."""
    if isinstance(finding, Finding):
        return dict(claims_as_json([finding])[finding.claim.id])
    judged = finding.judged
    estimates = {} if judged is None else {**judged.estimates, **judged.controls}
    return {
        "estimates": {
            name: {
                "value": one.value,
                "low": one.low,
                "high": one.high,
                "units": one.units,
                "holds": list(one.estimand.holds),
            }
            for name, one in estimates.items()
        },
        "reduced": finding.record.study.claims[finding.claim.id].reduced,
        "reason": finding.reason,
        "data": finding.data,
    }


def table(verdict: Verdict) -> pd.DataFrame:
    """One row an estimate of a verdict: what was found, and where it has to lie."""
    return pd.DataFrame(
        [
            {
                "estimate": name,
                "ours, with 95 % interval": said(one),
                "holds": interval_of(one.estimand.holds),
            }
            for name, one in {**verdict.estimates, **verdict.controls}.items()
        ]
    )
