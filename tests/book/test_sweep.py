"""Sweeps, on this machine and on a scheduler with workers in processes of their own."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from itertools import product

import pandas as pd
import pytest
from test_cli import gradleak  # noqa: F401
from test_execution import root, write_chapter  # noqa: F401

from gradleak_lib.book import chapters, execution, keys, planning, results, sweep

CELL = """
import os, pathlib, time
from myst_nb import glue
with open({log!r}, "a") as log:
    log.write(f"{{a}} {{b}}\\n")
pathlib.Path({log!r} + f".{{a}}.{{b}}").write_text(str(os.getpid()))
trouble = pathlib.Path({trouble!r}).exists()
time.sleep(seconds)
if trouble and (a, b) == (1, 10):
    raise RuntimeError("no luck\\nat all")
if trouble and (a, b) == (2, 10):
    os._exit(3)
glue("total", a + b / 3, display=False)
glue("run_started", time.time(), display=False)
glue("title", "text", display=False)
"""


@pytest.fixture
def book(root, tmp_path):
    """A chapter that writes down that it ran; two of its points fail while the file ``trouble`` exists."""
    log, trouble = tmp_path / "log", tmp_path / "trouble"
    cell = CELL.format(log=str(log), trouble=str(trouble))
    write_chapter(root, "01-one", cell, parameters="a: int = 0\nb: int = 0\nseconds: float = 0.0")
    (root / "grid.yaml").write_text("a: [0, 1, 2, 3]\nb: [10, 20, 30]\n")
    return root


@pytest.fixture
def log(tmp_path):
    """Return the points that ran, in order, and forget them."""

    def read():
        path = tmp_path / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [tuple(map(int, line.split())) for line in lines]

    return read


def plan(book, out, **more):
    grid = [{**values, **more} for values in sweep.read_grid(book / "grid.yaml")]
    return sweep.plan_sweep("01", grid, out=out, root=book)


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(pid):
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("a: [1, 2]\nb: x", [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]),
        ("a: [[1, 2], [3]]", [{"a": [1, 2]}, {"a": [3]}]),
        ("- a: [1, 2]\n- {a: 3, b: [4]}", [{"a": 1}, {"a": 2}, {"a": 3, "b": 4}]),
    ],
)
def test_a_grid_is_every_combination(tmp_path, text, points):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert sweep.read_grid(path) == points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read a grid"),
        ("a: [1", "cannot read a grid"),
        ("3", "must hold `name"),
        ("- a", "must hold `name"),
        ("1: [2]", "must hold `name"),
        ("", "must hold `name"),
        ("{}", "holds no point"),
        ("a: []", "holds no point"),
        ("a: [1]\nb: 2\na: [3]", "gives a twice in one mapping"),
        ("- a: 1\n- b: 2\n  b: 3", "gives b twice"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(chapters.UsageError, match=message):
        sweep.read_grid(path)


def test_keys_are_those_of_gradleak_run(book, tmp_path):
    points = plan(book, tmp_path / "out")
    assert [tuple(point.varied.values()) for point in points] == list(product(range(4), (10, 20, 30)))
    for point in points[:3]:
        [run] = planning.plan(["01"], point.varied, root=book)
        assert point.run.key == run.key
        assert point.run.target == tmp_path / "out" / "points" / f"{run.key}.ipynb"
    twice = sweep.plan_sweep("01", [{"a": 1}, {"a": 1}, {"b": 5}], out=tmp_path, root=book)
    assert [point.varied for point in twice] == [{"a": 1, "b": 0}, {"a": 0, "b": 5}]
    with pytest.raises(chapters.UsageError, match="'a' is 'x'; it must be of type int"):
        sweep.plan_sweep("01", [{"a": 1}, {"a": "x"}], out=tmp_path, root=book)


def test_one_point_that_raises_and_one_whose_kernel_dies(book, gradleak, tmp_path, log, monkeypatch):
    monkeypatch.setattr("gradleak_lib.book.cluster.IN_FLIGHT", 2)
    out = tmp_path / "out"
    words = ("sweep", "01", "--grid", book / "grid.yaml", "--jobs", "2", "--out", out)
    dry = gradleak(*words, "--dry-run")
    assert dry.output.count("to do    a=") == 12
    assert not out.exists()

    (tmp_path / "trouble").touch()
    first = gradleak(*words)
    assert first.exit_code == 1
    assert "10 of 12 points have results" in first.output
    assert re.search(r"a=1, b=10: failed after \d+ s: RuntimeError: no luck", first.stderr)
    assert len(log()) == 12
    rows = {(row["a"], row["b"]): row for row in csv.DictReader((out / "results.csv").open())}
    assert list(rows) == [(str(a), str(b)) for a, b in product(range(4), (10, 20, 30))]
    assert list(rows["0", "10"]) == ["a", "b", "error", "total"]
    failed = {point: row["error"] for point, row in rows.items() if row["error"]}
    assert set(failed) == {("1", "10"), ("2", "10")}
    assert failed["1", "10"] == "RuntimeError: no luck at all"
    assert "DeadKernel" in failed["2", "10"]
    assert all(row["total"] == "" for row in rows.values() if row["error"])
    assert float(rows["3", "20"]["total"]) == 3 + 20 / 3
    assert len(list((out / "failed").glob("*.ipynb"))) == 2

    again = gradleak(*words)
    assert again.exit_code == 1
    assert sorted(log()) == [(1, 10), (2, 10)]
    assert gradleak(*words, "--dry-run").output.count("finished a=") == 10

    (tmp_path / "trouble").unlink()
    mended = gradleak(*words)
    assert mended.exit_code == 0
    assert "12 of 12 points have results" in mended.output
    assert sorted(log()) == [(1, 10), (2, 10)]
    assert not list((out / "failed").glob("*.ipynb"))
    took = pd.read_csv(out / "runs.csv")
    assert list(took) == ["a", "b", "notebook", "date", "seconds", "commit", "device", "run_started"]
    assert (took.seconds > 0).all()
    assert set(took.notebook) == {path.name for path in (out / "points").iterdir()}

    gradleak(*words)
    assert log() == []


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each a process of its own that no nanny starts again."""
    from distributed import Client

    processes, file = [], tmp_path / "scheduler.json"

    def start(*words, **environment):
        log = (tmp_path / f"dask-{len(processes)}.log").open("w")
        command = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(file)]
        environment = {**os.environ, **environment}
        processes.append(
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment)
        )
        return processes[-1]

    def worker(**environment):
        return start("worker", "--no-nanny", "--nthreads", "1", "--no-dashboard", **environment)

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    until(file.exists)

    def cluster(count, **environment):
        workers = [worker(**environment) for _ in range(count)]
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(count, timeout=300)
            return client.scheduler.address, workers

    yield cluster
    for process in processes:
        process.kill()
        process.wait()


