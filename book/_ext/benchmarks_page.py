"""What `make bench` measured, on the page about benchmarks: tables of the last saved run and of those before it.

The numbers come from ``benchmarks/history.jsonl``, a line a run. Without it there is a warning, and so no build.
"""

import functools
import json
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx
from sphinx.util import logging
from tables import MystDirective, escape, list_table

# Appended: what has the same name elsewhere comes first.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import comparisons

logger = logging.getLogger(__name__)
HISTORY = Path("benchmarks", "history.jsonl")
SHOWN = 5  # runs side by side: more do not fit on a phone


@functools.cache
def history(path: Path) -> tuple[dict, ...]:
    """All saved runs, the oldest first, each with its rows; none without a file, which is then said once."""
    if not path.is_file():
        logger.warning("benchmarks: there is no %s; make bench ARGS=--save writes it", HISTORY)
        return ()
    runs = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return tuple(run | {"rows": [comparisons.Row(**row) for row in run["rows"]]} for run in runs)


def bars(run: dict) -> str:
    """How many bars of a run hold."""
    held = [row.holds for row in run["rows"] if row.holds is not None] + list(run["checks"].values())
    return f"{sum(held)} of {len(held)}"


def note(text: str) -> str:
    """A further paragraph of a cell, in small print."""
    return f"\n\n```{{div}} scorecard-note\n{escape(text)}\n```" if text else ""


def of_attack(rows: list[comparisons.Row]) -> list[str]:
    """MyST of a table of comparisons."""
    lines = [["Comparison", "Theirs", "Ours", "Times better", "Bar"]]
    for row in rows:
        said = {name: escape(text) for name, text in row.said.items()}
        what = f"**{said['case']}**: {said['measure']}" + note(f"against {row.said['peer']}")
        badge = {True: " {bdg-success}`holds`", False: " {bdg-danger}`fails`", None: ""}[row.holds]
        better = said["times better"] + note(row.said["middle half"])
        lines.append([what, said["peer's"], said["ours"], better, f"{said['bar']}{badge}"])
    return list_table(lines, "scorecard comparisons longtable", "42 14 14 16 14")


def of_runs(runs: tuple[dict, ...]) -> list[str]:
    """MyST of two tables: the last runs, the newest first, and the ratios of each, the newest on the right."""
    numbered = list(enumerate(runs, 1))[-SHOWN:]
    lines = [["Run", "Commit, machine", "Seconds", "Bars that hold"]]
    for number, run in reversed(numbered):
        where = f"`{run['commit']}`" + note(f"{run['machine']}; load before the start {run['load']:.1f}")
        when = f"{number}, on {run['date'][:10]}"
        lines.append([when, where, f"{run['seconds']:.0f}", bars(run)])
    text = list_table(lines, "comparisons-runs", "22 44 14 20")

    newest = {row.key: row for row in runs[-1]["rows"]} if runs else {}
    before = [{row.key: row for row in run["rows"]} for _, run in numbered]
    lines = [["Times better", *(f"run {number}" for number, _ in numbered)]]
    for key, row in newest.items():
        said = [run[key].said["times better"] if key in run else "" for run in before]
        what = f"**{row.attack}**, {escape(row.case)}: {escape(row.measure)}, against {escape(row.peer)}"
        lines.append([what, *map(escape, said)])
    widths = " ".join([str(100 - 12 * len(numbered)), *["12"] * len(numbered)])
    return [*text, *list_table(lines, "comparisons-history longtable", widths)]


class OfRuns(MystDirective):
    """Base of directives that look at the saved runs."""

    @property
    def runs(self) -> tuple[dict, ...]:
        """All saved runs; the page is written anew when there is another one."""
        path = Path(self.env.srcdir, HISTORY)
        self.env.note_dependency(str(path))
        return history(path)


class Table(OfRuns):
    """The comparisons of one attack in the last run."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [row for row in self.runs[-1]["rows"] if row.attack == self.arguments[0]] if self.runs else []
        if self.runs and not rows:
            logger.warning("benchmarks: the last run compares nothing of %r", self.arguments[0])
        return self.parse(of_attack(rows)) if rows else []


class Checks(OfRuns):
    """The bars of the last run that compare with nobody."""

    def run(self) -> list[nodes.Node]:
        """Return a list."""
        checks = self.runs[-1]["checks"] if self.runs else {}
        badges = {True: "{bdg-success}`holds`", False: "{bdg-danger}`fails`"}
        return self.parse([f"- {badges[holds]} {escape(text)}" for text, holds in checks.items()])


class History(OfRuns):
    """The last runs side by side."""

    def run(self) -> list[nodes.Node]:
        """Return both tables."""
        return self.parse(of_runs(self.runs)) if self.runs else []


def say(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, *_: object, **__: object
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A fact of the last run: date, commit, machine, load, seconds, preparation or bars."""
    runs = history(Path(inliner.document.settings.env.srcdir, HISTORY))
    if not runs:
        return [], []
    run = runs[-1]
    facts = {name: run[name] for name in ("commit", "machine")}
    facts |= {"date": run["date"][:10], "bars": bars(run), "load": f"{run['load']:.1f}"}
    facts |= {name: f"{run[name]:.0f}" for name in ("seconds", "preparation")}
    if text not in facts:
        logger.warning("benchmarks: a run does not say %r", text)
    return [nodes.Text(facts.get(text, ""))], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives and the role."""
    app.add_directive("benchmarks", Table)
    app.add_directive("benchmarks-checks", Checks)
    app.add_directive("benchmarks-history", History)
    app.add_role("benchmarks", say)
    return {"parallel_read_safe": True}
