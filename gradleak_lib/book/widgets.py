"""Explorers: pictures that a reader moves through, in the built pages with no kernel, and live in Jupyter.

A static explorer holds every picture that it can show. The browser links its controls to what is visible, so
it works wherever the page is read.
"""

import base64
import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as ipw
from IPython import get_ipython
from IPython.display import Markdown, display

MAX_FACTORS = 4
_ROW = {"flex_flow": "row wrap", "max_width": "100%"}
_CONTROL = {"width": "auto", "min_width": "260px", "flex": "0 1 340px"}
_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


def picture(data: bytes, alt: str) -> ipw.HTML:
    """Return an image with a text alternative, which ``ipywidgets.Image`` cannot have.

    Parameters
    ----------
    data : bytes
        A PNG, JPEG or WebP file.
    alt : str
        What the picture shows, for those who do not see it; not empty.

    Raises
    ------
    ValueError
        If ``data`` is another kind of file, or ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty; it must say what the picture shows")
    source = base64.b64encode(data).decode()
    source = f"data:{_mime(data)};base64,{source}"
    tag = f'<img alt="{html.escape(alt)}" src="{source}" style="max-width:100%;height:auto">'
    return ipw.HTML(tag, layout={"max_width": "100%"})


def _mime(data: bytes) -> str:
    for signature, mime in _SIGNATURES:
        if data.startswith(signature) and (mime != "image/webp" or data[8:12] == b"WEBP"):
            return mime
    raise ValueError(f"data begins with {data[:4]!r}; it must be a PNG, JPEG or WebP file")


def explorer(
    frames: Mapping[tuple, bytes], factors: Sequence[tuple[str, Sequence]], alts: Mapping[tuple, str]
) -> ipw.VBox:
    """Return pictures with one slider a factor, linked in the browser.

    Parameters
    ----------
    frames : mapping of tuple to bytes
        The picture (PNG, JPEG or WebP) at every combination of the factors' values.
    factors : sequence of (str, sequence)
        1 to 4 factors: a label, without mathematics, and its values in the slider's order, at least one each.
    alts : mapping of tuple to str
        What each picture shows, for those who do not see it.

    Raises
    ------
    ValueError
        If there are too many factors, too few values, or a combination has no picture or no text.
    """
    if not 1 <= len(factors) <= MAX_FACTORS:
        raise ValueError(f"factors has {len(factors)} entries; it must have 1 to {MAX_FACTORS}")
    for label, values in factors:
        if not values:
            raise ValueError(f"factors: {label!r} has no value; it must have 1 or more")
    for name, given in (("frames", frames), ("alts", alts)):
        missing = [key for key in itertools.product(*(values for _, values in factors)) if key not in given]
        if missing:
            raise ValueError(
                f"{name} lacks {len(missing)} combinations of the factors, the first is {missing[0]!r}"
            )
    controls = [_slider(label, values) for label, values in factors]
    stacks: list[list[ipw.Stack]] = [[] for _ in factors]

    def build(chosen: tuple) -> ipw.Widget:
        level = len(chosen)
        if level == len(factors):
            return picture(frames[chosen], alts[chosen])
        children = [build((*chosen, value)) for value in factors[level][1]]
        stack = ipw.Stack(children, selected_index=0, layout={"max_width": "100%"})
        stacks[level].append(stack)
        return stack

    shown = build(())
    for control, level_stacks in zip(controls, stacks, strict=True):
        for stack in level_stacks:
            ipw.jslink((control, "index"), (stack, "selected_index"))
    box = ipw.VBox([ipw.HBox(controls, layout=_ROW), shown], layout={"max_width": "100%"})
    box.add_class("gradleak-explorer")
    return box


def _slider(label: str, values: Sequence) -> ipw.SelectionSlider:
    return ipw.SelectionSlider(
        options=[(str(value), value) for value in values],
        index=0,
        description=label,
        continuous_update=True,
        style={"description_width": "initial"},
        layout=_CONTROL,
    )


def show(widget: ipw.Widget, still: bytes, alt: str) -> None:
    """Display a widget, with a still and a text for readers that have no widgets (PDF, GitHub).

    Parameters
    ----------
    widget : ipywidgets.Widget
        What the pages and Jupyter show.
    still : bytes
        A picture of it, as a PNG file.
    alt : str
        What the still shows.

    Raises
    ------
    ValueError
        If ``still`` is no PNG file.
    """
    if _mime(still) != "image/png":
        raise ValueError(f"still is {_mime(still)}; it must be image/png")
    bundle = dict(widget._repr_mimebundle_())
    bundle.pop("text/html", None)
    bundle["image/png"] = base64.b64encode(still).decode()
    bundle["text/plain"] = alt
    # One output with three faces: each reader takes the richest that it knows, and only that.
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def live(function: Callable[..., Any], **controls: Any) -> ipw.Widget | Markdown:
    """Return an explorer that calls ``function`` for each choice: the real thing, where there is a kernel.

    A page has none, and a slider that does nothing looks broken. So a notebook that is executed with nobody at its
    kernel, by ``gradleak run`` or papermill, gets a line that says how to open it live.

    Parameters
    ----------
    function : callable
        Draws the result of one choice.
    **controls : widget or abbreviation
        What ``ipywidgets.interactive`` takes, by the name of the function's argument.

    Returns
    -------
    ipywidgets.Widget or IPython.display.Markdown
        Make it the last line of its cell.
    """
    if not _somebody_is_there():
        return Markdown(
            "*With a kernel, this cell runs the attack itself at any setting: "
            "type `make lab`, then open this chapter from the folder `notebooks`.*"
        )
    widget = ipw.interactive(function, **controls)
    for control in widget.kwargs_widgets:
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # an attack for every pixel that the slider moves is too much
    return widget


def _somebody_is_there() -> bool:
    """Whether the cell that runs was sent by a program that can ask its user something: Jupyter, not papermill."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", True))
