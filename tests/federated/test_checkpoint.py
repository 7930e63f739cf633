"""Runs that are killed, interrupted, prolonged or damaged: what comes of them is what would have come without."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_clients

from gradleak_lib import models
from gradleak_lib.defenses import gaussian_noise
from gradleak_lib.federated import simulate, train_only

SIZES = (5, 2, 8, 3, 1, 8, 4)
OPTIONS = {"learning_rate": 0.3, "fraction": 0.5, "batch_size": 3, "epochs": 2}


def small(seed=0):
    return models.build("mlp", (6,), classes=3, width=5, seed=seed)


def same_state(first, second):
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


TRACKED = (
    "def track(model):\n"
    "    time.sleep(pause)\n"
    "    return sum(value.sum().item() for value in model.parameters())\n"
)
RUN = f"""
import sys, time
sys.path.insert(0, sys.argv[1])
import gradleak_lib, torch
from toys import toy_clients
from gradleak_lib import models
from gradleak_lib.federated import simulate
torch.set_num_threads(1)
pause = float(sys.argv[3])
{TRACKED}
model = models.build("mlp", (6,), classes=3, width=5)
simulate(model, toy_clients({SIZES}), rounds=60, learning_rate=0.3, fraction=0.5, batch_size=3, epochs=2,
         observe=["5"], track=track, checkpoint=sys.argv[2])