def test_a_worker_that_is_killed_costs_no_point(book, cluster, tmp_path, log):
    address, workers = cluster(2)
    (book / "grid.yaml").write_text("a: [0, 3]\nb: [10, 20, 30]\n")
    ended = []

    def on_end(point, outcome):
        ended.append(point)
        if len(ended) == 2:
            until(lambda: len(list(tmp_path.glob("log.*"))) >= 4)  # both have gone on
            workers[0].send_signal(signal.SIGKILL)

    points = plan(book, tmp_path / "far", seconds=3.0)
    outcomes = sweep.sweep(points, address=address, on_end=on_end)
    assert [outcome.error for outcome in outcomes] == [""] * 6
    assert workers[0].wait() == -signal.SIGKILL
    assert workers[1].poll() is None
    ran = log()
    assert set(ran) == set(product((0, 3), (10, 20, 30)))
    assert len(ran) in (6, 7)  # one point at most was running in the worker that was killed

    near = plan(book, tmp_path / "near", seconds=3.0)
    here = sweep.write_tables(near, sweep.sweep(near, jobs=2), tmp_path / "near")
    there = sweep.write_tables(points, outcomes, tmp_path / "far")
    assert here.read_bytes() == there.read_bytes()
    assert here.read_text().count("\n") == 7


def test_a_finished_point_does_not_run_again_when_its_worker_dies(book, cluster, tmp_path, log):
    address, [first] = cluster(1)

    def on_end(point, outcome):
        if first.poll() is None:
            until((tmp_path / "log.0.20").exists)
            first.kill()
            first.wait()
            cluster(1)

    outcomes = sweep.sweep(plan(book, tmp_path / "out", seconds=3.0)[:2], address=address, on_end=on_end)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert log() == [(0, 10), (0, 20), (0, 20)]


def test_a_worker_without_the_library_says_so_and_lives_on(book, cluster, tmp_path, log):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "gradleak_lib.py").write_text("raise ImportError('not here')\n")
    address, workers = cluster(1, PYTHONPATH=str(tmp_path / "none"))
    points = plan(book, tmp_path / "out")[:2]
    outcomes = sweep.sweep(points, address=address)
    assert [outcome.error for outcome in outcomes] == ["ImportError: not here"] * 2
    assert workers[0].poll() is None
    assert log() == []


