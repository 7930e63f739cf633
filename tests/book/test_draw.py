"""The icon, the logo and the picture for links are what the script draws."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BOOK = Path(__file__).resolve().parents[2] / "book"


@pytest.fixture(scope="module")
def draw():
    """The script, which is no module of the library."""
    spec = importlib.util.spec_from_file_location("draw", BOOK / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_files_are_what_the_script_draws(draw):
    drawn = {"favicon": draw.icon(), "logo": draw.logo(draw.INK), "logo-dark": draw.logo(draw.PAPER)}
    for name, text in drawn.items():
        assert (BOOK / "_static" / f"{name}.svg").read_text(encoding="utf-8") == text


def test_the_picture_for_links_is_what_the_script_draws(draw):
    path = BOOK / "_static" / "social.png"
    with Image.open(path) as committed:
        assert committed.size == (1200, 630)
        # It has 256 colors, and where another version of Pillow rounds otherwise, an edge moves a little.
        difference = np.asarray(committed.convert("RGB"), float) - np.asarray(draw.social(), float)
    assert np.abs(difference).mean() < 4
    assert path.stat().st_size < 300_000
