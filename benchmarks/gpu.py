"""Run what needs a GPU, on a machine that may have no network: tests, a chapter, a measurement of speed, and studies.

    make gpu PYTHON=python3 [SIZE=smoke] [MINUTES=8]

Studies go on until the minutes are over. Exit code 1 where a step fails; the others run all the same. This script
starts with nothing but Python; what that Python lacks is installed beside it, from wheels that came along
(`wheels.py`).
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import site
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import wheels

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-gpu"
CHAPTER = "04-robbing-the-fed"  # it trains and attacks more kinds of networks than the others
# Parts of the time that are kept for a step while those before it run; what one leaves goes to the next.
TESTS, EXECUTION, SPEED, STUDIES = 0.4, 0.2, 0.1, 0.3
PATIENCE = 15.0  # seconds that a step has to end itself and what it started
LAST = 60.0  # seconds before the end in which no point of a study begins, or a quarter of what it has if that is less
TAIL = 20  # lines of a log that are shown of a step that failed


# --- the interpreter ---


def lacking() -> list[str]:
    """Packages that this interpreter has not."""
    found = []
    for name in [*map(wheels.named, wheels.needed()), "gradleak"]:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found


def environment(folder: Path = VENV, store: Path = wheels.WHEELS) -> Path:
    """Return an interpreter that has all of `needed`: this one, or one of an environment above it.

    Raises
    ------
    RuntimeError
        If this one lacks what never travels, there are no wheels, or the environment lacks something all the same.
    """
    missing = lacking()
    if not missing:
        return Path(sys.executable)
    if own := [name for name in missing if wheels.left_out(wheels.canonical(name))]:
        raise RuntimeError(
            f"{sys.executable} lacks {', '.join(own)}; name a Python that has it, with make PYTHON=python3"
        )
    if Path(sys.prefix).resolve() == folder.resolve():
        raise RuntimeError(f"{folder.name} lacks {', '.join(missing)}: remove the folder and start again")
    names = sorted(wheel.name for wheel in store.glob("*.whl"))
    if not names:
        raise RuntimeError(
            f"{sys.executable} lacks {', '.join(missing)}, and {os.path.relpath(store, ROOT)} holds no wheels: type "
            "`make wheels` where there is a network, and bring that folder along"
        )
    stamp, python = folder / "installed", folder / "bin" / "python"
    parts = [sys.version, sys.prefix, (ROOT / "pyproject.toml").read_text(encoding="utf-8"), *names]
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Making {folder.name} with {len(names)} wheels for what {sys.executable} lacks", flush=True)
    no_pip = importlib.util.find_spec("pip") is None
    venv.create(folder, clear=True, symlinks=True, system_site_packages=True, with_pip=no_pip)
    # An environment's packages are no system packages: where this interpreter is one's, they have to be named.
    [packages] = (folder / "lib").glob("python*/site-packages")
    above = [
        path
        for path in [*sys.path, *site.getsitepackages()]
        if path.endswith(("site-packages", "dist-packages"))
    ]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(above)]
    (packages / "above.pth").write_text("".join(lines), encoding="utf-8")
    # The wheels fit each other, and are all that is needed; some of what they ask for never travels.
    install = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
    ]
    for what in (
        ["--find-links", str(store), *(str(store / name) for name in names)],
        ["--no-build-isolation", "--editable", "."],
    ):
        subprocess.run([*install, *what], check=True, cwd=ROOT)
    # Written last: an environment that was interrupted is made again.
    stamp.write_text(wanted)
    return python


# --- steps ---


@dataclass(frozen=True)
class Step:
    """One of the things that are run.

    Parameters
    ----------
    name
        Also of its log.
    command
        Words; ``{minutes}`` in them becomes how long it may begin something new.
    share
        Of the whole time, kept for it while those before it run.
    goes_on
        Whether it goes on for as long as there is time, so that being ended is no failure.
    """

    name: str
    command: tuple[str, ...]
    share: float = 0.0
    goes_on: bool = False


@dataclass
class Outcome:
    """What became of a step.

    Parameters
    ----------
    name, command
        Of the step.
    state
        "done", "failed", "ended" (its time was over), or "not begun" (all time was over).
    ok
        Whether that is as it should be.
    code
        Exit code; None without one.
    seconds, limit
        That it took, and that it had.
    log
        Name of the file with all that it said.
    """

    name: str
    command: list[str]
    state: str = "not begun"
    ok: bool = False
    code: int | None = None
    seconds: float = 0.0
    limit: float = 0.0
    log: str = ""


@dataclass
class Summary:
    """A whole run.

    Parameters
    ----------
    size, minutes
        As asked for.
    provenance
        Date, commit, device and versions.
    seconds
        So far.
    steps
        Those that have ended.
    left_out
        Why a study does not run, by name.
    studies
        Points that have ended, points in all, and seconds, by study.
    """

    size: str
    minutes: float
    provenance: dict[str, Any]
    seconds: float = 0.0
    steps: list[Outcome] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    studies: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return all(step.ok for step in self.steps)

    def reasons(self) -> dict[str, list[str]]:
        """Names of studies that do not run, by the reason."""
        found: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            found.setdefault(why, []).append(name)
        return found

    def text(self) -> str:
        """For people, in Markdown."""
        source = self.provenance
        versions = ", ".join(f"{name} {one}" for name, one in source["versions"].items())
        lines = [
            f"# On {source['device']}",
            "",
            f"{source['date']}, commit {source['commit']}, {versions}; size {self.size}, {self.seconds:.0f} of "
            f"{60 * self.minutes:.0f} seconds.",
            "",
            "| step | | seconds | of at most | exit code | log |",
            "| --- | --- | ---: | ---: | ---: | --- |",
        ]
        for step in self.steps:
            code = "" if step.code is None else str(step.code)
            cells = step.name, said(step), f"{step.seconds:.0f}", f"{step.limit:.0f}", code, step.log
            lines.append(f"| {' | '.join(cells)} |")
        if self.studies:
            lines += ["", "| study | points | of | seconds |", "| --- | ---: | ---: | ---: |"]
            for name, one in self.studies.items():
                lines.append(f"| {name} | {one['points']:.0f} | {one['of']:.0f} | {one['seconds']:.0f} |")
        if self.left_out:
            lines += [
                "",
                "Left out:",
                "",
                *(f"- {', '.join(names)}: {why}" for why, names in self.reasons().items()),
            ]
        return "\n".join(lines) + "\n"


def said(step: Outcome) -> str:
    """What became of a step, for people."""
    if step.state == "ended":
        return "went on until its time was over" if step.ok else "FAILED: ended, its time was over"
    if step.state == "failed":
        return "FAILED"
    return step.state if step.ok else f"FAILED: {step.state}"


def limit(steps: Sequence[Step], whole: float, left: float) -> float:
    """Seconds that the first of some steps may take, of so many in all and so many that are left."""
    return max(0.0, left - whole * sum(step.share for step in steps[1:]))


def run_step(step: Step, seconds: float, log: Path, variables: Mapping[str, str] | None = None) -> Outcome:
    """Run a step to its end, or until its time is over; then it is ended, with all of its process group."""
    minutes = (seconds - min(LAST, seconds / 4)) / 60
    command = [word.replace("{minutes}", f"{minutes:.3f}") for word in step.command]
    outcome = Outcome(step.name, command, limit=round(seconds, 1))
    if seconds <= 0:
        return outcome
    log.parent.mkdir(parents=True, exist_ok=True)
    outcome.log = os.path.join(log.parent.name, log.name)
    begun = time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables or {}),
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            outcome.state = "failed"
            return outcome
        try:
            outcome.code = process.wait(seconds)
            outcome.ok = outcome.code == 0
            outcome.state = "done" if outcome.ok else "failed"
        except subprocess.TimeoutExpired:
            end(process)
            outcome.code, outcome.state, outcome.ok = process.returncode, "ended", step.goes_on
        except BaseException:
            end(process)
            raise
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome


def end(process: subprocess.Popen[bytes], patience: float | None = None) -> None:
    """End a process and all of its group: first it is asked, then it is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE if patience is None else patience)
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, too
    process.wait()


