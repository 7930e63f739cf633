"""The command line: execute the chapters, print the scorecard, fetch a data set."""

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

import gradleak_lib
from gradleak_lib.book.terminal import err, fail, out, points_bar, progress_bars, progress_lines, say_end

if TYPE_CHECKING:
    from gradleak_lib.book.execution import Outcome
    from gradleak_lib.book.planning import Run

# What a command needs it imports itself: the help must not wait for torch, jupytext and papermill.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class _Pairs(TyperCommand):
    """A command whose ``-p`` takes two words, as papermill's does: typer has no list of pairs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join ``-p NAME VALUE`` into ``-p NAME=VALUE``, which is taken as it stands."""
        joined, rest = [], list(args)
        while rest:
            word = rest.pop(0)
            joined.append(word)
            if word in ("-p", "--parameter") and rest:
                pair = rest.pop(0)
                if rest and not re.match(r"\w+=", pair):
                    pair = f"{pair}={rest.pop(0)}"
                joined.append(pair)
        return super().parse_args(ctx, joined)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"gradleak {gradleak_lib.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Privacy leaks in federated learning: run the chapters, fetch the data."""


@app.command(cls=_Pairs)
def run(
    chapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHAPTER]...", help="'04', its name, or its path; all if none."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME VALUE", help="Set a parameter; may be repeated."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="YAML file of parameters.")] = None,
    profile: Annotated[str, typer.Option(help="Scale of the run: smoke, cpu or paper.")] = "cpu",
    jobs: Annotated[int, typer.Option(help="How many chapters at a time.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run what is up to date, too.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Write the measurements to results/.")] = False,
) -> None:
    """Execute chapters into book/chapters/. What is up to date is left alone."""
    from gradleak_lib.book import parameters, planning
    from gradleak_lib.book.chapters import UsageError

    try:
        values = parameters.read_file(file) if file else {}
        values |= _parse_pairs(parameter or [])
        runs = planning.plan(chapters or [], values, profile=profile, data=data, record=record)
        if jobs < 1:
            raise UsageError(f"--jobs is {jobs}; it must be 1 or more")
    except UsageError as error:
        raise fail(error) from None
    _warn_of_profile(profile)
    if profile == "smoke" and (data or os.environ.get("GRADLEAK_DATA")):
        said = (
            "the smoke profile looks at no data set but the embedded ones, unless a parameter names another"
        )
        err.print(f"gradleak: {said}", style="yellow")
    # A run that is to be recorded has to happen.
    due = [one for one in runs if force or record or not one.up_to_date]
    for one in runs:
        if one not in due:
            from gradleak_lib.book.execution import refresh

            out.print(f"{one.name}: up to date" + (", with new words" if refresh(one) else ""))
    if any(outcome.error for outcome in _run_with_progress(due, jobs=jobs)):
        raise typer.Exit(1)


def _warn_of_profile(profile: str) -> None:
    """Say so where the papers' own sizes meet a machine without a graphics card."""
    if profile == "paper":
        import torch

        if not torch.cuda.is_available():
            err.print("gradleak: this profile is for a graphics card, and there is none here", style="yellow")


