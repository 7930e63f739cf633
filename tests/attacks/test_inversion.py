"""Inverting gradients: the search itself, on small networks and images."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradleak_lib import data, models
from gradleak_lib.attacks import search as searching
from gradleak_lib.attacks.double_backward import _AffineGradient
from gradleak_lib.attacks.inversion import invert, invert_all, read_labels
from gradleak_lib.attacks.matching import Target, one_by_one
from gradleak_lib.attacks.search import Search
from gradleak_lib.federated import Update, fedavg, fedsgd
from gradleak_lib.metrics import psnr

SHAPE = (1, 12, 12)
SHORT = Search(iterations=6, restarts=2)


def relu_net(seed=0):
    """Three convolutions of 16 channels with ReLU, and a linear layer."""
    return models.with_activation(models.build("lenet", SHAPE, classes=10, width=16, seed=seed), nn.ReLU)


@pytest.fixture(scope="module")
def attacked():
    digits = data.load("digits", 12, sample=4)
    model = relu_net()
    return digits, model, fedsgd(model, digits.images[:1], digits.labels[:1])


def test_a_digit_comes_back_with_its_label_and_the_model_stays_as_it_was(attacked):
    digits, model, update = attacked
    model = copy.deepcopy(model)
    before, hooks = copy.deepcopy(model.state_dict()), len(model[0]._forward_hooks)
    found = invert(update, model, SHAPE, search=Search(iterations=300, restarts=2, tv=1e-3))
    assert found.labels.tolist() == digits.labels[:1].tolist()
    assert float(psnr(found.images, digits.images[:1])) > 20
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.trace.shape == (300, 2)
    assert found.objective <= float(found.trace.min())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model[0]._forward_hooks) == hooks
    assert not model.training


def test_the_objective_falls_through_padded_convolutions(attacked):
    """Their gradients are not contiguous, which the fused Adam does not look at."""
    digits, _, _ = attacked
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(8 * 144, 10)
    ).eval()
    update = fedsgd(model, digits.images[:1], digits.labels[:1])
    trace = invert(update, model, SHAPE, search=Search(iterations=60, tv=0)).trace
    assert trace[-1] < 0.2 * trace[0]


def test_the_same_seed_gives_the_same_and_another_another(attacked):
    _, model, update = attacked
    one, same = (invert(update, model, SHAPE, search=SHORT) for _ in range(2))
    other = invert(update, model, SHAPE, search=Search(iterations=6, restarts=2, seed=1))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.trace, same.trace)
    assert not torch.equal(one.images, other.images)


def test_several_updates_at_once_are_as_each_alone(attacked):
    digits, model, _ = attacked
    model = copy.deepcopy(model).double()
    updates = [fedsgd(model, digits.images[i : i + 1], digits.labels[i : i + 1]) for i in range(3)]
    together = invert_all(updates, model, SHAPE, search=SHORT)
    for update, found in zip(updates, together, strict=True):
        alone = invert(update, model, SHAPE, search=SHORT)
        assert torch.allclose(found.images, alone.images, atol=1e-8)
        assert torch.allclose(found.trace, alone.trace, atol=1e-8)


def test_the_best_restart_is_chosen_by_the_objective(attacked):
    _, model, update = attacked
    searches = [Search(iterations=20, restarts=n) for n in (1, 4)]
    one, four = (invert(update, model, SHAPE, search=search) for search in searches)
    assert four.objective <= one.objective + 1e-5
    assert four.objective <= float(four.trace.min()) + 1e-6


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_every_kind_of_search_brings_the_objective_down(attacked, signed, distance):
    _, model, update = attacked
    search = Search(iterations=80, signed=signed, distance=distance, tv=1e-3)
    trace = invert(update, model, SHAPE, search=search).trace
    assert trace[-1] < 0.8 * trace[0]


def test_a_batch_with_its_labels_read(attacked):
    digits, model, _ = attacked
    update = fedsgd(model, digits.images, digits.labels)
    assert read_labels(update, model).tolist() == sorted(digits.labels.tolist())
    found = invert(update, model, SHAPE, search=SHORT)
    assert found.images.shape == (4, *SHAPE)
    assert found.labels.tolist() == sorted(digits.labels.tolist())


def test_normalised_inputs(attacked):
    digits, model, _ = attacked
    update = fedsgd(model, (digits.images[:1] - 0.3) / 0.4, digits.labels[:1])
    found = invert(update, model, SHAPE, search=Search(iterations=300, tv=1e-3), mean=(0.3,), std=(0.4,))
    assert float(psnr(found.images, digits.images[:1])) > 18


def test_one_local_step_is_a_gradient(attacked):
    digits, model, update = attacked
    delta = fedavg(model, digits.images[:1], digits.labels[:1], learning_rate=0.1, batch_size=1)
    by_gradient, by_delta = (invert(u, model, SHAPE, search=SHORT) for u in (update, delta))
    assert torch.allclose(by_delta.trace, by_gradient.trace, atol=1e-3)


def test_local_steps(attacked):
    digits, model, _ = attacked
    update = fedavg(model, digits.images[:2], digits.labels[:2], learning_rate=0.05, batch_size=1, epochs=2)
    search = Search(iterations=60, tv=1e-3)
    found = invert(update, model, SHAPE, digits.labels[:2], search, batch_size=1)
    assert found.trace[-1] < 0.8 * found.trace[0]
    with pytest.raises(ValueError, match="does not tell which label was in which"):
        invert(update, model, SHAPE, search=search, batch_size=1)
    three = fedavg(model, digits.images[:3], digits.labels[:3], learning_rate=0.05, batch_size=1)
    with pytest.raises(ValueError, match="no whole number of epochs: set batch_size"):
        invert(three, model, SHAPE, digits.labels[:3], search, batch_size=2)


def test_training_mode_uses_the_statistics_of_the_batch_and_leaves_the_running_ones(attacked):
    digits, _, _ = attacked
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(600, 10)
    ).train()
    before = copy.deepcopy(model.state_dict())
    update = fedsgd(model, digits.images, digits.labels)
    trace = invert(update, model, SHAPE, digits.labels, Search(iterations=60, tv=1e-3)).trace
    assert trace[-1] < 0.8 * trace[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_snapshots_are_images_of_the_best_restart_on_the_way(attacked):
    _, model, update = attacked
    found = invert(update, model, SHAPE, search=SHORT, snapshots=(0, 3, 6))
    assert found.snapshots.shape == (3, 1, *SHAPE)
    assert not torch.equal(found.snapshots[0], found.snapshots[1])


def test_ctrl_c_returns_the_best_so_far(attacked, monkeypatch, capsys):
    _, model, update = attacked
    calls = []
    true = searching.total_variation

    def interrupted(images):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(images)

    monkeypatch.setattr(searching, "total_variation", interrupted)
    found = invert(update, model, SHAPE, search=SHORT)
    assert found.trace.shape == (3, 2)
    assert found.objective == float(found.trace.min())
    assert "interrupted after 3 of 6 iterations" in capsys.readouterr().out


def test_ctrl_c_before_anything_was_found(attacked, monkeypatch):
    _, model, update = attacked

    def interrupted(images):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "total_variation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        invert(update, model, SHAPE, search=SHORT)


def test_a_search_goes_on_from_its_checkpoint(attacked, monkeypatch, tmp_path):
    _, model, update = attacked
    file = tmp_path / "search.pt"
    search = Search(iterations=40, restarts=2)
    whole = invert(update, model, SHAPE, search=search, snapshots=(1, 30))
    monkeypatch.setattr(searching, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    true, calls = searching.save_whole, []

    def killed(path, content):
        true(path, content)
        calls.append(content["done"])
        if len(calls) == 17:
            raise RuntimeError("killed")

    monkeypatch.setattr(searching, "save_whole", killed)
    with pytest.raises(RuntimeError, match="killed"):
        invert(update, model, SHAPE, search=search, snapshots=(1, 30), checkpoint=file)
    monkeypatch.setattr(searching, "save_whole", true)
    resumed = invert(update, model, SHAPE, search=search, snapshots=(1, 30), checkpoint=file)
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.trace, whole.trace)
    assert torch.equal(resumed.snapshots, whole.snapshots)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        invert(update, model, SHAPE, search=Search(iterations=41, restarts=2), checkpoint=file)


def test_nothing_of_a_step_outlives_it(attacked):
    _, model, update = attacked
    invert(update, model, SHAPE, search=SHORT)
    gc.collect()
    kept = [
        thing for thing in gc.get_objects() if type(thing).__name__ == f"{_AffineGradient.__name__}Backward"
    ]
    assert not kept


def test_a_model_that_mixes_lanes_is_searched_one_by_one(attacked):
    """It runs on a batch of lanes without an error, and means something else there."""
    digits, _, _ = attacked

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(144, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.linear(x - 0.5 * x.mean(0))

    model = Centred().double()
    update = fedsgd(model, digits.images[:2], digits.labels[:2])
    found = invert(update, model, SHAPE, digits.labels[:2], Search(iterations=60, restarts=2, tv=0))
    assert found.objective < 0.05


class Standardised(nn.Module):
    """Takes the mean and the deviation of all that it is given."""

    def forward(self, x):
        return (x - x.mean()) / x.std()


class Remembering(nn.Module):
    """Keeps what it last computed, so that it cannot be copied."""

    def forward(self, x):
        self.last = torch.relu(x)
        return self.last


class Attending(nn.Module):
    """Attention over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0]


