"""Show types in signatures as the library writes them: without typer's options, and ``ArrayLike`` by its name."""

from typing import Annotated, Any, get_args, get_origin

from numpy.typing import ArrayLike
from sphinx.application import Sphinx


def shorten(app: Sphinx, obj: Any, bound_method: bool) -> None:
    """Take out of a function's annotations what Sphinx would spell out."""
    for name, hint in getattr(obj, "__annotations__", {}).items():
        if get_origin(hint) is Annotated:
            obj.__annotations__[name] = hint.__origin__
        elif hint == ArrayLike:
            obj.__annotations__[name] = "ArrayLike"  # a string is looked up in autodoc_type_aliases
        elif get_args(hint) and all(part == ArrayLike for part in get_args(hint)):
            parts = ", ".join(["ArrayLike"] * len(get_args(hint)))
            obj.__annotations__[name] = f"{get_origin(hint).__name__}[{parts}]"


def setup(app: Sphinx) -> dict[str, bool]:
    """Step in before autodoc reads a signature."""
    app.connect("autodoc-before-process-signature", shorten)
    return {"parallel_read_safe": True}