def run_all(
    steps: Sequence[Step],
    summary: Summary,
    out: Path,
    *,
    begun: float,
    after: Callable[[Summary], None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Summary:
    """Run steps one after the other, and write the summary after each; one that fails does not stop the others.

    Parameters
    ----------
    steps
        In their order.
    summary
        Of nothing yet; it is filled.
    out
        Folder of the logs and the summary.
    begun
        When the minutes began, as `time.time` has it.
    after
        Called after each step, before the summary is written.
    variables
        Of the environment, beside those that are set.
    """
    whole = 60 * summary.minutes
    for number, step in enumerate(steps, 1):
        seconds = limit(steps[number - 1 :], whole, whole - (time.time() - begun))
        print(f"{number} of {len(steps)}, {step.name}: at most {seconds:.0f} s", flush=True)
        log = out / "logs" / f"{step.name}.log"
        outcome = run_step(step, seconds, log, variables)
        print(f"{step.name}: {said(outcome)}, {outcome.seconds:.0f} s", flush=True)
        if not outcome.ok and outcome.log:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)
        summary.steps.append(outcome)
        summary.seconds = round(time.time() - begun, 1)
        if after is not None:
            after(summary)
        write(summary, out)
    return summary


def write(summary: Summary, out: Path) -> None:
    """Write the summary for programs and for people."""
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(summary) | {"ok": summary.ok}, indent=1, ensure_ascii=False)
    (out / "summary.json").write_text(f"{content}\n", encoding="utf-8")
    (out / "summary.md").write_text(summary.text(), encoding="utf-8")


