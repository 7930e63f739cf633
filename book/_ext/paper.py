"""The book as LaTeX, for `make pdf`: what the website says with HTML, in what LaTeX can set."""

from html.parser import HTMLParser

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_proof.nodes import proof_node

from gradleak_lib.book.results import commit

# The chapters of the papers bear the numbers of the website. What comes before has none, what follows has letters.
NUMBERS = {
    "Foundations": r"\setcounter{secnumdepth}{-1}",
    "The papers": r"\setcounter{secnumdepth}{2}",
    "What came out": r"\appendix",
}
PAGE = 30  # rows, and
TEXT = 2500  # characters, of a table that fits on a page


class Reader(HTMLParser):
    """Caption, head and body of a table as pandas writes it; a cell is its text and how many columns it spans."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.caption = ""
        self.head: list[list[tuple[str, int]]] = []
        self.body: list[list[tuple[str, int]]] = []
        self.part = self.body
        self.wanted = False
        self.said = ""
        self.below: dict[int, int] = {}  # rows to come, by column, of a cell that spans them
        self.span = (1, 1)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("thead", "tbody"):
            self.part = self.head if tag == "thead" else self.body
        elif tag == "tr":
            self.part.append([])
        elif tag in ("th", "td", "caption"):
            given = dict(attrs)
            self.span = int(given.get("rowspan") or 1), int(given.get("colspan") or 1)
            self.wanted, self.said = True, ""
            if tag != "caption":
                self.leave_blank()

    def handle_data(self, data: str) -> None:
        if self.wanted:
            self.said += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.caption = self.said.strip()
        elif tag in ("th", "td"):
            if self.span[0] > 1:
                self.below[self.column] = self.span[0] - 1
            self.part[-1].append((self.said.strip(), self.span[1]))
        elif tag == "tr":
            self.leave_blank()
        self.wanted = self.wanted and tag not in ("caption", "th", "td")

    @property
    def column(self) -> int:
        """Where the next cell stands."""
        return sum(span for _, span in self.part[-1])

    def leave_blank(self) -> None:
        """Under a cell that spans rows nothing is said again; LaTeX could not break such a cell over pages."""
        while self.below.get(self.column, 0):
            self.below[self.column] -= 1
            self.part[-1].append(("", 1))


def table(text: str) -> list[nodes.Node]:
    """The table in some HTML, small."""
    found = Reader(text)
    if not any(said for row in found.head for said, _ in row):
        found.head = []
    rows = [*found.head, *found.body]
    columns = max(sum(span for _, span in row) for row in rows)
    widths = [1] * columns
    for row in rows:
        at = 0
        for said, span in row:
            if span == 1:
                word = max(map(len, said.split()), default=0)
                widths[at] = max(widths[at], word, 0 if row in found.head else min(len(said), 40))
            at += span
    long = len(rows) > PAGE or sum(len(said) for row in rows for said, _ in row) > TEXT
    group = nodes.tgroup("", cols=columns)
    group += [nodes.colspec("", colwidth=width + 3) for width in widths]
    for part, mine in ((nodes.thead, found.head), (nodes.tbody, found.body)):
        if mine:
            group += part("", *(line(row) for row in mine))
    whole = nodes.table("", group, classes=["longtable", "colwidths-given"] if long else ["colwidths-auto"])
    size = r"\scriptsize" if columns > 7 or long else r"\footnotesize"
    out: list[nodes.Node] = [nodes.raw("", rf"\begingroup{size}", format="latex"), whole]
    if found.caption:
        out[1:1] = [nodes.paragraph("", found.caption), nodes.raw("", r"\nobreak", format="latex")]
    # A long table counts itself though it has no caption, and the next one would miss a number.
    end = r"\addtocounter{table}{-1}\endgroup" if long else r"\endgroup"
    return [*out, nodes.raw("", end, format="latex")]


def line(cells: list[tuple[str, int]]) -> nodes.row:
    """One row; a cell that says nothing has no paragraph, which would be a line."""
    row = nodes.row()
    for said, span in cells:
        row += nodes.entry("", *([nodes.paragraph("", said)] if said else []), morecols=span - 1)
    return row


class Tables(SphinxPostTransform):
    """Set the tables of notebooks, which come as HTML, and the small print in those of claims."""

    default_priority = 5  # when myst-nb has chosen from what an output offers
    formats = ("latex",)

    def run(self, **kwargs: object) -> None:
        for raw in list(self.document.findall(nodes.raw)):
            if raw["format"] == "html" and "<table" in raw.astext():
                raw.replace_self(table(raw.astext()))
        for note in list(self.document.findall(nodes.container)):
            if "scorecard-note" in note["classes"]:
                note.children[0].insert(0, nodes.raw("", r"\footnotesize ", format="latex"))
                note.replace_self(note.children)


class Boxes(SphinxPostTransform):
    """Make the title of a card a line of its own, which bears the card's link; take proofs out of their boxes."""

    default_priority = 50  # when links are resolved
    formats = ("latex",)

    def run(self, **kwargs: object) -> None:
        for card in list(self.document.findall(lambda node: is_design(node, "card"))):
            title = next(card.findall(lambda node: is_design(node, "card-title")), None)
            link = next((node for node in card.findall(nodes.reference) if stretched(node)), None)
            if title is None:
                continue
            said: nodes.Node = nodes.strong("", title.astext())
            if link is not None:
                link.parent.parent.remove(link.parent)
                link.children = []
                link += said
                said = link
            room = nodes.raw("", r"\needspace{4\baselineskip}", format="latex")
            title.replace_self([room, nodes.paragraph("", "", said)])
        for proof in list(self.document.findall(proof_node)):
            proof.replace_self(nodes.block_quote("", *proof[0].children))


