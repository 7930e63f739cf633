"""Deep leakage from gradients."""

import copy

import pytest
import torch

from gradleak_lib import data, models
from gradleak_lib.attacks.dlg import dlg
from gradleak_lib.federated import Update, fedavg, fedsgd
from gradleak_lib.metrics import psnr


@pytest.fixture(scope="module")
def attacked():
    """One digit, the network, its gradient."""
    digit = data.load("digits", 8, sample=1)
    model = models.build("lenet", (1, 8, 8), classes=10)
    return digit, model, fedsgd(model, digit.images, digit.labels)


def test_one_digit_and_its_label_come_back(attacked):
    digit, model, update = attacked
    before = copy.deepcopy(model.state_dict())
    found = dlg(update, model, (1, 8, 8), iterations=60, seed=1)
    assert found.labels.tolist() == digit.labels.tolist()
    assert found.objective < 1e-4
    assert float(psnr(found.images.clamp(0, 1), digit.images)) > 20
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_and_more_steps_are_never_worse(attacked):
    _, model, update = attacked
    one, same, longer = (dlg(update, model, (1, 8, 8), iterations=n) for n in (2, 2, 4))
    assert torch.equal(one.images, same.images)
    assert longer.objective <= one.objective


def test_what_is_kept_is_the_best_of_all(attacked, monkeypatch):
    """L-BFGS without a line search may end far from the best point that it saw."""
    _, model, update = attacked
    seen = []
    step = torch.optim.LBFGS.step

    def watched(self, closure):
        def spied():
            seen.append(float(closure().detach()))
            return torch.tensor(seen[-1])

        return step(self, spied)

    monkeypatch.setattr(torch.optim.LBFGS, "step", watched)
    assert dlg(update, model, (1, 8, 8), iterations=5, seed=3).objective == min(seen)


def test_frozen_and_unused_parameters_are_left_out(attacked):
    digit, model, _ = attacked
    model = copy.deepcopy(model)
    model[0].requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    update = fedsgd(model, digit.images, digit.labels)
    found = dlg(update, model, (1, 8, 8), iterations=20, seed=1)
    assert found.labels.tolist() == digit.labels.tolist()


def test_known_labels_and_normalised_inputs(attacked):
    digit, model, _ = attacked
    model = models.with_uniform_weights(model)
    update = fedsgd(model, (digit.images - 0.3) / 0.4, digit.labels)
    found = dlg(update, model, (1, 8, 8), digit.labels, iterations=60, mean=(0.3,), std=(0.4,))
    assert found.labels.tolist() == digit.labels.tolist()
    assert float(psnr(found.images.clamp(0, 1), digit.images)) > 20
    assert found.trace.min() == found.objective


def test_bad_input(attacked):
    digit, model, update = attacked
    with pytest.raises(ValueError, match="1 or more iterations, got a gradient and 0 iterations"):
        dlg(update, model, (1, 8, 8), iterations=0)
    delta = fedavg(model, digit.images, digit.labels, learning_rate=0.1, batch_size=1)
    with pytest.raises(ValueError, match="got a delta"):
        dlg(delta, model, (1, 8, 8))
    with pytest.raises(ValueError, match="another architecture"):
        dlg(update, models.build("lenet", (1, 8, 8), classes=9), (1, 8, 8))
    for wrong, message in (([10], "must lie in 0..9"), ([1, 2], "int64 tensor"), ([-1], "0 or more")):
        with pytest.raises(ValueError, match=message):
            dlg(update, model, (1, 8, 8), torch.tensor(wrong))
    with pytest.raises(ValueError, match="std positive ones"):
        dlg(update, model, (1, 8, 8), std=(0.0,))
    broken = Update({name: value * torch.nan for name, value in update.tensors.items()}, "gradient", 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dlg(broken, model, (1, 8, 8))