def _parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` words as a mapping, each value read as YAML."""
    import yaml

    from gradleak_lib.book.chapters import UsageError

    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-p {pair!r}: give a name and a value, as in `-p seed 1`")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"-p {name}: {value!r} is no YAML value ({type(error).__name__})") from None
    return values


def _run_with_progress(runs: Sequence["Run"], *, jobs: int) -> list["Outcome"]:
    """Execute runs, with a bar a chapter in a terminal and a line now and then in a log."""
    if not runs:
        return []
    from gradleak_lib.book import execution
    from gradleak_lib.book.chapters import UsageError

    show, on_progress = progress_bars(runs) if out.is_terminal else (nullcontext(), progress_lines())

    with show:
        try:
            return execution.run_all(
                runs,
                jobs=jobs,
                on_progress=on_progress,
                on_end=lambda outcome: say_end(outcome.name, outcome),
            )
        except KeyboardInterrupt:
            raise fail("interrupted; what was running has been dropped", 130) from None
        except UsageError as error:
            raise fail(error) from None


@app.command()
def sweep(
    chapter: Annotated[str, typer.Argument(help="'02', its name, or its path.")],
    grid: Annotated[Path, typer.Option(help=r"YAML file of `name: \[value, ...]` lines.")],
    address: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="A dask scheduler; this machine if none.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="How many points at a time on this machine; as many as cores if none.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For the results; sweeps/GRID if none.")
    ] = None,
    profile: Annotated[str, typer.Option(help="What the grid varies: smoke, cpu or paper.")] = "cpu",
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points, and do nothing.")] = False,
) -> None:
    """Execute a chapter at every point of a grid. What is finished is left alone."""
    folder = Path("sweeps", grid.stem) if folder is None else folder
    for ending in ("SIGTERM", "SIGHUP"):  # a closed terminal must not leave workers computing for nobody
        if hasattr(signal, ending):
            signal.signal(getattr(signal, ending), signal.default_int_handler)
    from gradleak_lib.book import execution
    from gradleak_lib.book import sweep as sweeps
    from gradleak_lib.book.chapters import UsageError

    jobs = execution.cores() if jobs is None else jobs
    try:
        points = sweeps.plan_sweep(chapter, sweeps.read_grid(grid), out=folder, profile=profile, data=data)
        finished = [point.run.up_to_date for point in points]
        if dry_run:
            for point, done in zip(points, finished, strict=True):
                out.print(f"{'finished' if done else 'to do   '} {point}", markup=False)
            return
        out.print(f"{len(points)} points, {sum(finished)} of them finished")
        if address is None:
            _warn_of_profile(profile)
        show, on_end = points_bar(len(points) - sum(finished))
        with show:
            outcomes = sweeps.sweep(points, jobs=jobs, address=address, data=data, on_end=on_end)
        table = sweeps.write_tables(points, outcomes, folder)
    except (UsageError, OSError) as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        raise fail(
            "interrupted; what is finished stays, and the same command goes on from there", 130
        ) from None
    failed = sum(bool(outcome.error) for outcome in outcomes)
    out.print(f"{len(points) - failed} of {len(points)} points have results: {table}", markup=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def study(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="'rtf-fig-3', 'rtf' for all of a paper; all if none."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what is recorded, and what it costs.")] = False,
    size: Annotated[str, typer.Option(help="Which points: smoke, cpu or paper.")] = "paper",
    device: Annotated[str, typer.Option(help="auto takes a GPU if there is one; cpu, cuda.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(help="How many points at a time on this machine; as many as cores if none.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="A dask scheduler; this machine if none.")
    ] = None,
    check: Annotated[
        int | None, typer.Option(metavar="N", help="Compute N recorded points again, and compare.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no point after so many.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For the results; beside the study if none.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run, and do nothing.")] = False,
) -> None:
    """Compute what is missing of the studies that decide claims. What is finished is left alone."""
    for ending in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, ending):
            signal.signal(getattr(signal, ending), signal.default_int_handler)
    from gradleak_lib import models
    from gradleak_lib.book import execution, study_run
    from gradleak_lib.book.chapters import UsageError
    from gradleak_lib.book.studies import load_studies, read_record

    try:
        studies = load_studies(names or [])
        if listing:
            _list_studies(studies, size)
            return
        device = models.choose_device(device).type
        if check is not None:
            differ = 0
            for one in studies:
                lines = study_run.check(one, check, size=size, device=device, data=data, note=True)
                differ += len(lines)
                tried = min(check, len(read_record(one, size).seconds))
                out.print("\n".join(lines) or f"{one.name}: {tried} points as recorded", markup=False)
                sys.stdout.flush()
            if differ:
                raise typer.Exit(1)
            return
        records = [read_record(one, size, folder and folder / one.name) for one in studies]
        missing = sum(len(record.missing) + len(record.missing_pictures) for record in records)
        for record in records:
            total = len(record.study.points(size))
            out.print(f"{record.study.name}: {total - len(record.missing)} of {total} points finished")
        if dry_run:
            return
        show, on_end = points_bar(missing)
        failed = []

        def ended(point: study_run.Ended) -> None:
            told = ", ".join(f"{name}={value}" for name, value in point.point.items())
            outcome = execution.Outcome(point.study.name, point.seconds, point.error)
            failed.extend([point] if point.error else [])
            on_end(f"{point.study.name}, {told}", outcome)

        with show:
            records = study_run.run(
                studies,
                size=size,
                device=device,
                jobs=execution.cores() if jobs is None else jobs,
                address=address,
                data=data,
                out=folder,
                minutes=minutes,
                on_end=ended,
            )
    except (UsageError, OSError, ValueError) as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        raise fail(
            "interrupted; what is finished stays, and the same command goes on from there", 130
        ) from None
    left = sum(len(record.missing) + len(record.missing_pictures) for record in records)
    out.print(f"{missing - left} points and pictures computed, {left} left")
    if failed:
        raise typer.Exit(1)


def _list_studies(studies: Sequence[Any], size: str) -> None:
    """Print a line a study: how much is recorded, minutes, and the verdicts."""
    from gradleak_lib.book.studies import read_record
    from gradleak_lib.book.study_run import code_of

    for one in studies:
        if size not in one.grids:
            out.print(f"{one.name}: has no size {size}")
            continue
        record = read_record(one, size)
        total = len(one.points(size))
        state = "recorded" if record.complete else f"{total - len(record.missing)} of {total} points"
        said = [record.cost if record.seconds else f"about {one.minutes:.0f} min on two cores"]
        if record.runs:
            said.append(f"{record.runs[-1]['date'][:10]}, {record.runs[-1]['device']}")
            by, now = {run["code"] for run in record.runs}, code_of(one)
            if by != {now} and record.checked.get("code") != now:
                said.append("by other code than today's; --check says whether that matters")
        if record.complete:
            said += [f"{claim} {record.verdict(claim).grade}" for claim in one.claims]
        out.print(f"{one.name}: {state}; {'; '.join(said)}", markup=False)


@app.command()
def scorecard(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLAIM]...", help="'llg-04', 'llg' for all of a paper, or a verdict; all if none."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with everything behind the table.")
    ] = False,
) -> None:
    """Print the claims of the papers, with what the executed chapters found; a line each in a pipe."""
    from gradleak_lib.book import chapters as book
    from gradleak_lib.book import scorecard as card
    from gradleak_lib.book.claims import headline, number

    try:
        executed = book.executed_chapters(book.project_root())
        rows = card.select(card.read(executed), which or [])
    except ValueError as error:
        raise fail(error, 1) from None
    if as_json:
        runs = {path.stem: book.provenance_of(path) for path in executed}
        print(json.dumps(card.as_json(rows, runs), indent=1, ensure_ascii=False))
        return
    if not out.is_terminal:
        for row in rows:
            claim = row.finding.claim
            print(claim.id, row.finding.verdict, number(claim), card.ours(row.finding), claim.claim, sep="\t")
        return
    from rich.table import Table
    from rich.text import Text

    for paper, some in card.by_paper(rows).items():
        table = Table(title=f"{paper}: {headline(row.finding for row in some)}", title_justify="left")
        for column in ("claim", "verdict", "paper", "ours", "data", "section"):
            table.add_column(column, overflow="fold")
        for row in some:
            claim = row.finding.claim
            places = ", ".join(f"{one.chapter.split('-')[0]} {one.heading}" for one in row.sections)
            cells = (row.finding.verdict, number(claim), card.ours(row.finding), row.finding.data, places)
            table.add_row(*(Text(cell) for cell in (f"{claim.id} {claim.claim}", *cells)))
        Console(highlight=False).print(table)
    out.print(headline(row.finding for row in rows), markup=False)


@app.command()
def record(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHAPTER]...", help="'04', or the path of an executed notebook; all if none."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare with the records: exit code 1 where they differ.")
    ] = False,
) -> None:
    """Record what executed chapters measured under results/, with its provenance."""
    from gradleak_lib.book import records
    from gradleak_lib.book.chapters import UsageError, project_root
    from gradleak_lib.book.claims import load_claims

    try:
        root, claims = project_root(), load_claims()
        found = [records.from_notebook(path, claims) for path in _executed(notebooks or [], root)]
        if not check:
            for one in found:
                records.check(one, root)
            for one in found:
                out.print(f"{one.chapter}: {records.write(one, root)}", markup=False)
            return
        differ = 0
        for one in found:
            path = root / "results" / one.profile / f"{one.chapter}.json"
            if not path.is_file():
                raise UsageError(f"there is no record {path}; `gradleak record {one.chapter}` writes it")
            lines = records.differences(records.read(path, claims), one)
            differ += len(lines)
            out.print("\n".join(lines) or f"{one.chapter}: every number as recorded", markup=False)
    except ValueError as error:
        raise fail(error) from None
    if differ:
        out.print(f"{differ} numbers differ (recorded, and in the notebook)")
        raise typer.Exit(1)


def _executed(names: Sequence[str], root: Path) -> list[Path]:
    """Paths of executed notebooks: those named, else of all chapters."""
    from gradleak_lib.book.chapters import executed_chapters, find_chapter

    if not names:
        return executed_chapters(root)
    chapters = root / "book" / "chapters"
    return [
        Path(name) if name.endswith(".ipynb") else chapters / f"{find_chapter(name, root).stem}.ipynb"
        for name in names
    ]


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="The data set, such as cifar10.")],
    folder: Annotated[Path | None, typer.Option("--data", help="Where to keep it.")] = None,
) -> None:
    """Download a data set into the data folder."""
    from gradleak_lib import data as datasets

    try:
        datasets.fetch(name, root=folder)
    except datasets.MissingData as error:
        raise fail(error, 1) from None
    except ValueError as error:
        raise fail(error) from None
    out.print(f"{name} is in {datasets.data_root(folder)}", markup=False)


if __name__ == "__main__":
    app()
