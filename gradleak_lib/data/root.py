"""Where data sets lie on disk, and what is said when one is missing or damaged."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path


class MissingData(FileNotFoundError):
    """A data set is not on this machine; the one-line message says what to run."""


class CorruptData(ValueError):
    """A file of a data set is damaged; the one-line message names it."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds the downloaded data sets.

    Parameters
    ----------
    root
        The folder. Where it is None: the environment variable ``GRADLEAK_DATA``, else a cache folder of the
        user.

    Returns
    -------
    Path
        The folder, which need not exist.
    """
    root = os.environ.get("GRADLEAK_DATA") if root is None else root
    if not root:
        import platformdirs

        root = platformdirs.user_cache_path("gradleak")
    return Path(root).expanduser()


def missing(name: str, path: Path) -> MissingData:
    """Return the error that says that ``path``, a file of data set ``name``, is not there."""
    return MissingData(
        f"{name}: {path} is missing: run `gradleak data {name}`, or name the folder that holds the data with "
        "--data or GRADLEAK_DATA"
    )


def corrupt(name: str, path: Path) -> CorruptData:
    """Return the error that says that ``path``, a file of data set ``name``, is damaged."""
    return CorruptData(f"{name}: {path} is corrupt: delete it and run `gradleak data {name}`")


@contextmanager
def staged(name: str, root: Path) -> Iterator[Path]:
    """Give a temporary folder to download into; its files move under ``root`` only if all went well.

    Parameters
    ----------
    name
        Data set, for the message.
    root
        Data root; made where it does not exist. Archives (``*.gz``) are not kept.

    Yields
    ------
    Path
        The temporary folder, in ``root`` so that moving a file is atomic.

    Raises
    ------
    MissingData
        If the download fails. Nothing of it is left under ``root``.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            yield Path(folder)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MissingData(f"{name}: the download to {root} failed: {reason}") from error
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and path.suffix != ".gz":
                target = root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
