"""Clients against plain autograd and plain SGD."""

import copy

import pytest
import torch
from torch import nn

from gradleak_lib import models
from gradleak_lib.federated import Diverged, apply_update, fedavg, fedsgd

SHAPE = (3, 12, 12)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, *SHAPE, generator=generator), torch.randint(5, (20,), generator=generator)


@pytest.mark.parametrize("name", ["mlp", "lenet", "convnet", "resnet20"])
@pytest.mark.parametrize("microbatch", [1, 7, 64])
def test_fedsgd_is_the_gradient_of_the_mean_loss(batch, name, microbatch):
    model = models.build(name, SHAPE, classes=5, width=4).double()
    images, labels = batch
    update = fedsgd(model, images, labels, microbatch=microbatch)
    loss = nn.functional.cross_entropy(model(images.double()), labels)
    for (parameter, value), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        assert torch.allclose(update.tensors[parameter], gradient, atol=1e-12), parameter
        assert value.grad is None
    assert (update.kind, update.samples, update.local_steps) == ("gradient", 20, 1)


def test_fedavg_is_local_sgd(batch):
    model = models.build("lenet", SHAPE, classes=5).double()
    images, labels = batch
    update = fedavg(model, images, labels, learning_rate=0.1, batch_size=8, epochs=2)
    local = copy.deepcopy(model)
    optimiser = torch.optim.SGD(local.parameters(), lr=0.1)
    for _ in range(2):
        for part in torch.arange(20).split(8):
            optimiser.zero_grad()
            nn.functional.cross_entropy(local(images[part].double()), labels[part]).backward()
            optimiser.step()
    for (name, after), before in zip(local.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(update.tensors[name], (after - before).detach(), atol=1e-12)
    assert update.local_steps == 6
    server = apply_update(copy.deepcopy(model), update)
    assert torch.allclose(server[0].weight, local[0].weight)


def test_one_local_step_is_a_scaled_gradient(batch):
    model = models.build("mlp", SHAPE, classes=5).double()
    gradient = fedsgd(model, *batch)
    delta = fedavg(model, *batch, learning_rate=0.01, batch_size=20)
    assert torch.allclose(delta.flat(), -0.01 * gradient.flat(), atol=1e-12)


def test_the_order_is_seeded(batch):
    model = models.build("mlp", SHAPE, classes=5)

    def client(seed):
        generator = torch.Generator().manual_seed(seed)
        return fedavg(model, *batch, learning_rate=0.5, batch_size=5, generator=generator).flat()

    assert torch.equal(client(1), client(1))
    assert not torch.equal(client(1), client(2))


def test_the_model_is_left_as_it_was(batch):
    model = models.build("resnet20", SHAPE, classes=5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fedsgd(model, *batch)
    fedavg(model, *batch, learning_rate=0.1, batch_size=10)
    with pytest.raises(ValueError, match="NaN or infinity"):
        fedsgd(model, batch[0] * torch.nan, batch[1])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_stay(batch):
    model = models.build("lenet", SHAPE, classes=5)
    whole = fedsgd(model, *batch)
    model[0].requires_grad_(False)
    update, delta = fedsgd(model, *batch), fedavg(model, *batch, learning_rate=0.1, batch_size=10)
    for name in whole.tensors:
        frozen = name.startswith("0.")
        assert torch.equal(update.tensors[name], whole.tensors[name] * (not frozen)), name
        assert (delta.tensors[name] == 0).all() == frozen, name


class Odd(nn.Module):
    """What people write: views, shared gradients, unused and expanded parameters, buffers, dropout, attributes."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 10 * 10, 5)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
        self.total, self.unused = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.features = self.norm(self.convolution(x)).relu()
        drop = nn.functional.dropout(self.features, 0.3, self.training)
        return self.head(drop.view(len(x), -1)) + (self.first + self.second) + self.total.sum()


@pytest.mark.parametrize(("training", "microbatch"), [(False, 20), (False, 8), (True, 20)])
def test_any_model_will_do(batch, training, microbatch):
    model = Odd().double().train(training)
    images, labels = batch
    plain = copy.deepcopy(model)
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy(plain(images.double()), labels)
    expected = torch.autograd.grad(loss, list(plain.parameters()), materialize_grads=True)
    graph = nn.functional.cross_entropy(model(images.double()), labels)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    with torch.no_grad():
        update = fedsgd(model, images, labels, microbatch=microbatch)
    for (name, tensor), gradient in zip(update.tensors.items(), expected, strict=True):
        assert torch.allclose(tensor, gradient, atol=1e-12), name
        tensor.mul_(2)  # in place: no other tensor may change, and every entry just once
        assert torch.allclose(tensor, 2 * gradient, atol=1e-12), name
    torch.manual_seed(0)
    delta = fedavg(model, images, labels, learning_rate=0.1, batch_size=20, microbatch=microbatch)
    for (name, tensor), gradient in zip(delta.tensors.items(), expected, strict=True):
        assert torch.allclose(tensor, -0.1 * gradient, atol=1e-12), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    torch.autograd.grad(graph, list(model.parameters()), allow_unused=True)  # the caller's graph still stands


def test_a_wrapped_forward_trains_the_same_parameters(batch):
    model = models.build("mlp", SHAPE, classes=5).double()
    inner = model.forward
    model.forward = lambda x: inner(2 * x - 1)
    gradient = fedsgd(model, *batch).flat()
    delta = fedavg(model, *batch, learning_rate=0.5, batch_size=20).flat()
    assert gradient.norm() > 0
    assert torch.allclose(delta, -0.5 * gradient, atol=1e-12)


def test_an_error_that_has_nothing_to_do_with_the_layout_is_the_models_own(batch):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        fedsgd(Broken(), *batch)


@pytest.mark.parametrize("bad", [0, 19])
def test_nan_in_one_microbatch_is_refused(batch, bad):
    images = batch[0].clone()
    images[bad] = torch.nan
    with pytest.raises(Diverged, match=r"NaN or infinity in '1\.weight'"):
        fedsgd(models.build("linear", SHAPE, classes=5), images, batch[1], microbatch=4)


def test_batch_norm_without_running_statistics_needs_the_whole_batch(batch):
    model = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), models.build("linear", SHAPE, classes=5)
    )
    with pytest.raises(ValueError, match="set microbatch to 20"):
        fedsgd(model.eval(), *batch, microbatch=8)


def test_memory_does_not_grow_with_the_batch():
    """Activations of one microbatch are freed before the next: count what autograd keeps."""
    model = models.build("lenet", SHAPE, classes=5)
    images, labels = torch.rand(512, *SHAPE), torch.zeros(512, dtype=torch.long)

    def largest(count):
        alive, peak = 0, 0

        def pack(tensor):
            nonlocal alive, peak
            alive += tensor.numel()
            peak = max(peak, alive)
            size = tensor.numel()

            class Handle:
                def __init__(self):
                    self.tensor = tensor

                def __del__(self):
                    nonlocal alive
                    alive -= size

            return Handle()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
            fedsgd(model, images[:count], labels[:count], microbatch=32)
        return peak

    assert largest(512) <= 1.05 * largest(32)


def test_bad_input(batch):
    images, labels = batch
    model = models.build("resnet20", SHAPE, classes=5)
    with pytest.raises(ValueError, match="equally many"):
        fedsgd(model, images, labels[:3])
    with pytest.raises(ValueError, match="equally many"):
        fedsgd(model, images[:0], labels[:0])
    with pytest.raises(ValueError, match="microbatch"):
        fedsgd(model, images, labels, microbatch=0)
    with pytest.raises(ValueError, match="learning_rate"):
        fedavg(model, images, labels, learning_rate=0, batch_size=4)
    with pytest.raises(ValueError, match="set microbatch to 20"):
        fedsgd(model.train(), images, labels, microbatch=8)
    fedavg(model.train(), images, labels, learning_rate=0.1, batch_size=8, microbatch=8)
    with pytest.raises(ValueError, match=r"every parameter .* is frozen"):
        fedsgd(models.build("mlp", SHAPE, classes=5).requires_grad_(False), images, labels)
    with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
        fedavg(model, images, labels, learning_rate=float("inf"), batch_size=4)
    with pytest.raises(Diverged, match=r"NaN or infinity in .*: lower the client's learning rate"):
        fedavg(models.build("mlp", SHAPE, classes=5), images, labels, learning_rate=1e30, batch_size=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_gpu_gives_the_same_update(batch):
    model = models.build("lenet", SHAPE, classes=5)
    cpu = fedsgd(model, *batch).flat()
    gpu = fedsgd(model.cuda(), *batch).flat()
    assert gpu.device.type == "cuda"
    assert torch.allclose(cpu, gpu.cpu(), atol=1e-5)


def test_the_client_follows_the_models_device(batch):
    """Device independence, shown on torch's meta device: nothing may fall back to the CPU."""
    model = models.build("lenet", SHAPE, classes=5).to("meta")
    from gradleak_lib.federated.clients import _Learner

    gradient, loss = _Learner(model, nn.functional.cross_entropy, 8).gradient(*batch)
    assert all(tensor.device.type == "meta" for tensor in (*gradient.values(), loss))
