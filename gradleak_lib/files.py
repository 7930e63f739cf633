"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, content: str | Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all, whatever stops the process; folders above it are made.

    Parameters
    ----------
    path
        What is there already stays until all of the new content is on the disk.
    content
        Text, which is written in UTF-8, or a function that writes to the open file: for what is too large to be held
        twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".whole-")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode("utf-8"))
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
