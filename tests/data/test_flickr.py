from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradleak_lib.data import CorruptData, MissingData
from gradleak_lib.data.flickr import open_images, pipa
from gradleak_lib.data.users import SPLITS, split_clients

START = datetime(2012, 3, 1, 8)
HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,"
    "OriginalMD5,Thumbnail300KURL,Rotation"
)


def photo(path: Path, grey: int, taken: str | None = None, edited: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[36867] = taken
    if edited is not None:
        exif[306] = edited
    Image.new("RGB", (20, 16), (grey,) * 3).save(path, quality=95, exif=exif)


class OpenImages:
    """Five photographers with ten photos, two with three, and one without a profile, in a shuffled table."""

    def __init__(self, root: Path) -> None:
        self.root, self.owners = (
            root,
            [owner for owner in range(8) for _ in range(3 if 4 < owner < 7 else 10)],
        )
        order = np.random.default_rng(0).permutation(len(self.owners))
        self.owners = [self.owners[index] for index in order]
        rows, labels = [HEADER], ["ImageID,Source,LabelName,Confidence"]
        for image, owner in enumerate(self.owners):
            taken = START + timedelta(hours=9 * image)
            photo(root / "images" / f"{image:016x}.jpg", 3 * image, taken.strftime("%Y:%m:%d %H:%M:%S"))
            profile = "" if owner == 7 else f"https://www.flickr.com/people/{owner}/"
            rows.append(
                f'{image:016x},train,u,u,l,{profile},"Same, name","A\n""title""",1,m=,t,{0.0 if image % 2 else ""}'
            )
            for number in range(3):
                labels.append(f"{image:016x},verification,/m/{number},{int(image % (number + 2) == 0)}")
        self.write("metadata.csv", *rows)
        self.write("labels.csv", *labels, "ffffffffffffffff,verification,/m/3,1")
        self.write(
            "descriptions.csv", "LabelName,DisplayName", *(f"/m/{i},{n}" for i, n in enumerate("ABCD"))
        )

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert old in text
        (self.root / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    def load(self, **options):
        return open_images(
            self.root / "images",
            self.root / "metadata.csv",
            labels=self.root / "labels.csv",
            descriptions=self.root / "descriptions.csv",
            **({"min_images": 10, "size": 8} | options),
        )


@pytest.fixture
def photos(tmp_path):
    return OpenImages(tmp_path)


def parts_of(people) -> list[set[int]]:
    return [set(part.sources.flatten().tolist()) for part in (people.train, people.test, people.public)]


def check_disjoint(load) -> None:
    held, seen, public = set(), set(), set()
    for seed in range(5):
        parts = parts_of(load(seed))
        assert len(set.union(*parts)) == sum(map(len, parts))
        seen, held, public = seen | parts[0], held | parts[1], public | parts[2]
    assert not seen & held
    assert not public & (seen | held)


def test_open_images(photos):
    people = photos.load()
    assert people.train.classes == ("A", "B", "C")
    assert people.train.multilabel
    assert people.train.users.bincount().tolist() == [8] * 5
    assert people.test.users.bincount().tolist() == [2] * 5
    assert (people.public.users == -1).all()
    # Without a profile, ten photos are nobody's.
    assert sorted(photos.owners[item] for item in people.public.items) == [5] * 3 + [6] * 3 + [7] * 10
    owner_of = {}
    for part in (people.train, people.test, people.public):
        assert part.inputs.shape[1:] == (3, 8, 8)
        for row, item in enumerate(part.items.tolist()):
            assert part.inputs[row].mean() * 255 == pytest.approx(3 * item, abs=1.5)
            assert part.targets[row].tolist() == [float(item % number == 0) for number in (2, 3, 4)]
            taken = START + timedelta(hours=9 * item)
            assert part.times[row] == (taken - datetime(1970, 1, 1)).total_seconds()
            assert part.albums[row] == taken.toordinal()
            assert int(part.sources[row]) == item
            if part is not people.public:
                owner_of.setdefault(photos.owners[item], set()).add(int(part.users[row]))
    assert sorted(user for found in owner_of.values() for user in found) == list(range(5))
    assert all("flickr" not in name for name in people.train.user_names)
    for how in SPLITS:
        assert len(split_clients(people.train, how)) == 10


def test_open_images_parts_share_nothing_under_any_seed(photos):
    check_disjoint(lambda seed: photos.load(users=3, seed=seed))
    assert len({photos.load(users=2, seed=seed).train.user_names for seed in range(6)}) > 1


def test_chosen_classes_in_their_order(photos):
    people = photos.load(classes=["C", "D", "A"])
    assert people.train.classes == ("C", "D", "A")
    assert people.train.targets[:, 1].sum() == 0
    assert people.train.targets[:, 2].tolist() == [float(item % 2 == 0) for item in people.train.items]


def test_photos_without_a_time_are_left_out(photos):
    mine = [image for image, owner in enumerate(photos.owners) if owner == 0]
    for image, taken in zip(mine, [None, "0000:00:00 00:00:00", "    :  :     :  :  "], strict=False):
        photo(photos.root / "images" / f"{image:016x}.jpg", 0, taken, edited="2012:03:01 08:00:00")
    people = photos.load(min_images=7)
    assert sorted(people.train.users.bincount() + people.test.users.bincount()) == [7, 10, 10, 10, 10]
    assert not set(mine[:3]) & set.union(*parts_of(people))
    assert len(photos.load().train.user_names) == 4
    # A null at the end, as some cameras write it, is no harm.
    photo(photos.root / "images" / f"{mine[0]:016x}.jpg", 0, "2012:03:01 08:00:00\0")
    assert len(set.union(*parts_of(photos.load()))) == len(photos.owners) - 2


def test_public_photos_can_be_bounded(photos):
    some, again = photos.load(public_images=4), photos.load(public_images=4, users=2, seed=3)
    assert len(some.public) == 4
    assert torch.equal(some.public.items, again.public.items)
    assert len(photos.load(public_images=0).public) == 0


@pytest.mark.parametrize("column", ["ImageID", "AuthorProfileURL"])
def test_metadata_without_a_column(column, photos):
    photos.edit("metadata.csv", column, "other")
    with pytest.raises(CorruptData, match=rf"metadata\.csv: line 1: there is no column {column}"):
        photos.load()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("labels.csv", "Confidence", "Sure", "line 1: there is no column Confidence"),
        ("labels.csv", "LabelName,Confidence\n", "LabelName,Confidence\n1,2\n", "line 2 has 2 fields"),
        ("labels.csv", "/m/0,1", "/m/0,yes", "line 2: 'yes' is no number"),
        ("labels.csv", "/m/1", "/m/9", "line 3: '/m/9' is not in .*descriptions.csv"),
        ("descriptions.csv", "DisplayName", "Name", "line 1: there is no column DisplayName"),
        ("descriptions.csv", "/m/1,B", '/m/1,"B', "the row after line 2 cannot be read"),
        ("metadata.csv", f"{1:016x}", f"{0:016x}", f"line 5: '{0:016x}' is listed twice"),
        ("metadata.csv", "m=,t,", "m=,t,t,", "line 3 has 13 fields: the header has 12"),
    ],
)
def test_damaged_tables(name, old, new, message, photos):
    photos.edit(name, old, new)
    with pytest.raises(CorruptData, match=message) as caught:
        photos.load()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_in_another_encoding(photos):
    path = photos.root / "descriptions.csv"
    path.write_bytes(path.read_bytes().replace(b"B", b"\xe9"))
    with pytest.raises(CorruptData, match=r"descriptions\.csv.*cannot be read"):
        photos.load()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\xe9", b"B"))
    assert len(photos.load().train) == 40


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "descriptions.csv"])
def test_missing_table(name, photos):
    (photos.root / name).unlink()
    with pytest.raises(MissingData, match="is missing: it must be a table"):
        photos.load()


