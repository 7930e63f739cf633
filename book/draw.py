"""Draw the icon, the logo and the picture that stands for a link to the book: book/_static/*.svg, social.png.

    python book/draw.py

A round of federated learning, open at one place, and what drops out there. The lettering is made of the same
rings and lines, so that it looks the same with whatever fonts.
"""

import math
from pathlib import Path

from PIL import Image, ImageDraw

STATIC = Path(__file__).resolve().parent / "_static"
BLUE, ORANGE = "#0173b2", "#de8f05"
INK, PAPER = "#22303c", "#f2f5f7"

# The mark fills a square of this size.
SQUARE = 32
RING = (16, 12, 9.6, 126, 414)  # center, radius, from and to which angle, clockwise from three o'clock
RING_WIDTH = 4.8
DROP = [(16, 17.8), (17.05, 20.9), (20.2, 23.4), (20.2, 26.6), (20.2, 28.92), (18.32, 30.8), (16, 30.8)]
DROP += [(32 - x, y) for x, y in DROP[-2::-1]]  # cubic curves; the left half mirrors the right one

# Each letter: how far the next one is, then lines (x, y, x, y) and arcs like RING. Small letters are 20 high.
BOWL = (10, -10, 10, 0, 360)
LETTERS: dict[str, tuple[float, list[tuple[float, ...]]]] = {
    " ": (14, []),
    "W": (37, [(0, -31, 8, 0), (8, 0, 15, -27), (15, -27, 22, 0), (22, 0, 30, -31)]),
    "a": (29, [BOWL, (20, -20, 20, 0)]),
    "c": (24, [(10, -10, 10, 48, 312)]),
    "d": (29, [BOWL, (20, -34, 20, 0)]),
    "e": (27, [(1, -10, 20, -10), (10, -10, 10, 48, 360)]),
    "f": (17, [(9, -27, 7, 180, 280), (2, -27, 2, 0), (-3, -20, 9, -20)]),
    "g": (29, [BOWL, (20, -20, 20, 3), (10, 3, 10, 0, 150)]),
    "h": (28, [(0, -34, 0, 0), (9.5, -10.5, 9.5, 180, 360), (19, -10.5, 19, 0)]),
    "i": (9, [(0, -20, 0, 0), (0, -29, 0, -29)]),
    "k": (22, [(0, -34, 0, 0), (0, -8, 13, -20), (5, -12.5, 14, 0)]),
    "l": (9, [(0, -34, 0, 0)]),
    "n": (28, [(0, -20, 0, 0), (9.5, -10.5, 9.5, 180, 360), (19, -10.5, 19, 0)]),
    "o": (28, [BOWL]),
    "p": (29, [BOWL, (0, -20, 0, 13)]),
    "r": (17, [(0, -20, 0, 0), (10, -10, 10, 180, 290)]),
    "s": (21, [(7, -15, 5, 90, 335), (7, -5, 5, -90, 155)]),
    "t": (17, [(2, -29, 2, -6), (8, -6, 6, 80, 180), (-3, -20, 10, -20)]),
    "v": (24, [(0, -20, 8.5, 0), (8.5, 0, 17, -20)]),
    "w": (36, [(0, -20, 7, 0), (7, 0, 14, -19), (14, -19, 21, 0), (21, 0, 28, -20)]),
    "y": (24, [(0, -20, 8.5, 0), (17, -20, 4, 12)]),
}

SOCIAL = (1200, 630)
SOCIAL_PHOTOS = "robbing-the-fed.png"
# Where that picture has its columns and its two rows, and how many pixels wide and high each tile is.
COLUMNS, ROWS, TILE = (37, 130, 222, 314, 407), (12, 108), 85


def strokes(text: str) -> tuple[list[tuple[float, ...]], float]:
    """Return the lines and arcs of a text that starts at 0 on the base line, and its width."""
    placed, x = [], 0.0
    for letter in text:
        width, shapes = LETTERS[letter]
        for shape in shapes:
            placed.append((shape[0] + x, shape[1], shape[2] + x * (len(shape) == 4), *shape[3:]))
        x += width
    return placed, x


