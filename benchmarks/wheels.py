"""Collect the packages that a machine with a GPU, and without a network, may lack.

    make wheels [ARGS="--python 3.12"]

They go into `_build/wheels`, which travels with this folder; `gpu.py` installs them there.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "_build" / "wheels"
LIMIT = 40_000_000  # bytes of all wheels
# What a machine for PyTorch has, with what that needs in turn: large, or built for its driver, and never taken.
THERE = {
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
}
# What other packages ask for, and running chapters and studies never imports: it serves browsers, debuggers,
# completion at a prompt, the building of a website, or files on servers.
UNUSED = {"aiohttp", "babel", "debugpy", "jedi", "jupyterlab-widgets", "sqlalchemy", "widgetsnbextension"}
TEST_TOOLS = ("hypothesis", "pytest")
PATCH = ".99"  # of the Python that wheels are for: some want a late one
GLIBC = range(5, 29)  # minor versions that a wheel may ask for; 2.28 is that of clusters' older systems


def canonical(name: str) -> str:
    """The name of a package as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> list[str]:
    """Requirements of what runs on a GPU: the library, its chapters and sweeps, and what tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    tools = [line for line in extras["test"] if canonical(named(line)) in TEST_TOOLS]
    found = [*project["project"]["dependencies"], *extras["chapters"], *extras["scale"], *tools]
    return [line for line in found if canonical(named(line)) != "gradleak"]


def built_with() -> list[str]:
    """Requirements of installing this folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["build-system"]["requires"])


def named(requirement: str) -> str:
    """The name in a requirement."""
    match = re.match(r"[\w.-]+", requirement)
    if match is None:
        raise ValueError(f"no requirement: {requirement!r}")
    return match[0]


def left_out(name: str) -> bool:
    """Whether a package does not travel."""
    return name in THERE | UNUSED or name.startswith(("nvidia-", "triton"))


def closure(
    roots: Iterable[str],
    fetch: Callable[[Sequence[str]], Mapping[str, Sequence[str]]],
    target: Mapping[str, str],
) -> set[str]:
    """Names of all packages that some requirements lead to, but for what is `left_out`, with what only that needs.

    Parameters
    ----------
    roots
        Requirements.
    fetch
        Gets packages by their requirements, and returns what each requires in turn, by name.
    target
        Environment markers of the machine.
    """
    from packaging.requirements import Requirement

    found: set[str] = set()
    asked: dict[str, set[str]] = {}  # extras by name
    due = [Requirement(line) for line in roots]
    requires: dict[str, Sequence[str]] = {}
    while due:
        due = [one for one in due if not left_out(canonical(one.name))]
        new = {canonical(one.name): f"{one.name}{one.specifier}" for one in due}
        requires |= fetch([line for name, line in new.items() if name not in found])
        found |= set(new)
        following = []
        for one in due:
            name = canonical(one.name)
            if name in asked and one.extras <= asked[name]:
                continue
            extras = asked.setdefault(name, set())
            extras |= {"", *one.extras}
            for line in requires[name]:
                other = Requirement(line)
                if other.marker is None or any(
                    other.marker.evaluate({**target, "extra": extra}) for extra in extras
                ):
                    following.append(other)
        due = following
    return found


def download(requirements: Sequence[str], folder: Path, python: str, machine: str) -> dict[str, list[str]]:
    """Get wheels of some packages for another Python, at the versions of ``constraints.txt``; return their needs.

    Raises
    ------
    RuntimeError
        If pip cannot get one.
    """
    if not requirements:
        return {}
    before = set(folder.glob("*.whl"))
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)]
    platforms += [f"--platform={old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq", "--no-deps"]
    command += ["--progress-bar=off", "--only-binary=:all:", f"--python-version={python}{PATCH}", *platforms]
    command += ["--implementation=cp", "-c", str(ROOT / "constraints.txt"), "-d", str(folder), *requirements]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"pip could not get all of these, and says why above: {', '.join(requirements)}")
    found = {}
    for wheel in set(folder.glob("*.whl")) - before:
        with zipfile.ZipFile(wheel) as archive:
            [inside] = [
                name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
            ]
            metadata = HeaderParser().parsestr(archive.read(inside).decode("utf-8"))
        found[canonical(metadata["Name"])] = metadata.get_all("Requires-Dist") or []
    return found


def collect(folder: Path, python: str, machine: str, limit: int = LIMIT) -> str:
    """Fill a folder with wheels, whole or not at all, and say how much it is.

    Raises
    ------
    ValueError
        If they are larger than the limit.
    """
    target = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}{PATCH}",
        "python_version": python,
        "sys_platform": "linux",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels-") as temporary:
        new = Path(temporary, "wheels")
        new.mkdir()
        closure([*needed(), *built_with()], lambda lines: download(lines, new, python, machine), target)
        sizes = {wheel.name: wheel.stat().st_size for wheel in new.glob("*.whl")}
        total = sum(sizes.values())
        if total > limit:
            largest = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:3])
            raise ValueError(
                f"the wheels come to {total / 1e6:.1f} MB, and {limit / 1e6:g} MB is what may travel; nothing was "
                f"kept. The largest are {largest}"
            )
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    where = os.path.relpath(folder, ROOT)
    return f"{len(sizes)} wheels for Python {python} on {machine}, {total / 1e6:.1f} MB, are in {where}"


def main(words: Sequence[str] | None = None) -> int:
    """Collect what was asked for."""
    parser = argparse.ArgumentParser(
        description="Collect the packages that a machine without a network lacks."
    )
    parser.add_argument("--python", default="3.12", help="version of its Python (default: %(default)s)")
    parser.add_argument("--machine", default="x86_64", help="its processor (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=WHEELS, help="where to put them; default _build/wheels"
    )
    given = parser.parse_args(words)
    try:
        print(collect(given.folder.resolve(), given.python, given.machine))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
