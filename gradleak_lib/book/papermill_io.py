"""``papermill gradleak://02-llg out.ipynb -p batches 5``, from any folder: the chapters as papermill's input.

Papermill finds this module through its entry points and imports it whenever it is imported itself, so that all else
is imported where it is used.
"""

import os
import warnings
from pathlib import Path
from typing import Any

SCHEME = "gradleak://"
# Papermill's advice on file names; chapters are named without an ending.
warnings.filterwarnings("ignore", message=r"the file is not specified with any extension : \d")


class Chapters:
    """Reads chapters for papermill, which calls it by these names."""

    def read(self, path: str) -> str:
        """Return a chapter as the JSON of a notebook; from now on papermill looks at its parameters.

        Raises
        ------
        UsageError
            If there is no such chapter.
        """
        import json

        import jupytext
        from papermill.engines import papermill_engines

        from gradleak_lib.book.chapters import find_chapter, project_root
        from gradleak_lib.book.results import commit

        source = find_chapter(path.removeprefix(SCHEME).removesuffix(".ipynb"), project_root())
        notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="md")
        notebook.metadata["gradleak"] = {"chapter": source.stem, "commit": commit()}
        use_own_kernel()
        papermill_engines.register(None, _engine())
        return json.dumps(notebook)

    def listdir(self, path: str) -> list[str]:
        """Return the addresses of all chapters."""
        from gradleak_lib.book.chapters import chapter_sources, project_root

        return [f"{SCHEME}{source.stem}" for source in chapter_sources(project_root())]

    def write(self, buf: str, path: str) -> None:
        """Refuse: chapters are sources."""
        raise ValueError(f"{path} is a chapter's source: give papermill the path of a file to write to")

    def pretty_path(self, path: str) -> str:
        """Return the address as it is."""
        return path


CHAPTERS = Chapters()


def use_own_kernel() -> None:
    """Let the kernel ``python3`` be the interpreter that runs this, whatever Jupyter would find first."""
    own = str(Path(__file__).with_name("jupyter"))
    others = [path for path in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if path and path != own]
    os.environ["JUPYTER_PATH"] = os.pathsep.join([own, *others])


def _engine() -> Any:
    """Papermill's own engine, which looks at a chapter's parameters before it starts a kernel."""
    import click
    from papermill.engines import NBClientEngine
    from papermill.translators import translate_parameters

    from gradleak_lib.book.chapters import UsageError, find_chapter, project_root
    from gradleak_lib.book.parameters import checked, declared

    class ChapterEngine(NBClientEngine):
        @classmethod
        def execute_notebook(cls, nb: Any, kernel_name: str, **options: Any) -> Any:
            chapter = nb.metadata.get("gradleak", {}).get("chapter")
            given = dict(nb.metadata.papermill.get("parameters", {}))
            if chapter and given:
                try:
                    values = checked(chapter, given, declared(find_chapter(chapter, project_root())))
                except UsageError as error:
                    raise click.ClickException(str(error)) from None
                # -p has no lists: what was a word there is a list now.
                for cell in nb.cells:
                    if "injected-parameters" in cell.metadata.get("tags", ()):
                        cell.source = translate_parameters(kernel_name, "python", values, "Parameters")
            return super().execute_notebook(nb, kernel_name, **options)

    return ChapterEngine
