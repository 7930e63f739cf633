"""Write the page at the site's own address, which leads to the first page of the book.

Jupyter Book would write a bare redirect: a page without a language, a title or an icon, for which a browser asks
the host, and without the picture that is shown where somebody shares the address.
"""

import html
from pathlib import Path

from sphinx.application import Sphinx

PAGE = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={first}">
<link rel="canonical" href="{site}{first}">
<link rel="icon" href="{icon}">
<meta property="og:title" content="{title}">
<meta property="og:type" content="website">
<meta property="og:url" content="{site}">
<meta property="og:image" content="{picture}">
<meta property="og:image:alt" content="{picture_text}">
</head>
<body>
<main><h1>{title}</h1><p><a href="{first}">Read the book</a></p></main>
</body>
</html>
"""


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write index.html at the root, whether or not the table of contents has already written one."""
    if exception is not None or app.builder.format != "html" or app.config.root_doc == "index":
        return
    values = {
        "language": app.config.language or "en",
        "title": app.config.html_title or app.config.project,
        "first": app.builder.get_target_uri(app.config.root_doc),
        "site": app.config.ogp_site_url,
        "icon": "_static/" + Path(app.config.html_favicon).name,
        "picture": app.config.ogp_image,
        "picture_text": app.config.ogp_image_alt,
    }
    page = PAGE.format(**{name: html.escape(str(value)) for name, value in values.items()})
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write once everything else is written."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
