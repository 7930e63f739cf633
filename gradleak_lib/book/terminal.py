"""What commands print: errors, what has ended, and how far the rest is."""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gradleak_lib.book.execution import Outcome
    from gradleak_lib.book.planning import Run

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(error: Exception | str, code: int = 2) -> typer.Exit:
    """Print an error, and return what ends the command with this exit code."""
    err.print(f"gradleak: {error}", style="red", markup=False)
    return typer.Exit(code)


def say_end(name: str, outcome: "Outcome") -> None:
    """Print a line on what became of a chapter or a point."""
    if outcome.error:
        message = f"{name}: failed after {outcome.seconds:.0f} s: {outcome.error}"
        message += f" (see {outcome.notebook})" if outcome.notebook else ""
        err.print(message, style="red", markup=False)
    else:
        out.print(f"{name}: done in {outcome.seconds:.0f} s", markup=False)
    sys.stdout.flush()


def progress_bars(
    runs: Sequence["Run"],
) -> tuple[AbstractContextManager[object], Callable[[str, int, int], None]]:
    """Return a bar for each chapter, and a callback that moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=out)
    tasks = {one.name: progress.add_task(one.name, total=None) for one in runs}

    def update(chapter: str, done: int, total: int) -> None:
        progress.update(tasks[chapter], completed=done, total=total)

    return progress, update


def progress_lines(every: float = 15.0) -> Callable[[str, int, int], None]:
    """Return a callback that prints a chapter's progress, at most one line in ``every`` seconds."""
    said: dict[str, float] = {}

    def update(chapter: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - said.get(chapter, -every) >= every:
            said[chapter] = now
            out.print(f"{chapter}: cell {done} of {total}", markup=False)
            sys.stdout.flush()

    return update


def points_bar(total: int) -> tuple[AbstractContextManager[object], Callable[..., None]]:
    """Return a bar of points, and a callback that moves it and prints a line for each point that has ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=out, disable=not out.is_terminal)
    task = progress.add_task("points", total=total)
    ended = itertools.count(1)

    def on_end(point: object, outcome: "Outcome") -> None:
        progress.update(task, advance=1)
        say_end(f"{next(ended)} of {total}: {point}", outcome)

    return progress, on_end
