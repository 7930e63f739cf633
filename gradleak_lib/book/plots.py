"""How results look: one theme, one palette, one width."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH = 7.0


def use_theme() -> None:
    """Set the book's theme for all figures that follow."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.figsize": (WIDTH, 3.6), "figure.dpi": 110, "savefig.bbox": "tight", "legend.frameon": True}
    )


def mosaic(images: Tensor, *, columns: int = 8, zoom: int = 1) -> np.ndarray:
    """Images side by side as one picture.

    Parameters
    ----------
    images
        ``[N, C, H, W]``, clamped to [0, 1]; one or three channels.
    columns
        Images per row.
    zoom
        Each pixel becomes ``zoom x zoom``.

    Returns
    -------
    np.ndarray
        uint8 ``[rows, columns, 3]``.
    """
    enlarged = images.detach().cpu().float().clamp(0, 1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    from gradleak_lib._torchvision import torchvision

    grid = torchvision.utils.make_grid(enlarged, nrow=columns, padding=2, pad_value=1.0)
    return (grid.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def with_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Write a line of text above a picture; both are uint8 ``[H, W, 3]``."""
    height, width, _ = picture.shape
    canvas = Image.new("RGB", (width, height + 28), "white")
    canvas.paste(Image.fromarray(picture), (0, 28))
    ImageDraw.Draw(canvas).text((4, 4), text, fill="black", font=ImageFont.load_default(size=18))
    return np.asarray(canvas)


def encode(picture: np.ndarray, *, kind: str = "png", **options: int) -> bytes:
    """A uint8 picture ``[H, W, 3]`` as the bytes of a PNG, JPEG or WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind, **options)
    return buffer.getvalue()


def beside(panels: Mapping[str, Tensor], *, columns: int = 8) -> Figure:
    """Mosaics of equal batches side by side, under their titles.

    Parameters
    ----------
    panels
        Title to images ``[N, C, H, W]`` in [0, 1].
    columns
        Images per row in each mosaic.
    """
    pictures = {title: mosaic(images, columns=columns) for title, images in panels.items()}
    ratio = max(picture.shape[0] / picture.shape[1] for picture in pictures.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, WIDTH / len(panels) * ratio + 0.3), squeeze=False
    )
    for ax, (title, picture) in zip(axes[0], pictures.items(), strict=True):
        _picture(ax, picture, title)
    figure.tight_layout(pad=0.4)
    return figure


def pairs(
    originals: Tensor, reconstructions: Tensor, scores: Sequence[float] | Tensor, *, unit: str = "dB"
) -> Figure:
    """Originals above their reconstructions, with a score under each.

    Parameters
    ----------
    originals, reconstructions
        ``[N, C, H, W]`` in [0, 1], N at most 8 to stay legible on a phone.
    scores
        ``[N]``, printed under the reconstructions.
    """
    width = min(WIDTH, 1.6 * len(originals))
    figure, axes = plt.subplots(
        2, len(originals), figsize=(width, 2.35 * width / len(originals)), squeeze=False
    )
    for column, value in enumerate(scores):
        _picture(axes[0, column], mosaic(originals[column : column + 1]), "")
        _picture(axes[1, column], mosaic(reconstructions[column : column + 1]), "")
        axes[1, column].text(
            0.5,
            -0.03,
            f"{float(value):.0f} {unit}",
            transform=axes[1, column].transAxes,
            ha="center",
            va="top",
        )
    for row, label in enumerate(("original", "recovered")):
        axes[row, 0].axis("on")
        axes[row, 0].set(ylabel=label, xticks=[], yticks=[])
        sns.despine(ax=axes[row, 0], left=True, bottom=True)
    figure.tight_layout(pad=0.3)
    return figure


def lines(
    data: pd.DataFrame, x: str, y: str, *, hue: str | None = None, log: bool = False, ax: Axes | None = None
) -> Axes:
    """Line plot over repeated measurements: the mean, with a band of its 95% interval.

    Parameters
    ----------
    data
        Long table with columns ``x``, ``y`` (names with units: they become the axis labels) and ``hue``.
    log
        Logarithmic x axis.
    ax
        Draws into it; None opens a new figure.
    """
    if ax is None:
        _, ax = plt.subplots()
    if hue is not None:
        data = data.assign(**{hue: data[hue].astype(str)})  # colours that tell groups apart, not shades
    sns.lineplot(
        data, x=x, y=y, hue=hue, style=hue, markers=True, dashes=False, errorbar=("ci", 95), seed=0, ax=ax
    )
    if log:
        ax.set_xscale("log")
    return ax


def legend_above(ax: Axes, *, x: float = 0.5, columns: int = 3, title: str | None = None) -> None:
    """Put the legend above the axes, where it hides nothing; ``x`` is its middle, as a share of their width."""
    ax.legend(
        title=title, fontsize=9, loc="lower center", bbox_to_anchor=(x, 1), ncols=columns, frameon=False
    )


def reference(ax: Axes, value: float, label: str, *, axis: str = "y") -> None:
    """Draw the paper's number as a dashed line with its label."""
    draw = ax.axhline if axis == "y" else ax.axvline
    draw(value, color="0.25", linestyle="--", linewidth=1.2, label=label)
    ax.legend()


def _picture(ax: Axes, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.axis("off")
