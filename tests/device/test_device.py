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
from run_cases import CASES, outcomes_on

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(
    os.environ.get("GRADLEAK_TEST_PRETEND_CUDA") or ROOT.parent / "shared" / "tools" / "pretend_cuda"
)

# Public functions that take tensors, and why no case calls them with one on a device.
EXEMPT = {
    "defenses.composition.chain": "takes functions",
    "federated.checkpoint.Part.then": "what a server has seen is kept on the CPU",
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


def on_a_device(*arguments: str, **environment: str) -> None:
    """Run this Python with a device, and show all that it said if it failed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*python_with_a_device(), *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all cases, in one process."""
    if torch.cuda.is_available():
        return outcomes_on("cuda")
    file = tmp_path_factory.mktemp("device") / "outcomes.pt"
    on_a_device(str(Path(__file__).with_name("run_cases.py")), str(file))
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("side", ["data there", "data on the CPU"])
@pytest.mark.parametrize("name", CASES)
def test_it_comes_to_the_same_as_on_the_cpu(name: str, side: str, outcomes: dict[str, Any]) -> None:
    there, mixed, reference = outcomes["found"][name]
    found = there if side == "data there" else mixed
    assert not reference["error"], reference["error"]
    assert not found["error"], found["error"]
    assert len(found["values"]) == len(reference["values"])
    for value, expected in zip(found["values"], reference["values"], strict=True):
        assert value.shape == expected.shape
        assert value.dtype == expected.dtype
        finite = expected[expected.isfinite()]
        largest = finite.abs().max().item() if len(finite) else 0.0
        whole = not expected.is_floating_point()
        torch.testing.assert_close(
            value, expected, rtol=0, atol=0 if whole else CASES[name].tolerance * largest, equal_nan=True
        )
    if (on := CASES[name].on) is not None:
        assert set(found["where"]) <= {"cpu" if on == "cpu" else "cuda"}


def test_no_global_random_state_changes(outcomes: dict[str, Any]) -> None:
    """Of the CPU, of NumPy, and of the GPU, also by a model that lies on the CPU."""
    changed = {
        (name, place): outcome["moved"]
        for name, ran in outcomes["found"].items()
        for place, outcome in zip(("there", "mixed", "CPU"), ran, strict=True)
        if set(outcome["moved"]) - ({"CPU"} if CASES[name].draws else set())
    }
    assert not changed


def test_every_function_that_takes_tensors_has_a_case(outcomes: dict[str, Any]) -> None:
    assert len(outcomes["public"]) > 80
    assert outcomes["missing"] == sorted(EXEMPT)


@pytest.mark.parametrize(
    "chapter",
    [
        pytest.param(path.stem, marks=[] if path.stem.startswith("06") else [pytest.mark.chapters_on_device])
        for path in sorted(ROOT.joinpath("notebooks").glob("0*.md"))
    ],
)
def test_a_chapter_runs_on_a_device(chapter: str, tmp_path: Path) -> None:
    pytest.importorskip("papermill")
    smoke = ROOT / "notebooks" / "params" / "smoke" / f"{chapter}.yaml"
    made = str(tmp_path / "chapter.ipynb")
    on_a_device(
        *("-m", "papermill", f"gradleak://{chapter}", made, "--no-progress-bar", "-f", str(smoke)),
        *("-p", "device", "cuda"),
    )
