"""Data flows one way: science, then experiments, then the book, and no import runs back up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "gradleak_lib"
# What each room may import besides itself and what lies on the ground.
GROUND = {"__init__", "_torchvision", "files", "seeding", "show"}
SCIENCE = {
    "data": set(),
    "models": set(),
    "federated": {"data", "models"},
    "defenses": {"data", "federated"},
    "attacks": {"models", "federated"},
    "metrics": set(),
}
MAY = SCIENCE | {
    "experiments": set(SCIENCE),
    "book": {*SCIENCE, "experiments"},
    "__main__": {"book"},
    **{part: set() for part in GROUND},
}


def imported(path: Path) -> set[str]:
    """Parts of the library that a file imports, whether at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            whole = node.module == "gradleak_lib"
            names |= {f"gradleak_lib.{one.name}" for one in node.names} if whole else {node.module or ""}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gradleak_lib.")} - {"__version__"}


def test_every_room_is_named():
    there = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__pycache__"
    }
    assert there == set(MAY)


def test_no_import_runs_back_up():
    seen, wrong = 0, []
    for part, allowed in MAY.items():
        files = sorted((LIBRARY / part).rglob("*.py")) or [LIBRARY / f"{part}.py"]
        for path in files:
            found = imported(path)
            seen += len(found)
            wrong += [f"{path.relative_to(LIBRARY)} imports {n}" for n in found - allowed - GROUND - {part}]
    assert seen > 100
    assert wrong == []


# A program that has failed to import it, as happens beside a CPU build of torch, and goes on.
FAILED = "import contextlib\nwith contextlib.suppress(RuntimeError):\n    import {}\n"


@pytest.mark.parametrize(
    "script",
    [
        "import torch, gradleak_lib; from gradleak_lib._torchvision import torchvision as t; t.models.resnet18()",
        FAILED.format("torchvision")
        + "from gradleak_lib import models; models.build('resnet18', (3, 9, 9), classes=2)",
        FAILED.format("torchmetrics") + "from gradleak_lib import metrics; import torch\n"
        "assert metrics.ssim(torch.zeros(1, 1, 11, 11), torch.zeros(1, 1, 11, 11)) > 0.99",
        "from gradleak_lib._torchvision import import_torchvision as again; assert again() is again()",
    ],
)
def test_torchvision_comes_whatever_was_imported_first(script):
    subprocess.run([sys.executable, "-c", script], check=True, cwd=LIBRARY.parent)


def test_the_science_brings_only_what_it_computes_with():
    heavy = (
        "torchvision",
        "torchmetrics",
        "sklearn",
        "scipy",
        "pandas",
        "matplotlib",
        "IPython",
        "jupytext",
        "papermill",
    )
    rooms = [f"gradleak_lib.{path.stem}" for path in LIBRARY.iterdir() if path.stem in SCIENCE]
    rooms += [f"gradleak_lib.attacks.{path.stem}" for path in (LIBRARY / "attacks").glob("[a-z]*.py")]
    script = f"import sys, {', '.join(sorted(rooms))}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=LIBRARY.parent
    )
    assert done.stdout.strip() == "[]"
