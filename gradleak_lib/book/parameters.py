"""The parameters of a chapter: what its first code cell declares, and whether a value may stand there.

A line of that cell says all of it::

    sizes: list[int] = [1, 8, 64]  # batch sizes (1 or more; at least 2 of them)

The type is Python's, the default a literal, and the limits stand in parentheses at the end of the comment: ``1 or
more``, ``0 to 1``, ``above 0``, ``one of cpu, cuda``, for pictures ``a folder, or one of photos, places``. In a list
they hold for each of its numbers or words, and how many there are is said by ``at least 2 of them`` (1 unless said),
``may be empty`` and, for lists of lists, ``3 in each``.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from gradleak_lib.book.chapters import UsageError, code_cells

_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter.

    Parameters
    ----------
    name
        As in the cell.
    kind
        Its type: ``int``, ``float``, ``str``, ``bool``, or a list of one of them, or of such lists.
    default
        The chapter's own value.
    limits
        What stands in parentheses at the end of its comment; empty where every value of the type will do.
    """

    name: str
    kind: Any
    default: Any
    limits: str

    def check(self, value: Any) -> Any:
        """Return a value in this parameter's type.

        Raises
        ------
        UsageError
            If the value is of another type, no finite number, or outside the limits.
        """
        try:
            found = _of_type(value, self.kind)
        except TypeError:
            raise UsageError(
                f"parameter {self.name!r} is {value!r}; it must be of type {_said(self.kind)}"
            ) from None
        entries, many = _entries(found), isinstance(found, list)
        least = re.search(r"at least (\d+) of them", self.limits)
        wanted = 0 if "may be empty" in self.limits else int(least[1]) if least else 1
        if many and len(found) < wanted:
            raise UsageError(f"parameter {self.name!r} is {value!r}; it must hold {wanted} or more")
        each = re.search(r"(\d+) in each", self.limits)
        if each and any(len(part) != int(each[1]) for part in found):
            raise UsageError(f"parameter {self.name!r} is {value!r}; it must hold lists of {each[1]}")
        for rule in self.limits.split(";"):
            allowed = _rule(rule.strip())
            if allowed and not all(allowed(entry) for entry in entries):
                must = f"{'hold' if many else 'be'} {rule.strip()}"
                raise UsageError(f"parameter {self.name!r} is {value!r}; it must {must}")
        if not all(math.isfinite(entry) for entry in entries if isinstance(entry, int | float)):
            raise UsageError(f"parameter {self.name!r} is {value!r}; it must be a finite number")
        return found


def _rule(text: str) -> Callable[[Any], bool] | None:
    """Whether one value obeys one rule; None for words that are no such rule."""
    number = r"(-?[\d.]+(?:e-?\d+)?)"
    if found := re.fullmatch(rf"{number} or more", text):
        least, most = float(found[1]), math.inf
    elif found := re.fullmatch(rf"{number} to {number}", text):
        least, most = float(found[1]), float(found[2])
    elif found := re.fullmatch(rf"above {number}", text):
        least, most = math.nextafter(float(found[1]), math.inf), math.inf
    elif found := re.fullmatch(r"(a folder, or )?one of (.+)", text):
        words, folder = found[2].split(", "), bool(found[1])
        return lambda value: str(value) in words or (folder and not _is_data_set(value))
    else:
        return None
    return lambda value: least <= value <= most


def _is_data_set(value: Any) -> bool:
    from gradleak_lib.data import datasets

    return value in datasets.NAMES


def _of_type(value: Any, kind: Any) -> Any:
    """A value as this type holds it, with words that YAML or a command line made of numbers and lists read again."""
    if get_origin(kind) is list:
        if isinstance(value, str):  # papermill's -p has no lists
            value = yaml.safe_load(value)
        if not isinstance(value, list | tuple):
            raise TypeError
        [inner] = get_args(kind)
        return [_of_type(entry, inner) for entry in value]
    if kind is float and type(value) in (int, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            raise TypeError from None
    if type(value) is not kind:
        raise TypeError
    return value


def _said(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _entries(value: Any) -> list[Any]:
    """The numbers and words in a value, which may be a list of lists."""
    return [entry for part in value for entry in _entries(part)] if isinstance(value, list) else [value]


def declared(source: Path) -> dict[str, Parameter]:
    """Return what a chapter's ``parameters`` cell declares, by name.

    Raises
    ------
    ValueError
        If a line has no type, or its default is no literal of it within its own limits.
    """
    return dict(_declared(source.read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=16)  # a sweep plans the same chapter many times
def _declared(notebook: str) -> Mapping[str, Parameter]:
    return read_cell("\n".join(cell.code for cell in code_cells(notebook) if "parameters" in cell.tags))


def read_cell(code: str) -> dict[str, Parameter]:
    """Return what the code of a ``parameters`` cell declares; ValueError as for `declared`."""
    lines = code.splitlines()
    found = {}
    for statement in ast.parse(code).body:
        if (
            not isinstance(statement, ast.AnnAssign)
            or not isinstance(statement.target, ast.Name)
            or not statement.value
        ):
            raise ValueError(
                f"a parameter is `name: type = value  # comment`, got {ast.unparse(statement)!r}"
            )
        comment = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :]
        limits = re.search(r"\(([^()]*)\)\s*$", comment)
        kind = eval(ast.unparse(statement.annotation), {"__builtins__": {}}, _TYPES)
        name = statement.target.id
        parameter = Parameter(name, kind, ast.literal_eval(statement.value), limits[1] if limits else "")
        found[name] = parameter
        parameter.check(parameter.default)
    return found


def read_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of parameters.

    Raises
    ------
    UsageError
        If the file is missing, is no YAML, or holds anything but names with values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read parameters from {path}: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def checked(chapter: str, given: Mapping[str, Any], there: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return given values in their declared types.

    Parameters
    ----------
    chapter
        Its name, for the message.
    given
        Values by name.
    there
        From `declared`.

    Raises
    ------
    UsageError
        If a name is not declared, or a value cannot stand there.
    """
    unknown = [name for name in given if name not in there]
    if unknown:
        names = ", ".join(there) or "none"
        raise UsageError(
            f"{chapter} declares no parameter {', '.join(map(repr, unknown))}; it declares: {names}"
        )
    try:
        values = {name: there[name].check(value) for name, value in given.items()}
    except UsageError as error:
        raise UsageError(f"{chapter}: {error}") from None
    json.dumps(values)
    return values
