"""All engines train alike."""

import copy
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import flat, largest_error, toy_clients

from gradleak_lib import models
from gradleak_lib.federated import (
    Diverged,
    choose_engine,
    engines,
    fedavg,
    local_updates,
    multilabel_loss,
    task_loss,
)

EQUAL, UNEQUAL = (6, 6, 6, 6), (1, 11, 4, 7, 2, 11)


def train(model, clients, engine, *, chosen=None, seeds=True, **options):
    chosen = list(range(len(clients))) if chosen is None else chosen
    numbers = [100 + client for client in chosen] if seeds is True else seeds
    options = {"learning_rate": 0.3, "batch_size": 4, "epochs": 2} | options
    return local_updates(model, clients, chosen, seeds=numbers, engine=engine, **options)


def build(name, *, multilabel, sizes, frozen=()):
    """Return a small network of that name with clients that have inputs for it."""
    shape = {"cnn": (1, 8, 8), "lenet": (2, 8, 8), "convnet": (1, 9, 9), "nplm": (5,)}.get(name, (6,))
    clients = toy_clients(sizes, shape=shape, classes=5, multilabel=multilabel, words=name == "nplm")
    model = models.build(name, shape, classes=5, width=4)
    for layer in frozen:
        model.get_submodule(layer).requires_grad_(False)
    return model, clients


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("multilabel", [False, True], ids=["one label", "many labels"])
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("linear", ()),
        ("mlp", ("1", "5")),
        ("cnn", ()),
        ("cnn", ("conv1", "fc1")),
        ("lenet", ()),
        ("convnet", ()),
        ("nplm", ()),
        ("nplm", ("embedding",)),
    ],
)
def test_side_by_side_gives_the_updates_of_one_by_one(name, frozen, multilabel, sizes):
    model, clients = build(name, multilabel=multilabel, sizes=sizes, frozen=frozen)
    single = train(model, clients, "sequential")
    together = train(model, clients, "vectorized")
    assert largest_error(together, single) < 1e-4
    assert list(single) == [name for name, value in model.named_parameters() if value.requires_grad]
    assert (flat(single).norm(dim=1) > 1e-4).all()
    in_double = train(model.double(), clients, "vectorized")
    assert flat(in_double).dtype == torch.float64
    assert largest_error(in_double, train(model, clients, "sequential")) < 1e-11


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 10),
    epochs=st.integers(1, 3),
    multilabel=st.booleans(),
    shuffled=st.booleans(),
    data=st.data(),
)
def test_any_sizes_and_any_order_of_clients(sizes, batch_size, epochs, multilabel, shuffled, data):
    clients = toy_clients(sizes, multilabel=multilabel)
    chosen = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(1, len(sizes)))]
    model = models.build("mlp", (6,), classes=3, width=5).double()
    seeds = [7 * client for client in chosen] if shuffled else None
    options = {"batch_size": batch_size, "epochs": epochs, "chosen": chosen, "seeds": seeds}
    together = train(model, clients, "vectorized", **options)
    assert largest_error(together, train(model, clients, "sequential", **options)) < 1e-11
    assert all(len(value) == len(chosen) for value in together.values())


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_each_row_is_one_fedavg(engine):
    clients = toy_clients(UNEQUAL)
    model = models.build("mlp", (6,), classes=3, width=5).double()
    chosen = [4, 1, 3]
    updates = train(model, clients, engine, chosen=chosen, batch_size=3)
    for row, client in enumerate(chosen):
        alone = fedavg(
            model,
            *clients.samples(client),
            learning_rate=0.3,
            batch_size=3,
            epochs=2,
            generator=torch.Generator().manual_seed(100 + client),
        )
        assert torch.allclose(flat(updates)[row], alone.flat(), atol=1e-12)


