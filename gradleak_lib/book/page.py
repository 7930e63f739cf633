"""What every chapter does besides its science: begin, compute side by side, say numbers, check claims, end.

A chapter begins with ``page = Page("02-llg", globals(), paper="wainakh2022llg")`` after the cell of its parameters.
"""

import base64
import contextlib
import html
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from myst_nb import glue
from pandas.io.formats.style import Styler

from gradleak_lib import models
from gradleak_lib.book import claims, plots, results, scorecard, studies, study_run
from gradleak_lib.book.chapters import REPLICATION, find_chapter, project_root
from gradleak_lib.book.execution import cores
from gradleak_lib.book.parameters import checked, declared
from gradleak_lib.book.planning import command_of
from gradleak_lib.book.studies import Record


class Page:
    """One chapter while it runs.

    Parameters
    ----------
    chapter
        Its name, such as ``"02-llg"``.
    values
        The notebook's ``globals()``: its parameters are read from there.
    paper
        Key of the paper whose claims it checks, in ``book/references.bib``; None: claims of all papers.
    threads
        Threads of torch in this process; None: as many as it has. Small networks are faster with one.

    Raises
    ------
    UsageError
        If a parameter's value cannot stand there: papermill and Jupyter do not look before the kernel starts.
    """

    def __init__(
        self, chapter: str, values: Mapping[str, Any], *, paper: str | None = None, threads: int | None = None
    ) -> None:
        self._started = time.perf_counter()
        there = declared(find_chapter(chapter, project_root()))
        given = {name: values[name] for name in there}
        # The cell may run a second time, after `device = page.device`.
        if isinstance(given.get("device"), torch.device):
            given["device"] = given["device"].type
        self.parameters = checked(chapter, given, there)
        self._changed = {n: v for n, v in self.parameters.items() if v != there[n].default}
        self.chapter = chapter
        self.device = models.choose_device(self.parameters.get("device", "cpu"))
        self._claims, self._findings = claims.load_claims(paper), dict[str, claims.Finding]()
        self._records: dict[str, Record] = {}
        self._drawn: set[str] = set()  # studies that have been drawn
        self._all_wanted = paper is not None
        if threads is not None:
            torch.set_num_threads(threads)
        # A process that has grown is replaced by a new one; nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
        plots.use_theme()

    def parallel(self, function: Callable[..., Any], tasks: Iterable[Sequence[Any]]) -> list[Any]:
        """Results of a function for several tuples of arguments, in processes side by side, one thread each.

        The chapter's parameter ``jobs`` says how many; 1 computes in this process.
        """
        calls = (joblib.delayed(function)(*task) for task in tasks)
        with joblib.parallel_config(backend="loky", n_jobs=self.parameters["jobs"], inner_max_num_threads=1):
            return joblib.Parallel()(calls)

    def say(self, **values: Any) -> None:
        """Give numbers or words to the text of the page, which says them as ``{glue:text}`name:.1f```.

        Whole numbers stay whole. The name of a number that depends on the machine begins with ``run_``.
        """
        for name, value in values.items():
            if isinstance(value, torch.Tensor | np.generic):
                value = value.item()
            glue(name, value, display=False)

    def check(self, claim: str, measured: claims.Measured, reason: str = "", *, data: str) -> None:
        """Put what was measured beside a claim; the scorecard finds it under the heading where this stands.

        Parameters
        ----------
        claim
            ``"llg-04"``.
        measured, reason, data
            As for `claims.judge`. Nothing, or NaN: the claim is not measured in this run.
        """
        finding = claims.judge(self._claims[claim], measured, reason=reason, data=data)
        self._findings[claim] = finding
        # Glue's own way to keep an output off the page.
        hidden = {"name": claim, "mime_prefix": "application/papermill.record/"}
        display(
            {"application/papermill.record/text/plain": finding.verdict},
            raw=True,
            metadata={"scrapbook": hidden, claims.KEY: claims.as_json([finding])},
        )

    def claims(self, *, elsewhere: Iterable[str] = ()) -> None:
        """Display the table of claims with what was found, and say its ``headline``.

        One of the chapter's own paper that no section has checked was not measured in this run.

        Parameters
        ----------
        elsewhere
            Claims of the paper that another chapter checks: they are left out.
        """
        there = self._claims if self._all_wanted else self._findings
        wanted = [name for name in self._claims if name in there and name not in set(elsewhere)]
        for name in [name for name in wanted if name not in self._findings]:
            self.check(name, {}, data="")
        ordered = [self._findings[name] for name in wanted]
        self.say(**{claims.HEADLINE: claims.headline(ordered)})
        claims.show(ordered)

    def study(self, name: str) -> Record:
        """Return what is known of a study, and mark this section as the one that draws it.

        With the parameter ``studies`` at ``"run"``, all studies of the chapter are first run at the size that the
        parameter ``size`` says, where points are missing; otherwise what is recorded at the paper's size is drawn.

        A study that is registered and not recorded yet has no rows.

        Raises
        ------
        UsageError
            If there is no such study, or its record was made under other rules.
        """
        if not self._records:
            self._records = self._run_studies() if self.parameters.get("studies") == "run" else {}
        if name not in self._records:
            [study] = studies.load_studies([name])
            self._records[name] = studies.read_record(study)
        record = self._records[name]
        if name not in self._drawn:
            self._drawn.add(name)
            # Glue's own way to keep an output off the page.
            hidden = {"name": f"study {name}", "mime_prefix": "application/papermill.record/"}
            marked = {"scrapbook": hidden, scorecard.STUDIES: [name]}
            display({"application/papermill.record/text/plain": name}, raw=True, metadata=marked)
        return record

    def _run_studies(self) -> dict[str, Record]:
        chapter = self.chapter.removesuffix(REPLICATION)
        mine = [one for one in studies.load_studies() if one.chapter == chapter]
        size = self.parameters["size"]
        found = study_run.run(mine, size=size, device=self.device.type, jobs=cores())
        return {one.study.name: one for one in found}

    @contextlib.contextmanager
    def figure(self, name: str, **options: Any) -> Iterator[tuple[pd.DataFrame, Any]]:
        """Give the rows of a study and axes to draw them into; the figure is shown, with its provenance under it.

        ``options`` are those of `matplotlib.pyplot.subplots`. Of a study that has no rows yet, nothing is shown but
        that: what is drawn meanwhile may fail.
        """
        record = self.study(name)
        figure, axes = plt.subplots(**options)
        try:
            yield record.rows, axes
        except Exception:
            if len(record.rows):
                raise
        if len(record.rows):
            plt.show()
        plt.close(figure)
        display(Markdown(self.source(record)))

    def lines(
        self, name: str, x: str, y: str, *, rows: str = "", hue: str | None = None, **labels: Any
    ) -> None:
        """Draw a study: the mean of a value over units, with a band of its 95 % interval, and provenance under it.

        Parameters
        ----------
        name
            The study.
        x, y, hue
            Columns, or expressions of columns, as `pandas.DataFrame.eval` takes them.
        rows
            Which rows, as `pandas.DataFrame.query` takes it; empty: all.
        labels
            What `matplotlib.axes.Axes.set` takes: ``xlabel``, ``ylabel``, ``xscale``, ``ylim``; ``xticks`` are the
            only ones, where they are given.
        """
        with self.figure(name) as (table, ax):
            some = table.query(rows) if rows else table
            drawn = pd.DataFrame({column: some.eval(column) for column in (x, y, hue) if column is not None})
            plots.lines(drawn, x, y, hue=hue, ax=ax)
            ax.set(**labels)
            if "xticks" in labels:
                ax.set_xticks(labels["xticks"], map(str, labels["xticks"]))
                ax.minorticks_off()
            if hue is not None:
                plots.legend_above(ax, title=hue)

    def pictures(
        self, name: str, picture: str, alt: str, *, only: Sequence[str] = (), stacked: bool = False
    ) -> None:
        """Display the panels of a recorded picture of a study, with its provenance under them.

        They stand beside each other, or, where each is one long row, below each other; ``only`` those of some titles.
        """
        record = self.study(name)
        if record.size != "paper":  # pictures are those that are recorded
            record = studies.read_record(record.study)
        panels = [
            f'<figure><img alt="{html.escape(f"{title.strip()}: {alt}")}" '
            f'src="data:image/webp;base64,{base64.b64encode((record.study.folder / file).read_bytes()).decode()}">'
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
            for title, file in record.pictures.get(picture, {}).items()
            if not only or title in only
        ]
        if panels:
            display(
                {
                    "text/html": f'<div class="panels{" stacked" * stacked}">{"".join(panels)}</div>',
                    "text/plain": alt,
                },
                raw=True,
            )
        elif record.runs:
            display(Markdown("*This picture is not recorded yet.*"))
        display(Markdown(self.source(record)))

    def source(self, record: Record) -> str:
        """Say in a line of Markdown where the numbers of a study come from, and how to repeat them."""
        study = record.study
        command = f"`gradleak study {study.name}`"
        if not record.runs:
            return f"*Study `{study.name}` is registered and not recorded yet; {command} runs it.*"
        run = next(
            (one for one in reversed(record.runs) if one["points"]), record.runs[-1]
        )  # not of pictures
        if record.size != "paper":
            return f"*Computed at size {record.size} on {run['device']}; {command} computes it at the paper's size.*"
        done = (
            ""
            if record.complete
            else f", {len(record.seconds)} of {len(study.points('paper'))} points so far"
        )
        again = f", checked at {commit}" if (commit := record.checked.get("commit")) else ""
        return (
            f"*Study `{study.name}`, recorded on {run['date'][:10]}{done}: {record.cost}, {run['device']}, commit "
            f"{run['commit']}{again}. {command} repeats it.*"
        )

    def decisions(self, *names: str) -> None:
        """Display the claims that some studies decide: the rule of each, what was found, and the verdict."""
        found: list[scorecard.Decision] = []
        for name in names:
            found += scorecard.decide(self._claims, [self.study(name)]).values()
        for one in found:
            paper = f"; the paper: {number}" if (number := claims.number(one.claim)) != "no number" else ""
            display(
                Markdown(f"**{one.claim.id}, {one.verdict}.** {one.claim.claim} ({one.claim.where}{paper})")
            )
            if one.judged is not None:
                rows = scorecard.table(one.judged)
                html = rows.to_html(index=False, border=0, classes="claims decided")
                display({"text/html": html, "text/plain": rows.to_string(index=False)}, raw=True)
            outcome = ["*Outcome:*", one.reason] if one.reason else []
            display(Markdown(" ".join(["*Why this rule:*", *one.rules, *outcome])))

    def provenance(self, **more: str) -> Styler:
        """Return the table with which a chapter ends: when and with what it was made, and how to repeat it."""
        seconds, memory = time.perf_counter() - self._started, results.peak_memory()
        self.say(run_seconds=seconds, run_memory=memory)
        facts = results.provenance(device=self.device)
        rows = {name: results.as_text(value) for name, value in facts.items()}
        rows |= {name: str(self.parameters[name]) for name in ("seed", "profile") if name in self.parameters}
        rows |= more | {"seconds": f"{seconds:.0f}", "peak memory": f"{memory:.1f} GiB"}
        rows["command"] = os.environ.get("GRADLEAK_COMMAND") or command_of(self.chapter, self._changed)
        return pd.Series(rows, name="").to_frame().style


def table(frame: pd.DataFrame, caption: str, form: str | Mapping[str, str] | None = None) -> Styler:
    """Return a table in the book's style: its caption, a dash where nothing was measured, no index of row numbers.

    Parameters
    ----------
    frame
        The table.
    caption
        What it shows.
    form
        Format of all numbers, such as ``"{:.1f}"``, or by column.
    """
    style = frame.style.format(form, na_rep="–").set_caption(caption)
    return style.hide(axis="index") if isinstance(frame.index, pd.RangeIndex) else style
