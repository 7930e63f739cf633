"""Executing chapters: papermill with a kernel each, side by side, and the notebooks that come out.

``notebooks/NN-name.md`` becomes ``book/chapters/NN-name.ipynb``; where a cell fails, ``_build/failed/NN-name.ipynb``.
"""

import contextvars
import datetime
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from traitlets.config import Config

from gradleak_lib.book import claims
from gradleak_lib.book.chapters import UsageError, provenance_of
from gradleak_lib.book.papermill_io import use_own_kernel
from gradleak_lib.book.planning import Run
from gradleak_lib.book.results import GLUED, provenance
from gradleak_lib.files import write_whole

Progress = Callable[[str, int, int], None]  # chapter, cells done, cells in all


@dataclass(frozen=True)
class Outcome:
    """What became of a run; ``error`` is empty where it succeeded, ``notebook`` None where none was written."""

    name: str
    seconds: float
    error: str = ""
    notebook: Path | None = None


class Kernels:
    """The kernels that are running, so that an interrupt can end them."""

    def __init__(self) -> None:
        self._clients: set[PapermillNotebookClient] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def add(self, client: PapermillNotebookClient) -> None:
        with self._lock:
            self._clients.add(client)

    def check(self) -> None:
        """Raise RuntimeError once they are stopped: a kernel that was coming up then has no process to kill."""
        if self.stopped:
            raise RuntimeError("stopped")

    def discard(self, client: PapermillNotebookClient) -> None:
        with self._lock:
            self._clients.discard(client)

    def stop(self) -> None:
        """Kill every kernel; the threads that wait for them then fail, and so end."""
        self.stopped = True
        with self._lock:
            kernels = [client.km for client in self._clients]
        for kernel in kernels:
            pid = getattr(getattr(kernel, "provisioner", None), "pid", None)
            if pid:
                os.kill(pid, signal.SIGKILL)


class _ChapterEngine(Engine):
    """Papermill's own engine, with an environment and a folder for each kernel.

    Papermill's ``cwd=`` changes the folder of the whole process, and the process's environment is one for all
    chapters that run side by side.
    """

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        environment: dict[str, str],
        folder: str,
        on_cell: Callable[[int, int], None],
        kernels: Kernels,
        keep: list[Any],
        start_timeout: int = 120,
        **_: Any,
    ) -> None:
        keep.append(nb_man.nb)
        total = len(nb_man.nb.cells)
        with tempfile.TemporaryDirectory(prefix="gradleak-") as sockets:
            client = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                timeout=None,
                config=_sockets_in(sockets),
                resources={"metadata": {"path": folder}},
                extra_arguments=["--log-level=50"],  # neither advice nor its own end among the progress
                on_cell_start=lambda cell, cell_index: kernels.check(),
                on_cell_complete=lambda cell, cell_index: on_cell(cell_index + 1, total),
            )
            kernels.add(client)
            try:
                kernels.check()
                client.execute(env=environment)
            finally:
                kernels.discard(client)


def _sockets_in(folder: str) -> Config:
    """Jupyter's settings for a kernel that is reached through files of its own instead of TCP ports.

    A kernel's ports are chosen before it comes up, and seconds later another process may have taken one of them.
    Where the system has no such sockets, or the folder's name is too long for one, it stays at ports.
    """
    if os.name != "posix" or len(os.fsencode(folder)) > 80:
        return Config()
    return Config(KernelManager={"transport": "ipc", "connection_file": os.path.join(folder, "kernel.json")})


papermill_engines.register("gradleak", _ChapterEngine)


