"""The chapters: which there are, what code they hold, and what their executed notebooks say of themselves."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPLICATION = (
    "-replication"  # ends the name of a page that draws all figures and tables of its chapter's paper
)
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class UsageError(ValueError):
    """What was asked for makes no sense here; the message says what would."""


@dataclass(frozen=True)
class CodeCell:
    """A code cell of a chapter's source: its tags, and its code."""

    tags: tuple[str, ...]
    code: str


def code_cells(notebook: str) -> list[CodeCell]:
    """Return the code cells in the text of a chapter.

    Jupytext, which reads them when they are executed, takes longer to import than a command that only looks.
    """
    found = []
    for block in _CELL.findall(notebook):
        # Options are lines of `:name: value`, or YAML between two lines of dashes; the code follows them.
        options = re.match(r"---\n.*?^---\n|(?::[^\n]*\n)*", block, re.DOTALL | re.MULTILINE)
        length = options.end() if options else 0
        tags = re.search(r"tags: \[(.*?)\]", block[:length])
        code = block[length:].strip("\n")
        found.append(CodeCell(tuple(tag.strip() for tag in tags[1].split(",")) if tags else (), code))
    return found


def project_root() -> Path:
    """Return the folder of the clone that this library was installed from.

    Raises
    ------
    UsageError
        If the library was installed without its clone, so that there are no chapters.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks").is_dir() or not (root / "_toc.yml").is_file():
        raise UsageError(f"no chapters in {root}: clone the repository and run `pip install -e .` there")
    return root


def chapter_sources(root: Path) -> list[Path]:
    """Return the chapters' sources, in the book's order."""
    return sorted((root / "notebooks").glob("[0-9]*-*.md"), key=lambda path: path.stem)


def executed_chapters(root: Path) -> list[Path]:
    """Return the executed notebook of each chapter, in the book's order.

    Raises
    ------
    UsageError
        If a chapter has none.
    """
    executed = [root / "book" / "chapters" / f"{source.stem}.ipynb" for source in chapter_sources(root)]
    missing = [path.stem for path in executed if not path.is_file()]
    if missing:
        raise UsageError(f"{', '.join(missing)} is not executed; type `gradleak run`")
    return executed


def find_chapter(name: str, root: Path) -> Path:
    """Return the source of the chapter that ``name`` stands for.

    Parameters
    ----------
    name : str
        A number ("4" or "04"), a name ("04-robbing-the-fed") or the path of the source. A replication page is named
        ("04-robbing-the-fed-replication", or "04-replication").
    root : Path
        The clone.

    Raises
    ------
    UsageError
        If no chapter has that name.
    """
    sources = chapter_sources(root)
    for source in sources:
        stem = source.stem
        short = stem.split("-")[0] + (REPLICATION if stem.endswith(REPLICATION) else "")
        if name == stem or name.zfill(len(short)) == short or Path(name).resolve() == source.resolve():
            return source
    known = ", ".join(source.stem for source in sources) or "none"
    raise UsageError(f"no chapter {name!r}; there are: {known}")


def provenance_of(notebook: Path) -> dict[str, Any]:
    """Return the provenance that an executed notebook carries; empty where it has none or is not there.

    One that papermill has executed since, over the file that `gradleak run` wrote, tells of that run: when, for how
    long, with which parameters. It has no key, so that `gradleak run` runs it anew.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        record = content["metadata"].get("gradleak", {})
        since = content["metadata"].get("papermill", {})
        if not since.get("start_time"):
            return record if isinstance(record, dict) else {}
        return {
            "date": since["start_time"][:19] + "+00:00",
            "seconds": round(since.get("duration") or 0.0, 1),
            "commit": record.get("commit", "unknown"),
            "parameters": _values(content["cells"]),
            "command": f"papermill gradleak://{notebook.stem} {notebook.name}",
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _values(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of an executed notebook: the declared values, and those that were put in after them."""
    values: dict[str, Any] = {}
    for cell in cells:
        if {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", ())):
            for line in ast.parse("".join(cell["source"])).body:
                targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                if isinstance(targets[0], ast.Name) and getattr(line, "value", None) is not None:
                    values[targets[0].id] = ast.literal_eval(line.value)  # type: ignore[attr-defined]
    return values
