"""Updates of our clients and of any other stack."""

import pytest
import torch

from gradleak_lib import models
from gradleak_lib.federated import Diverged, Update, aggregate, apply_update, fedsgd
from gradleak_lib.federated.update import check_finite

SHAPE = (3, 9, 9)


@pytest.fixture
def model():
    return models.build("convnet", SHAPE, classes=3, width=2)


@pytest.fixture
def update(model):
    generator = torch.Generator().manual_seed(0)
    return fedsgd(model, torch.rand(4, *SHAPE, generator=generator), torch.tensor([0, 1, 2, 0]))


def test_from_names_lists_state_and_files(model, update, tmp_path):
    tensors = dict(update.tensors)
    torch.save(tensors, tmp_path / "update.pt")
    state = {name: tensors.get(name, value) for name, value in model.state_dict().items()}
    for given in (
        tensors,
        {name: tensor.numpy() for name, tensor in tensors.items()},
        [tensor.numpy() for tensor in tensors.values()],
        state,
        list(state.values()),
        tmp_path / "update.pt",
    ):
        other = Update.from_tensors(model, given, kind="gradient", samples=4)
        assert torch.equal(other.flat(), update.flat())


def test_the_first_mismatch_is_named(model, update):
    tensors = dict(update.tensors)
    cases = {
        r"lacks '0\.bias'": {n: t for n, t in tensors.items() if n != "0.bias"},
        "no parameter 'fc.weight'": tensors | {"fc.weight": torch.zeros(2)},
        r"'0.weight' has shape \(1,\), the model's has \(2, 3, 3, 3\)": tensors
        | {"0.weight": torch.zeros(1)},
        "got 3 tensors; the model has": list(tensors.values())[:3],
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            Update.from_tensors(model, given, kind="gradient", samples=4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_whatever_reads_them(model, update, bad):
    tensors = dict(update.tensors) | {"0.bias": torch.tensor([bad, 0.0])}
    broken = Update(tensors, "gradient", 4)
    before = [parameter.clone() for parameter in model.parameters()]
    for read in (
        lambda: broken.layer("0"),
        broken.flat,
        lambda: aggregate([update, broken]),
        lambda: apply_update(model, broken),
        lambda: Update.from_tensors(model, tensors, kind="gradient", samples=4),
    ):
        with pytest.raises(Diverged, match=r"NaN or infinity in '0\.bias'"):
            read()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_finite_values_whose_sum_overflows_are_read():
    large = torch.full((4,), 3e38)
    assert torch.equal(Update({"w": large}, "gradient", 1).flat(), large)


def test_apply_writes_all_or_nothing(model, update):
    before = [parameter.clone() for parameter in model.parameters()]
    last = list(update.tensors)[-1]
    too_large = dict(update.tensors) | {
        last: torch.full_like(update.tensors[last], 1e300, dtype=torch.float64)
    }
    with pytest.raises(ValueError, match="NaN or infinity"):
        apply_update(model, Update(too_large, "gradient", 4))
    with pytest.raises(ValueError, match="learning_rate"):
        apply_update(model, update, learning_rate=float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    whole = {name: tensor.long() for name, tensor in update.tensors.items()}
    with pytest.raises(ValueError, match="floating-point"):
        Update.from_tensors(model, whole, kind="gradient", samples=4)


def test_an_update_is_frozen(update):
    with pytest.raises(AttributeError):
        update.samples = 5
    with pytest.raises(TypeError):
        update.tensors["0.bias"] = torch.zeros(2)


def test_layer(update):
    assert set(update.layer("0")) == {"weight", "bias"}
    with pytest.raises(ValueError, match="no layer 'fc'"):
        update.layer("fc")


def test_the_aggregate_is_the_update_of_the_pooled_data(model):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(9, *SHAPE, generator=generator), torch.arange(9) % 3
    pooled = fedsgd(model.double(), images, labels)
    parts = [fedsgd(model, images[p], labels[p]) for p in torch.arange(9).split([2, 3, 4])]
    both = aggregate(parts)
    assert both.samples == 9
    assert torch.allclose(both.flat(), pooled.flat(), atol=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        aggregate([])


def test_what_the_protocol_tells_of_an_aggregate():
    def sent(samples, steps, rate):
        return Update({"w": torch.ones(2)}, "delta", samples, steps, rate)

    assert aggregate([sent(3, 5, 0.1), sent(9, 5, 0.1)]).local_steps == 5
    mixed = aggregate([sent(3, 1, 0.1), sent(9, 5, 0.2)])
    assert (mixed.samples, mixed.local_steps, mixed.learning_rate) == (12, 4, None)


def test_what_tensors_hold_is_not_printed(update):
    shown = repr(update)
    assert shown.startswith("Update(")
    assert "'0.weight': float32[2, 3, 3, 3]" in shown
    assert "kind='gradient', samples=4" in shown
    assert len(shown) < 300
    assert "\n" not in shown


def test_tensors_of_several_kinds_are_looked_at_together():
    tensors = {
        "half": torch.full((9,), 6e4).half(),
        "double": torch.tensor([1e300], dtype=torch.float64),
        "none": torch.ones(0),
    }
    check_finite(tensors)  # two of the sums overflow in single precision, and no number does
    with pytest.raises(Diverged, match="in 'last'"):
        check_finite(tensors | {"last": torch.tensor([1.0, torch.inf], dtype=torch.bfloat16)})
    check_finite({})


@pytest.mark.parametrize(("kind", "samples"), [("sum", 1), ("gradient", 0)])
def test_bad_fields(kind, samples):
    with pytest.raises(ValueError, match="must be"):
        Update({}, kind, samples)
