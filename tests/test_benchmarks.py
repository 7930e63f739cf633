"""The table of `make bench`: rows, the run of several scripts, the history, and its page in the book."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import bench  # noqa: E402
import comparisons  # noqa: E402

ATTACKS = ("imprint", "labels", "inversion", "federated")
NAMED = ("inversion", "LeNet, R=8", "CPU time", "breaching", "0.1.2")
FAST = comparisons.timed(NAMED, [0.6, 0.4, 0.5], [0.1, 0.1, 0.1], bar=4.0)
SLOW = comparisons.timed(("labels", "llg*", "CPU time", "breaching", "0.1.2"), [0.001], [0.002], bar=0.95)
IMAGES = comparisons.Row(
    "inversion", "LeNet", "PSNR", "dB", "breaching", "0.1.2", 20.0, 19.75, -0.25, bar=-0.5
)
# Writes the rows that stand in its folder, as a benchmark does at its end.
SCRIPT = """import sys, shutil, pathlib
path = sys.argv[sys.argv.index("--json") + 1]
print("measuring")
"""


@pytest.fixture
def script(tmp_path):
    """Make a benchmark that takes no time: it compares what it is told, or fails with an exit code."""

    def make(name: str, rows=(), *, checks=None, code: int = 0) -> bench.Script:
        path = tmp_path / f"{name}.py"
        text = SCRIPT
        if code < 2:
            found = tmp_path / f"{name}.json"
            comparisons.write(found, list(rows), checks or {})
            text += f"shutil.copy({str(found)!r}, path)\n"
        path.write_text(f"{text}sys.exit({code})\n")
        return bench.Script(path, ("--quick",))

    return make


@pytest.fixture
def start(tmp_path, capfd):
    """Run some scripts with the real function; return exit code, what was printed, and the run."""

    def run(*scripts: bench.Script, keep: bool = False):
        latest = tmp_path / "build" / "bench.json"
        code = bench.main(keep=keep, scripts=scripts, history=tmp_path / "history.jsonl", latest=latest)
        return code, capfd.readouterr().out, json.loads(latest.read_text())

    return run


def test_a_ratio_says_how_many_times_better_ours_is():
    assert (FAST.theirs, FAST.ours, FAST.ratio) == pytest.approx((500.0, 100.0, 5.0))
    assert FAST.low < 5 < FAST.high
    assert FAST.holds
    assert SLOW.ratio == 0.5
    assert SLOW.holds is False
    assert (SLOW.low, SLOW.high) == (None, None)  # a single pair
    assert IMAGES.holds


def test_a_row_is_said_to_people():
    assert FAST.said["times better"] == "5.00"
    assert FAST.said["middle half"] == "4.00 to 6.00"
    assert (FAST.said["peer's"], FAST.said["ours"]) == ("500 ms", "100 ms")
    assert (IMAGES.said["times better"], IMAGES.said["bar"]) == ("-0.25 dB", "-0.5 dB")
    assert [comparisons.rounded(x) for x in (0, 0.9961, 1.0, 5.382, 41.26, 1234.5)] == [
        "0",
        "0.996",
        "1.00",
        "5.38",
        "41.3",
        "1,234",
    ]


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "rows.json"
    assert comparisons.finish(path, [FAST, IMAGES], {"agree": True}) == 0
    assert comparisons.read(path) == ([FAST, IMAGES], {"agree": True})
    assert comparisons.finish(None, [FAST, SLOW], {}) == 1
    assert comparisons.finish(None, [FAST], {"agree": False}) == 1
    with pytest.raises(ValueError, match="JSON"):  # nothing half written, nothing that is no number
        comparisons.write(path, [comparisons.timed(NAMED, [float("nan")], [1.0])], {})
    assert comparisons.read(path)[0] == [FAST, IMAGES]


def test_one_table_of_all_scripts(script, start):
    code, said, run = start(script("a", [FAST, IMAGES]), script("b", [FAST], checks={"agree": True}))
    assert code == 0
    assert said.count("measuring") == 2
    assert "1 of 2: a.py --quick" in said
    lines = [line for line in said.splitlines() if "LeNet, R=8" in line]
    assert len(lines) == 2
    for part in ("inversion", "breaching 0.1.2", "500 ms", "100 ms", "5.00", " 4 ", "holds"):
        assert part in lines[0]
    assert "4 of 4 bars hold" in said
    assert [comparisons.Row(**row) for row in run["rows"]] == [FAST, IMAGES, FAST]


def test_a_script_that_fails_does_not_stop_the_others(script, start):
    early = script("early", code=3)
    broken = script("broken", code=1)
    broken.path.write_text("raise SystemExit(1)\n")  # breaks off: exit code 1, but no rows
    code, said, run = start(early, broken, script("late", [FAST]), keep=True)
    assert code == 1
    assert list(run["failed"]) == ["early.py --quick", "broken.py --quick"]
    assert "exit code 3" in said
    assert [comparisons.Row(**row) for row in run["rows"]] == [FAST]
    assert "Not saved" in said
    assert "No such file" not in said


def test_a_bar_that_fails_is_an_error(script, start):
    code, said, run = start(script("a", [FAST, SLOW], code=1))
    assert code == 1
    assert not run["failed"]
    assert "bar fails: labels, llg*, CPU time, breaching" in said
    code, said, _ = start(script("a", [FAST], checks={"updates agree": False}, code=1))
    assert code == 1
    assert "bar fails: updates agree" in said


def test_without_an_environment_the_script_is_not_started(script, start, monkeypatch):
    def fail(peer):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(bench.environment, "make", fail)
    wants = bench.Script(script("a", [FAST]).path, (), bench.environment.FLOWER)
    code, said, run = start(wants, script("b", [FAST]))
    assert code == 1
    assert "no environment for flwr" in run["failed"]["a.py"]
    assert said.count("measuring") == 1


def test_runs_are_saved_a_line_each(script, start, tmp_path):
    history = tmp_path / "history.jsonl"
    start(script("a", [FAST]))
    assert not history.exists()
    for _ in range(2):  # a bar that fails is no reason not to
        _, said, run = start(script("a", [FAST, SLOW], code=1), keep=True)
    assert "2 runs" in said
    lines = history.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[-1]) == run
    assert run["rows"] == [asdict(FAST), asdict(SLOW)]
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_whoever_interrupts_it_ends_the_script_too(tmp_path):
    sleeper, number = tmp_path / "sleeper.py", tmp_path / "number"
    sleeper.write_text(
        "import os, sys, time\n"
        f"print(os.getpid(), file=open({str(number)!r}, 'w'), flush=True)\n"
        "time.sleep(60)\n"
    )
    code = (
        "import bench, signal, sys\n"
        "signal.signal(signal.SIGTERM, bench.stop)\n"
        f"bench.call([sys.executable, {str(sleeper)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "benchmarks", stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not number.exists() or not number.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_the_saved_runs_are_complete():
    lines = (ROOT / "benchmarks" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    dates = []
    for line in lines:
        run = json.loads(line)
        assert set(run) == set(bench.Run.__dataclass_fields__)
        rows = [comparisons.Row(**row) for row in run["rows"]]
        assert tuple(dict.fromkeys(row.attack for row in rows)) == ATTACKS
        assert len({row.key for row in rows}) == len(rows)
        assert all(row.unit in comparisons.UNITS and row.said for row in rows)
        assert run["checks"]
        assert not run["failed"]
        assert run["seconds"] > 0
        assert run["commit"] != "unknown"
        assert "torch" in run["machine"]
        dates.append(run["date"])
    assert dates == sorted(dates)


def test_every_script_offers_its_rows():
    for script in bench.SCRIPTS:
        assert script.path.is_file()
        assert '"--json"' in script.path.read_text(encoding="utf-8")


def test_the_page_shows_the_last_run_and_those_before(script, start, tmp_path):
    start(script("a", [SLOW, IMAGES], code=1), keep=True)
    start(script("b", [FAST, SLOW], checks={"updates of `a*` agree": True}, code=1), keep=True)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "history.jsonl").rename(tmp_path / "benchmarks" / "history.jsonl")
    extensions = ["myst_parser", "sphinx_design", "benchmarks_page"]
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / 'book' / '_ext')!r})\nextensions = {extensions}\n"
    )
    (tmp_path / "index.md").write_text(
        "# Page\n\n{benchmarks}`bars` of {benchmarks}`machine`\n\n```{benchmarks} inversion\n```\n\n"
        "```{benchmarks-checks}\n```\n\n```{benchmarks-history}\n```\n"
    )
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ".", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = BeautifulSoup((tmp_path / "out" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "2 of 3 of" in page.text
    (row,) = page.select("table.comparisons tbody tr")
    cells = [cell.get_text(" ", strip=True) for cell in row.find_all("td")]
    assert cells[0] == "LeNet, R=8 : CPU time against breaching 0.1.2"
    assert cells[1:] == ["500 ms", "100 ms", "5.00 4.00 to 6.00", "4 holds"]
    assert "updates of `a*` agree" in page.text
    before = [
        [cell.get_text(" ", strip=True) for cell in row.find_all(["th", "td"])]
        for row in page.select(".comparisons-history tr")
    ]
    assert [line[1:] for line in before] == [["run 1", "run 2"], ["", "5.00"], ["0.500", "0.500"]]
    runs = [row.td.text.strip()[:5] for row in page.select(".comparisons-runs tbody tr")]
    assert runs == ["2, on", "1, on"]


def test_the_table_fits_where_there_is_no_terminal():
    run = bench.Run(
        "2026-01-01", "abc", "a machine", rows=[FAST, SLOW, IMAGES], failed={"x.py": "exit code 2"}
    )
    out = Console(width=bench.WIDE, highlight=False)
    with out.capture() as capture:
        out.print(bench.table(run))
    assert "…" not in capture.get()
    assert "x.py" in capture.get()