"""


def parts(folder):
    return sorted(path.name for path in Path(folder).glob("rounds-*.pt"))


def same_run(first, second):
    a, b = first.observed, second.observed
    assert list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        assert torch.equal(a.tensors[name], b.tensors[name]), name
    for field in ("clients", "users", "devices", "rounds", "samples", "local_steps"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert first.tracked == second.tracked
    assert same_state(first.model, second.model)
    return True


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    folder = tmp_path / "deep" / "run"
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder), "0.05"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(parts(folder)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended by itself"
    found = parts(folder)
    assert 2 <= len(found) < 6
    (folder / ".whole-abandoned").write_bytes(b"half of a file")
    space = {"pause": 0.0, "time": time}
    exec(TRACKED, space)
    calls = Counter()

    def track(model):
        calls["all"] += 1
        return space["track"](model)

    options = OPTIONS | {"rounds": 60, "observe": ["5"], "track": track}
    resumed = simulate(small(), toy_clients(SIZES), checkpoint=folder, **options)
    assert calls["all"] == 60 - 10 * len(found)  # the rounds on disk are not done again
    assert not list(folder.glob(".whole-*"))
    assert len(parts(folder)) == 6
    assert same_run(resumed, simulate(small(), toy_clients(SIZES), **options))
    # And once more, with nothing left to do.
    calls.clear()
    assert same_run(resumed, simulate(small(), toy_clients(SIZES), checkpoint=folder, **options))
    assert not calls


def test_longer_and_shorter_runs_go_on(tmp_path):
    clients, model = toy_clients(SIZES), small()
    rounds_done = []

    def track(network):
        rounds_done.append(1)
        return network[5].bias[0].item()

    def run(rounds, folder=None):
        rounds_done.clear()
        return simulate(model, clients, rounds=rounds, track=track, checkpoint=folder, **OPTIONS)

    whole = {rounds: run(rounds) for rounds in (3, 15, 25, 33)}
    assert same_run(run(25, tmp_path), whole[25])
    assert parts(tmp_path) == [
        "rounds-000000-000010.pt",
        "rounds-000010-000020.pt",
        "rounds-000020-000025.pt",
    ]
    assert same_run(run(33, tmp_path), whole[33])
    assert len(rounds_done) == 8
    assert same_run(run(15, tmp_path), whole[15])
    assert len(rounds_done) == 5
    assert same_run(run(3, tmp_path), whole[3])
    # What the shorter runs left does not hide the longer one's parts.
    assert same_run(run(33, tmp_path), whole[33])
    assert not rounds_done
    # A part in the middle is missing: what follows it is done again.
    (tmp_path / "rounds-000010-000020.pt").unlink()
    (tmp_path / "rounds-000010-000015.pt").unlink()
    assert same_run(run(33, tmp_path), whole[33])
    assert len(rounds_done) >= 10


def test_an_interrupted_run_goes_on_with_dropout_and_noise(tmp_path):
    """What draws at random during the training draws the same after a restart."""
    clients = toy_clients(SIZES)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    noise = lambda update, seed: gaussian_noise(0.01, seed=seed)(update)  # noqa: E731
    options = OPTIONS | {"rounds": 25, "defense": noise}
    whole = simulate(model, clients, track=lambda network: 0, **options)
    count = 0

    def stop(network):
        nonlocal count
        count += 1
        if count == 23:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        simulate(model, clients, checkpoint=tmp_path, track=stop, **options)
    assert len(parts(tmp_path)) == 2
    assert same_run(simulate(model, clients, checkpoint=tmp_path, track=stop, **options), whole)


def test_a_damaged_part_is_named(tmp_path):
    options = OPTIONS | {"rounds": 22, "checkpoint": tmp_path}
    first = simulate(small(), toy_clients(SIZES), **options)
    path = tmp_path / "rounds-000010-000020.pt"
    content = path.read_bytes()
    some = first.observed.tensors["1.weight"][first.observed.rounds == 12].numpy().tobytes()
    flipped = content.replace(some, bytes([some[0] ^ 64]) + some[1:])
    assert flipped != content
    for damage in (content[: len(content) // 2], b"", b"not a file of torch", content[100:], flipped):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"rounds-000010-000020\.pt is damaged \(\w+\): remove it"):
            simulate(small(), toy_clients(SIZES), **options)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is damaged"):
        simulate(small(), toy_clients(SIZES), **options)
    path.unlink()
    simulate(small(), toy_clients(SIZES), **options)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    def run(*, model=None, clients=None, **changed):
        options = OPTIONS | {"rounds": 2, "seed": 0, "observe": ["5"], "engine": "vectorized"} | changed
        model = small() if model is None else model
        clients = toy_clients(SIZES) if clients is None else clients
        return simulate(model, clients, checkpoint=tmp_path, **options)

    first = run()
    assert same_run(run(), first)
    assert same_run(
        run(seed=np.int64(0), batch_size=np.int64(3)), first
    )  # numbers of NumPy are the same numbers
    tanh = small()
    tanh[2] = nn.Tanh()
    moved = toy_clients(SIZES)
    moved.data.inputs[3, 2] += 1e-3
    relabelled = toy_clients(SIZES)
    relabelled.data.targets[0] = (relabelled.data.targets[0] + 1) % 3
    for changed in (
        {"model": small(seed=1)},
        {"model": tanh},
        {"model": train_only(small(), ("5",))},
        {"model": small().train()},
        {"clients": moved},
        {"clients": relabelled},
        {"clients": toy_clients(SIZES[::-1])},
        {"learning_rate": 0.31},
        {"batch_size": 4},
        {"epochs": 1},
        {"fraction": 0.4},
        {"seed": 1},
        {"observe": ["3"]},
        {"engine": "sequential"},
        {"loss": nn.functional.multi_margin_loss},
        {"track": lambda network: 0},
        {"defense": lambda update, seed: update},
    ):
        with pytest.raises(ValueError, match="checkpoint of another run"):
            run(**changed)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        simulate(small(), toy_clients(SIZES), rounds=1, checkpoint=file, **OPTIONS)


def test_saving_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(small(), toy_clients(SIZES), rounds=1, checkpoint=tmp_path, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_run_on_the_gpu_goes_on(tmp_path):
    options = OPTIONS | {"checkpoint": tmp_path}
    simulate(small().cuda(), toy_clients(SIZES), rounds=14, **options)
    resumed = simulate(small().cuda(), toy_clients(SIZES), rounds=16, **options)
    fresh = simulate(small().cuda(), toy_clients(SIZES), rounds=16, **OPTIONS)
    assert torch.allclose(resumed.observed.matrix(), fresh.observed.matrix(), atol=1e-5)
    assert {value.device.type for value in resumed.observed.tensors.values()} == {"cpu"}
