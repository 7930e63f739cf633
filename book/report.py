"""Print what was built: the time of each chapter, the scorecard, the weight of the website, and its address."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gradleak_lib.book import claims, scorecard
from gradleak_lib.book.chapters import executed_chapters, provenance_of

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"


def times(notebooks: list[Path]) -> Table:
    """One line a chapter: when it was executed, how long it took, and how much its page weighs."""
    table = Table(box=None)
    for column in ("chapter", "executed", "profile"):
        table.add_column(column, no_wrap=True)
    for column in ("seconds", "page, MB"):
        table.add_column(column, justify="right")
    total = 0.0
    for path in notebooks:
        run = provenance_of(path)
        page = SITE / "book" / "chapters" / f"{path.stem}.html"
        total += run["seconds"]
        weight = f"{page.stat().st_size / 1e6:.1f}" if page.is_file() else ""
        profile = str(run["parameters"].get("profile", ""))
        table.add_row(path.stem, run["date"][:16], profile, f"{run['seconds']:.0f}", weight)
    table.add_row("all chapters", "", "", f"{total:.0f}", "")
    return table


def main() -> None:
    """Print it."""
    out = Console(highlight=False, soft_wrap=True)
    notebooks = executed_chapters(ROOT)
    out.print(times(notebooks))
    out.print(claims.headline(row.finding for row in scorecard.read(notebooks)), markup=False)
    files = [path for path in SITE.rglob("*") if path.is_file()]
    weight = sum(path.stat().st_size for path in files) / 1e6
    out.print(f"The book, {len(list(SITE.rglob('*.html')))} pages and {weight:.0f} MB, is at", markup=False)
    out.print((SITE / "index.html").as_uri(), markup=False)


if __name__ == "__main__":
    main()
