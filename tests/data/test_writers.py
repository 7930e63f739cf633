import gzip
import hashlib

import numpy as np
import pytest
import torch
from data_files import idx, serve, serve_mnist
from torchvision.datasets import MNIST, QMNIST

from gradleak_lib.data import CorruptData, MissingData, fetch
from gradleak_lib.data.users import SPLITS, split_clients
from gradleak_lib.data.writers import mnist_writers

FILE = "qmnist-train-labels-idx2-int"
WRITERS, DIGITS = 12, 30


def labels_file(table: np.ndarray) -> bytes:
    return np.array([0x0C02, *table.shape], dtype=">i4").tobytes() + table.astype(">i4").tobytes()


def table_of(counts: list[int]) -> np.ndarray:
    """QMNIST's table of writers with so many digits, in a shuffled order of rows."""
    table = np.zeros((sum(counts), 8), dtype=np.int64)
    table[:, 2] = np.repeat(np.arange(len(counts)) + 1000, counts)
    table[:, 3] = np.concatenate([np.arange(count) * 2 for count in counts])
    table = np.random.default_rng(2).permutation(table)
    table[:, 0] = np.arange(len(table)) % 10
    return table


def write(root, table: np.ndarray) -> None:
    """An MNIST whose pixels all hold the row number (modulo 256), and the table of its writers."""
    for name, folder in (("MNIST", root / "MNIST" / "raw"), ("QMNIST", root / "QMNIST" / "raw")):
        folder.mkdir(parents=True)
        if name == "QMNIST":
            (folder / FILE).write_bytes(labels_file(table))
        else:
            pixels = np.arange(len(table)).astype(np.uint8)[:, None, None] * np.ones((28, 28), dtype=np.uint8)
            (folder / "train-images-idx3-ubyte").write_bytes(idx(pixels))
            (folder / "train-labels-idx1-ubyte").write_bytes(idx(table[:, 0].astype(np.uint8)))


@pytest.fixture
def small(tmp_path):
    """Twelve writers of 30 digits and three of 12; return the data root and the table."""
    table = table_of([DIGITS] * WRITERS + [12] * 3)
    write(tmp_path, table)
    return tmp_path, table


def load(root, users: int = 5, **options):
    return mnist_writers(users, root=root, **({"min_digits": 20, "size": 7} | options))


def test_rows_belong_together(small):
    root, table = small
    people = load(root)
    for part in (people.train, people.test, people.public):
        rows = part.items.numpy()
        assert part.inputs.shape == (len(rows), 1, 7, 7)
        assert np.allclose(part.inputs.mean((1, 2, 3)).numpy() * 255, rows % 256, atol=1e-3)
        assert part.targets.tolist() == table[rows, 0].tolist()
        assert part.times.tolist() == table[rows, 3].tolist()
        assert part.sources.tolist() == part.items[:, None].tolist()
        assert len(part.classes) == 10
    for part in (people.train, people.test):
        named = [f"writer {writer}" for writer in table[part.items.numpy(), 2]]
        assert [part.user_names[user] for user in part.users] == named
    assert (people.public.users == -1).all()
    assert people.train.users.bincount().tolist() == [24] * 5
    assert people.test.users.bincount().tolist() == [6] * 5


def test_albums_are_ten_consecutive_parts(small):
    root, _ = small
    people = load(root)
    for user in range(5):
        both = [part.users == user for part in (people.train, people.test)]
        times = torch.cat([people.train.times[both[0]], people.test.times[both[1]]])
        albums = torch.cat([people.train.albums[both[0]], people.test.albums[both[1]]])
        assert albums[times.argsort()].tolist() == [album for album in range(10) for _ in range(3)]


