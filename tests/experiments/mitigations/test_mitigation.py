"""One defence at one strength: what reaches the server, and what of it is the client's own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradleak_lib import models
from gradleak_lib.data import ClientData, ImageDataset, unowned
from gradleak_lib.defenses import (
    chain,
    clip,
    compress,
    compress_as_released,
    dp_sgd,
    gaussian_noise,
    laplacian_noise,
    quantize,
    sign,
)
from gradleak_lib.experiments.mitigations import STRENGTHS, Mitigation, send, usual_norms
from gradleak_lib.federated import Update, fedsgd

ON_DATA = ("bkg-repl", "rand-aug", "mm-aug", "mm-aug, by labels")
BOTH = "mm-aug, by labels, and noise"
KNOWN = {"head": "fc2", "usual": 0.7, "sample_bound": 0.9, "modes": 4}
USUAL = {"quantisation": 4, "secure aggregation": 3}


def drawn(count, seed, classes=4):
    """Images that all differ, so that each can be told by its pixels."""
    generator = torch.Generator().manual_seed(seed)
    return ImageDataset(
        torch.rand(count, 1, 8, 8, generator=generator),
        torch.randint(classes, (count,), generator=generator),
        tuple(map(str, range(classes))),
        "drawn",
    )


def net(seed=0):
    return models.build("cnn", (1, 8, 8), classes=4, seed=seed)


def places(images, among):
    """For each image its place among others, -1 where it is none of them."""
    same = (images[:, None] == among[None]).flatten(2).all(2)
    return torch.where(same.any(1), same.int().argmax(1), -1)


# --- names and strengths ---


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20))
def test_unknown_names_are_refused(name):
    if name not in STRENGTHS:
        with pytest.raises(ValueError, match=r"no defence .*: there are none, noise, "):
            Mitigation(name)


@pytest.mark.parametrize("name", STRENGTHS)
def test_strengths_that_are_none(name):
    for strength in (-1.0, -1e-9, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"the strength of {name} must be 0 or more and finite, got"):
            Mitigation(name, strength)
    if name in ("quantisation", "secure aggregation"):
        for strength in (0.0, 0.5, 2.5):
            with pytest.raises(ValueError, match=f"the strength of {name} must be a whole number from 1 on"):
                Mitigation(name, strength)
    assert Mitigation(name, 3.0).clients == (3 if name == "secure aggregation" else 1)


def test_strengths_out_of_the_range_of_the_defence():
    batch, background = drawn(4, 1), drawn(20, 2)
    for name, strength, message in (
        ("compression", 1.5, "share must lie in"),
        ("compression, each tensor", 1.5, "share must lie in"),
        ("bkg-repl", 1.5, "share must lie in"),
        ("clipping", 0.0, "bound must be positive"),
        ("quantisation", 33, "bits must be a whole number from 2 to 32, got 33"),
    ):
        with pytest.raises(ValueError, match=message):
            send(Mitigation(name, strength), net(), batch, background, **KNOWN)


def test_every_update_defence_is_the_one_that_it_names():
    update = fedsgd(net(), drawn(4, 1).images, drawn(4, 1).labels)
    expected = {
        ("noise", 0.5): gaussian_noise(0.5, relative=True, seed=3),
        (BOTH, 0.5): gaussian_noise(0.5, relative=True, seed=3),
        ("noise, absolute", 0.5): gaussian_noise(0.5 * 2.0, seed=3),
        ("Laplacian noise", 0.5): laplacian_noise(0.5, relative=True, seed=3),
        ("clipping", 0.5): clip(0.5 * 0.7),
        ("clipping and noise", 0.5): chain(clip(0.7), gaussian_noise(0.5 * 0.7, seed=3)),
        ("clipping and noise, as released", 0.5): chain(
            clip(0.5 * 2.0, within="tensor"), gaussian_noise(0.1 * 2.0, seed=3)
        ),
        ("compression", 0.5): compress(0.5),
        ("compression, each tensor", 0.5): compress(0.5, within="tensor"),
        ("compression, as released", 0.5): compress_as_released(0.5, "fc2"),
        ("quantisation", 1): sign(),
        ("quantisation", 3): quantize(3, seed=3),
        **{(name, 1.0): chain() for name in ("none", "DP-SGD", "secure aggregation", *ON_DATA)},
    }
    assert {name for name, _ in expected} == set(STRENGTHS)
    for (name, strength), defence in expected.items():
        found = Mitigation(name, strength).on_update(head="fc2", usual=0.7, unit=2.0, seed=3)(update)
        assert torch.equal(found.flat(), defence(update).flat()), name


# --- what is sent ---


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["noise", "noise, absolute", "Laplacian noise", "compression",
                        "compression, each tensor", "compression, as released", "rand-aug", "mm-aug",
                        "mm-aug, by labels", "none"]), st.integers(0, 100), st.integers(1, 6))  # fmt: skip
def test_strength_zero_sends_the_gradient(name, seed, samples):
    batch, background = drawn(samples, seed), drawn(20, seed + 1000)
    sent = send(Mitigation(name, 0.0), net(), batch, background, **KNOWN, seed=seed)
    assert torch.equal(sent.update.flat(), fedsgd(net(), batch.images, batch.labels).flat())
    assert torch.equal(sent.inputs, batch.images)
    assert torch.equal(sent.labels, batch.labels)
    assert sent.own.all()


def test_replacing_nothing_sends_the_gradient_of_the_same_samples():
    batch = drawn(6, 0)
    sent = send(Mitigation("bkg-repl", 0.0), net(), batch, drawn(20, 1), **KNOWN)
    assert torch.allclose(sent.update.flat(), fedsgd(net(), batch.images, batch.labels).flat(), atol=1e-6)
    assert sorted(places(sent.inputs, batch.images).tolist()) == list(range(6))
    assert sent.own.all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ON_DATA), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(1, 7), st.integers(0, 50))
def test_what_is_private_is_told_from_what_is_public(name, strength, samples, seed):
    batch, background = drawn(samples, seed), drawn(20, seed + 1000)
    sent = send(Mitigation(name, strength), net(), batch, background, **KNOWN, seed=seed)
    mixed = round(strength * samples)
    count = samples if name == "bkg-repl" else samples + mixed
    assert len(sent.labels) == len(sent.own) == sent.update.samples == count
    assert len(sent.inputs) == int(sent.own.sum()) == (samples - mixed if name == "bkg-repl" else samples)
    # The inputs are private samples, each once, and their labels are those at their places.
    mine = places(sent.inputs, batch.images)
    assert (mine >= 0).all()
    assert len(mine.unique()) == len(mine)
    assert torch.equal(sent.labels[sent.own], batch.labels[mine])
    if name != "bkg-repl":
        assert torch.equal(sent.inputs, batch.images)
    # The whole update is the gradient of them and of public samples with the labels that are told.
    public = unowned(background)
    defend = Mitigation(name, strength).on_data(
        public, background.images.flatten(1).numpy(), modes=4, seed=seed
    )
    held = ClientData(unowned(batch), (torch.arange(samples),), torch.zeros(1).long(), torch.zeros(1).long())
    inputs, labels = defend(held).samples(0)
    assert torch.equal(labels, sent.labels)
    assert torch.equal(inputs[sent.own], sent.inputs)
    others = places(inputs[~sent.own], background.images)
    assert (others >= 0).all()
    assert torch.equal(labels[~sent.own], background.labels[others])
    assert torch.equal(sent.update.flat(), fedsgd(net(), inputs, labels).flat())
    if name == "mm-aug, by labels" and mixed:
        assert len(labels[~sent.own].unique()) == 1


def test_samples_of_a_mode_and_noise():
    batch, background = drawn(6, 0), drawn(20, 1)
    added, both, quiet = (
        send(Mitigation(name, strength), net(), batch, background, **KNOWN, seed=2)
        for name, strength in (("mm-aug, by labels", 1.0), (BOTH, 0.5), (BOTH, 0.0))
    )
    noise = gaussian_noise(0.5, relative=True, seed=2)
    assert torch.equal(both.update.flat(), noise(added.update).flat())
    assert torch.equal(quiet.update.flat(), added.update.flat())
    for sent in (both, quiet):
        assert torch.equal(sent.inputs, batch.images)
        assert torch.equal(sent.labels, added.labels)
        assert sent.own.tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize("clients", [1, 2, 4])
def test_a_sum_is_the_gradient_of_the_joint_batch(clients):
    batch, background = drawn(5, 0), drawn(20, 1)
    sent = send(Mitigation("secure aggregation", clients), net(), batch, background, **KNOWN, seed=3)
    assert torch.equal(sent.inputs, batch.images)
    assert sent.own.tolist() == [True] * 5 + [False] * 5 * (clients - 1)
    assert torch.equal(sent.labels[:5], batch.labels)
    others = np.random.default_rng([3, 1]).choice(20, 5 * (clients - 1), replace=False)
    assert torch.equal(sent.labels[5:], background.labels[others])
    images = torch.cat([batch.images, background.images[others]])
    joint = fedsgd(net(), images, sent.labels)
    assert torch.allclose(sent.update.flat(), joint.flat(), atol=1e-6)
    assert sent.update.samples == len(images)


def test_dp_sgd_bounds_each_sample_and_adds_noise():
    batch, background, model = drawn(5, 0), drawn(20, 1), net()
    plain = fedsgd(model, batch.images, batch.labels).flat()
    loose = send(Mitigation("DP-SGD", 0.0), model, batch, background, **(KNOWN | {"sample_bound": 1e9}))
    assert torch.allclose(loose.update.flat(), plain, atol=1e-6)
    tight = send(Mitigation("DP-SGD", 0.5), model, batch, background, **KNOWN, seed=4).update
    expected = dp_sgd(model, batch.images, batch.labels, bound=0.9, noise_multiplier=0.5, seed=4)
    assert torch.equal(tight.flat(), expected.flat())


@pytest.mark.parametrize("name", STRENGTHS)
def test_seeds(name):
    batch, background, model = drawn(6, 0), drawn(40, 1), net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    one, same, other = (
        send(Mitigation(name, USUAL.get(name, 0.5)), model, batch, background, **KNOWN, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.update.flat(), same.update.flat())
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.labels, same.labels)
    draws = name not in ("none", "clipping") and not name.startswith("compression")
    assert torch.equal(one.update.flat(), other.update.flat()) != draws
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_batches_of_one_class_and_samples_of_several_labels():
    batch, background = drawn(5, 0, classes=1), drawn(20, 1, classes=1)
    model = models.build("cnn", (1, 8, 8), classes=1)
    for name in ON_DATA:
        sent = send(Mitigation(name, 0.4), model, batch, background, **KNOWN)
        assert sent.labels.tolist() == [0] * len(sent.labels)
    several = replace(background, labels=nn.functional.one_hot(background.labels, 1).float())
    clusters = Mitigation("mm-aug, by labels", 1.0).on_data(unowned(several), np.empty((20, 0)), modes=4)
    assert callable(clusters)  # one kind of labels, though four modes were asked for


def test_frozen_layers_and_batch_norm():
    batch, background, model = drawn(6, 0), drawn(20, 1), net()
    model.requires_grad_(False)
    model.fc2.requires_grad_(True)
    for name in ("none", "DP-SGD", "clipping and noise", "secure aggregation"):
        sent = send(Mitigation(name, USUAL.get(name, 0.5)), model, batch, background, **KNOWN).update
        assert float(sent.tensors["fc2.weight"].abs().max()) > 0
    normed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4)).train()
    with pytest.raises(ValueError, match="batch norm in training mode"):
        send(Mitigation("DP-SGD", 0.5), normed, batch, background, **KNOWN)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        send(Mitigation(), net().requires_grad_(False), batch, background, **KNOWN)


def test_bad_input():
    batch, background = drawn(4, 0), drawn(10, 1)
    with pytest.raises(ValueError, match=r"a sum of 4 clients with batches of 4 needs 12 samples .* are 10"):
        send(Mitigation("secure aggregation", 4), net(), batch, background, **KNOWN)
    for name in STRENGTHS:
        with pytest.raises(ValueError, match="must be equally many and not none, got 0, 0"):
            send(Mitigation(name, USUAL.get(name, 0.5)), net(), batch.subset([]), background, **KNOWN)
    with pytest.raises(ValueError, match="the background is empty"):
        send(Mitigation("rand-aug", 0.5), net(), batch, background.subset([]), **KNOWN)
    with pytest.raises(ValueError, match=r"modes 1 to 10"):
        send(Mitigation("mm-aug", 0.5), net(), batch, background, **(KNOWN | {"modes": 11}))
    with pytest.raises(ValueError, match="the background is of another task"):
        send(Mitigation("rand-aug", 0.5), net(), batch, drawn(10, 1, classes=3), **KNOWN)
    broken = replace(batch, images=batch.images * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        send(Mitigation("noise", 0.5), net(), broken, background, **KNOWN)


# --- what is usual ---


def test_usual_norms_by_hand():
    public, model = drawn(30, 0), net()

    def norm(images, labels):
        update: Update = fedsgd(model, images, labels)
        return float(update.flat().double().norm())

    batch, one = usual_norms(model, public, 5, batches=3)
    parts = [norm(public.images[i : i + 5], public.labels[i : i + 5]) for i in (0, 5, 10)]
    assert batch == pytest.approx(sorted(parts)[1])
    ones = [norm(public.images[i : i + 1], public.labels[i : i + 1]) for i in range(16)]
    assert one == pytest.approx(float(np.median(ones)))
    assert isinstance(batch, float)
    assert isinstance(one, float)
    for samples, batches in ((0, 1), (1, 0), (11, 3), (-1, -2)):
        with pytest.raises(ValueError, match=f"at most 30, .*; got {samples}, {batches}"):
            usual_norms(model, public, samples, batches=batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", STRENGTHS)
def test_on_another_device(name):
    batch, background = drawn(6, 0), drawn(40, 1)
    mitigation = Mitigation(name, USUAL.get(name, 0.5))
    here = send(mitigation, net(), batch, background, **KNOWN)
    there = send(mitigation, net().cuda(), batch, background, **KNOWN)
    assert there.update.flat().is_cuda
    if name not in ("quantisation", "compression"):  # which jump where rounding decides
        assert torch.allclose(there.update.flat().cpu(), here.update.flat(), atol=1e-4)
    assert torch.equal(here.inputs, there.inputs)
    assert usual_norms(net().cuda(), background, 4) == pytest.approx(
        usual_norms(net(), background, 4), rel=1e-3
    )
