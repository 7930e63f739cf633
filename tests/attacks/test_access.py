"""How attacks run the server's model: in full precision, by draws of their own, and nothing stays changed."""

import pytest
import torch
from torch import nn

from gradleak_lib import models
from gradleak_lib.attacks import imprint, labels, placement
from gradleak_lib.attacks.access import sent_layer, undisturbed
from gradleak_lib.attacks.dlg import dlg
from gradleak_lib.attacks.inversion import invert
from gradleak_lib.attacks.search import Search
from gradleak_lib.federated import Update, fedsgd

SHAPE = (1, 6, 6)


def precision():
    """How cuDNN computes convolutions, by the name that this torch has for it."""
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32


class Watched(nn.Module):
    """Notes how convolutions are computed while it runs, and may fail."""

    def __init__(self):
        super().__init__()
        self.seen, self.broken = set(), False
        torch.manual_seed(0)
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(36, 3)

    def forward(self, x):
        self.seen.add(precision())
        if self.broken:
            raise RuntimeError("broken")
        return self.linear(self.dropout(torch.sigmoid(x.flatten(1))))


CALLS = {
    "invert": lambda model, update: invert(update, model, SHAPE, search=Search(iterations=2)),
    "dlg": lambda model, update: dlg(update, model, SHAPE, torch.tensor([1]), iterations=1),
    "probe": lambda model, update: labels.probe(model, torch.rand(2, *SHAPE)),
    "layer_inputs": lambda model, update: placement.layer_inputs(model, "linear", torch.rand(2, *SHAPE)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_attacks_compute_in_full_precision_and_leave_no_trace(name, broken, train):
    model = Watched().train(train)
    update = fedsgd(model, torch.rand(1, *SHAPE), torch.tensor([1]))
    usual = precision()
    assert usual in ("tf32", True)
    model.seen.clear()
    model.broken = broken
    images = torch.get_rng_state()
    if broken:
        with pytest.raises((RuntimeError, ValueError), match="broken"):
            CALLS[name](model, update)
    else:
        CALLS[name](model, update)
    drawn = torch.get_rng_state()
    assert model.seen <= {"ieee", False}
    assert model.seen
    assert precision() == usual
    torch.set_rng_state(images)
    if name in ("probe", "layer_inputs"):
        torch.rand(2, *SHAPE)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_precision_that_the_user_has_chosen_comes_back():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = False
        with undisturbed(nn.Linear(1, 1)):
            assert precision() in ("ieee", False)
        assert not cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = before


def test_draws_follow_the_seed():
    model, draws = nn.Linear(1, 1), []
    for seed in (1, 1, 2):
        with undisturbed(model, seed):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_layer_is_read_by_itself():
    model = models.build("mlp", (4,), classes=3, width=5)
    update = fedsgd(model, torch.rand(2, 4), torch.tensor([0, 1]))
    last = {name: value for name, value in update.tensors.items() if name.startswith("5.")}
    found = sent_layer(Update(last, "gradient", 2), model, "5")
    assert found.keys() == {"weight", "bias"}
    with pytest.raises(
        ValueError, match=r"another model: 5\.weight has shape \(3, 5\), and it brings \(3, 6\)"
    ):
        sent_layer(Update(last | {"5.weight": torch.zeros(3, 6)}, "gradient", 2), model, "5")
    with pytest.raises(ValueError, match=r"5\.bias has shape \(3,\), and it brings nothing"):
        sent_layer(Update({"5.weight": last["5.weight"]}, "gradient", 2), model, "5")


def test_an_imprint_goes_to_the_models_device():
    """On the device that every torch has besides the CPU."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).to("meta")
    layer = imprint.Imprint(SHAPE, 4)
    assert placement.before_input(model, layer).imprint.linear.weight.device.type == "meta"
