"""What the executed chapters found, on other pages: tables of claims, and numbers of them in a sentence.

A claim without a finding is a warning, and so fails the build.
"""

import functools
import html
import json
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.application import Sphinx
from sphinx.util import logging
from tables import MystDirective, escape, list_table

from gradleak_lib.book import records, scorecard
from gradleak_lib.book.claims import VERDICTS, Finding, headline, load_claims, number, rule
from gradleak_lib.book.estimates import GRADES, Verdict
from gradleak_lib.book.planning import PROFILES

logger = logging.getLogger(__name__)
OF_BUILD = [name for name in VERDICTS if name != "undecided"]  # grades that an executed chapter gives
BADGES = dict(
    zip(VERDICTS, ("success", "info", "warning", "danger", "secondary", "muted", "muted"), strict=True)
)


@functools.cache
def rows(chapters: Path) -> tuple[scorecard.Row, ...]:
    """All rows of the scorecard; none where the chapters do not cover all claims, which is then said once."""
    try:
        return tuple(scorecard.read(sorted(chapters.glob("*.ipynb"))))
    except ValueError as error:
        logger.warning("scorecard: %s", error)
        return ()


@functools.cache
def recorded(results: Path, profile: str) -> tuple[tuple[records.Record, ...], dict[str, str]]:
    """The recorded chapters of a profile, and what they measured, by claim, as a row of the scorecard says it."""
    claims = load_claims()
    found = tuple(records.read_all(results / profile, claims))
    together = scorecard.collect((row for one in found for row in one.rows), claims)
    return found, {row.finding.claim.id: scorecard.ours(row.finding) for row in together}


class OfPapers(MystDirective):
    """Base of directives that look at the findings."""

    @property
    def found(self) -> tuple[scorecard.Row, ...]:
        """All rows; the page is written anew when a chapter has been executed again."""
        chapters = Path(self.env.srcdir, "book", "chapters")
        for path in (*chapters.glob("*.ipynb"), *Path(self.env.srcdir, "studies").glob("*/*.*")):
            self.env.note_dependency(str(path))
        return rows(chapters)


