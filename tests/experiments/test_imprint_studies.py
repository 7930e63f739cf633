"""The experiments of Robbing the Fed, on the photographs that come with the software."""

import math

import pytest
import torch

from gradleak_lib.attacks import imprint as attack
from gradleak_lib.attacks import occupancy
from gradleak_lib.experiments import imprint, imprint_pictures

SMALL = {"data": "photos", "images": 16}


def test_draws_are_repeatable_and_the_server_has_other_images():
    first, public = imprint.draw("photos", 8, 3)
    assert torch.equal(first.images, imprint.draw("photos", 8, 3)[0].images)
    assert not torch.equal(first.images, imprint.draw("photos", 8, 4)[0].images)
    assert len(public) == 2000


def test_one_gradient_gives_back_who_is_alone():
    [row] = imprint.one_gradient(batch=0, bins=64, host="lenet", iip=True, **SMALL)
    assert row["alone"] == row["alone_exact"] == row["exact"] > 4
    assert row["lowest_alone"] > 60
    assert row["printed"] == occupancy.proposition_1(16, 64)
    assert 0 < row["iip"] <= 1
    assert row["gap"] > 0
    assert [row] == imprint.one_gradient(batch=0, bins=64, host="lenet", iip=True, **SMALL)


def test_random_outgoing_weights_spoil_differences_and_not_the_sparse_variant():
    def exact(variant, outgoing):
        options = {"host": "lenet", "connection": "linear", "bins": 64} | SMALL
        [row] = imprint.one_gradient(batch=1, variant=variant, outgoing=outgoing, **options)
        return row["alone_exact"] / row["alone"]

    assert exact("cumulative", "equal") == 1
    assert exact("cumulative", "random") < 0.2
    assert exact("sparse", "random") > 0.9


def test_the_linear_model_is_as_far_off_as_softmax_makes_it():
    rows = imprint.linear_model(batch=0, **SMALL)
    contrast = 16 / 1000 / (1 - 16 / 1000)
    images = imprint.draw("photos", 16, 0)[0].images.double()
    expected = -20 * torch.log10(contrast * (images - images.mean(0)).square().flatten(1).mean(1).sqrt())
    # Clamped to [0, 1], a little less of the error is left.
    assert [row["psnr"] for row in rows] == pytest.approx(expected.tolist(), abs=2)
    assert all(row["cleaned"] > 100 for row in rows)
    [row] = imprint.one_class(batch=0, **SMALL)
    assert row["to_mean"] > 100 > 25 > row["psnr"]
    [row] = imprint.single_input(batch=0, data="photos")
    assert row["psnr"] > 60


def test_a_shot_succeeds_when_one_image_is_inside():
    rows = imprint.one_shot(images=128, block=0, rounds=12, data="photos")
    assert [row["round"] for row in rows] == list(range(12))
    for row in rows:
        assert row["success"] == (row["inside"] == 1)
        assert (row["candidates"] == 0) == (row["inside"] == 0)
    for row in imprint.one_of_thousands(number=0, images=128, host="lenet", data="photos"):
        assert math.isnan(row["psnr"]) == (row["inside"] != 1)


def test_deeper_places_see_smaller_images():
    [row] = imprint.at_place(place="block 1", batch=0, bins=64, **SMALL)
    assert row["side"] == 16
    assert row["alone_exact"] == row["alone"]


def test_channels_full_of_pixels_show_more():
    few, many = (
        imprint.at_place(place="block 3", batch=0, bins=64, offsets=offsets, **SMALL)[0]
        for offsets in (False, True)
    )
    assert (few["side"], many["side"]) == (8, 32)
    assert many["alone_exact"] == many["alone"]
    assert many["detail"] > few["detail"] + 3


def test_the_sum_of_activations_has_the_larger_gradient():
    """By the number of bins, and by one over the gain; the function stays the same."""
    sigmas = (0.0,)
    largest = {
        scale: imprint.noise(batch=0, scale=scale, bins=64, sigmas=sigmas, **SMALL)[0]["largest"]
        for scale in ("mean", "text", "released")
    }
    assert largest["text"] / largest["mean"] > 5
    assert largest["released"] / largest["text"] > 50
    generator = torch.Generator().manual_seed(1)
    x, public = (torch.rand(count, 3, 8, 8, generator=generator) for count in (4, 200))
    outputs = []
    for gain in (1.0, 0.1):
        layer = attack.from_public(public, 16, reduction="sum", gain=gain)
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs)


def test_noise_ends_the_attack_at_last():
    rows = imprint.noise(batch=0, scale="text", bins=64, sigmas=(0.0, 10.0), **SMALL)
    assert rows[0]["iip"] > rows[1]["iip"]


def test_local_steps_leave_something_and_divergence_nothing():
    [row] = imprint.local_steps(batch=0, gain=0.1, bins=64, steps=2, **SMALL)
    assert row["iip"] > 0
    assert row["diverged"] == 0


def test_a_sum_gives_what_one_user_would():
    [row] = imprint.secure_aggregation(batch=0, users=4, each=3, data="photos")
    assert row["aggregate"] == row["one_user"] > 0


@pytest.mark.parametrize(("way", "low"), [("none", 1), ("noise", 2), ("rows", 2), ("next layer", 1)])
def test_ways_of_hiding_the_rank(way, low):
    [row] = imprint.hidden_rank(batch=0, way=way, **SMALL)
    assert row["rank"] >= low
    assert (row["exact"] > 4) == (way != "next layer")
    with pytest.raises(ValueError, match="way must be"):
        imprint.hidden_rank(batch=0, way="hat", **SMALL)


def test_rows_of_a_table():
    [row] = imprint.other_data(kind="breast-cancer", batch=0)
    assert row["exact"] == row["alone"] > 10


def test_parameters_are_counted():
    [row] = imprint.parameter_counts()
    assert row == {"linear_model": 150_529_000, "resnet18": 11_689_512, "two_rows": 301_058}


def test_pictures_are_images_by_title():
    for panels in (
        imprint_pictures.batch(batch=0, bins=64, host="lenet", **SMALL),
        imprint_pictures.naive(batch=0, host="lenet", **SMALL),
        imprint_pictures.one_of_thousands(rounds=6, images=128, data="photos"),
        imprint_pictures.noise(batch=0, scale="text", **SMALL),
    ):
        assert len(panels) >= 2
        assert len({panel.shape for panel in panels.values()}) == 1
        assert all(0 <= panel.min() <= panel.max() <= 1 for panel in panels.values())
