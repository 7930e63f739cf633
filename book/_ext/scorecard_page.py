"""What the executed chapters found, on other pages: tables of claims, and numbers of them in a sentence.

A claim without a finding is a warning, and so fails the build.
"""

import functools
import html
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.application import Sphinx
from sphinx.util import logging
from tables import MystDirective, escape, list_table

from gradleak_lib.book import records, scorecard
from gradleak_lib.book.claims import NOT_MEASURED, VERDICTS, headline, load_claims, number, rule
from gradleak_lib.book.planning import PROFILES

logger = logging.getLogger(__name__)
BADGES = dict(zip(VERDICTS, ("success", "info", "warning", "danger", "muted", "muted"), strict=True))


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
        for path in chapters.glob("*.ipynb"):
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
            lines += [*self.note(rule(claim)), *self.note(row.finding.reason)]
            lines += [f"  - {{bdg-{BADGES[row.finding.verdict]}}}`{row.finding.verdict}`"]
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
        lines: list[list[object]] = [
            ["Verdict", *(self.chapter(mine[0].sections[0]) for mine in papers.values()), "All"]
        ]
        for name in VERDICTS:
            counts = (sum(row.finding.verdict == name for row in mine) for mine in papers.values())
            total = sum(row.finding.verdict == name for row in self.found)
            if name == NOT_MEASURED and not total:
                continue  # it says something of a run, and nothing of a paper
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

    def chapter(self, section: scorecard.Section) -> str:
        """A link to the chapter of a section."""
        return f"[{escape(section.title)}](chapters/{section.chapter}.ipynb)"


class Rule(OfPapers):
    """The verdicts and the rule of each, from where they are computed."""

    def run(self) -> list[nodes.Node]:
        """Return a list of definitions."""
        return self.parse([line for name, rule in VERDICTS.items() for line in (name, f": if {rule}.", "")])


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
            row.finding.claim.id: scorecard.ours(row.finding) for row in self.found if row.finding.settings
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


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives and the role."""
    app.add_directive("scorecard", Table)
    app.add_directive("scorecard-summary", Summary)
    app.add_directive("scorecard-rule", Rule)
    app.add_directive("scorecard-runs", Runs)
    app.add_directive("scorecard-same", Same)
    app.add_role("scorecard", count)
    return {"parallel_read_safe": True}
