"""What the extensions that fill pages share: text that MyST takes as it stands, tables, directives made of MyST."""

import re
from collections.abc import Iterable, Sequence

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def escape(text: str) -> str:
    """Text that MyST takes as it stands."""
    return re.sub(r"([\\`*_{}\[\]<>$|~#^])", r"\\\1", text)


def list_table(rows: Iterable[Sequence[object]], name: str, widths: str = "") -> list[str]:
    """MyST of a table of this class whose first row is its head; a cell may have several lines."""
    text = ["```{list-table}", ":header-rows: 1", f":class: {name}"]
    text += [f":widths: {widths}", ""] if widths else [""]
    for cells in rows:
        for number, cell in enumerate(cells):
            first, *rest = str(cell).split("\n")
            text.append(f"{'* -' if number == 0 else '  -'} {first}".rstrip())
            text += [f"    {line}".rstrip() for line in rest]
    return [*text, "```", ""]


class MystDirective(SphinxDirective):
    """Base of directives that write MyST."""

    def parse(self, text: list[str]) -> list[nodes.Node]:
        """Nodes of MyST text."""
        container = nodes.container()
        self.state.nested_parse(StringList(text, self.env.docname), self.content_offset, container)
        return container.children