def test_absent_and_broken_photo(photos):
    path = photos.root / "images" / f"{2:016x}.jpg"
    content = path.read_bytes()
    path.unlink()
    # Titles have two lines, so that the third photo ends on the seventh.
    with pytest.raises(MissingData, match=rf"metadata\.csv: line 7: .*{2:016x}\.jpg is missing"):
        photos.load()
    path.write_bytes(b"no photo")
    with pytest.raises(CorruptData, match=r"line 7: .* cannot be read as an image"):
        photos.load()
    path.write_bytes(content[: len(content) - 40])
    with pytest.raises(CorruptData, match="cannot be read as an image"):
        photos.load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"min_images": 1}, "min_images=1"),
        ({"public_images": -1}, "public_images=-1"),
        ({"users": 6}, "users=6: 5 people have enough data"),
        ({"min_images": 11}, "users=None: 0 people have enough data"),
        ({"seed": -1}, "seed=-1"),
        ({"classes": ["A", "Z"]}, "'Z' is not the name of a label"),
        ({"classes": ["A", "A"]}, "different names"),
        ({"classes": []}, "different names"),
        ({"classes": "A"}, "different names"),
    ],
)
def test_arguments_out_of_range(options, message, photos):
    with pytest.raises(ValueError, match=message):
        photos.load(**options)


# PIPA.

OBJECTS = ("person", "dog", "car", "teddy bear")


