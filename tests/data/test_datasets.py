import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import serve, serve_mnist, write_cifar, write_image, write_mnist
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from gradleak_lib.data import NAMES, CorruptData, ImageDataset, MissingData, data_root, fetch, load
from gradleak_lib.data.datasets import SOURCES, check


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# What they are loaded into.


def six_images() -> ImageDataset:
    images = torch.arange(6, dtype=torch.float32).view(6, 1, 1, 1).expand(6, 3, 2, 2) / 6
    return ImageDataset(images, torch.arange(6), tuple("abcdef"), "test")


def test_subset_keeps_rows_together():
    part = six_images().subset([4, 1])
    assert len(part) == 2
    assert part.labels.tolist() == [4, 1]
    assert torch.equal(part.images[:, 0, 0, 0] * 6, torch.tensor([4.0, 1.0]))
    assert part.classes == tuple("abcdef")


def test_subset_by_mask_and_by_nothing():
    whole = six_images()
    assert whole.subset(whole.labels > 3).labels.tolist() == [4, 5]
    assert whole.subset([]).images.shape == (0, 3, 2, 2)


@pytest.mark.parametrize("indices", [[6], [-7], [0.5], [[1, 2]], torch.ones(5, dtype=torch.bool)])
def test_subset_of_rows_that_are_not_there(indices):
    with pytest.raises(ValueError, match="indices"):
        six_images().subset(indices)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="labels has 5 entries"):
        ImageDataset(torch.zeros(6, 3, 2, 2), torch.zeros(5), (), "")
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        ImageDataset(torch.zeros(6, 4), torch.zeros(6), (), "")


# The data root.


def test_root_argument_before_environment_before_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADLEAK_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path / "arg") == tmp_path / "arg"
    assert data_root() == tmp_path / "env"
    monkeypatch.setenv("GRADLEAK_DATA", "")
    assert data_root().name == "gradleak"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("~/data") == tmp_path / "data"