def pack(folder: Path, archive: Path) -> None:
    """Put a folder into one file, whole or not at all."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    new = archive.with_name(f".{archive.name}.new")
    with tarfile.open(new, "w:gz") as file:
        itself = archive.name, new.name
        file.add(folder, folder.name, filter=lambda one: None if Path(one.name).name in itself else one)
    os.replace(new, archive)


# --- what is run ---


def plan(
    out: Path,
    size: str,
    studies: Sequence[str],
    *,
    python: str = sys.executable,
    jobs: int = 1,
    data: Path | None = None,
) -> list[Step]:
    """Return the steps: tests, a chapter, speed, studies in the order in which they are named.

    Parameters
    ----------
    out
        Folder for all that they write.
    size
        Of the studies: smoke, cpu or paper. The chapter runs at toy size always: that shows that it does, and leaves
        the time to the studies.
    studies
        Names.
    python
        The interpreter.
    jobs
        How many points of studies at a time.
    data
        Where studies look for data sets; None: the usual folder.
    """
    tests = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "cuda.is_available" in path.read_text(encoding="utf-8")
    )
    # Whatever mentions a GPU, but for chapters: one of them is the next step.
    chosen = "-k", "(cuda or gpu or device) and not chapter_runs"
    pytest = python, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "--durations=5", *chosen
    parameters = ROOT / "notebooks" / "params" / "smoke" / f"{CHAPTER}.yaml"
    papermill = python, "-m", "papermill", "--no-progress-bar", "--log-output", f"gradleak://{CHAPTER}"
    speed = (
        python,
        str(ROOT / "benchmarks" / "gpu_speed.py"),
        "--device",
        "cuda",
        "--json",
        str(out / "speed.json"),
    )
    steps = [
        Step("tests", (*pytest, f"--junitxml={out / 'tests.xml'}", *tests), TESTS),
        Step(
            "chapter",
            (*papermill, str(out / f"{CHAPTER}.ipynb"), "-f", str(parameters), "-p", "device", "cuda"),
            EXECUTION,
        ),
        Step("speed", (*speed, *(("--quick",) if size == "smoke" else ())), SPEED),
    ]
    if studies:
        study = python, "-m", "gradleak_lib", "study", *studies, "--size", size, "--device", "cuda"
        how = "--jobs", str(jobs), "--minutes", "{minutes}", "--out", str(studies_folder(out, size))
        where = ("--data", str(data)) if data is not None else ()
        steps.append(Step("studies", (*study, *how, *where), STUDIES, goes_on=True))
    return steps


def studies_folder(out: Path, size: str) -> Path:
    """Where studies of a size write: points of two sizes do not fit into one record."""
    return out / ("studies" if size == "paper" else f"studies-{size}")


def by_worth(size: str, data: Path | None) -> tuple[list[str], dict[str, str]]:
    """Names of studies, those worth most first, and why others cannot run here.

    First come those that only a GPU can run, then those that are not recorded yet, then those that decide a claim,
    and among equals the shortest: so most claims are decided before the time is over.
    """
    from gradleak_lib.book import study_run
    from gradleak_lib.book.chapters import UsageError
    from gradleak_lib.book.studies import Study, load_studies, read_record

    def recorded(study: Study) -> bool:
        try:
            return read_record(study, size).complete
        except UsageError:
            return False

    every = load_studies()
    some = [one for one in every if size in one.grids]
    why = {one.name: f"has no size {size}" for one in every if one not in some}
    why |= study_run.check_data(some, size, data)
    able = [one for one in some if one.name not in why]
    able.sort(key=lambda one: (not one.gpu, recorded(one), not one.claims, one.minutes))
    return [one.name for one in able], why


def count_points(summary: Summary, folder: Path) -> None:
    """Look what studies have written."""
    from gradleak_lib.book.studies import load_studies

    for one in load_studies():
        path = folder / one.name / "record.json"
        if path.is_file():
            seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
            points = len(one.points(summary.size))
            summary.studies[one.name] = {
                "points": len(seconds),
                "of": points,
                "seconds": sum(seconds.values()),
            }


def provenance() -> dict[str, Any]:
    """Date, commit, device and versions.

    Raises
    ------
    RuntimeError
        If torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} of {sys.executable} sees no GPU; name a Python whose torch does, "
            "as in `make gpu PYTHON=python3`"
        )
    from gradleak_lib.book import results

    found = results.provenance(device="cuda")
    found["versions"] |= {"CUDA": torch.version.cuda or "none"}
    return found | {"cores": cores(), "platform": platform.platform()}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="What needs a GPU, on a machine that may have no network.")
    parser.add_argument("--size", choices=("smoke", "cpu", "paper"), default="paper", help="of the studies")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "_build" / "gpu", help="for all results; default _build/gpu"
    )
    parser.add_argument(
        "--jobs", type=int, help="points of studies at a time; as many as cores, 8 at most, if none"
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--archive", type=Path, help="also pack the results into this file (.tar.gz), after each step"
    )
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)  # when the minutes began
    found = parser.parse_args(words)
    if not found.minutes > 0:
        parser.error(f"--minutes is {found.minutes:g}; it must be more than 0")
    if found.jobs is not None and found.jobs < 1:
        parser.error(f"--jobs is {found.jobs}; it must be 1 or more")
    return found