def test_parts_share_no_digit_under_any_seed(small):
    root, table = small
    held, seen, public = set(), set(), set()
    for seed in range(6):
        people = load(root, seed=seed)
        parts = [set(part.sources.flatten().tolist()) for part in (people.train, people.test, people.public)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        seen, held, public = seen | parts[0], held | parts[1], public | parts[2]
    # Nor does a digit change sides with the seed.
    assert not seen & held
    assert not public & (seen | held)
    assert len(set(table[list(public), 2])) == WRITERS - round(0.7 * WRITERS) + 3


def test_the_seed_draws_the_writers(small):
    root, _ = small
    assert load(root, seed=1).train.user_names == load(root, seed=1).train.user_names
    assert len({frozenset(load(root, seed=seed).train.user_names) for seed in range(5)}) > 1
    assert torch.equal(load(root, seed=0).public.items, load(root, seed=4).public.items)


def test_compressed_labels_will_do(small):
    root, _ = small
    path = root / "QMNIST" / "raw" / FILE
    people = load(root)
    path.with_name(f"{FILE}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert torch.equal(load(root).train.items, people.train.items)
    archive = path.with_name(f"{FILE}.gz")
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(CorruptData, match=r"\.gz is corrupt"):
        load(root)


def test_missing_labels(small):
    root, _ = small
    (root / "QMNIST" / "raw" / FILE).unlink()
    with pytest.raises(MissingData, match="run `gradleak data qmnist`"):
        load(root)


@pytest.mark.parametrize("damage", ["empty", "truncated", "odd", "longer", "magic", "columns", "class"])
def test_damaged_labels(damage, small):
    root, table = small
    path = root / "QMNIST" / "raw" / FILE
    content = path.read_bytes()
    other = table.copy()
    other[7, 0] += 1
    damaged = {
        "empty": b"",
        "truncated": content[:-32],
        "odd": content[:-1],
        "longer": content + bytes(32),
        "magic": b"\1" + content[1:],
        "columns": content[:11] + b"\4" + content[12:],
        "class": labels_file(other),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CorruptData, match="delete it and run `gradleak data qmnist`") as caught:
        load(root)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"min_digits": 9}, "min_digits=9"),
        ({"users": 9}, "users=9: 12 people have enough data, of whom 8 can be drawn"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_arguments_out_of_range(options, message, small):
    with pytest.raises(ValueError, match=message):
        load(small[0], **options)


def test_download(tmp_path, monkeypatch):
    served, root = tmp_path / "server", tmp_path / "root"
    served.mkdir()
    monkeypatch.setattr(MNIST, "resources", serve_mnist(served))
    table = table_of([20])
    archive = gzip.compress(labels_file(table))
    (served / f"{FILE}.gz").write_bytes(archive)
    with serve(served) as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        sums = [("", ""), (f"{address}{FILE}.gz", "0" * 32)]
        monkeypatch.setattr(QMNIST, "resources", {"train": sums})
        with pytest.raises(MissingData, match=r"qmnist: the download to .* failed"):
            fetch("qmnist", root=root)
        assert not (root / "QMNIST").exists()
        sums[1] = (sums[1][0], hashlib.md5(archive).hexdigest())
        assert fetch("qmnist", root=root) == root
    # What is there needs no server.
    assert fetch("qmnist", root=root) == root
    assert sorted(path.name for path in root.iterdir()) == ["MNIST", "QMNIST"]
    assert (root / "QMNIST" / "raw" / FILE).read_bytes() == labels_file(table)
    assert len(list((root / "QMNIST" / "raw").iterdir())) == 1


def test_real_writers(real_data):
    people = mnist_writers(root=real_data)
    assert people.train.inputs.shape[1:] == (1, 14, 14)
    assert len(people.train.user_names) == 53
    assert int(people.train.users.bincount().min()) >= 80
    parts = [set(part.items.tolist()) for part in (people.train, people.test, people.public)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    for how in SPLITS:
        assert int(split_clients(people.train, how).counts.min()) >= 30
    other = mnist_writers(308, root=real_data, seed=1)
    assert torch.equal(other.public.items, people.public.items)
    with pytest.raises(ValueError, match="440 people have enough data, of whom 308"):
        mnist_writers(309, root=real_data)