def run_all(
    runs: Iterable[Run],
    *,
    jobs: int = 1,
    on_progress: Progress | None = None,
    on_end: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Execute chapters, ``jobs`` at a time; one that fails does not stop the others.

    Parameters
    ----------
    runs : iterable of Run
        From ``plan``.
    jobs : int
        How many at a time, 1 or more. The cores are shared out among them.
    on_progress, on_end : callable, optional
        Called with ``(chapter, cells done, cells in all)``, and with each ``Outcome``, from the run's thread.

    Returns
    -------
    list of Outcome
        In the order of ``runs``.

    Raises
    ------
    UsageError
        If ``jobs`` is less than 1, or the notebooks cannot be written where they belong.
    KeyboardInterrupt
        After the kernels have ended; no half-written notebook stays behind.
    """
    runs = list(runs)
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be 1 or more")
    if not runs:
        return []
    check_writable(path.parent for run in runs for path in (run.target, run.failed))
    jobs = min(jobs, len(runs))
    threads = max(1, cores() // jobs)
    kernels = Kernels()

    def one(run: Run) -> Outcome:
        source = run.source.read_text(encoding="utf-8")
        folder = run.source.parent
        done = execute(run, source, folder=folder, threads=threads, kernels=kernels, on_progress=on_progress)
        outcome = write(run, *done)
        if on_end is not None:
            on_end(outcome)
        return outcome

    # Side by side the longest starts first: at the end it would run alone.
    order = sorted(runs, key=_usual_seconds, reverse=True) if jobs > 1 else runs
    with ThreadPoolExecutor(jobs) as pool:
        futures = {run.name: pool.submit(one, run) for run in order}
        try:
            return [futures[run.name].result() for run in runs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kernels.stop()
            raise


def check_writable(folders: Iterable[Path]) -> None:
    """Raise UsageError at a folder that nothing can be written to, before hours go into what belongs there."""
    for folder in set(folders):
        try:
            write_whole(folder / ".writable", "")
            (folder / ".writable").unlink()
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error}") from None


def _usual_seconds(run: Run) -> float:
    """What a chapter took when it last ran here, else when it was recorded; 0 if nobody knows."""
    recorded = run.source.parents[1] / "results" / "cpu" / f"{run.name}.json"
    try:
        known = json.loads(recorded.read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError):
        known = {}
    return float(provenance_of(run.target).get("seconds", known.get("seconds", 0)))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def cores() -> int:
    """Number of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # what a container or a scheduler leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def execute(
    run: Run,
    source: str,
    *,
    folder: Path,
    threads: int,
    kernels: Kernels,
    on_progress: Progress | None = None,
) -> tuple[Outcome, str]:
    """Execute one chapter here, reading and writing no file of the clone.

    Parameters
    ----------
    run : Run
        From ``plan``.
    source : str
        The text of the chapter.
    folder : Path
        Where the kernel runs.
    threads : int
        Threads of the kernel's arithmetic.
    kernels : Kernels
        Takes the kernel in while it runs.
    on_progress : callable, optional
        As in ``run_all``.

    Returns
    -------
    tuple
        What became of it, and the executed notebook as JSON, with the error in it where there was one; empty where
        there is none, because no kernel came up or it was stopped.
    """
    started = datetime.datetime.now(datetime.UTC)
    use_own_kernel()
    environment = {**os.environ, **run.environment}
    environment.pop("MPLBACKEND", None)  # a backend set from outside would show no figure in the notebook
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0"}
    if "GRADLEAK_DATA" in environment:  # the kernel runs in another folder
        environment["GRADLEAK_DATA"] = str(Path(environment["GRADLEAK_DATA"]).expanduser().resolve())
    environment["GRADLEAK_STARTED"] = started.isoformat(timespec="seconds")
    keep: list[Any] = []
    error = ""

    def on_cell(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(run.name, done, total)

    try:
        # In a context of its own: Jupyter keeps its event loop there, and threads that inherit one would share it.
        contextvars.Context().run(
            papermill.execute_notebook,
            jupytext.reads(source, fmt="md"),
            None,
            parameters=dict(run.parameters),
            engine_name="gradleak",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            environment=environment,
            folder=str(folder),
            on_cell=on_cell,
            kernels=kernels,
            keep=keep,
        )
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}".strip()
    except Exception as failure:  # the kernel died or never came up: that is this chapter's failure, not ours
        error = f"{type(failure).__name__}: {failure}".strip()
    seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    outcome = Outcome(run.name, seconds, error)
    if not keep or kernels.stopped:
        return outcome, ""
    facts = provenance(device="cuda" if _has_gpu() else "cpu", started=started) | {
        "seconds": round(seconds, 1),
        "parameters": {**run.defaults, **run.parameters},
        "command": run.command,
    }
    return outcome, _tidy(keep[0], run, facts=facts, error=error)


