"""At the end of every page: when, from which commit, on what and with what it was made, and how to repeat it.

Above everything else stands what was not computed with the default parameters.
"""

import datetime
import html
import platform
from importlib import metadata
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from gradleak_lib.book.chapters import executed_chapters, provenance_of
from gradleak_lib.book.claims import KEY
from gradleak_lib.book.parameters import declared
from gradleak_lib.book.results import commit

PACKAGES = ("jupyter-book", "sphinx", "myst-nb", "torch")
SUMMARIES = ("book/index", "book/scorecard", "book/findings")  # pages with numbers from several chapters


def of_text() -> dict[str, object]:
    """Provenance of a page that nothing computes."""
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions,
        "command": "make book",
    }


def as_html(facts: dict[str, object]) -> str:
    """A line for everybody, the rest folded."""
    seconds = facts.get("seconds")
    line = f"{'Computed' if seconds else 'Built'} on {str(facts['date'])[:10]} from commit {facts['commit']}"
    line += f" in {float(str(seconds)):.0f} seconds" if seconds else ""
    rows = []
    for name in ("date", "commit", "device", "versions", "parameters", "seconds", "command"):
        value = facts.get(name)
        if value is None:
            continue
        said = (
            ", ".join(f"{key} {part}" for key, part in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        said = f"<code>{html.escape(said)}</code>" if name == "command" else html.escape(said)
        rows.append(f"<dt>{name}</dt><dd>{said}</dd>")
    return (
        f'<details class="provenance"><summary>{html.escape(line)}</summary>'
        f"<dl>{''.join(rows)}</dl></details>"
    )


def shown_on(page: str, root: Path) -> list[Path]:
    """Executed chapters whose numbers stand on a summary: those that check claims, and those that the page names."""
    text = Path(root, f"{page}.md").read_text(encoding="utf-8")
    return [
        path
        for path in executed_chapters(root)
        if f"{path.name}::" in text or KEY in path.read_text(encoding="utf-8")
    ]


def defaults(source: Path) -> dict[str, object]:
    """The parameters that a chapter declares, with their values."""
    return {name: parameter.default for name, parameter in declared(source).items()}


def warning(notebooks: list[Path], sources: Path) -> str:
    """Say which chapters were run with other parameters than the defaults, and how to go back; "" if none was."""
    records = {path.stem: provenance_of(path) for path in notebooks}
    others = {
        name: str(record["command"])
        for name, record in records.items()
        if record and record["parameters"] != defaults(sources / f"{name}.md")
    }
    if not others:
        return ""
    lines = "".join(
        f"<li><code>{html.escape(command)}</code> (back to the defaults: <code>gradleak run {name}</code>)</li>"
        for name, command in others.items()
    )
    return (
        '<div class="admonition note"><p class="admonition-title">Not the default parameters</p>'
        f"<p>Numbers on this page come from</p><ul>{lines}</ul></div>"
    )


def add(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Write them over and under the text of a page."""
    if "body" in context:
        notebook = Path(app.srcdir, f"{page}.ipynb")
        facts = provenance_of(notebook)
        shown = [notebook] if facts else shown_on(page, Path(app.srcdir)) if page in SUMMARIES else []
        said = warning(shown, Path(app.srcdir, "notebooks"))
        context["body"] = context["body"].replace("</h1>", "</h1>" + said, 1)
        context["body"] += as_html(facts or of_text())


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen for pages that are about to be written."""
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True}
