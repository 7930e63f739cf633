"""Take from the built site what no page needs, so that it is quick to load and to copy.

Nothing that a reader sees changes: no picture loses a pixel.
"""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from sphinx.application import Sphinx

# Maps from minified code to its source, translations into other languages, logos of services that the book does not
# use, a picture for the README, and fonts in a format that only browsers without WOFF2 would ask for.
UNUSED = (
    "**/*.map",
    "**/*webpack-macros.html",
    "**/*.ttf",
    "images/logo_*",
    "locales",
    "robbing-the-fed.png",
)
TRUETYPE = re.compile(r',url\([^)]*\.ttf\) format\("truetype"\)')
MAP_COMMENT = re.compile(r"^(?://# sourceMappingURL=\S+|/\*# sourceMappingURL=\S+ ?\*/)\n?", re.MULTILINE)

# "name":[width,height,[aliases],"code point","path"]
ICON = re.compile(
    r'(?<=[{,])"?([a-z0-9-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\](?:,|(?=\}))'
)
ICON_USE = re.compile(r"\bfa-([a-z0-9-]+)")

# Modules that show what ipywidgets 7 saved; RequireJS would load them for that only.
OLD_WIDGETS = re.compile(r'/\*! For license[^\n]*\*/\ndefine\("@jupyter-widgets/(?:base|controls)7".*\n')

# For each of its style sheets the widget manager has a second copy, for those who work on the manager itself.
STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\$]|\\.)*`)"""
STYLE_MAP = re.compile(
    rf',"",\{{version:3,sources:\[(?:{STRING},?)*\],names:\[\],mappings:{STRING},'
    rf'sourcesContent:\[(?:{STRING},?)*\],sourceRoot:""\}}'
)

STATE = re.compile(
    r'(<script type="application/vnd\.jupyter\.widget-state\+json">)(.*?)(</script>)', re.DOTALL
)


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Pass a text file through ``change``; write it only where that makes a difference."""
    before = path.read_text(encoding="utf-8")
    after = change(before)
    if after != before:
        path.write_text(after, encoding="utf-8")


def without_results(notebook: str) -> str:
    """Leave the cells, their tags and the kernel: what Jupyter and papermill need to execute it."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    kept = ("kernelspec", "language_info")
    content["metadata"] = {name: content["metadata"][name] for name in kept if name in content["metadata"]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def without_defaults(script: re.Match) -> str:
    """Drop what a widget has not set: null is the default wherever it stands. No "<" can end the script early."""
    content = json.loads(script[2])
    for widget in content["state"].values():
        widget["state"] = {name: value for name, value in widget["state"].items() if value is not None}
    state = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", r"\u003c")
    return script[1] + state + script[3]


def recode(picture: Path) -> Path:
    """Write a PNG file anew as WebP, pixel for pixel, where that is smaller; return the one that stays."""
    target = picture.with_suffix(".webp")
    with Image.open(picture) as image:
        opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
        pixels = image.convert("RGB" if opaque else "RGBA")
    pixels.save(target, lossless=True, exact=True, method=2, quality=60)
    loser = target if target.stat().st_size >= picture.stat().st_size else picture
    loser.unlink()
    return target if loser is picture else picture


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Work on the files of a finished build; doing it again changes nothing."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    static, images = out / "_static", out / "_images"
    pages = [path for path in out.rglob("*.html") if static not in path.parents]

    for path in (out / "_sources").rglob("*.ipynb"):
        edit(path, without_results)

    for pattern in UNUSED:
        for path in static.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (*static.rglob("*.css"), *static.rglob("*.js")):
        edit(path, lambda text: TRUETYPE.sub("", MAP_COMMENT.sub("", text)))
    edit(static / "vendor" / "embed-amd.js", lambda text: STYLE_MAP.sub("", OLD_WIDGETS.sub("", text)))

    with ThreadPoolExecutor(2) as pool:
        kept = list(pool.map(recode, sorted(images.glob("*.png"))))
    moved = {path.with_suffix(".png").name: path.name for path in kept if path.suffix == ".webp"}
    reference = re.compile(r"(?<=_images/)[^\"'/]+\.png")

    used = set()
    for path in pages:
        edit(
            path,
            lambda text: STATE.sub(without_defaults, reference.sub(lambda m: moved.get(m[0], m[0]), text)),
        )
        used |= set(ICON_USE.findall(path.read_text(encoding="utf-8")))
    icons = static / "scripts" / "fontawesome.js"
    for path in (*static.glob("*.js"), *icons.parent.glob("*.js")):
        if path != icons:
            used |= set(ICON_USE.findall(path.read_text(encoding="utf-8")))

    def keep(icon: re.Match) -> str:
        names = {icon[1], *re.findall(r"[a-z0-9-]+", icon[2])}
        return icon[0] if names & used else ""

    edit(icons, lambda text: ICON.sub(keep, text))


def setup(app: Sphinx) -> dict[str, bool]:
    """Work once everything else is written."""
    app.connect("build-finished", lighten, priority=900)
    return {"parallel_read_safe": True}