class Pipa(OpenImages):
    """Four owners of two photosets with four photos each, and one of a photoset with two; two heads per photo."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sets = [(owner, owner * 10 + k + 72157600000000000, 4) for owner in range(4) for k in range(2)]
        sets.append((4, 72157600000000099, 2))
        self.owner_of = {photoset: owner for owner, photoset, _ in sets}
        places = [photoset for _, photoset, count in sets for _ in range(count)]
        self.sets = np.random.default_rng(0).permutation(places).tolist()
        index, labels = [], ["photo_id,label"]
        for place, photoset in enumerate(self.sets):
            subset = place % 4
            folder = ("leftover", "train", "val", "test")[subset]
            photo(root / folder / f"{photoset}_{1000 - place}.jpg", 4 * place)
            index += [f"{photoset} {1000 - place} {x} -3 10 12 {x + 1} {subset}" for x in (0, 5)]
            labels += [
                f"{1000 - place},{OBJECTS[k]}" for k in range(3) if place % (k + 2) == 0 for _ in range(2)
            ]
        self.write("index.txt", *index)
        self.write("owners.csv", "photoset_id,owner", *(f"{s},owner {o}" for s, o in self.owner_of.items()))
        self.write("labels.csv", *labels, "1,teddy bear")

    def load(self, **options):
        return pipa(self.root, **({"min_images": 8, "size": 8} | options))


@pytest.fixture
def albums(tmp_path):
    return Pipa(tmp_path)


def test_pipa(albums):
    people = albums.load()
    assert people.train.classes == ("person", "dog", "car")
    assert people.train.users.bincount().tolist() == [6] * 4
    assert people.test.users.bincount().tolist() == [2] * 4
    assert len(people.public) == 2
    for part in (people.train, people.test, people.public):
        for row, item in enumerate(part.items.tolist()):
            assert part.inputs[row].mean() * 255 == pytest.approx(4 * item, abs=1.5)
            assert part.targets[row].tolist() == [float(item % number == 0) for number in (2, 3, 4)]
            assert int(part.albums[row]) == albums.sets[item]
            assert part.times[row] == 1000 - item
    for user in range(4):
        both = torch.cat([part.albums[part.users == user] for part in (people.train, people.test)])
        assert len({albums.owner_of[photoset] for photoset in both.tolist()}) == 1
    assert people.train.name == "PIPA"
    for how in SPLITS:
        assert len(split_clients(people.train, how)) == 8


def test_pipa_parts_share_nothing_under_any_seed(albums):
    check_disjoint(lambda seed: albums.load(users=2, seed=seed))


def test_a_photo_of_two_photosets_counts_once(albums):
    text = (albums.root / "index.txt").read_text()
    first = text.split()
    other = next(photoset for photoset in albums.sets if str(photoset) != first[0])
    (albums.root / "index.txt").write_text(f"{text}\n{other} {first[1]} 0 0 1 1 1 0\n")
    assert len(set.union(*parts_of(albums.load()))) == len(albums.sets)


def test_side_tables_elsewhere(albums):
    for name in ("owners", "labels"):
        path = albums.root / f"{name}.csv"
        path.rename(albums.root / f"my-{name}.csv")
        with pytest.raises(MissingData, match=rf"pipa: .*{name}\.csv is missing: PIPA does not contain it"):
            albums.load()
        path.write_bytes((albums.root / f"my-{name}.csv").read_bytes())
    for name in ("owners", "labels"):
        (albums.root / f"{name}.csv").unlink()
    people = albums.load(owners=albums.root / "my-owners.csv", labels=albums.root / "my-labels.csv")
    assert len(people.train.user_names) == 4


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("index.txt", " 0\n", "\n", "line 1 is no row of eight numbers"),
        ("index.txt", " 0\n", " 4\n", "line 1 is no row of eight numbers"),
        ("index.txt", " 1000 ", " x ", "line 1: 'x' is no number"),
        ("owners.csv", "72157600000000099,owner 4\n", "", "photoset 72157600000000099 has no owner in"),
        ("owners.csv", "owner\n", "who\n", "line 1: there is no column owner"),
        (
            "owners.csv",
            "owner\n",
            "owner\n72157600000000099,x\n",
            "72157600000000099 has another owner above",
        ),
        ("labels.csv", "person", "unicorn", "line 2: 'unicorn' is no class of COCO"),
        ("labels.csv", "photo_id", "photo", "line 1: there is no column photo_id"),
    ],
)
def test_damaged_pipa(name, old, new, message, albums):
    albums.edit(name, old, new)
    with pytest.raises(CorruptData, match=message) as caught:
        albums.load()
    assert "\n" not in str(caught.value)


def test_labels_of_other_photos(albums):
    albums.write("labels.csv", "photo_id,label", "1,dog")
    with pytest.raises(CorruptData, match="no label belongs to any of the photos"):
        albums.load()


def test_missing_pipa(albums):
    next((albums.root / "train").iterdir()).unlink()
    with pytest.raises(MissingData, match=r"index\.txt: line \d+: .*\.jpg is missing"):
        albums.load()
    (albums.root / "index.txt").unlink()
    with pytest.raises(MissingData, match=r"index\.txt is missing: name the folder that holds PIPA"):
        albums.load()


def test_pipa_arguments(albums):
    assert albums.load(classes=["teddy bear", "dog"]).train.targets[:, 0].sum() == 0
    with pytest.raises(ValueError, match="'unicorn' is not the name of a label"):
        albums.load(classes=["unicorn"])
    with pytest.raises(ValueError, match="min_images=0"):
        albums.load(min_images=0)


def test_days_are_calendar_days(photos):
    assert int(photos.load().train.albums.min()) >= date(2012, 3, 1).toordinal()