def test_clients_that_do_not_fit_side_by_side_take_turns(monkeypatch):
    clients = toy_clients(UNEQUAL)
    model = models.build("linear", (6,), classes=3).double()
    at_once = train(model, clients, "vectorized")
    sizes = []
    batches = engines._batches
    monkeypatch.setattr(
        engines, "_batches", lambda held, *a, **k: (sizes.append(len(held)), batches(held, *a, **k))[1]
    )
    for budget, groups in ((2 * 21, [2, 2, 2]), (4 * 21, [3, 3]), (1, [1] * 6)):
        sizes.clear()
        monkeypatch.setattr(engines, "_CPU_BUDGET", budget)
        assert largest_error(train(model, clients, "vectorized"), at_once) < 1e-12
        assert sizes == groups


@pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__,
    reason="torch compiles with g++, and not from a folder with a blank in its name",
)
def test_the_compiled_engine_knows_which_model_it_trains():
    """Two models that differ in what is frozen and in a buffer, one after the other: the code is compiled once."""

    class Shift(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("value", torch.tensor(value))

        def forward(self, x):
            return x + self.value

    clients = toy_clients((3, 5, 2))
    for seed in (0, 1, 2):
        hidden, head = nn.Linear(6, 4), nn.Linear(4, 3)
        torch.manual_seed(seed)
        for layer in (hidden, head):
            nn.init.normal_(layer.weight)
        model = nn.Sequential(hidden.requires_grad_(False), Shift(float(seed)), nn.Tanh(), head).eval()
        single, compiled = (train(model, clients, engine) for engine in ("sequential", "compiled"))
        assert largest_error(compiled, single) < 1e-4, seed


def test_a_loss_with_several_numbers_for_a_sample_counts_their_sum():
    """As many samples in a batch as labels: no broadcast may pass for a product."""
    clients = toy_clients((4, 3, 1), classes=4, multilabel=True)
    model = models.build("linear", (6,), classes=4).double()
    loss = nn.functional.binary_cross_entropy_with_logits
    single, together = (train(model, clients, engine, loss=loss) for engine in ("sequential", "vectorized"))
    assert largest_error(together, single) < 1e-6
    # multilabel_loss is the mean over labels instead.
    slow = train(model, clients, "sequential", learning_rate=0.1)
    fast = train(model, clients, "sequential", learning_rate=0.1 / 4, loss=loss)
    assert largest_error(fast, slow) < 1e-6


def test_losses():
    outputs, targets = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    each = multilabel_loss(outputs, targets, reduction="none")
    assert each.shape == (5,)
    chance = outputs.sigmoid()
    plain = -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean(1)
    assert torch.allclose(each, plain, atol=1e-5)
    assert torch.allclose(multilabel_loss(outputs, targets), plain.sum(), atol=1e-5)
    assert torch.allclose(multilabel_loss(outputs, targets, reduction="mean"), plain.mean(), atol=1e-5)
    with pytest.raises(ValueError, match="reduction='max'"):
        multilabel_loss(outputs, targets, reduction="max")
    assert task_loss(targets) is multilabel_loss
    assert task_loss(torch.arange(3)) is nn.functional.cross_entropy


def test_auto_takes_side_by_side_for_small_models_without_state():
    assert choose_engine(models.build("cnn", (1, 8, 8), classes=5)) == "vectorized"
    big = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 2))
    assert choose_engine(big) == "sequential"
    big[0].requires_grad_(False)  # only what is trained counts
    assert choose_engine(big) == "vectorized"
    assert choose_engine(big.requires_grad_(True).to("meta")) == "vectorized"  # an accelerator
    assert choose_engine(nn.Linear(2, 2), "compiled") == "compiled"
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    assert choose_engine(model.train()) == "sequential"
    assert choose_engine(model.eval()) == "vectorized"


