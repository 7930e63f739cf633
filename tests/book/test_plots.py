"""Pictures: sizes, scales, file kinds."""

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from gradleak_lib.book import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_mosaic_shows_every_pixel():
    images = torch.rand(5, 3, 4, 6)
    picture = plots.mosaic(images, columns=3, zoom=2)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, 3)
    first = picture[2:10:2, 2:14:2] / 255
    assert np.abs(first - images[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_values_are_clamped_and_grey_images_get_three_channels():
    picture = plots.mosaic(torch.tensor([[[[7.0, -7.0]]]]), columns=1)
    assert picture[0].tolist() == [[255] * 3, [0] * 3]


def test_a_caption_stands_above_the_picture():
    picture = plots.mosaic(torch.zeros(4, 3, 40, 40), columns=4)
    captioned = plots.with_caption(picture, "4 of 4")
    assert captioned.shape == (picture.shape[0] + 28, picture.shape[1], 3)
    assert np.array_equal(captioned[28:], picture)
    assert (captioned[:28] < 128).any()


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_encode(kind):
    picture = plots.mosaic(torch.rand(4, 3, 8, 8), columns=2)
    image = Image.open(io.BytesIO(plots.encode(picture, kind=kind)))
    assert (image.format.lower(), image.size) == (kind, (22, 22))


def test_figures_have_the_books_width():
    plots.use_theme()
    images = torch.rand(6, 3, 8, 8)
    beside = plots.beside({"a": images, "b": images}, columns=3)
    pairs = plots.pairs(images, images, [10.0] * 6)
    for figure in (beside, pairs):
        assert figure.get_figwidth() == plots.WIDTH
    assert [ax.get_title() for ax in beside.axes] == ["a", "b"]
    assert "10 dB" in [text.get_text() for ax in pairs.axes for text in ax.texts]
