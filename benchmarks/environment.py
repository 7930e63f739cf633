"""An environment that holds gradleak and the library it is compared with, and that the book never sees."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / ".venv"
PEER = "breaching==0.1.2"


def enter() -> None:
    """Go on in one thread, in an environment with the peer: call this before anything imports torch.

    Where the running interpreter lacks the peer, make ``benchmarks/.venv`` if need be and start the script
    again in it, with the same arguments; this call then does not return.

    Raises
    ------
    RuntimeError
        If the environment has just been made and still lacks the peer.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if _has_peer():
        return
    if Path(sys.prefix).resolve() == FOLDER:
        raise RuntimeError(f"{FOLDER} lacks {PEER}: remove the folder and start again")
    python = _make()
    os.execv(python, [str(python), *sys.argv])


def _has_peer() -> bool:
    name, version = PEER.split("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def _make() -> Path:
    """Make the environment unless a finished one of the same pins is there; return its interpreter."""
    python = FOLDER / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = ROOT / "constraints.txt"
    pins = constraints.read_bytes() + PEER.encode()
    stamp, wanted = FOLDER / "installed", hashlib.sha256(pins).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Making {FOLDER} for {PEER}", flush=True)
    venv.create(FOLDER, clear=True, with_pip=True)
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    # torch comes first and alone: given a choice, pip would take another build together with the rest.
    for wishes in ([torch], ["-c", str(constraints), "-e", str(ROOT), PEER]):
        install = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar", "off"]
        subprocess.run([str(python), *install, *wishes], check=True)
    # Written last: an environment that was interrupted is made again.
    stamp.write_text(wanted)
    return python
