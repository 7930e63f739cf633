"""Scores against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gradleak_lib import metrics
from gradleak_lib.metrics import reconstruction

# isort: split
from torchmetrics.functional.image.lpips import _LPIPS


def images(count, side=16, seed=0):
    return torch.rand(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_psnr_and_ssim_agree_with_scikit_image():
    truth = images(3, 24)
    noisy = (truth + 0.1 * images(3, 24, seed=1)).clamp(0, 1)
    ours = metrics.psnr(noisy, truth), metrics.ssim(noisy, truth)
    for i in range(3):
        a, b = truth[i].numpy(), noisy[i].numpy()
        assert ours[0][i].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-5)
        similar = structural_similarity(
            a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours[1][i].item() == pytest.approx(similar, abs=2e-3)


def test_psnr_clamps_and_is_finite_for_identical_images():
    truth = images(2)
    assert metrics.psnr(truth.float(), truth.float()).tolist() == pytest.approx([178.5, 178.5], abs=0.1)
    assert (metrics.psnr(truth, truth) > 350).all()
    assert (metrics.psnr(torch.full_like(truth, 7.0), torch.ones_like(truth)) > 350).all()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_matching_finds_any_order(count, seed):
    truth = images(count, 8, seed=seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(order[metrics.match(truth[order], truth)], torch.arange(count))


def test_matching_keeps_exact_reconstructions():
    """Two originals, one exact copy of the first, and a mixture nearer to the first than to the second."""
    truth = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.7)])
    mixture = torch.full((3, 4, 4), 0.2)
    assert metrics.match(torch.stack([mixture, truth[0]]), truth).tolist() == [1, 0]


def test_matching_follows_its_cost():
    """The same case at the least total squared error, which gives the exact copy away."""
    truth = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.7)])
    found = torch.stack([torch.full((3, 4, 4), 0.2), truth[0]])
    assert metrics.match(found, truth, cost=metrics.squared_distances).tolist() == [0, 1]
    with pytest.raises(ValueError, match="has shape"):
        metrics.match(found, truth, cost=lambda a, b: torch.zeros(1, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.match(found * torch.nan, truth)


def test_negative_psnr_is_psnr():
    first, second = images(3, 8), images(3, 8, seed=1)
    assert torch.allclose(metrics.negative_psnr(first, second).diag(), -metrics.psnr(first, second))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_distances_equal_the_double_loop(seed):
    first, second = images(4, 4, seed=seed), images(5, 4, seed=seed + 1)
    loop = torch.tensor([[(a - b).square().mean() for b in second] for a in first])
    assert torch.allclose(metrics.squared_distances(first, second), loop, atol=1e-12)


@pytest.mark.parametrize("side", [32, 48])
def test_lpips_of_all_pairs_equals_the_double_loop(side):
    """Against torchmetrics' own, whose trained convolutions would be a download; its channel weights are trained."""
    torch.manual_seed(0)
    network = _LPIPS(pnet_rand=True)
    first, second = images(3, side).float(), images(4, side).flip(0).float()
    one_by_one = [[network(a[None], b[None], normalize=True).item() for b in second] for a in first]
    cost = metrics.lpips(network)(first, second)
    assert torch.allclose(cost, torch.tensor(one_by_one, dtype=torch.float64), rtol=1e-5)
    assert torch.equal(cost, metrics.lpips(network)(first.double(), second))
    order = torch.tensor([2, 0, 1])
    noisy = (first[order] + 0.02 * images(3, side).float()).clamp(0, 1)
    assert torch.equal(order[metrics.match(noisy, first, cost=metrics.lpips(network))], torch.arange(3))


def test_score_puts_missing_reconstructions_to_zero():
    truth = images(5)
    score = metrics.score(truth[[3, 1]], truth, pool=images(20, seed=7))
    assert score.found.tolist() == [False, True, False, True, False]
    assert (score.psnr[~score.found] == 0).all()
    assert (score.images[0] == 0.5).all()
    assert score.iip == pytest.approx(0.4)
    empty = metrics.score(truth[:0], truth)
    assert not empty.exact.any()
    with pytest.raises(ValueError, match="reference pool"):
        _ = empty.iip


def test_rows_of_a_table_are_scored_and_one_image_is_refused():
    rows = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    score = metrics.score(rows[[4, 2]] + 1e-6, rows, pool=torch.ones(3, 9))
    assert score.exact.tolist() == [False, False, True, False, True, False]
    assert score.iip == pytest.approx(1 / 3)
    square = rows.view(6, 1, 3, 3)
    assert torch.equal(metrics.psnr(rows.flip(0), rows), metrics.psnr(square.flip(0), square))
    one = images(1)[0]
    for call in (
        lambda: metrics.score(one, one),
        lambda: metrics.score(one[None][:0], one),
        lambda: metrics.psnr(one, one),
    ):
        with pytest.raises(ValueError, match=r"one: image\[None\].* got shape \(3, 16, 16\)"):
            call()
    with pytest.raises(ValueError, match=r"images \[N, C, H, W\] of 11x11"):
        metrics.ssim(rows, rows)


def test_distances_to_many_images_are_taken_in_parts(monkeypatch):
    first, second = images(3, 4), images(10, 4, seed=1)
    whole = metrics.squared_distances(first, second)
    monkeypatch.setattr(reconstruction, "_AT_ONCE", 4 * 48)
    assert torch.allclose(metrics.squared_distances(first, second), whole, rtol=1e-12)
    assert metrics.squared_distances(first, second[:0]).shape == (3, 0)


def test_identification_needs_the_nearest_to_be_the_true_one():
    truth, pool = images(2), images(30, seed=3)
    blurred = torch.stack([0.9 * truth[0] + 0.1 * truth[1], 0.2 * truth[1] + 0.8 * pool[4]])
    assert metrics.identified(blurred, truth, pool).tolist() == [True, False]
    # Copies of the original in the pool are the original, not a competitor.
    assert metrics.identified(blurred[:1], truth[:1], torch.cat([pool, truth])).tolist() == [True]


def test_shapes_must_agree():
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match="shapes differ"):
            function(images(2), images(3))
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.match(images(2, 8), images(2, 16))
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(images(1, 8), images(1, 8))
