import numpy as np
import pytest
import torch
from data_files import write_image
from PIL import Image, ImageOps

from gradleak_lib.data import CorruptData, load
from gradleak_lib.data.folder import SUFFIXES
from gradleak_lib.data.photos import photograph

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_subfolders_are_the_classes(tmp_path):
    write_image(tmp_path / "dogs" / "2.png", BLUE)
    write_image(tmp_path / "dogs" / "deep" / "1.PNG", GREEN)
    write_image(tmp_path / "cats" / "x.webp", RED)
    write_image(tmp_path / ".hidden" / "x.png", RED)
    write_image(tmp_path / "dogs" / "._2.png", RED)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    found = load(tmp_path, 8)
    assert found.classes == ("cats", "dogs")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.images.shape == (3, 3, 8, 8)
    assert found.images[1].mean((1, 2)).tolist() == [0, 0, 1]
    assert found.images[2].mean((1, 2)).tolist() == [0, 1, 0]
    assert found.name == tmp_path.name


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".pgm"}))
def test_flat_folder_of_any_format(suffix, tmp_path):
    write_image(tmp_path / f"x{suffix}", RED)
    found = load(tmp_path, 8)
    assert found.classes == (tmp_path.name,)
    assert torch.allclose(found.images.mean((0, 2, 3)), torch.tensor([1.0, 0, 0]), atol=0.02)


def test_size_is_224_unless_given(tmp_path):
    write_image(tmp_path / "x.png", RED, (300, 500))
    assert load(tmp_path).images.shape == (1, 3, 224, 224)


def test_the_centre_of_the_shorter_side(tmp_path):
    # Three squares side by side: only the middle one is kept.
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = RED, GREEN, BLUE
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = load(tmp_path, 20).images[0]
    assert torch.equal(image.mean((1, 2)), torch.tensor([0.0, 1.0, 0.0]))
    small = load(tmp_path, 10).images[0, :, :, 1:-1]
    assert torch.allclose(small.mean((1, 2)), torch.tensor([0.0, 1.0, 0.0]), atol=1e-2)


def test_grey_and_transparent_and_16_bit(tmp_path):
    Image.new("L", (9, 9), 128).save(tmp_path / "a.png")
    Image.new("RGBA", (9, 9), (128, 128, 128, 90)).save(tmp_path / "b.png")
    Image.fromarray(np.full((9, 9), 128 * 257, dtype=np.uint16)).save(tmp_path / "c.png")
    Image.new("P", (9, 9), 0).save(tmp_path / "d.png")
    images = load(tmp_path, 9).images
    assert torch.allclose(images[:3], torch.tensor(128 / 255))
    assert torch.equal(images[3], torch.zeros(3, 9, 9))


def test_orientation_of_the_camera(tmp_path):
    upright = Image.new("RGB", (20, 20), RED)
    upright.paste(BLUE, (0, 10, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 3
    upright.rotate(180).save(tmp_path / "x.png", exif=exif)
    image = load(tmp_path, 20).images[0]
    assert image[0, 2, 10] == 1
    assert image[2, 17, 10] == 1


def test_n_and_seed(tmp_path):
    for i in range(9):
        write_image(tmp_path / f"{i}.png", (i * 20, 0, 0))
    one, again = load(tmp_path, 4, sample=5, seed=1), load(tmp_path, 4, sample=5, seed=1)
    reds = (one.images[:, 0, 0, 0] * 255 / 20).round().tolist()
    assert torch.equal(one.images, again.images)
    assert len(set(reds)) == 5
    assert reds != sorted(reds)
    with pytest.raises(ValueError, match="has 9 images"):
        load(tmp_path, 4, sample=10)


def test_relative_and_under_the_root(tmp_path, monkeypatch):
    write_image(tmp_path / "mine" / "x.png", RED)
    assert load("mine", 8, root=tmp_path).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert len(load("./mine", 8, root=tmp_path / "elsewhere")) == 1


def test_a_folder_that_bears_a_known_name(tmp_path, monkeypatch):
    write_image(tmp_path / "digits" / "x.png", RED)
    monkeypatch.chdir(tmp_path)
    assert len(load("digits", sample=3)) == 3
    assert len(load("./digits", 8)) == 1


def test_formats_that_cannot_be_read_are_named(tmp_path):
    write_image(tmp_path / "cats" / "x.png", RED)
    for number in range(6):
        (tmp_path / "cats" / f"IMG_{number}.HEIC").write_bytes(b"a phone's")
    (tmp_path / "scan.dng").write_bytes(b"a camera's")
    with pytest.warns(
        UserWarning, match=r"left out, .*scan\.dng, .*IMG_0\.HEIC, .* and 2 more; save them as JPEG"
    ):
        assert len(load(tmp_path, 8)) == 1


def test_only_what_is_drawn_is_opened(tmp_path):
    (tmp_path / "0.png").write_bytes(b"broken")
    for number in range(1, 9):
        write_image(tmp_path / f"{number}.png", RED)
    seed = next(
        s for s in range(9) if 0 not in torch.randperm(9, generator=torch.Generator().manual_seed(s))[:4]
    )
    assert len(load(tmp_path, 8, sample=4, seed=seed)) == 4


@pytest.mark.parametrize(("side", "size", "same"), [(1300, 100, False), (1300, 200, True), (900, 64, True)])
def test_large_photographs_are_decoded_at_a_smaller_scale(side, size, same, tmp_path):
    """Only where they are much larger than wanted, and with the same picture."""
    path = tmp_path / "x.jpg"
    photo = photograph("coffee").resize((3 * side // 2, side))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, quality=90, exif=exif)
    with Image.open(path) as image:
        whole = ImageOps.fit(ImageOps.exif_transpose(image), (size, size), Image.Resampling.BILINEAR)
    plain = torch.from_numpy(np.array(whole)).permute(2, 0, 1).float()
    found = load(tmp_path, size).images[0] * 255
    assert torch.equal(found.round(), plain) == same
    assert (found - plain).abs().mean() < 0.5


def test_no_image(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="there is no image in this folder"):
        load(tmp_path)


def test_images_beside_classes(tmp_path):
    write_image(tmp_path / "x.png", RED)
    write_image(tmp_path / "cats" / "y.png", RED)
    with pytest.raises(ValueError, match=r"x\.png.*cats"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_unreadable_image(content, tmp_path):
    path = tmp_path / "x.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000] if content == "truncated" else content)
    write_image(tmp_path / "y.png", RED)
    (tmp_path / "z.png").write_bytes(b"nor this")
    with pytest.raises(CorruptData, match=r"cannot be read as images: .*x\.png \(.*z\.png \(") as caught:
        load(tmp_path, 8)
    assert "y.png" not in str(caught.value)
    assert "\n" not in str(caught.value)