class Table(OfPapers):
    """The claims of one paper: its number, ours, the verdict, and the section that computes it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        mine = [row for row in self.found if row.finding.claim.paper == self.arguments[0]]
        lines = [
            "```{list-table}",
            ":header-rows: 1",
            ":class: scorecard longtable",
            ":widths: 36 15 27 22",
            "",
        ]
        lines += ["* - Claim", "  - Paper", "  - Here", "  - Verdict, section"]
        for row in mine:
            claim = row.finding.claim
            lines += [
                f"* - (claim-{claim.id})=",
                f"    **{claim.id}** {escape(claim.claim)} *{escape(claim.where)}*",
            ]
            lines += [f"  - {escape(number(claim))}", *self.note(claim.data)]
            lines += [
                f"  - {escape(scorecard.ours(row.finding)) or 'not measured'}",
                *self.note(row.finding.data),
            ]
            for said, profile in (("Recorded", "cpu"), ("At the paper's size", "paper")):
                other = recorded(Path(self.env.srcdir, "results"), profile)[1].get(claim.id, "")
                if other and (profile == "paper" or other != scorecard.ours(row.finding)):
                    lines += self.note(f"{said}: {other}")
            rules = row.rules if row.study else [rule(claim)]
            lines += [line for text in (*rules, row.finding.reason) for line in self.note(text)]
            lines += [f"  - {{bdg-{BADGES[row.finding.verdict]}}}`{row.finding.verdict}`"]
            lines += self.note(f"by study {row.study}" if row.study else scorecard.FROM_BUILD)
            lines += [line for section in row.sections for line in ("", f"    {self.link(section)}")]
        return self.parse([*lines, "```"])

    def note(self, text: str) -> list[str]:
        """Further lines of a cell, in small print."""
        return ["", "    ```{div} scorecard-note", f"    {escape(text)}", "    ```"] if text else []

    def link(self, section: scorecard.Section) -> str:
        """A link to a section of a chapter, which the build checks."""
        target = f"chapters/{section.chapter}.ipynb#{default_slugify(section.heading)}"
        return f"[{section.chapter.split('-')[0]} {escape(section.heading)}]({target})"


class Summary(OfPapers):
    """How many claims of each paper have which verdict, as a table, and of all as a bar."""

    def run(self) -> list[nodes.Node]:
        """Return the bar and the table."""
        papers = scorecard.by_paper(self.found)
        lines: list[list[object]] = [["Verdict", *(self.chapter(mine) for mine in papers.values()), "All"]]
        for name in VERDICTS:
            counts = (sum(row.finding.verdict == name for row in mine) for mine in papers.values())
            total = sum(row.finding.verdict == name for row in self.found)
            if not total:
                continue
            lines.append([f"{{bdg-{BADGES[name]}}}`{name}`", *counts, total])
        lines.append(["claims", *(len(mine) for mine in papers.values()), len(self.found)])
        verdicts = Counter(row.finding.verdict for row in self.found)
        parts = "".join(
            f'<span class="sd-bg-{BADGES[name]}" style="flex-grow:{verdicts[name]}"></span>'
            for name in VERDICTS
            if verdicts[name]
        )
        label = html.escape(headline(row.finding for row in self.found))
        bar = f'<div class="scorecard-bar" role="img" aria-label="{label}">{parts}</div>'
        return [nodes.raw("", bar, format="html"), *self.parse(list_table(lines, "scorecard-summary"))]

    def chapter(self, rows: list[scorecard.Row]) -> str:
        """A link to the chapter of some rows."""
        sections = [row.sections[0] for row in rows if row.sections]
        return f"[{escape(sections[0].title)}](chapters/{sections[0].chapter}.ipynb)" if sections else ""


class Rule(OfPapers):
    """The verdicts and the rule of each, from where they are computed: those of ``studies``, or of the ``build``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a list of definitions."""
        grades = {"studies": GRADES, "build": VERDICTS}[self.arguments[0]]
        shown = [
            (name, rule)
            for name, rule in grades.items()
            if self.arguments[0] == "studies" or name in OF_BUILD
        ]
        return self.parse([line for name, rule in shown for line in (name, f": if {rule}.", "")])


class Changes(OfPapers):
    """Every claim whose verdict a study has changed: before, now, and why."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        path = Path(self.env.srcdir, "results", "verdicts-before-studies.json")
        self.env.note_dependency(str(path))
        before = json.loads(path.read_text(encoding="utf-8"))["claims"]
        lines: list[list[str]] = [["Claim", "Before", "Now", "Why"]]
        for row in self.found:
            claim = row.finding.claim
            old = before.get(claim.id, {"verdict": "", "ours": ""})
            if not isinstance(row.finding, scorecard.Decision) or (
                old["verdict"] == row.finding.verdict and claim.id in before
            ):
                continue
            was = (
                f"{badge(old['verdict'])}\n\n{escape(old['ours'])}"
                if old["verdict"]
                else "no claim of its own"
            )
            now = "\n\n".join([badge(row.finding.verdict), *map(escape, row.finding.ours)])
            why = escape(row.finding.reason) or "The experiment, at the paper's size and with an interval."
            lines.append([f"[{claim.id}](claim-{claim.id}) {escape(claim.claim)}", was, now, why])
        return self.parse(list_table(lines, "scorecard verdict-changes longtable", "28 22 25 25"))