class Shrinks(nn.Linear):
    """Draws at random where nobody would look for it."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval(), torch.rand(22, 6)),
        (nn.Sequential(nn.Linear(6, 4), nn.AlphaDropout()), torch.rand(22, 6)),
        (nn.Sequential(nn.Linear(6, 4), nn.RReLU()), torch.rand(22, 6)),
        (nn.Sequential(Shrinks(6, 4)), torch.rand(22, 6)),
        (
            nn.Sequential(nn.Embedding(9, 2, padding_idx=0), nn.Flatten(), nn.Linear(4, 4)),
            torch.ones(22, 2).long(),
        ),
        (
            nn.Sequential(nn.Embedding(9, 2, sparse=True), nn.Flatten(), nn.Linear(4, 4)),
            torch.ones(22, 2).long(),
        ),
    ],
    ids=["batch norm", "dropout", "randomised ReLU", "functional dropout", "padding", "sparse"],
)
def test_auto_trains_one_by_one_what_it_does_not_know(model, inputs):
    clients = toy_clients((4, 5, 6, 7))
    data = replace(clients.data, inputs=inputs)
    assert choose_engine(model) == "sequential"
    updates = train(model, replace(clients, data=data), "auto")
    assert flat(updates).isfinite().all()


def test_what_only_fails_in_one_pass_says_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.lstm(x.reshape(len(x), 2, 3))[0][:, -1])

    model, clients = Recurrent().eval(), toy_clients(EQUAL)
    assert choose_engine(model) == "sequential"
    assert flat(train(model, clients, "auto")).isfinite().all()
    with pytest.raises(ValueError, match=r"in one pass .*lstm.* try engine='sequential'"):
        train(model, clients, "vectorized")


def test_a_loss_that_mixes_samples_does_not_mix_clients():
    """Outputs [N, 1] against targets [N]: torch broadcasts, within the batch of one client only."""
    model, clients = nn.Linear(6, 1), toy_clients((4, 4, 4))
    other = clients.data.targets.clone().double()
    other[clients.rows[2]] += 100
    data = replace(clients, data=replace(clients.data, targets=clients.data.targets.double()))
    changed = replace(clients, data=replace(clients.data, targets=other))
    options = {"loss": nn.functional.mse_loss, "chosen": [0, 1, 2], "learning_rate": 1e-3, "epochs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        first, second = (train(model, held, "vectorized", **options) for held in (data, changed))
    assert torch.equal(flat(first)[:2], flat(second)[:2])
    assert not torch.equal(flat(first)[2], flat(second)[2])


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_layer_that_stands_twice(engine):
    """torch's functional_call alone would leave the last client's weights in it."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3)).double()
    clients, before = toy_clients(UNEQUAL), copy.deepcopy(model.state_dict())
    updates = train(model, clients, engine)
    assert isinstance(layer.weight, nn.Parameter)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = [train(model, clients, "sequential", chosen=[client]) for client in range(len(clients))]
    assert torch.allclose(flat(updates), torch.cat([flat(update) for update in alone]), atol=1e-12)


@pytest.mark.parametrize("engine", ["vectorized", "compiled"])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(6), nn.Dropout(), nn.BatchNorm1d(6, track_running_stats=False).eval()]
)
def test_side_by_side_refuses_what_needs_a_batch_of_one_client(engine, layer):
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3))
    with pytest.raises(ValueError, match=rf"engine='{engine}' .* '1' draws at random, works on"):
        train(model, toy_clients(EQUAL), engine)
    assert flat(train(model, toy_clients(EQUAL), "auto")).isfinite().all()


