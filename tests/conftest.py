"""What every test can ask for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import gradleak_lib._torchvision  # noqa: F401  (first: it lets torchvision import beside a CPU build of torch)

ROOT = Path(__file__).resolve().parents[1]

# A failure by chance tells nobody what his change has broken: the examples are the same in each run. The weekly run
# of continuous integration draws others, and so can you.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("GRADLEAK_EXAMPLES", "same"))

# The tests run side by side: a thread each is faster than all of them fighting for the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with real data sets; skip where the archive of them is not on this machine."""
    archive = Path(os.environ.get("GRADLEAK_TEST_DATA") or ROOT.parent / "shared" / "data")
    script = archive / "unpack.py"
    if not script.is_file():
        pytest.skip(f"no real data: {script} is missing (GRADLEAK_TEST_DATA names the folder)")
    folder = tmp_path_factory.mktemp("real-data")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder
