"""All four benchmarks in their quick form, and one table: how many times better ours is than others, in one run.

    make bench [ARGS=--save]

Exit code 1 where a benchmark or a bar fails. The README beside this file says what is compared.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import comparisons
import environment
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
HISTORY = HERE / "history.jsonl"
LATEST = environment.ROOT / "_build" / "bench.json"
PATIENCE = 20  # seconds that a benchmark has to end itself and what it started
WIDE = 160  # columns of the table where nobody looks at a terminal


@dataclass(frozen=True)
class Script:
    """One benchmark: its file, the arguments of its quick form, and whose environment it needs."""

    path: Path
    arguments: tuple[str, ...] = ()
    peer: environment.Peer | None = None

    @property
    def name(self) -> str:
        """As people type it."""
        return " ".join((self.path.name, *self.arguments))


SCRIPTS = (
    Script(HERE / "imprint.py", ("--repeats", "15"), environment.BREACHING),
    Script(HERE / "labels.py", ("--quick",), environment.BREACHING),
    Script(HERE / "inversion.py", ("--quick",), environment.BREACHING),
    Script(HERE / "federated.py", ("--quick",), environment.FLOWER),
)


@dataclass
class Run:
    """One run of all benchmarks, as a line of the history holds it.

    Parameters
    ----------
    date, commit, machine
        When, of which commit, and on what.
    load
        How many programs wanted a core in the minute before: with more than none, times on the wall say less.
    preparation, seconds
        Seconds that making the others' environments took, next to none where they were there; of everything else.
    rows, checks
        What was compared, and the bars that compare with nobody.
    failed
        What went wrong, by the name of a benchmark.
    """

    date: str
    commit: str
    machine: str
    load: float = 0.0
    preparation: float = 0.0
    seconds: float = 0.0
    rows: list[comparisons.Row] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """The bars that fail."""
        rows = [", ".join(row.key) for row in self.rows if row.holds is False]
        return rows + [text for text, holds in self.checks.items() if not holds]

    def line(self) -> str:
        """The run as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="All benchmarks in their quick form, and one table.")
    parser.add_argument("--save", action="store_true", help=f"append the run to {HISTORY.name}")
    return parser.parse_args()


def machine() -> str:
    """What the numbers depend on, for people."""
    from gradleak_lib.book.execution import cores

    return (
        f"{platform.system()} {platform.machine()}, {cores()} cores, Python {platform.python_version()}, "
        f"torch {metadata.version('torch')}"
    )


def load() -> float:
    """Load average of the last minute; 0 where the platform does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def prepare(scripts: Sequence[Script]) -> dict[environment.Peer, str]:
    """Make the environments that are needed; return why one could not be made."""
    wrong = {}
    for peer in dict.fromkeys(script.peer for script in scripts if script.peer):
        try:
            environment.make(peer)
        except (OSError, subprocess.CalledProcessError) as error:
            wrong[peer] = f"no environment for {peer.pin}: {error}"
    return wrong


def call(command: Sequence[str]) -> int:
    """Run a program to its end and return its exit code; whatever interrupts us ends it and what it started."""
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise


def measure(script: Script, run: Run) -> None:
    """Run one benchmark and add what it compared, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        code = call([sys.executable, str(script.path), *script.arguments, "--json", str(path)])
        # It writes the file at its end: exit code 1 says that a bar fails, or that it broke off before.
        if code not in (0, 1) or not path.exists():
            run.failed[script.name] = f"exit code {code}"
            return
        rows, checks = comparisons.read(path)
    run.rows += rows
    run.checks |= checks


def bench(scripts: Sequence[Script], run: Run, out: Console) -> None:
    """Run all benchmarks one after the other; one that fails does not stop the others."""
    start = time.perf_counter()
    wrong = prepare(scripts)
    run.preparation = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    for number, script in enumerate(scripts, 1):
        out.rule(Text(f"{number} of {len(scripts)}: {script.name}"), align="left")
        began = time.perf_counter()
        if script.peer in wrong:
            run.failed[script.name] = wrong[script.peer]
        else:
            measure(script, run)
        said = run.failed.get(script.name, "done")
        out.print(f"{script.name}: {said}, {time.perf_counter() - began:.0f} s\n", markup=False)
    run.seconds = round(time.perf_counter() - start, 1)


def table(run: Run) -> Table:
    """One line for each comparison, and one for each benchmark that failed."""
    title = f"{run.date[:10]}, commit {run.commit}, {run.machine}; load before the start {run.load:.1f}"
    found = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in ("attack", "case", "measure", "peer"):
        found.add_column(name)
    for name in ("peer's", "ours", "times better", "bar"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("holds", no_wrap=True)
    before = None
    for row in run.rows:
        if before not in (None, row.attack):
            found.add_section()
        style = {False: "red", True: "green", None: ""}[row.holds]
        cells = row.said | {"attack": "" if row.attack == before else row.attack}
        *texts, holds = (text for name, text in cells.items() if name != "middle half")
        found.add_row(*map(Text, texts), Text(holds, style))
        before = row.attack
    for name, why in run.failed.items():
        found.add_section()
        found.add_row(Text("failed", "red"), Text(name), Text(why), *[""] * 6)
    return found


def summary(run: Run) -> str:
    """What the table does not say."""
    bars = [row for row in run.rows if row.bar is not None]
    total = len(bars) + len(run.checks)
    lines = [
        f"{total - len(run.missed)} of {total} bars hold; {len(run.checks)} of the {total} compare with nobody."
    ]
    lines += [f"bar fails: {text}" for text in run.missed]
    lines += [f"benchmark failed: {name}: {why}" for name, why in run.failed.items()]
    times = f"{run.seconds:.0f} s, and {run.preparation:.0f} s for the others' environments."
    return "\n".join([*lines, times])


def save(run: Run, history: Path) -> None:
    """Append the run to the history, whole or not at all."""
    from gradleak_lib.files import write_whole

    before = history.read_text(encoding="utf-8") if history.exists() else ""
    write_whole(history, f"{before}{run.line()}\n")


def stop(*_: object) -> None:
    """End like Ctrl-C does."""
    raise KeyboardInterrupt


def main(
    *, keep: bool, scripts: Sequence[Script] = SCRIPTS, history: Path = HISTORY, latest: Path = LATEST
) -> int:
    """Measure, print the table, and keep the run if asked to; 0 where every benchmark and every bar holds, else 1."""
    # Here, not above: it brings torch, which takes seconds, and --help should not.
    from gradleak_lib.book.results import commit
    from gradleak_lib.files import write_whole

    out = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDE)
    run = Run(datetime.now(UTC).isoformat(timespec="seconds"), commit(), machine(), load())
    bench(scripts, run, out)
    out.print(table(run))
    out.print(summary(run), markup=False, soft_wrap=True)
    write_whole(latest, run.line() + "\n")
    if keep and run.failed:
        out.print(f"Not saved: {history.name} holds whole runs only.")
    elif keep:
        save(run, history)
        out.print(f"Saved in {history.name}: {len(history.read_text(encoding='utf-8').splitlines())} runs.")
    return 1 if run.failed or run.missed else 0


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        sys.exit(main(keep=arguments().save))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing was saved.")
