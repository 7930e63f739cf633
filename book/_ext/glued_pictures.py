"""Write the pictures that chapters glue for other pages into files beside the chapters.

MyST-NB shows a glued picture on the page of its own chapter only.
"""

import base64
import json
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

PREFIX = "application/papermill.record/"
NAMES = ("cover-",)  # what the names of such pictures begin with


def write(app: Sphinx, config: Config) -> None:
    """Write each glued JPEG whose name says that it is for other pages."""
    chapters = Path(app.srcdir, "book", "chapters")
    for notebook in sorted(chapters.glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                name = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
                data = output.get("data", {}).get(f"{PREFIX}image/jpeg")
                if name.startswith(NAMES) and data:
                    (chapters / f"{name}.jpg").write_bytes(base64.b64decode("".join(data)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Write them before any page is read."""
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}
