"""Environments that hold gradleak and a library it is compared with, and that the book never sees."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Peer:
    """A library to be compared with.

    Parameters
    ----------
    pin
        What pip installs, ``name==version``; extras may follow the name.
    folder
        Name of its environment's folder, beside this file.
    agrees
        Whether it runs with all versions of ``constraints.txt``; otherwise only those of torch and torchvision hold.
    """

    pin: str
    folder: str
    agrees: bool = True

    @property
    def path(self) -> Path:
        """Where the environment is."""
        return ROOT / "benchmarks" / self.folder

    @property
    def version(self) -> str:
        """The version that is pinned."""
        return self.pin.partition("==")[2]

    def here(self) -> bool:
        """Whether the running interpreter has it."""
        name = self.pin.partition("==")[0]
        try:
            return importlib.metadata.version(name.partition("[")[0]) == self.version
        except importlib.metadata.PackageNotFoundError:
            return False


BREACHING = Peer("breaching==0.1.2", ".venv")
# Flower wants older versions of rich and typer. 1.42.0 wants a newer certifi than some mirrors have.
FLOWER = Peer("flwr[simulation]==1.41.0", ".venv-flower", agrees=False)


def one_thread() -> None:
    """Go on in one thread: call this before anything imports torch."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def enter(peer: Peer = BREACHING) -> None:
    """Go on in one thread, in an environment with the peer: call this before anything imports torch.

    Where the running interpreter lacks the peer, make its environment if need be and start the script
    again in it, with the same arguments; this call then does not return.

    Raises
    ------
    RuntimeError
        If the environment has just been made and still lacks the peer.
    """
    one_thread()
    if peer.here():
        return
    if Path(sys.prefix).resolve() == peer.path:
        raise RuntimeError(f"{peer.path} lacks {peer.pin}: remove the folder and start again")
    python = make(peer)
    os.execv(python, [str(python), *sys.argv])


def make(peer: Peer) -> Path:
    """Make the environment unless a finished one of the same pins is there; return its interpreter."""
    python = peer.path / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = ROOT / "constraints.txt"
    lines = constraints.read_text().splitlines()
    torch, torchvision = (
        next(line for line in lines if line.startswith(f"{name}==")) for name in ("torch", "torchvision")
    )
    wishes = ["-c", str(constraints)] if peer.agrees else [torch, torchvision]
    pins = constraints.read_bytes() if peer.agrees else f"{torch} {torchvision} ".encode()
    stamp, wanted = peer.path / "installed", hashlib.sha256(pins + peer.pin.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Making {peer.path} for {peer.pin}", flush=True)
    venv.create(peer.path, clear=True, with_pip=True)
    # torch comes first and alone: given a choice, pip would take another build together with the rest.
    for what in ([torch], [*wishes, "-e", str(ROOT), peer.pin]):
        # Python compiles what it imports; pip would compile everything first, which takes as long as installing it.
        install = ["install", "--quiet", "--progress-bar", "off", "--no-compile"]
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", *install, *what], check=True)
    # Written last: an environment that was interrupted is made again.
    stamp.write_text(wanted)
    return python
