"""Small files in the formats of the published data sets."""

import gzip
import hashlib
import http.server
import pickle
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def idx(array: np.ndarray) -> bytes:
    """Return an array of unsigned bytes in the idx format."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_files(count: int = 20) -> dict[str, bytes]:
    """Return the four files of a small MNIST, by name; the test images are the training images reversed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    return {
        "train-images-idx3-ubyte": idx(images),
        "train-labels-idx1-ubyte": idx(labels),
        "t10k-images-idx3-ubyte": idx(images[::-1]),
        "t10k-labels-idx1-ubyte": idx(labels[::-1]),
    }


def write_mnist(root: Path, folder: str = "MNIST", count: int = 20) -> Path:
    """Write a small MNIST under a data root; return the folder of its files."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files(count).items():
        (raw / name).write_bytes(content)
    return raw


def serve_mnist(folder: Path, count: int = 20) -> list[tuple[str, str]]:
    """Write the archives of a small MNIST, as a server holds them; return their names and md5 sums."""
    resources = []
    for name, content in mnist_files(count).items():
        archive = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    return resources


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder by HTTP on this machine; give the address, which ends in a slash."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("no_proxy", "127.0.0.1")
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()


def write_cifar(
    root: Path, folder: str, batches: dict[str, int], meta: tuple[str, str], label_key: str
) -> dict:
    """Write batches (name: count) and the class names of a small CIFAR; return the md5 sum of each file."""
    base = root / folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = {
        name: {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), label_key: list(range(count))}
        for name, count in batches.items()
    }
    file, key = meta
    contents[file] = {key: [f"class {i}" for i in range(100)]}
    sums = {}
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    return sums


def write_image(path: Path, colour: tuple[int, int, int], shape: tuple[int, int] = (40, 30)) -> None:
    """Write an image of one colour; ``shape`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape, colour).save(path)
