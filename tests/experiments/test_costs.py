"""Each formula of the costs against the thing itself, small."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from gradleak_lib import models
from gradleak_lib.attacks import imprint, linkability, placement
from gradleak_lib.book.results import ROOT
from gradleak_lib.data import digit_scenes, split_clients
from gradleak_lib.experiments import costs
from gradleak_lib.federated import Update, fedsgd, simulate

SHAPE = (1, 4, 4)
sizes = st.integers(1, 10**6)


def federation(users, devices, per_client, fraction, **options):
    scenes = digit_scenes(users, scenes=32, public_users=1, sessions=2)
    held = split_clients(scenes.train, "random", devices=devices, samples=2)
    network = models.build("cnn", (1, 16, 16), classes=10)
    rounds = per_client * math.ceil(len(held) / max(1, int(fraction * len(held) + 1e-9)))
    return simulate(network, held, rounds=rounds, fraction=fraction, learning_rate=0.01, **options), network


@pytest.mark.parametrize(
    ("users", "devices", "per_client", "fraction"), [(3, 2, 2, 0.5), (2, 3, 1, 0.4), (5, 2, 3, 0.1)]
)
def test_updates_and_their_bytes_are_those_of_a_simulation(users, devices, per_client, fraction):
    run, network = federation(users, devices, per_client, fraction)
    seen = run.observed
    assert len(seen) == costs.client_updates(users, devices=devices, per_client=per_client)
    numbers = sum(value.numel() for value in network.parameters())
    assert costs.tensor_bytes(len(seen), numbers) == sum(value.nbytes for value in seen.tensors.values())
    head = seen.keep("fc2").tensors.values()
    features = linkability.features(seen, "fc2")
    assert costs.tensor_bytes(*features.shape) == features.nbytes == sum(value.nbytes for value in head)
    assert costs.tensor_bytes(*features.shape, bits=16) == sum(value.half().nbytes for value in head)


class Steps:
    def __enter__(self):
        self.count = 0
        self.hook = register_optimizer_step_post_hook(self.one)
        return self

    def one(self, *_):
        self.count += 1

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("known", [47, 320, 330])
def test_steps_are_those_of_the_identifier(known):
    rng = np.random.default_rng(known)
    features = rng.standard_normal((known, 5)).astype(np.float32)
    with Steps() as steps:
        linkability.identify("mlp", features, np.arange(known) % 3, features[:1], classes=3)
    epochs, rest = divmod(steps.count, costs.mlp_steps(known, epochs=1))
    assert rest == 0
    assert 1 <= epochs <= 300
    assert steps.count == costs.mlp_steps(known, epochs=epochs)


def test_operations_are_those_of_the_identifier():
    known = np.random.default_rng(0).standard_normal((2 * costs.BATCH, 5)).astype(np.float32)
    owners = np.arange(len(known)) % 2
    owners[0] = 2  # one update only of this user: nothing is held out, and the training takes 1,000 steps
    with FlopCounterMode(display=False) as counted, Steps() as steps:
        linkability.identify("mlp", known, owners, known[:1], classes=3)
    assert steps.count == 1000
    tested = 2 * costs.HIDDEN * (5 + 3)
    assert counted.get_total_flops() == 500 * costs.mlp_operations(len(known), 5, 3) + tested


@given(st.integers(1, 9), st.integers(1, 20), st.integers(2, 30))
@settings(max_examples=20, deadline=None)
def test_operations_are_those_that_torch_counts(samples, features, users):
    network = nn.Sequential(nn.Linear(features, costs.HIDDEN), nn.ReLU(), nn.Linear(costs.HIDDEN, users))
    with FlopCounterMode(display=False) as counted:
        network(torch.ones(samples, features)).sum().backward()
    assert counted.get_total_flops() == costs.mlp_operations(samples, features, users)
    with FlopCounterMode(display=False) as counted:
        torch.ones(samples, features) @ torch.ones(users, features).T
    assert counted.get_total_flops() == costs.product_operations(users, samples, features)
    with FlopCounterMode(display=False) as counted:  # margins of all planes on all known updates, once
        torch.ones(samples, features) @ torch.ones(features, users)
    assert counted.get_total_flops() == costs.svm_operations(samples, features, users)


def test_identification_is_linear_while_there_are_few_users_and_quadratic_when_there_are_many():
    def seconds(users):
        return costs.mlp_seconds(6 * users, 650, users, epochs=100, per_step=1e-3, per_operation=1e-10)

    assert costs.growth([10, 20], [seconds(10), seconds(20)]) == pytest.approx(1, abs=0.05)
    assert costs.growth([10**6, 10**7], [seconds(10**6), seconds(10**7)]) == pytest.approx(2, abs=0.05)
    free = costs.mlp_seconds(600, 650, 100, epochs=7, per_step=2.0, per_operation=0)
    assert free == 2 * costs.mlp_steps(600, epochs=7)


@given(st.integers(2, 40), st.integers(1, 20))
def test_pairs_and_what_is_kept_of_the_scores(updates, kept):
    assert costs.pairs(updates) == len(list(itertools.combinations(range(updates), 2)))
    best = torch.zeros(updates, kept, dtype=torch.int32), torch.zeros(updates, kept)
    assert costs.top_bytes(updates, kept) == sum(value.nbytes for value in best)


@given(st.floats(0.1, 10), sizes, sizes.filter(lambda size: size > 1))
def test_what_is_scaled_grows_linearly(value, size, times):
    there = costs.scaled(value, size, times * size)
    assert costs.growth([size, times * size], [value, there]) == pytest.approx(1)
    assert costs.scaled(there, times * size, size) == pytest.approx(value)


@given(sizes, st.floats(0.5, 2.5))
def test_growth_is_the_power(size, power):
    assert costs.growth([1, size, 2 * size], [5, size**power, (2 * size) ** power]) == pytest.approx(power)


@given(st.floats(0, 1e-3), st.floats(1e-12, 1e-9))
def test_a_step_is_taken_apart(per_step, per_operation):
    operations = [1e6, 2e7, 3e8, 4e9]
    seconds = [per_step + per_operation * count for count in operations]
    found = costs.fit_step(operations, seconds)
    assert found == pytest.approx((per_step, per_operation), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(("samples", "aggregate"), [(64_000, 64), (3_000, 1), (40_000, 200)])
def test_the_images_that_one_shot_catches(samples, aggregate):
    rng = np.random.default_rng(0)
    places = rng.random((20, costs.aggregates(samples, aggregate), aggregate))
    caught = ((places <= 1 / aggregate).sum(2) == 1).sum(1)
    error = caught.std(ddof=1) / len(caught) ** 0.5
    assert caught.mean() == pytest.approx(costs.one_shot_images(samples, aggregate), abs=4 * error + 1e-9)


def test_one_image_in_e_aggregates():
    assert costs.one_shot_images(10**9, 10**6) == pytest.approx(1000 / math.e, rel=1e-5)
    assert costs.aggregates(1001, 10) == 101


def armed(edges, dtype=torch.float32, variant="sparse"):
    layer = imprint.Imprint(SHAPE, len(edges) - 1, variant=variant).to(dtype)
    imprint.arm(layer, imprint.mean_brightness(SHAPE), torch.tensor(edges))
    return placement.before_input(models.build("linear", SHAPE, classes=3).to(dtype), layer)


@given(st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=10, deadline=None)
def test_traffic_is_the_models_down_and_the_updates_up(samples, per_client):
    model = armed([0.0, 0.5, 1.0])
    images = torch.rand(samples, *SHAPE)
    down = sum(value.nbytes for value in model.parameters())
    moved = 0
    for part in images.split(per_client):
        update = fedsgd(model, part, torch.zeros(len(part), dtype=torch.int64))
        moved += down + sum(value.nbytes for value in update.tensors.values())
    assert costs.traffic(samples, per_client, down) == moved


@given(st.integers(50, 10**7), st.floats(-1, 1))
def test_a_bin_of_mass_one_in_n(aggregate, place):
    width = costs.bin_width(aggregate, norm.pdf(place))
    mass = norm.cdf(place + width / 2) - norm.cdf(place - width / 2)
    assert mass * aggregate == pytest.approx(1, rel=0.02)


def test_the_bin_is_that_of_the_attack():
    values = torch.linspace(0, 0.5, 2001)  # density 2
    edges = imprint.one_shot_bins(values, 4096)
    assert (edges[1] - edges[0]).item() == pytest.approx(costs.bin_width(4096, 2.0), rel=1e-6)


@given(st.floats(1e-6, 1e6))
def test_resolution_of_numbers(value):
    assert costs.float_resolution(value, torch.float32) == np.spacing(np.float32(value))
    assert costs.float_resolution(value, torch.float64) == np.spacing(np.float64(value))
    assert costs.largest_aggregate(2.0, 0.25) == 2


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.data())
def test_no_brightness_lies_between_two_levels(entries, data):
    image = torch.tensor(entries, dtype=torch.float64) / 255
    other = torch.tensor(
        data.draw(st.lists(st.integers(0, 255), min_size=len(entries), max_size=len(entries)))
    )
    steps = (image.mean() - other.double().mean() / 255).item() / costs.level_resolution(len(entries))
    assert steps == pytest.approx(round(steps), abs=1e-6)
    image[0] += (1 if entries[0] < 255 else -1) / 255
    changed = image.mean().item() - sum(entries) / 255 / len(entries)
    assert abs(changed) == pytest.approx(costs.level_resolution(len(entries)))


@pytest.mark.parametrize("levels", [300, 1000, 4000])
def test_what_is_left_of_one_shot_when_levels_are_coarse(levels):
    rng, n, rounds = np.random.default_rng(levels), 1000, 3000
    drawn = np.floor(rng.random((rounds, n)) * levels)
    hits = (drawn == levels // 2).sum(
        1
    ) == 1  # the bin of mass 1/n holds a whole level or, beyond n levels, several
    if levels > n:
        hits = ((drawn >= levels // 2) & (drawn < levels // 2 + levels // n)).sum(1) == 1
    expected = costs.one_shot_at_resolution(n, 1.0, 1 / levels)
    assert hits.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / rounds) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["cumulative", "sparse"])
@pytest.mark.parametrize("above", [0.5, 1.0])
def test_the_read_out_takes_one_sample_of_too_many_for_rounding(dtype, variant, above):
    model = armed([0.0, 0.5, 1.0], dtype, variant)

    def read(samples):
        rest = above * samples
        bias = torch.tensor([1.0 + rest * (variant == "cumulative"), rest], dtype=dtype) / samples
        tensors = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        tensors["imprint.linear.bias"] = bias
        tensors["imprint.linear.weight"] = bias[:, None].expand(2, 16) / 2
        return 0 in imprint.recover(Update(tensors, "gradient", samples), model).bins

    limit = costs.largest_read(above, dtype)
    assert read(int(0.7 * limit))
    assert not read(int(1.4 * limit))


@pytest.mark.parametrize(("low", "power"), [(-1, 1.0), (0, 1.5)])
def test_how_rounding_grows_in_a_running_sum(low, power):
    rng, trials = np.random.default_rng(0), 300
    errors = []
    for n in (2**9, 2**13):
        values = rng.uniform(low, 1, (trials, n)).astype(np.float32)
        error = np.add.accumulate(values, axis=1)[:, -1].astype(float) - values.astype(float).sum(1)
        errors.append(np.sqrt((error**2).mean()))
    before, after = (-20 * math.log10(error) for error in errors)
    assert costs.psnr_of_difference(before, 2**9, 2**13, power=power) == pytest.approx(after, abs=4)


def test_a_doubling_costs_six_decibels_and_double_precision_gains_twenty_nine_bits():
    assert costs.psnr_of_difference(100, 1, 2) == pytest.approx(100 - 6.02, abs=0.01)
    assert costs.precision_gain(torch.float32, torch.float64) == pytest.approx(29 * 6.0206, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_difference_of_two_rows_loses_what_the_formula_says(dtype):
    def psnr(samples):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(samples, *SHAPE, generator=generator, dtype=torch.float64)
        images *= 0.3 + 0.7 * torch.rand(samples, 1, 1, 1, generator=generator, dtype=torch.float64)
        h = imprint.measure(images, imprint.mean_brightness(SHAPE).double()).sort()
        ranks = range(samples // 4, 3 * samples // 4, samples // 40)
        edges = [-1.0]
        for rank in ranks:  # bins that hold one image each
            edges += [((h.values[rank + k - 1] + h.values[rank + k]) / 2).item() for k in (0, 1)]
        model = armed([*edges, 2.0], dtype, "cumulative")
        labels = torch.randint(3, (samples,), generator=generator)
        found = imprint.recover(fedsgd(model, images, labels), model)
        got = dict(zip(found.bins.tolist(), found.inputs.double(), strict=True))
        errors = [
            (got[2 * place + 1] - images[h.indices[rank]]).square().mean() for place, rank in enumerate(ranks)
        ]
        return -10 * torch.stack(errors).median().log10().item()

    few, many = psnr(2**8), psnr(2**13)
    assert costs.psnr_of_difference(few, 2**8, 2**13) == pytest.approx(many, abs=9)
    assert many < few - 20


@pytest.mark.parametrize(
    "call",
    [
        lambda: costs.client_updates(0, per_client=1),
        lambda: costs.tensor_bytes(1, -1),
        lambda: costs.one_shot_images(10, 0),
        lambda: costs.bin_width(10, 0.0),
        lambda: costs.scaled(1.0, 0, 1),
        lambda: costs.largest_aggregate(math.nan, 1),
        lambda: costs.growth([1], [1]),
        lambda: costs.fit_step([1, 2], [1, 2]),
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(ValueError, match=r"positive|or more"):
        call()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("*/costs.json")), ids=lambda path: path.parent.name
)
def test_the_record_bears_the_formulas_out(path):
    values = json.loads(path.read_text(encoding="utf-8"))["values"]
    link, read = values["linkability"], values["imprint"]
    run = link["simulation"]
    assert run["updates"] == costs.client_updates(run["users"], devices=2, per_client=link["per_client"])
    assert link["feature_bytes"] == costs.tensor_bytes(run["updates"], link["features"])
    fished = read["fishing"]
    assert fished["expected"] == costs.one_shot_images(fished["samples"], fished["aggregate"])
    assert abs(fished["read"] - fished["expected"]) < 4 * fished["expected"] ** 0.5
    rows = {(row["samples"], row["variant"], row["precision"]): row for row in read["quality"]}
    for samples, variant, precision in rows:
        if precision == "single" and samples <= 2**16:  # beyond, single precision moves the edges of the bins
            gain = (
                rows[samples, variant, "double"]["psnr_median"]
                - rows[samples, variant, precision]["psnr_median"]
            )
            assert gain == pytest.approx(costs.precision_gain(torch.float32, torch.float64), abs=6)
    falling = [
        row
        for (_, variant, precision), row in rows.items()
        if (variant, precision) == ("cumulative", "double")
    ]
    first, last = falling[0], falling[-1]
    there = costs.psnr_of_difference(first["psnr_median"], first["samples"], last["samples"])
    assert there == pytest.approx(last["psnr_median"], abs=15)
    for row in read["near"]:
        precision = {"single": torch.float32, "double": torch.float64}[row["precision"]]
        resolution = costs.float_resolution(read["value"], precision)
        expected = costs.one_shot_at_resolution(row["samples"], read["density"], resolution)
        if (
            not 0.1 < row["samples"] * read["density"] * resolution < 10
        ):  # near the limit the formula is rough
            assert row["read"] / row["rounds"] == pytest.approx(expected, abs=0.14)