class Amended(OfPapers):
    """Every rule that was changed after a number was known, with the verdict of both."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines: list[list[str]] = [
            ["Claim", "First rule, and its verdict", "Rule now, and its verdict", "Why"]
        ]
        for row in self.found:
            claim = row.finding.claim
            now = f"{escape(' '.join(row.rules))}\n\n{badge(row.finding.verdict)}"
            name = f"[{claim.id}](claim-{claim.id})"
            for change in claim.amended:
                old = change["before"]
                was = f"{escape(old['rule'])}\n\n{badge(old['verdict'])}"
                lines.append([name, was, now, escape(f"{change['date']}: {change['why']}")])
            if isinstance(row.finding, scorecard.Decision):
                for amendment, verdict in row.finding.amended:
                    was = "none" if verdict is None else of_rule(verdict)
                    lines.append([name, was, now, escape(f"{amendment.date}: {amendment.why}")])
        return self.parse(list_table(lines, "scorecard verdict-changes longtable", "12 30 30 28"))


def badge(verdict: str) -> str:
    """A verdict as it is shown everywhere."""
    return f"{{bdg-{BADGES[verdict]}}}`{verdict}`"


def of_rule(verdict: Verdict) -> str:
    """MyST of a rule that stood before, with what it makes of the same rows."""
    said = [
        escape(f"{name}: {scorecard.interval_of(one.estimand.holds)} ({scorecard.said(one)})")
        for name, one in verdict.estimates.items()
    ]
    return "\n\n".join([*said, badge(verdict.grade)])


class Runs(OfPapers):
    """The recorded runs: which chapter, at which profile, when, where, and with what outcome."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = [["Chapter, profile", "Recorded", "Outcome"]]
        for profile in PROFILES:
            for one in recorded(Path(self.env.srcdir, "results"), profile)[0]:
                run = one.run
                titles = [row.sections[0].title for row in one.rows] or [one.chapter]
                where = f"{run['date'][:10]}, commit {run['commit']}, {run['device']}, {run['seconds']:.0f} s"
                outcome = headline(row.finding for row in one.rows) if one.rows else "no claims"
                chapter = f"[{escape(titles[0])}](chapters/{one.chapter}.ipynb)"
                lines.append([f"{chapter}, `{profile}`", escape(where), escape(outcome)])
        return self.parse(list_table(lines, "comparisons-runs", "30 35 35"))


class Same(OfPapers):
    """How many claims have the same digits in this build as in the recorded runs of the ``cpu`` profile."""

    def run(self) -> list[nodes.Node]:
        """Return a paragraph."""
        record = recorded(Path(self.env.srcdir, "results"), "cpu")[1]
        here = {
            row.finding.claim.id: scorecard.ours(row.finding)
            for row in self.found
            if isinstance(row.finding, Finding) and row.finding.settings
        }
        same = sum(record.get(name) == said for name, said in here.items())
        text = f"Of the {len(here)} claims that are measured here, {same} have the recorded digits."
        return self.parse([text])


def count(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, *_: object, **__: object
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A number of claims: of a verdict, ``total``, ``headline`` of all, or the headline of a paper's key."""
    found = rows(Path(inliner.document.settings.env.srcdir, "book", "chapters"))
    verdicts = Counter(row.finding.verdict for row in found)
    papers = scorecard.by_paper(found)
    if text == "total":
        said = str(len(found))
    elif text in VERDICTS:
        said = str(verdicts[text])
    elif text == "headline" or text in papers:
        said = headline(row.finding for row in (found if text == "headline" else papers[text]))
    else:
        said = ""
        logger.warning("scorecard: no verdict and no paper is called %r", text)
    return [nodes.Text(said)], []


def estimate(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, *_: object, **__: object
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """What a study measured for a claim, with its interval; of several estimates the first, or one by its name."""
    claim, _, which = text.partition(": ")
    found = {
        row.finding.claim.id: row
        for row in rows(Path(inliner.document.settings.env.srcdir, "book", "chapters"))
    }
    row = found.get(claim)
    if row is None or not isinstance(row.finding, scorecard.Decision):
        if found:
            logger.warning("scorecard: no study decides %r", claim)
        return [], []
    if row.finding.judged is None:
        return [nodes.Text("(not recorded yet)")], []
    known = row.finding.judged.estimates
    if which and which not in known:
        logger.warning("scorecard: %s has no estimate %r; it has: %s", claim, which, "; ".join(known))
        return [], []
    one = known[which] if which else next(iter(known.values()))
    return [nodes.Text(scorecard.short(one))], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives and the role."""
    app.add_directive("scorecard", Table)
    app.add_directive("scorecard-summary", Summary)
    app.add_directive("scorecard-rule", Rule)
    app.add_directive("scorecard-runs", Runs)
    app.add_directive("verdict-changes", Changes)
    app.add_directive("rule-changes", Amended)
    app.add_directive("scorecard-same", Same)
    app.add_role("scorecard", count)
    app.add_role("estimate", estimate)
    return {"parallel_read_safe": True}