@pytest.mark.parametrize("first", [Standardised, Remembering, Attending])
@pytest.mark.parametrize("norm", [False, True])
def test_unusual_models(attacked, first, norm):
    """What comes out is the objective of the images, by plain autograd, whatever way the search has taken."""
    digits, _, _ = attacked
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(144)] if norm else []
    model = nn.Sequential(first(), nn.Flatten(), *norms, nn.Linear(144, 10)).eval().double()
    update = fedsgd(model, digits.images[:2], digits.labels[:2])
    search = Search(iterations=30, restarts=2, tv=0)
    with torch.no_grad():
        found = invert(update, model, SHAPE, digits.labels[:2], search)
    sent = {name: value[None] for name, value in update.tensors.items()}
    target = Target(sent, found.labels[None], 1, "cosine")
    with sdpa_kernel(SDPBackend.MATH):
        distance = one_by_one(model, target)(found.images)[0]
    assert float(distance) == pytest.approx(found.objective, rel=1e-6)


def test_dropout_draws_by_the_seed_and_leaves_the_global_state(attacked):
    digits, _, _ = attacked
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10)).train()
    update = fedsgd(model, digits.images[:1], digits.labels[:1])
    state = torch.get_rng_state()
    one, same = (invert(update, model, SHAPE, digits.labels[:1], SHORT) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.trace, same.trace)


