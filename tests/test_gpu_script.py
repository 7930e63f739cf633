"""The script behind `make gpu` and `make wheels`: its steps, their time, its summary, and what travels."""

import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from gradleak_lib.book import studies
from gradleak_lib.book.chapters import UsageError

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import wheels  # noqa: E402

SOURCE = {"date": "2026-11-29", "commit": "abc", "device": "NVIDIA H200", "versions": {"torch": "2.11.0"}}


def python(name: str, code: str, share: float = 0.0, *, goes_on: bool = False) -> gpu.Step:
    """A step that runs some code."""
    return gpu.Step(name, (sys.executable, "-c", code), share, goes_on)


def run(out: Path, *steps: gpu.Step, minutes: float = 1.0, **options) -> tuple[gpu.Summary, dict]:
    """Run steps; return the summary, and what was written of it."""
    summary = gpu.Summary("smoke", minutes, dict(SOURCE))
    gpu.run_all(steps, summary, out, begun=time.time(), **options)
    return summary, json.loads((out / "summary.json").read_text())


def alive(process: int) -> bool:
    """Whether a process runs, and is not only waiting to be asked for its exit code."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


# --- steps ---


def test_the_steps_stand_in_the_order_of_the_plan(tmp_path):
    data = tmp_path / "data"
    steps = gpu.plan(tmp_path, "paper", ["rtf-a", "rtf-b"], python="py", jobs=3, data=data)
    assert [step.name for step in steps] == ["tests", "chapter", "speed", "studies"]
    tests, chapter, speed, last = (" ".join(step.command) for step in steps)
    assert "tests/device/test_device.py" in tests
    assert "test_gpu_script" not in tests
    assert f"gradleak://{gpu.CHAPTER}" in chapter
    assert "-p device cuda" in chapter
    assert "--quick" not in speed
    assert last == (
        f"py -m gradleak_lib study rtf-a rtf-b --size paper --device cuda --jobs 3 --minutes {{minutes}} "
        f"--out {tmp_path / 'studies'} --data {data}"
    )
    for step in steps:  # nothing is written elsewhere
        assert str(tmp_path) in " ".join(step.command)


def test_what_the_steps_name_is_there(tmp_path):
    for step in gpu.plan(tmp_path, "smoke", []):
        for word in step.command:
            if word.endswith((".py", ".yaml")) and str(tmp_path) not in word:
                assert (ROOT / word).is_file(), word
    assert gpu.plan(tmp_path, "smoke", ["rtf-a"])[-1].command[-1] == str(tmp_path / "studies-smoke")


def test_each_step_leaves_the_others_their_share(tmp_path):
    steps = gpu.plan(tmp_path, "paper", ["rtf-a"])
    assert sum(step.share for step in steps) == pytest.approx(1)
    assert [step.goes_on for step in steps] == [False, False, False, True]
    assert gpu.limit(steps, 480, 480) == pytest.approx(480 * gpu.TESTS)
    assert gpu.limit(steps[1:], 480, 400) == pytest.approx(400 - 480 * (gpu.SPEED + gpu.STUDIES))
    assert gpu.limit(steps[3:], 480, 250) == 250
    assert gpu.limit(steps[2:], 480, 100) == 0


def test_studies_are_ordered_and_those_without_data_left_out(tmp_path, monkeypatch):
    def nothing(study, size):
        raise UsageError("recorded under other rules")

    monkeypatch.setattr(studies, "read_record", nothing)
    names, left_out = gpu.by_worth("smoke", None)
    assert set(names) | set(left_out) == {one.name for one in studies.load_studies()}
    worth = {one.name: (not one.gpu, not one.claims, one.minutes) for one in studies.load_studies()}
    assert [worth[name] for name in names] == sorted(worth[name] for name in names)
    names, left_out = gpu.by_worth("paper", tmp_path)
    assert "rtf-parameters" in names  # needs no data
    assert "cifar10" in left_out["rtf-single-input"]
    assert not set(names) & set(left_out)


def test_a_step_that_fails_does_not_stop_the_others(tmp_path, capfd):
    seen = []
    summary, written = run(
        tmp_path,
        python("first", "print('working'); raise SystemExit(3)"),
        python("second", "print('fine')"),
        after=lambda summary: seen.append(len(summary.steps)),
    )
    assert not summary.ok
    assert not written["ok"]
    assert [(step["state"], step["code"]) for step in written["steps"]] == [("failed", 3), ("done", 0)]
    assert (tmp_path / "logs" / "second.log").read_text() == "fine\n"
    assert seen == [1, 2]
    said = capfd.readouterr().out
    assert "    working" in said  # the end of the log of what failed
    assert "    fine" not in said


def test_a_program_that_is_not_there_fails_like_any_other(tmp_path):
    summary, _ = run(tmp_path, gpu.Step("first", ("/nowhere/at/all",)), python("second", ""))
    assert [step.state for step in summary.steps] == ["failed", "done"]
    assert "/nowhere/at/all" in (tmp_path / "logs" / "first.log").read_text()


def test_a_step_that_overruns_is_ended_with_what_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    begun = time.monotonic()
    summary, written = run(tmp_path, python("slow", code), python("next", "", 0.95))
    assert time.monotonic() - begun < 20
    slow, after = summary.steps
    assert (slow.state, slow.ok, slow.code) == ("ended", False, -signal.SIGTERM)
    assert slow.limit == pytest.approx(3, abs=0.2)
    assert after.ok
    assert not written["ok"]
    assert "| slow | FAILED: ended, its time was over |" in (tmp_path / "summary.md").read_text()
    assert not alive(int((tmp_path / "logs" / "slow.log").read_text()))


def test_what_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PATIENCE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    outcome = gpu.run_step(python("deaf", code), 2, tmp_path / "logs" / "deaf.log")
    assert (outcome.state, outcome.code) == ("ended", -signal.SIGKILL)


def test_what_goes_on_may_be_ended_and_knows_for_how_long(tmp_path):
    going = gpu.Step("studies", (sys.executable, "-c", "import time; time.sleep(60)"), goes_on=True)
    summary, written = run(tmp_path, going, python("never", ""), minutes=0.03)
    assert [step.state for step in summary.steps] == ["ended", "not begun"]
    assert [step.ok for step in summary.steps] == [True, False]
    assert "| studies | went on until its time was over |" in summary.text()
    assert written["steps"][1]["log"] == ""
    told = gpu.Step("told", (sys.executable, "-c", "import sys; print(sys.argv[1])", "{minutes}"))
    for seconds, minutes in ((480, "7.000"), (40, "0.500")):
        gpu.run_step(told, seconds, tmp_path / "logs" / "told.log")
        assert (tmp_path / "logs" / "told.log").read_text().strip() == minutes


def test_an_interrupt_ends_the_step(tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if not started:
                started.append(self.pid)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, python("first", "import time; time.sleep(60)"))
    assert not alive(started[0])


def test_the_summary_for_people(tmp_path):
    summary = gpu.Summary("paper", 8, dict(SOURCE), 470.2)
    summary.steps.append(gpu.Outcome("tests", ["pytest"], "done", True, 0, 61.0, 144.0, "logs/tests.log"))
    summary.studies["rtf-fig-3"] = {"points": 12, "of": 20, "seconds": 90.0}
    summary.left_out = {"rtf-a": "no cifar10", "rtf-b": "no cifar10"}
    gpu.write(summary, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    for part in (
        "# On NVIDIA H200",
        "commit abc",
        "torch 2.11.0",
        "470 of 480 seconds",
        "| tests | done | 61 | 144 | 0 | logs/tests.log |",
        "| rtf-fig-3 | 12 | 20 | 90 |",
        "- rtf-a, rtf-b: no cifar10",
    ):
        assert part in text
    assert json.loads((tmp_path / "summary.json").read_text())["provenance"]["device"] == "NVIDIA H200"


def test_points_are_counted(tmp_path):
    folder = tmp_path / "rtf-parameters"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"seconds": {"a": 1.5}}))
    summary = gpu.Summary("smoke", 8, dict(SOURCE))
    gpu.count_points(summary, tmp_path)
    assert summary.studies == {"rtf-parameters": {"points": 1, "of": 1, "seconds": 1.5}}


def test_everything_fits_into_one_file(tmp_path):
    out = tmp_path / "gpu"
    run(out, python("first", "print(1)"))
    for _ in range(2):  # the second time inside the folder itself, and over the first
        gpu.pack(out, out / "all.tar.gz")
    with tarfile.open(out / "all.tar.gz") as archive:
        assert {"gpu/summary.md", "gpu/logs/first.log"} <= set(archive.getnames())
    assert not list(out.glob(".*"))


# --- wheels ---

TARGET = {"python_version": "3.12", "sys_platform": "linux"}
REGISTRY = {
    "one": ["Two>=1; sys_platform == 'linux'", "colours; sys_platform == 'win32'", "numpy>=2"],
    "two": ["three[more]", "four; extra == 'never'"],
    "three": ["five; extra == 'more'", "one", "babel>=2"],
    "five": ["torch", "nvidia-cublas"],
}


def test_the_closure_leaves_out_what_is_there_and_what_is_not_used():
    asked = []

    def fetch(lines):
        asked.extend(lines)
        return {name: REGISTRY[name] for name in (wheels.canonical(wheels.named(line)) for line in lines)}

    assert wheels.closure(["one>=1", "torch"], fetch, TARGET) == {"one", "two", "three", "five"}
    assert asked == ["one>=1", "Two>=1", "three", "five"]


def test_what_is_needed_comes_from_the_project():
    names = {wheels.canonical(wheels.named(line)) for line in wheels.needed()}
    assert {"papermill", "jupytext", "ipykernel", "opacus", "distributed", "pytest"} <= names
    assert "gradleak" not in names
    assert {"torch", "numpy", "scipy"} <= wheels.THERE
    for name in ("torch", "numpy", "scipy", "nvidia-cublas", "triton"):
        assert wheels.left_out(name)
    assert not gpu.lacking()


def test_too_much_is_refused_in_a_sentence_and_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "old-1-py3-none-any.whl").write_bytes(b"old")

    def download(lines, new, python, machine):
        assert (python, machine) == ("3.12", "x86_64")
        for line in lines:
            (new / f"{wheels.named(line)}-1-py3-none-any.whl").write_bytes(bytes(1000))
        return {wheels.canonical(wheels.named(line)): [] for line in lines}

    monkeypatch.setattr(wheels, "download", download)
    with pytest.raises(ValueError, match=r"come to 0\.0 MB, and 0\.002 MB is what may travel"):
        wheels.collect(folder, "3.12", "x86_64", limit=2000)
    assert [wheel.name for wheel in folder.iterdir()] == ["old-1-py3-none-any.whl"]
    assert wheels.main(["--folder", str(folder)]) == 0
    assert "wheels for Python 3.12 on x86_64" in capsys.readouterr().out
    assert "papermill-1-py3-none-any.whl" in {wheel.name for wheel in folder.iterdir()}
    assert not list(tmp_path.glob(".wheels-*"))


def test_without_wheels_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "lacking", lambda: ["papermill"])
    with pytest.raises(RuntimeError, match=r"lacks papermill.*`make wheels`"):
        gpu.environment(tmp_path / "venv", tmp_path / "wheels")
    monkeypatch.setattr(gpu, "lacking", lambda: ["papermill", "torch"])
    with pytest.raises(RuntimeError, match="lacks torch; name a Python that has it"):
        gpu.environment(tmp_path / "venv", tmp_path / "wheels")
    monkeypatch.setattr(gpu, "lacking", list)
    assert gpu.environment(tmp_path / "venv", tmp_path / "wheels") == Path(sys.executable)


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--jobs", "0"], ["--size", "huge"]])
def test_options_that_cannot_be_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        gpu.arguments(words)
    assert words[0] in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"sees no GPU; .* `make gpu PYTHON=python3`"):
        gpu.provenance()
