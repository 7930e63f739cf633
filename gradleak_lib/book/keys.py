"""What decides the outcome of running a chapter: two runs with one key give the same numbers.

That is the code of the science and of the chapter's own experiments, the chapter's code, Python and the pinned
packages, and the data. Neither prose nor docstrings, comments, or the machinery that makes pages of numbers.
"""

import ast
import functools
import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path

from gradleak_lib.book.chapters import code_cells

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SCIENCE = ("seeding", "data", "models", "federated", "defenses", "attacks", "metrics")


def decides(source: str, root: Path, data: Path | None = None) -> dict[str, str]:
    """Return what the outcome of a chapter depends on besides its parameters, by name, as hashes.

    Parameters
    ----------
    source
        The text of the chapter.
    root
        The clone.
    data
        Where data sets are looked for; None: the usual folder.

    Returns
    -------
    dict
        ``chapter`` (its code), ``science``, ``experiments`` (those that it calls), ``results`` (recorded ones and
        studies that it names), ``packages``, ``Python`` and ``data sets``. Two machines that agree in all of them
        compute the same points of a sweep.
    """
    cells = [cell.code for cell in code_cells(source)]
    library = root / "gradleak_lib"
    science = [path for name in SCIENCE for path in (library / f"{name}.py", *(library / name).rglob("*.py"))]
    trees = [tree for code in cells if (tree := _parsed(code)) is not None]
    results = [path for path in (root / "results").rglob("[!0-9]*.json") if _names(trees, path.stem)]
    results += [path for path in (root / "studies").glob("*/*.*") if _names(trees, path.parent.name)]
    pins = (
        (root / "constraints.txt").read_text(encoding="utf-8") if (root / "constraints.txt").is_file() else ""
    )
    return {
        "chapter": _hash(map(meaning, cells)),
        "science": _of_files(science, library),
        "experiments": _of_files(experiments_of(trees, library), library),
        "results": _hash(
            f"{path.relative_to(root).as_posix()} {path.read_bytes()!r}" for path in sorted(results)
        ),
        "packages": _hash(line for line in pins.splitlines() if line.strip() and not line.startswith("#")),
        "Python": platform.python_version(),
        "data sets": _hash(_data_sets(data)),
    }


@functools.lru_cache(maxsize=512)
def meaning(code: str) -> str:
    """Return what code does, as text: its syntax tree, without comments and docstrings.

    What is no Python, such as a cell with a shell command, stands for itself. A semicolon at the end of a cell, which
    keeps its value from being shown, counts.
    """
    tree = _parsed(code)
    if tree is None:
        return code
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree) + (";" if code.rstrip().endswith(";") else "")


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except SyntaxError:
        return None


def experiments_of(trees: Iterable[ast.Module], library: Path) -> list[Path]:
    """Return the files of the experiments that code imports, and of those that they import in turn."""
    found: set[Path] = set()
    waiting = list(trees)
    while waiting:
        for name in _imported_experiments(waiting.pop()):
            folder, file = library / "experiments" / name, library / "experiments" / f"{name}.py"
            new = {path for path in (file, *folder.rglob("*.py")) if path.is_file()} - found
            found |= new
            waiting += [ast.parse(path.read_text(encoding="utf-8")) for path in new]
    return sorted(found)


def _imported_experiments(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "gradleak_lib.experiments":
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return {name.removeprefix("gradleak_lib.experiments.").split(".")[0] for name in names}


def _names(trees: Iterable[ast.Module], result: str) -> bool:
    """Whether code names a recorded result or a study: as a string, or by the start of one that ends in a value."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and node.value in (result, f"{result}.json"):
            return True
        first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else None
        if isinstance(first, ast.Constant) and result.startswith(str(first.value)):
            return True
    return False


def _of_files(files: Iterable[Path], library: Path) -> str:
    there = {path.relative_to(library).as_posix(): path for path in files if path.is_file()}
    return _hash(f"{name} {meaning(there[name].read_text(encoding='utf-8'))}" for name in sorted(there))


def _data_sets(data: Path | None) -> Iterable[str]:
    """Names and sizes of what lies two levels deep: the pages differ where a data set has come or gone."""
    from gradleak_lib.data.root import data_root

    folder = data_root(data)
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("[!.]*/*")]):
        yield f"{path.relative_to(folder)} {path.stat().st_size if path.is_file() else ''}"


def _hash(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)} {text}".encode())
    return found.hexdigest()