def test_a_finished_search_is_read_back(attacked, tmp_path):
    _, model, update = attacked
    file = str(tmp_path / "search.pt")
    one, again = (
        invert(update, model, SHAPE, search=SHORT, snapshots=(0, 6), checkpoint=file) for _ in range(2)
    )
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.snapshots, again.snapshots)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        invert(update, copy.deepcopy(model).train(), SHAPE, search=SHORT, snapshots=(0, 6), checkpoint=file)
    with pytest.raises(ValueError, match="is a folder"):
        invert(update, model, SHAPE, search=SHORT, checkpoint=tmp_path)


def test_bad_input(attacked):
    digits, model, update = attacked
    with pytest.raises(ValueError, match="another architecture"):
        invert(update, models.build("lenet", SHAPE, classes=9), SHAPE)
    broken = Update({name: value * torch.nan for name, value in update.tensors.items()}, "gradient", 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        invert(broken, model, SHAPE)
    nothing = Update({name: value * 0 for name, value in update.tensors.items()}, "gradient", 1)
    with pytest.raises(ValueError, match="the update is zero"):
        invert(nothing, model, SHAPE)
    with pytest.raises(ValueError, match=r"int64 tensor \[1\] for each update, got torch.int64 \[2\]"):
        invert(update, model, SHAPE, torch.tensor([1, 2]))
    for wrong in (torch.tensor([1.0]), torch.tensor([1], dtype=torch.int32), [1]):
        with pytest.raises(ValueError, match="labels must be an int64 tensor"):
            invert(update, model, SHAPE, wrong)
    with pytest.raises(ValueError, match=r"labels must be 0 or more, got \[-100\]"):
        invert(update, model, SHAPE, torch.tensor([-100]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 10"):
        invert_all([update, update], model, SHAPE, [torch.tensor([1]), torch.tensor([10])])
    with pytest.raises(ValueError, match="shape must be"):
        invert(update, model, (12, 12))
    with pytest.raises(ValueError, match="snapshots must lie in"):
        invert(update, model, SHAPE, search=SHORT, snapshots=(7,))
    with pytest.raises(ValueError, match="batch_size is for local steps"):
        invert(update, model, SHAPE, batch_size=1)
    frozen = copy.deepcopy(model)
    frozen[-1].requires_grad_(False)
    with pytest.raises(ValueError, match="frozen, and tells no labels"):
        invert(fedsgd(frozen, digits.images[:1], digits.labels[:1]), frozen, SHAPE)
    with pytest.raises(ValueError, match=r"cannot be run on images of shape \(1, 30, 30\)"):
        invert(update, model, (1, 30, 30))
    for options in ({"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"mean": (float("nan"),)}):
        with pytest.raises(ValueError, match="mean and std need 1 or 1 finite numbers"):
            invert(update, model, SHAPE, **options)
    with pytest.raises(ValueError, match="there is no update"):
        invert_all([], model, SHAPE)
    with pytest.raises(ValueError, match="must agree in kind, samples"):
        invert_all([update, fedsgd(model, digits.images, digits.labels)], model, SHAPE)
    delta = fedavg(model, digits.images, digits.labels, learning_rate=0.1, batch_size=4, epochs=2)
    unknown = Update(delta.tensors, "delta", 4, 2)
    with pytest.raises(ValueError, match="learning rate, got None: give it to the update"):
        invert(unknown, model, SHAPE)
    weights = copy.deepcopy(model)
    nn.init.constant_(weights[0].weight, torch.nan)
    with pytest.raises(ValueError, match="no number from the start"):
        invert(update, weights, SHAPE, digits.labels[:1])


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"restarts": 0},
        {"tv": -1.0},
        {"tv": float("nan")},
        {"step_size": 0.0},
        {"distance": "l1"},
    ],
)
def test_bad_searches(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Search(**options)


def test_real_data(real_data):
    """CIFAR-10, through a small untrained network: far better than the mean colour of each image."""
    cifar = data.load("cifar10", sample=4, root=real_data)
    model = models.with_activation(models.build("lenet", (3, 32, 32), classes=10, width=32), nn.ReLU)
    updates = [fedsgd(model, cifar.images[i : i + 1], cifar.labels[i : i + 1]) for i in range(4)]
    found = invert_all(updates, model, (3, 32, 32), search=Search(iterations=300))
    colour = cifar.images.mean((2, 3), keepdim=True).expand_as(cifar.images)
    gain = psnr(torch.cat([one.images for one in found]), cifar.images) - psnr(colour, cifar.images)
    assert torch.cat([one.labels for one in found]).tolist() == cifar.labels.tolist()
    assert gain.mean() > 8