def test_load_looks_where_the_environment_says(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setenv("GRADLEAK_DATA", str(tmp_path))
    assert len(load("mnist")) == 20


# Digits, and what `load` allows.


def test_digits_are_those_of_sklearn():
    digits, bunch = load("digits"), load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert np.allclose(digits.images[:, 0].numpy(), bunch.images / 16, atol=0.5 / 255)
    assert digits.labels.tolist() == bunch.target.tolist()
    assert digits.classes == tuple("0123456789")
    assert (float(digits.images.min()), float(digits.images.max())) == (0.0, 1.0)


def test_digits_resized():
    whole, large = load("digits", sample=30, seed=5), load("digits", 16, sample=30, seed=5)
    assert large.images.shape == (30, 1, 16, 16)
    assert float(large.images.min()) >= 0
    assert float(large.images.max()) <= 1
    # Enlarging keeps the mean brightness, within what the borders weigh.
    assert torch.allclose(large.images.mean((1, 2, 3)), whole.images.mean((1, 2, 3)), atol=0.02)


def test_n_draws_without_replacement():
    whole = load("digits")
    assert torch.equal(load("digits", sample=50, seed=1).images, load("digits", sample=50, seed=1).images)
    assert not torch.equal(load("digits", sample=50, seed=1).labels, load("digits", sample=50, seed=2).labels)
    shuffled = load("digits", sample=1797)
    assert not torch.equal(shuffled.labels, whole.labels)
    assert torch.equal(shuffled.labels.bincount(), whole.labels.bincount())
    assert torch.allclose(shuffled.images.sum(0), whole.images.sum(0), atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": 0}, "sample=0"),
        ({"sample": 1798}, "sample=1798: digits has 1797 images"),
        ({"size": 0}, "size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "valid"}, "split='valid': it must be one of train, test"),
        ({"distinct": False}, "distinct=False: only the crops of photos"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **arguments)


@pytest.mark.parametrize("name", ["cifar", "", "no/such/folder", Path("nowhere")])
def test_unknown_name_lists_the_known_ones(name, tmp_path):
    with pytest.raises(ValueError, match="folder of images") as caught:
        load(name, root=tmp_path)
    assert all(known in one_line(caught) for known in NAMES)


# The sets that torchvision knows.


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing(name, split, tmp_path):
    with pytest.raises(MissingData, match=f"gradleak data {name}") as caught:
        load(name, root=tmp_path, split=split)
    message = one_line(caught)
    assert str(tmp_path) in message
    assert "--data or GRADLEAK_DATA" in message
    assert not list(tmp_path.iterdir())


def test_check_looks_and_keeps_nothing(tmp_path):
    for name, source in SOURCES.items():
        if source.check is None:
            check(name, root=tmp_path)
            assert source.fetch is None
        else:
            with pytest.raises(MissingData):
                check(name, root=tmp_path)
    assert set(NAMES) == set(SOURCES) - {"adult", "breast-cancer", "qmnist", "blogs", "shakespeare"}
    raw = write_mnist(tmp_path, "MNIST")
    check("mnist", root=tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"none")
    with pytest.raises(CorruptData):
        check("mnist", root=tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="there is no image in this folder"):
        check("mine", root=tmp_path)
    write_image(tmp_path / "mine" / "a.png", (1, 2, 3))
    check("mine", root=tmp_path)


@pytest.mark.parametrize("folder", ["MNIST", "FashionMNIST"])
def test_mnist_family(folder, tmp_path):
    raw = write_mnist(tmp_path, folder)
    name = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[folder]
    train, test = load(name, root=tmp_path, split="train"), load(name, root=tmp_path)
    assert train.images.shape == (20, 1, 28, 28)
    assert torch.equal(train.images, test.images.flip(0))
    assert train.labels.tolist() == [i % 10 for i in range(20)]
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), dtype=np.uint8)[16:]
    assert np.array_equal((train.images * 255).round().numpy().ravel(), pixels)
    assert train.classes == tuple({"MNIST": MNIST, "FashionMNIST": FashionMNIST}[folder].classes)
    (raw / "train-images-idx3-ubyte").unlink()
    assert len(load(name, root=tmp_path)) == 20


@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "magic", "empty", "axes"])
def test_damaged_idx_file(file, damage, tmp_path):
    path = write_mnist(tmp_path) / file
    content = path.read_bytes()
    damaged = {
        "truncated": content[:-1],
        "longer": content + b"\0",
        "magic": b"\1" + content[1:],
        "empty": b"",
        "axes": content[:3] + b"\2" + content[4:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CorruptData, match="delete it and run `gradleak data mnist`") as caught:
        load("mnist", root=tmp_path)
    assert str(path) in one_line(caught)


def test_idx_files_that_disagree(tmp_path):
    raw = write_mnist(tmp_path)
    other = write_mnist(tmp_path / "other", count=10)
    (raw / "t10k-labels-idx1-ubyte").write_bytes((other / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(CorruptData, match="t10k-labels"):
        load("mnist", root=tmp_path)


@pytest.fixture
def small_cifar(monkeypatch, tmp_path):
    """A CIFAR-100 whose files are small, with their md5 sums in torchvision's lists."""
    sums = write_cifar(
        tmp_path, "cifar-100-python", {"train": 30, "test": 20}, ("meta", "fine_label_names"), "fine_labels"
    )
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    return tmp_path


def test_cifar100(small_cifar):
    train, test = load("cifar100", root=small_cifar, split="train"), load("cifar100", root=small_cifar)
    assert train.images.shape == (30, 3, 32, 32)
    assert test.images.shape == (20, 3, 32, 32)
    assert test.labels.tolist() == list(range(20))
    assert len(test.classes) == 100


def test_each_split_needs_its_own_files_alone(small_cifar):
    (small_cifar / "cifar-100-python" / "train").unlink()
    assert len(load("cifar100", root=small_cifar)) == 20
    with pytest.raises(MissingData, match="train is missing"):
        load("cifar100", root=small_cifar, split="train")


@pytest.mark.parametrize("file", ["test", "meta"])
def test_damaged_cifar_file(file, small_cifar):
    path = small_cifar / "cifar-100-python" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptData, match="delete it and run `gradleak data cifar100`") as caught:
        load("cifar100", root=small_cifar)
    assert str(path) in one_line(caught)


def test_torchvisions_own_lists_are_left_alone(small_cifar):
    load("cifar100", root=small_cifar)
    assert CIFAR100.train_list
    assert len(CIFAR10.train_list) == 5
    assert len(MNIST.resources) == 4


# Downloads, from a server of the test's own.


@pytest.fixture
def mnist_server(monkeypatch, tmp_path):
    """A folder that is served as MNIST's only mirror."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(MNIST, "resources", serve_mnist(folder))
    with serve(folder) as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        yield folder


def test_download(mnist_server, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(MissingData):
        load("mnist", root=root)
    assert fetch("mnist", root=root) == root
    assert len(load("mnist", root=root)) == 20
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert len(list((root / "MNIST" / "raw").iterdir())) == 4
    # What is there is not downloaded again, and needs no server.
    for archive in mnist_server.iterdir():
        archive.unlink()
    fetch("mnist", root=root)
    assert len(load("mnist", root=root, split="train")) == 20


@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_failed_download_leaves_nothing(damage, mnist_server, tmp_path):
    archive = mnist_server / "t10k-labels-idx1-ubyte.gz"
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:-5])
    else:
        archive.unlink()
    root = tmp_path / "root"
    with pytest.raises(MissingData, match=r"mnist: the download to .* failed") as caught:
        fetch("mnist", root=root)
    one_line(caught)
    assert not list(root.iterdir())


@pytest.mark.parametrize("name", ["photos", "digits", "breast-cancer"])
def test_nothing_to_fetch(name):
    with pytest.raises(ValueError, match="need no download"):
        fetch(name)


@pytest.mark.parametrize("name", ["cifar", "blogs"])  # a corpus that is not there to be downloaded
def test_nobody_knows_where_to_fetch_it(name):
    with pytest.raises(ValueError, match="cifar10, cifar100, mnist, fashion-mnist, adult, qmnist"):
        fetch(name)


# The real files.


def test_real_cifar10_test_batch_alone(real_data):
    assert not (real_data / "cifar-10-batches-py" / "data_batch_1").exists()
    cifar = load("cifar10", root=real_data)
    assert cifar.images.shape == (10_000, 3, 32, 32)
    assert cifar.labels.bincount().tolist() == [1000] * 10
    assert cifar.classes[3] == "cat"
    assert cifar.classes[int(cifar.labels[0])] == "cat"
    pixels = (cifar.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Every pixel of the batch, by the md5 sum of the order in which torchvision holds them.
    expected = type("CIFAR10", (CIFAR10,), {"train_list": []})(str(real_data), train=False)
    assert hashlib.md5(pixels.numpy().tobytes()).digest() == hashlib.md5(expected.data.tobytes()).digest()
    assert load("cifar10", 64, sample=8, root=real_data).images.shape == (8, 3, 64, 64)
    with pytest.raises(MissingData, match="data_batch_1"):
        load("cifar10", root=real_data, split="train")


def test_real_cifar10_damaged(real_data, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (real_data / "cifar-10-batches-py").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: 10**6])
    with pytest.raises(CorruptData, match="test_batch is corrupt"):
        load("cifar10", root=tmp_path)


def test_real_mnist(real_data):
    train, test = load("mnist", root=real_data, split="train"), load("mnist", root=real_data, sample=100)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(train.images.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert len(test) == 100


def test_real_imagenet_sample(real_data):
    photos = load("imagenet-sample/val", 64, root=real_data)
    assert photos.images.shape == (96, 3, 64, 64)
    assert len(photos.classes) == 96
    assert photos.name == "imagenet-sample/val"
    assert photos.classes[0] == "n01440764"
    assert load(real_data / "imagenet-sample/val", sample=2).images.shape == (2, 3, 224, 224)