def test_a_sweep_that_is_killed_goes_on_where_it_was(book, tmp_path, log):
    out = tmp_path / "out"
    script = (
        "import pathlib, sys; from gradleak_lib.book import sweep; root = pathlib.Path(sys.argv[1]);"
        "grid = [{**values, 'seconds': 1.0} for values in sweep.read_grid(root / 'grid.yaml')];"
        "points = sweep.plan_sweep('01', grid, out=pathlib.Path(sys.argv[2]), root=root);"
        "sweep.sweep(points, jobs=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(book), str(out)])
    try:
        until(lambda: len(list(out.glob("points/*.ipynb"))) >= 3, 300)
    finally:
        process.kill()
        process.wait()
    finished = {path.name: path.read_bytes() for path in out.glob("points/*.ipynb")}
    assert 3 <= len(finished) < 12
    kernels = [int(path.read_text()) for path in tmp_path.glob("log.*")]
    until(lambda: all(map(gone, kernels)), 30)  # nothing goes on computing for nobody

    log()
    points = plan(book, out, seconds=1.0)
    done = {tuple(point.varied.values())[:2] for point in points if point.run.up_to_date}
    assert len(done) == len(finished)
    outcomes = sweep.sweep(points, jobs=2)
    assert not any(outcome.error for outcome in outcomes)
    assert sorted(log()) == sorted(set(product(range(4), (10, 20, 30))) - done)
    assert {name: (out / "points" / name).read_bytes() for name in finished} == finished


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
@pytest.mark.parametrize("far", [False, True])
def test_an_interrupt_ends_the_kernels_and_keeps_what_is_finished(book, cluster, tmp_path, far):
    out = tmp_path / "out"
    (book / "grid.yaml").write_text("- {a: 1, seconds: 0.0}\n- {a: [2, 3], seconds: 600.0}\n")
    script = (
        "import functools, pathlib, signal, sys; from gradleak_lib.book import cli, sweep;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sweep.plan_sweep = functools.partial(sweep.plan_sweep, root=pathlib.Path(sys.argv[1]));"
        "cli.app(['sweep', '01', '--grid', sys.argv[1] + '/grid.yaml', '--out', *sys.argv[2:]])"
    )
    where = ["--address", cluster(2)[0]] if far else ["--jobs", "2"]
    words = [sys.executable, "-c", script, str(book), str(out), *where]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        three = lambda: len(list(tmp_path.glob("log.*"))) == 3 and list(out.glob("points/*.ipynb"))  # noqa: E731
        until(lambda: process.poll() is not None or three(), 300)
        process.send_signal(signal.SIGTERM if far else signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted; what is finished stays" in stderr
    kernels = [int(path.read_text()) for path in tmp_path.glob("log.*")]
    until(lambda: all(map(gone, kernels)), 60)
    assert len(list(out.glob("points/*.ipynb"))) == 1
    assert not list(out.glob("failed/*.ipynb"))


def test_a_point_that_is_stopped_before_its_kernel_is_up_does_not_run(book, tmp_path, log):
    [point, *_] = plan(book, tmp_path / "out")
    source = point.run.source.read_text()
    sweep.stop_points("a sweep")
    with pytest.raises(RuntimeError, match="has been stopped"):
        sweep.execute_point(point.run, source, sweep.versions(source), None, "a sweep")
    kernels = execution.Kernels()
    kernels.stop()
    outcome, text = execution.execute(point.run, source, folder=tmp_path, threads=1, kernels=kernels)
    assert (outcome.error, text) == ("RuntimeError: stopped", "")
    assert log() == []


def test_a_worker_with_another_version_computes_nothing(book, tmp_path, log):
    [point, *_] = plan(book, tmp_path / "out")
    source = point.run.source.read_text()
    here = sweep.versions(source)
    assert here.items() > keys.decides(source, results.ROOT).items()
    with pytest.raises(RuntimeError, match="has other science and data sets than the machine that started"):
        sweep.execute_point(point.run, source, here | {"science": "older", "data sets": "none"}, None, "s")
    with pytest.raises(RuntimeError, match="has other torch than"):
        sweep.execute_point(point.run, source, here | {"torch": "1.0"}, None, "s")
    assert log() == []
    outcome, text = sweep.execute_point(point.run, source, here, None, "s")
    assert (outcome.error, log()) == ("", [(0, 10)])
    assert '"key"' in text


def test_what_a_sweep_cannot_do_without_is_said_at_once(book, gradleak, tmp_path, monkeypatch):
    words = ("sweep", "01", "--grid", book / "grid.yaml", "--out", tmp_path / "out")
    assert "--jobs is 0" in gradleak(*words, "--jobs", "0").stderr
    result = gradleak(*words, "--address", "tcp://127.0.0.1:9")
    assert result.exit_code == 2
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in result.stderr
    assert "no dask scheduler answers at nonsense://x" in gradleak(*words, "--address", "nonsense://x").stderr
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "distributed", None)
        result = gradleak(*words)
    assert result.exit_code == 2
    assert "pip install -c constraints.txt -e '.[scale]'" in result.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "a file").write_text("")
    result = gradleak(*words[:-1], tmp_path / "a file")
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr
