"""On a GPU, or on what the stand-in gives out for one: the same numbers as on the CPU, wherever the data lie.

The stand-in is a folder with a program `run`, which starts a Python whose torch has a device `cuda` made of memory of
the CPU; `GRADLEAK_TEST_PRETEND_CUDA` names it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import CASES, SIDES, outcomes_on

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(
    os.environ.get("GRADLEAK_TEST_PRETEND_CUDA") or ROOT.parent / "shared" / "tools" / "pretend_cuda"
)

# Public functions that seem to take tensors, and why no case calls them with one on a device.
EXEMPT = {
    "defenses.composition.chain": "takes functions from updates to updates",
    # `make gpu` runs the studies, which are made of these.
    "experiments.imprint.attack": "a step of an experiment",
    "experiments.imprint.linear_gradient": "a step of an experiment",
    "experiments.imprint.naive_score": "a step of an experiment",
    "experiments.imprint.planted": "a step of an experiment",
    "experiments.imprint.shoot": "a step of an experiment",
    "experiments.imprint_pictures.smaller": "a step of an experiment",
}


def python_with_a_device() -> list[str]:
    """Return how to start a Python with a device `cuda`; skip where there is none."""
    if torch.cuda.is_available():
        return [sys.executable]
    if not (STAND_IN / "run").is_file():
        pytest.skip(f"no GPU and no stand-in: {STAND_IN} is missing (GRADLEAK_TEST_PRETEND_CUDA names it)")
    if shutil.which("g++") is None:
        pytest.skip("no GPU, and the stand-in for one needs g++")
    return [str(STAND_IN / "run"), sys.executable]


def on_a_device(*arguments: str, folder: Path) -> None:
    """Run this Python with a device in a folder, and show all that it said if it failed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*python_with_a_device(), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all cases, in one process."""
    if torch.cuda.is_available():
        return outcomes_on("cuda")
    folder = tmp_path_factory.mktemp("device")
    on_a_device(str(Path(__file__).with_name("run_cases.py")), "outcomes.pt", folder=folder)
    return torch.load(folder / "outcomes.pt", weights_only=True)


@pytest.mark.parametrize("side", SIDES[:-1])
@pytest.mark.parametrize("name", CASES)
def test_it_comes_to_the_same_as_on_the_cpu(name: str, side: str, outcomes: dict[str, Any]) -> None:
    case, found, reference = CASES[name], outcomes["found"][name][side], outcomes["found"][name][SIDES[-1]]
    assert not reference["error"], reference["error"]
    assert not found["error"], found["error"]
    assert len(found["values"]) == len(reference["values"])
    for value, expected in zip(found["values"], reference["values"], strict=True):
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        finite = expected[expected.isfinite()]
        largest = float(finite.abs().max()) if len(finite) and expected.is_floating_point() else 0.0
        torch.testing.assert_close(value, expected, rtol=0, atol=case.tolerance * largest, equal_nan=True)
    if case.on is not None:
        there = "cpu" if case.on == "cpu" or side == "data there" else "cuda"
        assert set(found["where"]) <= {there}


def test_no_global_random_state_changes(outcomes: dict[str, Any]) -> None:
    """Of the CPU, of NumPy, and of the GPU, also by a model that lies on the CPU."""
    changed = {
        (name, side): outcome["moved"]
        for name, ran in outcomes["found"].items()
        for side, outcome in ran.items()
        if set(outcome["moved"]) - ({"CPU"} if CASES[name].draws else set())
    }
    assert not changed


def test_every_function_that_takes_tensors_has_a_case(outcomes: dict[str, Any]) -> None:
    assert len(outcomes["public"]) > 80
    assert outcomes["missing"] == sorted(EXEMPT)


SOURCES = sorted((ROOT / "notebooks").glob("*.md"))


# In every run only one, which trains many kinds of networks: together they take minutes.
@pytest.mark.parametrize(
    "chapter",
    [
        pytest.param(path.stem, marks=[] if path.stem.startswith("04") else pytest.mark.chapters_on_device)
        for path in SOURCES
        if "\ndevice: str" in path.read_text("utf-8") and not path.stem.endswith("-replication")
    ],
)
def test_a_chapter_runs_on_a_device(chapter: str, tmp_path: Path) -> None:
    """At smoke size, and without writing into the clone."""
    pytest.importorskip("papermill")
    smoke = ROOT / "notebooks" / "params" / "smoke" / f"{chapter}.yaml"
    papermill = ("-m", "papermill", "--no-progress-bar", f"gradleak://{chapter}", "executed.ipynb")
    on_a_device(*papermill, "-f", str(smoke), "-p", "device", "cuda", folder=tmp_path)
