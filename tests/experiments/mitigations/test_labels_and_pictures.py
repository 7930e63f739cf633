"""Attacks on one gradient under a mitigation, at small sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.experiments.mitigations import (
    Mitigation,
    Pictures,
    count_labels,
    imprint_photographs,
    imprinted_classifier,
    invert_photographs,
    photographs,
    scaled_down,
    without_mode,
)
from gradleak_lib.metrics import chance_success_rate

SMALL = {"size": 12, "iterations": 4, "samples": 2, "modes": 4}
TINY = {"size": 12, "samples": 12, "bins": 32, "batches": 1, "modes": 4}


# --- counts of labels ---


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.data())
def test_counts_scaled_down(numbers, data):
    counts = torch.tensor(numbers)
    whole = int(counts.sum())
    total = data.draw(st.integers(0, whole))
    found = scaled_down(counts, total)
    assert found.dtype == torch.int64
    assert int(found.sum()) == total
    assert (found >= 0).all()
    assert (found <= counts).all()
    exact = counts.double() * total / max(whole, 1)
    assert ((found - exact).abs() < 1).all()
    assert torch.equal(scaled_down(counts, whole), counts)
    # Of two counts, the larger one stays the larger one or as large.
    order = counts.argsort()
    assert (found[order].diff() >= 0)[counts[order].diff() > 0].all()


def test_counts_by_hand():
    assert scaled_down(torch.tensor([6, 3, 0, 1]), 5).tolist() == [3, 2, 0, 0]
    assert scaled_down(torch.tensor([0, 0]), 0).tolist() == [0, 0]
    for total in (-1, 5):
        with pytest.raises(ValueError, match=f"total must lie between 0 and 4, got {total}"):
            scaled_down(torch.tensor([1, 3]), total)
    with pytest.raises(ValueError, match="counts must be 0 or more"):
        scaled_down(torch.tensor([-1, 3]), 1)


# --- labels ---


def test_labels_are_read_unless_something_hides_them():
    plain = count_labels(Mitigation(), batches=4)
    assert set(plain.asr) == {"LLG", "LLG*", "LLG+"}
    assert all(rate > 0.85 for rate in plain.asr.values())
    assert 0.2 < plain.chance < 0.5
    assert int(plain.true.sum()) == int(plain.read.sum()) == 8
    assert plain.true.max() >= 4  # half of a batch is of one class
    noisy = count_labels(Mitigation("noise", 30.0), batches=4)
    assert noisy.asr["LLG+"] < plain.asr["LLG+"] - 0.3
    assert (noisy.chance, noisy.true.tolist()) == (plain.chance, plain.true.tolist())


def test_seeds_of_labels():
    one, same, other = (count_labels(Mitigation("noise", 1.0), batches=2, seed=s) for s in (1, 1, 2))
    assert one.asr == same.asr
    assert torch.equal(one.true, same.true)
    assert torch.equal(one.read, same.read)
    assert not torch.equal(one.true, other.true)


@pytest.mark.parametrize(
    ("name", "strength", "own"),
    [("bkg-repl", 0.5, 4), ("rand-aug", 1.0, 8), ("mm-aug, by labels", 1.0, 8), ("secure aggregation", 3, 8)],
)
def test_only_the_clients_own_labels_count(name, strength, own):
    found = count_labels(Mitigation(name, strength), batches=2)
    assert int(found.true.sum()) == int(found.read.sum()) == own
    assert all(0 <= rate <= 1 for rate in found.asr.values())
    if own == 8:  # the same private batch as without a defence
        plain = count_labels(Mitigation(), batches=2)
        assert torch.equal(found.true, plain.true)
        assert found.chance == plain.chance
    assert count_labels(Mitigation(name, strength), batches=1).chance == chance_success_rate(found.true)


@pytest.mark.parametrize("name", ["compression", "noise, absolute", "clipping"])
def test_labels_from_next_to_nothing(name):
    strength = {"compression": 1.0, "noise, absolute": 1e30, "clipping": 1e-30}[name]
    assert count_labels(Mitigation(name, strength), batches=1).read.sum() == 8


def test_bad_numbers_of_labels():
    for wrong in ({"samples": 0}, {"batches": 0}):
        with pytest.raises(ValueError, match="samples and batches must be 1 or more"):
            count_labels(Mitigation(), **wrong)
    with pytest.raises(ValueError, match=r"bkg-repl, 1\.0, leaves nothing private in a batch of 8"):
        count_labels(Mitigation("bkg-repl", 1.0), batches=1)
    with pytest.raises(ValueError, match="needs 992 samples in the background"):
        count_labels(Mitigation("secure aggregation", 125), batches=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        count_labels(Mitigation("noise, absolute", 1e39), batches=1)


# --- inversion ---


def same(first: Pictures, second: Pictures, atol=0.0) -> bool:
    return torch.equal(first.originals, second.originals) and torch.allclose(
        first.reconstructions, second.reconstructions, rtol=0, atol=atol
    )


def test_pictures_are_those_of_the_batch():
    private, public, _ = photographs(12, 0)
    many = [
        Mitigation(),
        Mitigation("noise", 1.0),
        Mitigation("rand-aug", 1.0),
        Mitigation("bkg-repl", 0.5),
        Mitigation("secure aggregation", 2),
        Mitigation("compression", 1.0),
    ]
    found = invert_photographs(many, **SMALL, batches=2)
    assert len(found) == len(many)
    for mitigation, pictures in zip(many, found, strict=True):
        own = 2 if mitigation.name == "bkg-repl" else 4
        assert pictures.originals.shape == pictures.reconstructions.shape == (own, 3, 12, 12)
        assert pictures.psnr.shape == pictures.ssim.shape == (own,)
        assert 0 <= pictures.iip <= 1
        assert pictures.exact == 0
        if own == 4:
            assert torch.allclose(pictures.originals, private.images[:4], atol=1e-6)
            guess = public.images.mean(0).expand(4, -1, -1, -1)
            error = (guess - pictures.originals).square().flatten(1).mean(1)
            assert pictures.chance == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-4)
    nothing = found[-1]  # an update of zeros gives no picture
    assert nothing.psnr.tolist() == nothing.ssim.tolist() == [0.0] * 4
    assert (nothing.reconstructions == 0.5).all()
    assert nothing.iip == 0
    # What is inverted together is what is inverted alone.
    assert same(invert_photographs(many[:1], **SMALL, batches=2)[0], found[0], atol=1e-4)


def test_a_longer_search_finds_more():
    short, long = (invert_photographs([Mitigation()], **(SMALL | {"iterations": n}))[0] for n in (1, 60))
    assert long.psnr.mean() > short.psnr.mean() + 1


def test_seeds_of_pictures():
    one, again, other = (
        invert_photographs([Mitigation("noise", 0.1)], **SMALL, seed=s)[0] for s in (0, 0, 1)
    )
    assert same(one, again)
    assert not torch.equal(one.originals, other.originals)


def test_bad_numbers_of_pictures():
    assert invert_photographs([], **SMALL) == []
    for wrong in ({"samples": 0}, {"batches": 0}):
        with pytest.raises(ValueError, match="samples and batches must be 1 or more"):
            invert_photographs([Mitigation()], **(SMALL | wrong))
        with pytest.raises(ValueError, match="samples and batches must be 1 or more"):
            imprint_photographs(Mitigation(), **(TINY | wrong))
    with pytest.raises(ValueError, match="samples or batches must be fewer: 300 photographs, but there are"):
        invert_photographs([Mitigation()], **(SMALL | {"samples": 150, "batches": 2}))
    with pytest.raises(ValueError, match="samples or batches must be fewer: 300 photographs, but there are"):
        imprint_photographs(Mitigation(), **(TINY | {"samples": 300}))
    with pytest.raises(ValueError, match=r"bkg-repl, 0\.8, leaves nothing private in a batch of 2"):
        invert_photographs([Mitigation(), Mitigation("bkg-repl", 0.8)], **SMALL)
    with pytest.raises(ValueError, match=r"bkg-repl, 1\.0, leaves nothing private in a batch of 12"):
        imprint_photographs(Mitigation("bkg-repl", 1.0), **TINY)
    with pytest.raises(ValueError, match="NaN or infinity"):
        invert_photographs([Mitigation("noise, absolute", 1e39)], **SMALL)


# --- imprint ---


def test_an_imprint_reads_photographs_exactly():
    plain = imprint_photographs(Mitigation(), **TINY)
    assert plain.exact >= 6
    assert plain.iip >= 0.5
    assert plain.psnr.mean() > plain.chance
    assert plain.ssim.mean() > plain.chance_ssim
    for name, strength in (("noise", 1.0), ("DP-SGD", 0.1), ("secure aggregation", 4), ("compression", 1.0)):
        defended = imprint_photographs(Mitigation(name, strength), **TINY)
        assert torch.equal(defended.originals, plain.originals)
        assert defended.exact < plain.exact, name
    replaced = imprint_photographs(Mitigation("bkg-repl", 0.5), **TINY)
    assert len(replaced.originals) == 6


def test_the_gain_of_an_imprint_changes_no_output():
    _, public, _ = photographs(12, 0)
    outputs = [
        imprinted_classifier(public, bins=32, variant="sparse", gain=gain)(public.images[:5])
        for gain in (1.0, 0.01)
    ]
    assert torch.allclose(*outputs, atol=1e-4)


def test_seeds_of_imprints():
    one, again, other = (imprint_photographs(Mitigation("noise", 0.1), **TINY, seed=s) for s in (0, 0, 1))
    assert same(one, again)
    assert not torch.equal(one.originals, other.originals)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 20), min_size=1, max_size=12), share=st.floats(0, 1))
def test_a_mode_is_taken_off_the_top(counts, share):
    counts = torch.tensor(counts)
    if int(counts.sum()) == 0:
        return
    added = min(int(share * int(counts.sum())), int(counts.sum()) - 1)
    left = without_mode(counts, added)
    assert int(left.sum()) == int(counts.sum()) - added
    assert int(left.min()) >= 0
    assert bool((left <= counts).all())
    with pytest.raises(ValueError, match="added must lie in"):
        without_mode(counts, int(counts.sum()))


def test_an_attacker_who_knows_of_the_mode_reads_more():
    asr = count_labels(Mitigation("mm-aug, by labels", 2.0), batches=6).asr
    assert asr["LLG+, mode taken off"] > asr["LLG+"] + 0.1