def test_bad_input():
    clients = toy_clients(EQUAL)
    model = models.build("linear", (6,), classes=3)
    with pytest.raises(ValueError, match="engine='fast': it must be one of auto, sequential"):
        train(model, clients, "fast")
    with pytest.raises(ValueError, match="chosen must hold one client or more"):
        train(model, clients, "auto", chosen=[])
    for wrong in ({"batch_size": 0}, {"epochs": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match="positive and finite, batch_size and epochs 1 or more"):
            train(model, clients, "auto", **wrong)
    for learning_rate in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="positive and finite"):
            train(model, clients, "auto", learning_rate=learning_rate)
    for engine in ("sequential", "vectorized"):
        for seeds in ([], [1], [1, 2, 3, 4, 5]):
            with pytest.raises(ValueError, match="one for each chosen client"):
                train(model, clients, engine, seeds=seeds)
        with pytest.raises(ValueError, match="client 1 holds no samples"):
            train(model, toy_clients((3, 0, 2)), engine)
        frozen = copy.deepcopy(model).requires_grad_(False)
        with pytest.raises(ValueError, match="every parameter of the model is frozen"):
            train(frozen, clients, engine)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_divergence_is_named(engine):
    model = models.build("mlp", (6,), classes=3, width=4)
    with pytest.raises(Diverged, match=r"NaN or infinity in '\d\.\w+': lower the client's learning rate"):
        train(model, toy_clients(UNEQUAL), engine, learning_rate=1e30, epochs=3)
    clients = toy_clients(EQUAL)
    clients.data.inputs[clients.rows[2][0], 0] = torch.nan
    with pytest.raises(Diverged, match=r"NaN or infinity in '1\.weight'"):
        train(models.build("linear", (6,), classes=3), clients, engine)
    train(models.build("linear", (6,), classes=3), clients, engine, chosen=[0, 1, 3])


def test_dropout_is_seeded_client_by_client():
    clients = toy_clients(UNEQUAL)
    model = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 3)).train()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = flat(train(model, clients, "sequential"))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(first, flat(train(model, clients, "sequential")))
    # A client's draws are its own, whoever else trains.
    assert torch.equal(first[[3, 1]], flat(train(model, clients, "sequential", chosen=[3, 1])))
    other = flat(train(model, clients, "sequential", seeds=range(6)))
    assert ((first - other).norm(dim=1) > 1e-3).all()
    assert ((first - flat(train(model.eval(), clients, "sequential"))).norm(dim=1) > 1e-3).all()


class Counter(nn.Module):
    """Writes to its buffer and sets an attribute whenever it is called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_the_model_is_left_as_it_was(engine):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    if engine == "sequential":
        model = model.append(Counter()).train()
    clients = toy_clients((4, 8, 8))
    data = clients.data.inputs.clone(), clients.data.targets.clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        train(model, clients, engine)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(clients.data.inputs, data[0])
    assert torch.equal(clients.data.targets, data[1])


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_updates_are_tensors_of_their_own(engine):
    model = models.build("linear", (6,), classes=3)
    updates = train(model, toy_clients(EQUAL), engine)
    before = model[1].weight.clone()
    updates["1.weight"].zero_()
    assert torch.equal(model[1].weight, before)
    assert not updates["1.bias"].requires_grad


def test_a_step_follows_the_models_device():
    """Device independence, shown on torch's meta device: nothing may fall back to the CPU."""
    model = models.build("cnn", (1, 8, 8), classes=5, width=4)
    model.conv1.requires_grad_(False)
    model.to("meta")
    current = {
        name: v.detach().expand(3, *v.shape) for name, v in model.named_parameters() if v.requires_grad
    }
    inputs, targets = torch.rand(3, 4, 1, 8, 8, device="meta"), torch.zeros(3, 4, device="meta").long()
    step = engines._step(model, nn.functional.cross_entropy, False)
    after = step(current, inputs, targets, torch.ones(3, 4, device="meta"), 0.1)
    assert {value.device.type for value in after.values()} == {"meta"}
    assert [value.shape for value in after.values()] == [value.shape for value in current.values()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_the_gpu_gives_the_same_updates(engine):
    model, clients = build("cnn", multilabel=True, sizes=UNEQUAL)
    cpu = train(model, clients, "sequential")
    gpu = train(model.cuda(), clients, engine)
    assert {value.device.type for value in gpu.values()} == {"cuda"}
    assert largest_error({name: value.cpu() for name, value in gpu.items()}, cpu) < 1e-3