def on_circle(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    """Return a point of a circle."""
    return x + radius * math.cos(math.radians(angle)), y + radius * math.sin(math.radians(angle))


def svg_stroke(shape: tuple[float, ...]) -> str:
    """Return a line or an arc in the language of SVG paths; a whole circle is two arcs."""
    if len(shape) == 4:
        return "M{:g} {:g}L{:g} {:g}".format(*shape)
    x, y, radius, begin, end = shape
    if end - begin == 360:
        return svg_stroke((x, y, radius, begin, begin + 180)) + svg_stroke((x, y, radius, begin + 180, end))
    (x0, y0), (x1, y1) = on_circle(x, y, radius, begin), on_circle(x, y, radius, end)
    return f"M{x0:.2f} {y0:.2f}A{radius:g} {radius:g} 0 {int(end - begin > 180)} 1 {x1:.2f} {y1:.2f}"


def svg_mark() -> str:
    """Return the mark as two paths."""
    points = [f"{x:g} {y:g}" for x, y in DROP]
    curves = "".join(f"C{' '.join(points[i : i + 3])}" for i in range(1, len(points), 3))
    return (
        f'<path d="{svg_stroke(RING)}" fill="none" stroke="{BLUE}" stroke-width="{RING_WIDTH}"/>\n'
        f'<path d="M{points[0]}{curves}Z" fill="{ORANGE}"/>\n'
    )


def icon() -> str:
    """Return the mark alone."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SQUARE} {SQUARE}">\n{svg_mark()}</svg>\n'


def logo(color: str) -> str:
    """Return the mark with the name beside it, which stands on the same line as the ring."""
    lines, width = strokes("gradleak")
    path = "".join(map(svg_stroke, lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="3 0 {36 + 0.58 * width:.0f} {SQUARE}">\n{svg_mark()}'
        f'<path transform="translate(36.5 21.6) scale(.58)" d="{path}" fill="none" stroke="{color}" '
        'stroke-width="4.6" stroke-linecap="round" stroke-linejoin="round"/>\n</svg>\n'
    )


def curve(points: list[tuple[float, float]], steps: int = 24) -> list[tuple[float, float]]:
    """Return points along cubic curves that follow one another."""
    found = [points[0]]
    for i in range(0, len(points) - 1, 3):
        for t in (step / steps for step in range(1, steps + 1)):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            corners = list(zip(weights, points[i : i + 4], strict=True))
            found.append((sum(w * p[0] for w, p in corners), sum(w * p[1] for w, p in corners)))
    return found


class Canvas:
    """A picture to draw on, four times as fine as it will be."""

    FINE = 4

    def __init__(self, size: tuple[int, int], color: str) -> None:
        self.image = Image.new("RGB", (size[0] * self.FINE, size[1] * self.FINE), color)
        self.draw = ImageDraw.Draw(self.image)

    def stroke(
        self, shape: tuple[float, ...], x: float, y: float, scale: float, width: float, color: str
    ) -> None:
        """Draw a line or an arc of the given width, before scaling, with round ends where it is a letter's."""
        scale, x, y = scale * self.FINE, x * self.FINE, y * self.FINE
        half = width * scale / 2
        if len(shape) == 4:
            ends = [
                (x + shape[0] * scale, y + shape[1] * scale),
                (x + shape[2] * scale, y + shape[3] * scale),
            ]
            self.draw.line(ends, color, round(2 * half))
        else:
            center_x, center_y, radius, begin, end = shape
            center_x, center_y, radius = x + center_x * scale, y + center_y * scale, radius * scale
            outer = radius + half
            box = (center_x - outer, center_y - outer, center_x + outer, center_y + outer)
            self.draw.arc(box, begin, end, color, round(2 * half))
            ends = [on_circle(center_x, center_y, radius, angle) for angle in (begin, end)]
        if shape is not RING:
            for end_x, end_y in ends:
                self.draw.ellipse((end_x - half, end_y - half, end_x + half, end_y + half), color)

    def mark(self, x: float, y: float, scale: float) -> None:
        """Draw the mark with its corner at (x, y)."""
        self.stroke(RING, x, y, scale, RING_WIDTH, BLUE)
        scale, x, y = scale * self.FINE, x * self.FINE, y * self.FINE
        self.draw.polygon([(round(x + px * scale), round(y + py * scale)) for px, py in curve(DROP)], ORANGE)

    def text(self, text: str, x: float, y: float, scale: float, width: float, color: str) -> None:
        """Write a text from x on, on the base line y."""
        for shape in strokes(text)[0]:
            self.stroke(shape, x, y, scale, width, color)

    def finished(self) -> Image.Image:
        """Return the picture at its own size."""
        return self.image.reduce(self.FINE)


def social() -> Image.Image:
    """Return the picture for links: private photographs, and what a server reads of them from an update."""
    canvas = Canvas(SOCIAL, "#ffffff")
    canvas.mark(58, 56, 3.2)
    canvas.text("gradleak", 182, 106, 1.45, 4.6, INK)
    canvas.text("What federated learning gives away", 180, 168, 0.84, 3.6, INK)
    left, top, side, gap = 228, 216, 172, 14
    for row, name in enumerate(("private", "recovered")):
        canvas.text(name, 64, top + row * (side + gap) + side / 2 + 7, 0.66, 3.8, (INK, ORANGE)[row])
    picture = canvas.finished()
    with Image.open(STATIC / SOCIAL_PHOTOS) as source:
        photos = source.convert("RGB")
    for row, y in enumerate(ROWS):
        for column, x in enumerate(COLUMNS):
            tile = photos.crop((x, y, x + TILE, y + TILE)).resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(tile, (left + column * (side + gap), top + row * (side + gap)))
    return picture


def main() -> None:
    """Write the files."""
    for name, text in (("favicon", icon()), ("logo", logo(INK)), ("logo-dark", logo(PAPER))):
        (STATIC / f"{name}.svg").write_text(text, encoding="utf-8", newline="\n")
    # Few enough colors for a small file; by eye there is no difference.
    social().quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(STATIC / "social.png", optimize=True)


if __name__ == "__main__":
    main()
