from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.data import load
from gradleak_lib.data.photos import (
    MIN_RMS,
    MIN_STD,
    PHOTOGRAPHS,
    load_photos,
    photograph,
    window_grids,
)


def window_iou(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Intersection over union of two windows (left, top, side)."""
    width, height = (
        max(0, min(a + one[2], b + other[2]) - max(a, b)) for a, b in zip(one[:2], other[:2], strict=True)
    )
    return width * height / (one[2] ** 2 + other[2] ** 2 - width * height)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(0, 120), st.integers(0, 120), st.integers(0, 2**32))
def test_windows_of_any_photograph_lie_inside_and_overlap_by_a_third_at_most(size, wider, higher, seed):
    width, height = size + wider, size + higher
    grids = window_grids(width, height, size, np.random.default_rng(seed))
    assert grids
    assert all(grids)
    found = [window for grid in grids for window in grid]
    assert all(left >= 0 and top >= 0 and side >= size for left, top, side in found)
    assert all(left + side <= width and top + side <= height for left, top, side in found)
    some = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:60]]
    pairs = [(a, b) for i, a in enumerate(some) for b in some[:i]]
    assert all(window_iou(a, b) <= 1 / 3 + 1e-12 for a, b in pairs)


def test_windows_are_packed_at_several_scales():
    grids = window_grids(640, 427, 32, np.random.default_rng(0))
    sides = [grid[0][2] for grid in grids]
    assert len(sides) == 5
    assert all(3**0.5 <= b / a < 1.8 for a, b in pairwise(sides))
    assert all({side for _, _, side in grid} == {grid[0][2]} for grid in grids)
    # Six windows for each area of a window, less the borders.
    assert len(grids[0]) > 5 * 640 * 427 / sides[0] ** 2


def smallest_difference(images: torch.Tensor) -> float:
    flat = images.flatten(1).double()
    products = flat @ flat.T
    squares = products.diagonal()[:, None] + products.diagonal() - 2 * products
    squares.fill_diagonal_(torch.inf)
    return (float(squares.min()) / flat.shape[1]) ** 0.5


@pytest.mark.parametrize(("size", "n"), [(32, 1500), (64, 300), (224, 64)])
def test_no_near_duplicates_in_pixels(size, n):
    photos = load("photos", size, sample=n, seed=1)
    assert photos.images.shape == (n, 3, size, size)
    assert smallest_difference(photos.images) >= MIN_RMS - 1e-6


def test_independent_crops_do_come_close():
    # The test above can fail: without the check, some crops of the same number are near-duplicates.
    assert smallest_difference(load("photos", 32, sample=1500, seed=1, distinct=False).images) < MIN_RMS


def test_every_crop_shows_something():
    for distinct in (True, False):
        images = load("photos", 16, sample=400, distinct=distinct).images
        assert float(images.var(dim=(2, 3), unbiased=False).mean(1).sqrt().min()) >= MIN_STD - 1e-6


def test_photos_by_default():
    photos = load("photos")
    assert photos.images.shape == (64, 3, 224, 224)
    assert photos.images.dtype == torch.float32
    assert photos.labels.dtype == torch.int64
    assert 0 <= float(photos.images.min()) < 0.05
    assert 0.95 < float(photos.images.max()) <= 1
    assert photos.classes == PHOTOGRAPHS
    assert photos.name == "photos"
    assert set(photos.labels.tolist()) == set(range(10))


def test_the_photographs_are_what_they_were():
    sizes = {name: photograph(name).size for name in PHOTOGRAPHS}
    assert sizes["china"] == (640, 427)
    assert sizes["retina"] == (1411, 1411)
    assert len(sizes) == 10
    assert all(min(size) >= 224 for size in sizes.values())
    assert all(photograph(name).mode == "RGB" for name in PHOTOGRAPHS)


@pytest.mark.parametrize("seed", range(3))
def test_many_crops_fit_at_224(seed):
    assert len(load("photos", 224, sample=200, seed=seed)) == 200


def test_too_many_crops_say_how_many_fit():
    with pytest.raises(ValueError, match=r"sample=5000: only (\d+) distinct photos of 224x224 fit") as caught:
        load("photos", 224, sample=5000)
    fit = int(str(caught.value).split("only ")[1].split()[0])
    assert len(load("photos", 224, sample=fit)) == fit
    with pytest.raises(ValueError, match="distinct=False"):
        load("photos", 224, sample=fit + 1)


def test_as_many_independent_crops_as_asked():
    photos = load("photos", 8, sample=3000, distinct=False)
    assert len(photos) == 3000
    # Each photograph with probability 1/10: five standard deviations are 82.
    assert (photos.labels.bincount(minlength=10) - 300).abs().max() < 82


@pytest.mark.parametrize("distinct", [True, False])
def test_same_seed_same_crops_whatever_the_global_state(distinct):
    first = load("photos", 24, sample=50, seed=3, distinct=distinct)
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002  (the global state is the point)
    state = torch.get_rng_state()
    again = load("photos", 24, sample=50, seed=3, distinct=distinct)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, load("photos", 24, sample=50, seed=4, distinct=distinct).images)


def test_more_crops_start_with_the_same_ones():
    assert torch.equal(load("photos", 32, sample=20).images, load("photos", 32, sample=90).images[:20])


@pytest.mark.parametrize("size", [7, 225])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"size={size}: photos come in sizes from 8 to 224"):
        load_photos(size, 4)


def test_a_crop_of_a_place_is_found_in_its_tile():
    """The tiles of chelsea are 90 pixels wide, so crops of 90 are whole squares of them."""
    places = load("places", 90, sample=300, seed=2)
    pixels = np.asarray(photograph("chelsea"))
    found = 0
    for image, label in zip(places.images, places.labels, strict=True):
        name, number = places.classes[label].split()
        if name == "chelsea":
            row, column = divmod(int(number), 5)
            tile = pixels[150 * row : 150 * (row + 1), 90 * column : 90 * (column + 1)]
            crop = (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
            found += 1
            assert any(np.array_equal(tile[top : top + 90], crop) for top in range(61))
    assert found > 10


def test_places_are_a_hundred_and_seeded():
    places = load("places", 16, sample=600, seed=3)
    assert places.images.shape == (600, 3, 16, 16)
    assert len(places.classes) == 100
    assert len(places.labels.unique()) > 95
    assert torch.equal(places.images, load("places", 16, sample=600, seed=3).images)
    assert not torch.equal(places.images, load("places", 16, sample=600, seed=4).images)
    with pytest.raises(ValueError, match="places come in sizes from 8 to 90"):
        load("places", 91)
