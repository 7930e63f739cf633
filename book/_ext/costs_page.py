"""The page on costs: tables of ``results/*/costs.json`` and of the formulas, and numbers of them in a sentence."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import costs_tables
from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx
from sphinx.util import logging
from tables import MystDirective, list_table

logger = logging.getLogger(__name__)

OF_RECORDS: dict[str, Callable[[costs_tables.Values], list[list[str]]]] = {
    "crowds": costs_tables.sizes_of_crowds,
    "identification": costs_tables.times_of_crowds,
    "catches": costs_tables.catches,
    "hosts": costs_tables.hosts,
    "by-aggregate": costs_tables.by_aggregate,
    "single": costs_tables.single,
}


@functools.cache
def records(root: Path) -> tuple[tuple[str, costs_tables.Values, dict[str, str]], ...]:
    """Folder, values and provenance of each record, that of the CPU first; without it there is no page."""
    paths = sorted((root / "results").glob("*/costs.json"), key=lambda path: path.parent.name != "cpu")
    if not paths or paths[0].parent.name != "cpu":
        logger.warning("costs: there is no results/cpu/costs.json; python benchmarks/scale.py writes it")
        return ()
    found = [(path.parent.name, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return tuple((name, record["values"], record["provenance"]) for name, record in found)


@functools.cache
def facts(root: Path) -> dict[str, str]:
    """Numbers of sentences, by name, from the record of the CPU."""
    return costs_tables.facts(root, *records(root)[0][1:])


class Table(MystDirective):
    """One of the tables, once for each device that was measured."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the tables."""
        root, name = Path(self.env.srcdir), self.arguments[0]
        for path in [*root.glob("results/*/costs.json"), *root.glob("book/chapters/*.ipynb")]:
            self.env.note_dependency(str(path))
        lines: list[str] = []
        found = records(root)
        if name == "work":
            lines = list_table(costs_tables.work(root), "costs")
        elif name == "profiles" and found:
            lines = list_table(costs_tables.profiles(root, found[0][1]), "costs")
        elif name in OF_RECORDS:
            for folder, values, source in found:
                heading = [f"On `{folder}` ({source['device']}):", ""] if len(found) > 1 else []
                lines += [*heading, *list_table(OF_RECORDS[name](values), "scorecard-summary")]
        elif found:
            logger.warning("costs: there is no table %r", name, location=self.get_location())
        return self.parse(lines)


def say(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, *_: object, **__: object
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A number of the record of the CPU, or one that a formula makes of it."""
    root = Path(inliner.document.settings.env.srcdir)
    said = facts(root).get(text) if records(root) else ""
    if said is None:
        logger.warning("costs: there is no number %r", text)
    return [nodes.Text(said or "")], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive and the role."""
    app.add_directive("costs", Table)
    app.add_role("cost", say)
    return {"parallel_read_safe": True}