def write(run: Run, outcome: Outcome, text: str) -> Outcome:
    """Write an executed notebook where it belongs, if there is one; a failed one replaces none that succeeded.

    Returns ``outcome`` with the path.
    """
    if not text:
        return outcome
    notebook = run.failed if outcome.error else run.target
    write_whole(notebook, text)
    if not outcome.error:
        run.failed.unlink(missing_ok=True)
    return replace(outcome, notebook=notebook)


def refresh(run: Run) -> bool:
    """Put what has no part in a run's key into its executed notebook: new prose, captions, comments, verdicts.

    Returns whether anything was new.
    """
    executed = nbformat.reads(run.target.read_text(encoding="utf-8"), as_version=4)
    now = jupytext.reads(run.source.read_text(encoding="utf-8"), fmt="md")
    injected = {
        index: cell for index, cell in enumerate(executed.cells) if "injected-parameters" in _tags(cell)
    }
    ran = iter(
        cell
        for cell in executed.cells
        if cell.cell_type == "code" and "injected-parameters" not in _tags(cell)
    )
    for cell in now.cells:
        if cell.cell_type == "code":
            before = next(ran)
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    for cell in injected.values():
        now.cells.insert(1 + next(i for i, one in enumerate(now.cells) if "parameters" in _tags(one)), cell)
    _with_verdicts(now)
    now.metadata = executed.metadata
    text = _as_text(now, run)
    new = text != run.target.read_text(encoding="utf-8")
    if new:
        write_whole(run.target, text)
    return new


def _with_verdicts(notebook: Any) -> None:
    """Write the table of claims and its headline anew: verdicts follow from rules, which may have changed."""
    known = claims.load_claims()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    measured = [output.get("metadata", {}).get(claims.KEY, {}) for output in outputs]
    found = {one.claim.id: one for each in measured for one in claims.from_json(each, known)}
    ordered = [found[name] for name in known if name in found]
    for output in outputs:
        metadata = output.get("metadata", {})
        if metadata.get(claims.TABLE):
            output["data"] = claims.bundle(ordered)
        elif metadata.get("scrapbook", {}).get("name") == claims.HEADLINE:
            output["data"] = {GLUED: repr(claims.headline(ordered))}


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def _tidy(notebook: Any, run: Run, *, facts: Mapping[str, Any], error: str) -> str:
    """Return an executed notebook as JSON, with where it comes from."""
    if error and not any(cell.metadata.get("papermill", {}).get("exception") for cell in notebook.cells):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This run stopped:** `{error}`"))
    notebook.metadata.gradleak = {**facts, "error": error} if error else {**facts, "key": run.key}
    return _as_text(notebook, run)


def _as_text(notebook: Any, run: Run) -> str:
    """Return a notebook as JSON, the same text for the same outputs: no random ids, no timings in cells."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{run.name[:50]}-{number}"
        for transient in ("papermill", "execution"):
            cell.metadata.pop(transient, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and "hide-input" not in tags:
            cell.metadata.tags = [*tags, "hide-input"]
        elif not tags:
            cell.metadata.pop("tags", None)
    for transient in ("papermill", "jupytext"):
        notebook.metadata.pop(transient, None)
    # Papermill leaves the kernel's name out, without which the pages have no syntax colours.
    notebook.metadata.kernelspec = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    numbers = {model: f"{number:032x}" for number, model in enumerate(widgets.get("state", {}))}
    return re.sub(r"[0-9a-f]{32}", lambda match: numbers.get(match[0], match[0]), text)