def run(given: argparse.Namespace) -> int:
    """Run everything; 0 where no step failed, else 1."""
    begun = time.time() if given.begun is None else given.begun
    python = environment()
    if python != Path(sys.executable):
        os.execv(python, [str(python), *sys.argv, "--begun", str(begun)])
    out = given.out.resolve()
    data = None if given.data is None else given.data.resolve()
    variables = {} if data is None else {"GRADLEAK_DATA": str(data)}
    summary = Summary(given.size, given.minutes, provenance())
    names, summary.left_out = by_worth(given.size, data)
    for why, some in summary.reasons().items():
        print(f"Left out: {', '.join(some)}: {why}", flush=True)
    jobs = min(cores(), 8) if given.jobs is None else given.jobs
    steps = plan(out, given.size, names, jobs=jobs, data=data)

    def after(summary: Summary) -> None:
        count_points(summary, studies_folder(out, given.size))
        write(summary, out)
        if given.archive is not None:
            pack(out, given.archive.resolve())

    out.mkdir(parents=True, exist_ok=True)
    try:
        run_all(steps, summary, out, begun=begun, after=after, variables=variables)
    finally:
        after(summary)
    print(f"{summary.text()}\nAll of it is in {out}")
    return 0 if summary.ok else 1


def stop(*_: object) -> None:
    """End like Ctrl-C does."""
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    given = arguments(words)
    try:
        return run(given)
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; what was finished stays.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    sys.exit(main())
