import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "book" / "vendor.py"


@pytest.fixture
def vendor(tmp_path, monkeypatch):
    """The script, with a package and a folder of its own."""
    spec = importlib.util.spec_from_file_location("vendor", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name in ("package/a.js", "package/fonts/b.woff", "package/unwanted.js"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    archive = tmp_path / "x.tgz"
    archive.write_bytes(data.getvalue())
    digest = module.base64.b64encode(module.hashlib.sha512(archive.read_bytes()).digest()).decode()
    monkeypatch.setattr(module, "VENDOR", tmp_path / "static" / "vendor")
    monkeypatch.setattr(module, "PACKAGES", {"x@1": (digest, {"a.js": "a.js", "fonts/": "deep/fonts/"})})
    monkeypatch.setattr(module, "download", lambda package, folder: archive)
    return module


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_copies_what_is_wanted_once(vendor, monkeypatch):
    vendor.main()
    assert files(vendor.VENDOR) == {"a.js", "deep/fonts/b.woff", "contents.json"}
    assert files(vendor.VENDOR.parent) == {f"vendor/{name}" for name in files(vendor.VENDOR)}
    monkeypatch.setattr(vendor, "download", pytest.fail)
    vendor.main()


def test_a_damaged_folder_is_made_again(vendor):
    vendor.main()
    (vendor.VENDOR / "a.js").write_text("half")
    vendor.main()
    assert (vendor.VENDOR / "a.js").read_text() == "text"


@pytest.mark.parametrize(
    ("package", "message"),
    [(("wrong", {"a.js": "a.js"}), "is not what was published"), ((None, {"c.js": "c.js"}), "lacks c.js")],
)
def test_anything_unexpected_leaves_nothing_behind(vendor, package, message):
    [(right, _)] = vendor.PACKAGES.values()
    vendor.PACKAGES["x@1"] = (package[0] or right, package[1])
    with pytest.raises(SystemExit, match=message):
        vendor.main()
    assert files(vendor.VENDOR.parent) == set()


def test_no_network_gives_one_line(vendor, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("fresh", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_prefer_offline", "false")
    with pytest.raises(SystemExit, match="cannot fetch x@1 from npm") as error:
        module.download("x@1", tmp_path / "none")
    assert len(str(error.value).splitlines()) == 1