def is_design(node: nodes.Node, name: str) -> bool:
    """Whether a node is that component of sphinx-design."""
    return isinstance(node, nodes.container) and node.get("design_component") == name


def stretched(link: nodes.reference) -> bool:
    """Whether a link is that of a whole card."""
    return any(
        "sd-stretched-link" in node.get("classes", ()) for node in [link, *link.findall(nodes.Element)]
    )


class Parts(SphinxPostTransform):
    """Number the chapters, and leave out an empty one."""

    default_priority = 800  # when sphinx-jupyterbook-latex has made the parts
    formats = ("latex",)

    def run(self, **kwargs: object) -> None:
        for part in list(self.document.findall(nodes.section)):
            if part.get("docname") in NUMBERS:
                before = nodes.raw("", NUMBERS[part["docname"]], format="latex")
                place = part.parent.parent
                place.insert(place.index(part.parent), before)
        for page in list(self.document.findall(addnodes.start_of_file)):
            if page["docname"] == "book/references":  # Sphinx has moved the literature to the end
                page.parent.remove(page)


def configure(app: Sphinx) -> None:
    """Change what holds for paper only."""
    if app.builder.format != "latex":
        return
    # The theme of sphinx-jupyterbook-latex loads packages that take Debian a gigabyte, and that no page needs.
    app.config.latex_theme = "manual"
    app.config.numfig_secnum_depth = 1
    app.builder.context["release"] = commit()


def count_from_parts(app: Sphinx, env: BuildEnvironment) -> None:
    """For LaTeX a chapter is the second level, for the numbers that Sphinx gives itself it is the first."""
    if app.builder.format == "latex":
        app.config.numfig_secnum_depth = 2


def setup(app: Sphinx) -> dict[str, bool]:
    """Come after sphinx-jupyterbook-latex, which listens at the default priority, 500."""
    app.connect("builder-inited", configure, priority=900)
    app.connect("env-check-consistency", count_from_parts)
    for transform in (Tables, Boxes, Parts):
        app.add_post_transform(transform)
    return {"parallel_read_safe": True}
