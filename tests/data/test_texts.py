import json
import zipfile
from collections import Counter
from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak_lib.data import CorruptData, MissingData
from gradleak_lib.data.texts import (
    Post,
    blogs,
    read_blogs,
    read_shakespeare,
    read_yelp,
    shakespeare,
    text_population,
    words_of,
    yelp,
)
from gradleak_lib.data.users import SPLITS, split_clients


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Blogs.


def blog(*posts: tuple[str, bytes]) -> bytes:
    parts = [
        b"<date>" + day.encode() + b"</date>\n<post>\n\n  " + text + b"\n\n</post>\n" for day, text in posts
    ]
    return b"<Blog>\n\n" + b"\n\n".join(parts) + b"\n\n</Blog>"


def write_blog(folder, content: bytes, author: str = "1234"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{author}.male.27.indUnk.Leo.xml"
    path.write_bytes(content)
    return path


def test_posts_of_a_blog(tmp_path):
    content = blog(
        ("31,May,2004", b"Tom & Jerry <b>run</b> &amp; urlLink hide"),
        ("1,ao\u00fbt,2003", "na\u00efve \u2019".encode()),
        ("09,Juli,2004", b"caf\xe9 don\x92t"),
    )
    write_blog(tmp_path, content, "99")
    write_blog(tmp_path, blog(("01,mai,2004", b"x")).replace(b"\n", b"\r\n"), "100")
    first, *posts = read_blogs(tmp_path)
    assert first.author == "100"
    assert [post.author for post in posts] == ["99"] * 3
    assert [post.album for post in posts] == [
        date(2004, 5, 31).toordinal(),
        date(2003, 8, 1).toordinal(),
        date(2004, 7, 9).toordinal(),
    ]
    assert [post.time for post in posts] == [float(post.album) for post in posts]
    assert posts[0].text.split() == ["Tom", "&", "Jerry", "<b>run</b>", "&", "hide"]
    assert words_of(posts[1].text) == ["na\u00efve"]
    assert words_of(posts[2].text) == ["caf\u00e9", "don't"]


def test_dates_in_latin_1(tmp_path):
    write_blog(tmp_path, blog(("05,f\u00e9vrier,2004", b"x")).replace("\u00e9".encode(), b"\xe9"))
    assert read_blogs(tmp_path)[0].album == date(2004, 2, 5).toordinal()


@pytest.mark.parametrize("written", [",,", "31,June,2004", "x,June,2004", "1,Ιούνιος,2004", "1,June", ""])
def test_dates_that_are_none(written, tmp_path):
    path = write_blog(tmp_path, blog(("01,June,2004", b"one"), (written, b"two"), ("02,June,2004", b"three")))
    with pytest.raises(CorruptData, match=r"post 2 has the date .*skip_undated=True") as caught:
        read_blogs(tmp_path)
    assert str(path) in one_line(caught)
    assert [post.text.strip() for post in read_blogs(tmp_path, skip_undated=True)] == ["one", "three"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"</post>\n\n\n</Blog>", b"", "post 2 is cut off"),
        (b"<post>\n\n  one", b"one", "post 1 is cut off, or has no <post>"),
        (b"</date>", b"", "post 1 is cut off"),
        (b"<date>", b"", "holds no post"),
    ],
)
def test_damaged_blogs(old, new, message, tmp_path):
    content = blog(("01,June,2004", b"one"), ("02,June,2004", b"two"))
    assert old in content
    path = write_blog(tmp_path, content.replace(old, new))
    with pytest.raises(CorruptData, match=message) as caught:
        read_blogs(tmp_path)
    assert str(path) in one_line(caught)


def test_no_blogs(tmp_path):
    with pytest.raises(MissingData, match=r"blogs: .* get the Blog Authorship corpus") as caught:
        blogs(root=tmp_path)
    assert str(tmp_path / "blogs") in one_line(caught)


# Plays.

PLAY = """<?xml version="1.0"?><PLAY><TITLE>T</TITLE>
<PROLOGUE><SPEECH><SPEAKER>Chorus</SPEAKER><LINE>Two houses</LINE></SPEECH></PROLOGUE>
<ACT><SCENE><SPEECH><SPEAKER>ROMEO</SPEAKER><LINE>Is the day
so young?</LINE><STAGEDIR>Exit</STAGEDIR><LINE>Ay <STAGEDIR>aside</STAGEDIR> me</LINE></SPEECH>
<SPEECH><SPEAKER>A</SPEAKER><SPEAKER>B</SPEAKER><LINE>Both speak</LINE></SPEECH>
<SPEECH><SPEAKER>ALL</SPEAKER><LINE>Hail</LINE></SPEECH></SCENE>
<SCENE><SPEECH><SPEAKER>ROMEO</SPEAKER><LINE>She speaks</LINE></SPEECH></SCENE></ACT></PLAY>"""


def write_play(root, content: str = PLAY, parent: str = "nltk_data/corpora"):
    path = root / parent / "shakespeare.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("shakespeare/README", "plays")
        archive.writestr("shakespeare/r_and_j.xml", content)
    return path


@pytest.mark.parametrize("parent", ["nltk_data/corpora", "corpora"])
def test_speeches(parent, tmp_path):
    write_play(tmp_path, parent=parent)
    posts = read_shakespeare(tmp_path)
    assert [post.author for post in posts] == ["r_and_j: Chorus", "r_and_j: ROMEO", "r_and_j: ROMEO"]
    assert words_of(posts[1].text)[:5] == ["is", "the", "day", "so", "young"]
    assert [post.time for post in posts] == [1, 2, 5]
    assert [post.album for post in posts] == [f"r_and_j: scene {number}" for number in (1, 2, 3)]


def test_missing_and_damaged_plays(tmp_path):
    with pytest.raises(MissingData, match=r"shakespeare: .*nltk_data/corpora/shakespeare\.zip is missing"):
        shakespeare(root=tmp_path)
    path = write_play(tmp_path, PLAY[:-20])
    with pytest.raises(CorruptData, match=r"shakespeare\.zip is corrupt \(shakespeare/r_and_j\.xml\)"):
        read_shakespeare(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptData, match=r"is corrupt \(it is no archive\)") as caught:
        read_shakespeare(tmp_path)
    one_line(caught)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README", "")
    with pytest.raises(CorruptData, match="holds no play"):
        read_shakespeare(tmp_path)


# Reviews.


def review(user: str, when: str, text: str = "Good food.") -> str:
    return json.dumps({"review_id": "r", "user_id": user, "stars": 4.0, "text": text, "date": when})


def write_reviews(root, *lines: str):
    path = root / "yelp" / "yelp_academic_dataset_review.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reviews_of_people_with_many(tmp_path):
    path = write_reviews(
        tmp_path,
        review("a", "2018-07-07 18:00:00", "na\u00efve\nfood"),
        review("b", "no date, but of nobody who counts"),
        review("a", "2018-07-08"),
    )
    posts = read_yelp(path, min_posts=2)
    assert [post.author for post in posts] == ["a", "a"]
    assert posts[0].text == "na\u00efve\nfood"
    assert [post.album for post in posts] == [date(2018, 7, 7).toordinal(), date(2018, 7, 8).toordinal()]
    assert posts[1].time - posts[0].time == pytest.approx(0.25)
    with pytest.raises(ValueError, match="min_posts=0"):
        read_yelp(path, min_posts=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user_id": "a", "text": "cut', "line 2 is no JSON object, or cut off"),
        ("17", "line 2 is no JSON object"),
        ('["user_id", "text", "date"]', "line 2 is no review"),
        ('{"user_id": "a", "stars": 3}', "line 2 is no review: it has no text, date"),
        (review("a", "2018-13-01"), "line 2: date '2018-13-01' is no date"),
        ("", "line 2 is no JSON object"),
    ],
)
def test_damaged_reviews(line, message, tmp_path):
    path = write_reviews(tmp_path, review("a", "2018-07-07"), line, review("a", "2018-07-07"))
    with pytest.raises(CorruptData, match=message) as caught:
        read_yelp(path, min_posts=1)
    assert str(path) in one_line(caught)


def test_no_reviews(tmp_path):
    with pytest.raises(MissingData, match=r"yelp: .* is missing: get the Yelp Open Dataset") as caught:
        yelp(root=tmp_path)
    one_line(caught)


def test_yelp_from_file_to_population(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        review(
            f"user {user}", f"20{10 + day % 9}-07-{1 + day:02d}", " ".join(rng.choice(list("abcdefgh"), 30))
        )
        for day in range(14)
        for user in range(10)
    ]
    write_reviews(tmp_path, *lines, review("passer-by", "2018-07-07", "zebra"))
    people = yelp(5, root=tmp_path, min_posts=2, min_words=100, vocabulary=8)
    assert len(people.train.user_names) == 5
    assert people.train.name == "yelp"
    assert set(people.train.classes) == set("abcdefgh")


# Windows.


def corpus(authors: int = 20, posts: int = 12, length: int = 20, seed: int = 0) -> list[Post]:
    """Posts of 26 words, in a shuffled order; two authors have written little."""
    rng = np.random.default_rng(seed)
    made = [
        Post(
            f"author {author}",
            " ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), length)),
            float(post),
            f"day {post // 3}",
        )
        for author in range(authors + 2)
        for post in range(posts if author < authors else 2)
    ]
    return [made[index] for index in rng.permutation(len(made))]


def load(posts: list[Post], users: int = 8, **options):
    return text_population(posts, users, name="corpus", **({"min_words": 200, "vocabulary": 12} | options))


def parts_of(people) -> list[set[int]]:
    return [set(part.sources.flatten().tolist()) for part in (people.train, people.test, people.public)]


def test_words():
    text = "Don't STOP\u2014it\u2019s 'tis the 90s, rock'n'roll_band \u00c9t\u00e9... no!!?"
    words = ["don't", "stop", "it's", "tis", "the", "s", ",", "rock'n'roll", "band", "\u00e9t\u00e9"]
    expected = [*words, "...", "no", "!!", "?"]
    assert words_of(text) == expected


@given(st.integers(1, 5), st.integers(2, 20), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_windows_are_those_of_the_post_alone(window, vocabulary, seed):
    posts = corpus(seed=seed)
    people = load(posts, window=window, vocabulary=vocabulary, seed=seed)
    known = people.train.classes
    number_of = {word: number for number, word in enumerate(known)}
    for part in (people.train, people.test, people.public):
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert part.inputs.shape[1:] == (window,)
        for number in part.items.unique().tolist():
            rows = torch.where(part.items == number)[0]
            words = [number_of.get(word, vocabulary) for word in words_of(posts[number].text)]
            before = [vocabulary] * window + words
            expected = [
                (before[place : place + window], word)
                for place, word in enumerate(words)
                if word < vocabulary
            ]
            assert [(part.inputs[row].tolist(), int(part.targets[row])) for row in rows] == expected
            assert set(part.times[rows].tolist()) == {posts[number].time}
            assert len(set(part.albums[rows].tolist())) == 1
            owner = int(part.users[rows[0]])
            assert owner == -1 or part.user_names[owner] == posts[number].author


def test_the_vocabulary_is_the_most_frequent_words_of_public_authors():
    posts = corpus()
    people = load(posts)
    public = {posts[number].author for number in people.public.items.tolist()}
    assert {"author 20", "author 21"} <= public
    assert len(public) == 20 - 14 + 2
    count = Counter(word for post in posts if post.author in public for word in words_of(post.text))
    assert people.train.classes == tuple(sorted(count, key=lambda word: (-count[word], word))[:12])
    # A private word, however frequent, is not in it.
    mine = posts.index(next(post for post in posts if post.author == people.train.user_names[0]))
    posts[mine] = Post(posts[mine].author, "private " * 1000, posts[mine].time, posts[mine].album)
    assert load(posts).train.classes == people.train.classes


def test_parts_share_no_post_under_any_seed():
    posts = corpus()
    held, seen, public, users = set(), set(), set(), set()
    for seed in range(6):
        people = load(posts, seed=seed)
        parts = parts_of(people)
        assert len(set.union(*parts)) == sum(map(len, parts))
        seen, held, public = seen | parts[0], held | parts[1], public | parts[2]
        users.add(frozenset(people.train.user_names))
        assert (people.public.users == -1).all()
        assert people.public.user_names == ()
    assert len(users) > 1
    assert not seen & held
    assert not {posts[number].author for number in public} & {name for drawn in users for name in drawn}


def test_albums_are_the_authors_own_posts_of_a_day():
    posts = corpus()
    people = load(posts)
    of = {}
    for part in (people.train, people.test):
        for item, album in zip(part.items.tolist(), part.albums.tolist(), strict=True):
            of.setdefault(album, set()).add(posts[item].album)
    assert all(len(names) == 1 for names in of.values())
    assert len(of) == 4


def test_public_authors_can_be_bounded():
    posts = corpus()
    people = load(posts, public_users=3)
    public = {posts[number].author for number in people.public.items.tolist()}
    assert len(public) == 3
    # Those with enough text come first.
    assert not public & {"author 20", "author 21"}


def test_who_cannot_be_split_is_public():
    posts = corpus()
    single = Post("single", " ".join(post.text for post in posts), 0.0, 0)
    one_day = [Post("one day", post.text, 0.0, 0) for post in posts[:30]]
    silent = [Post("silent", "...", float(day), day) for day in range(20)]
    everybody = [*posts, single, *one_day, *silent]
    public = {everybody[number].author for number in load(everybody, min_words=220).public.items.tolist()}
    assert {"single", "one day"} <= public
    assert "silent" not in public


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 1}, "vocabulary=1"),
        ({"vocabulary": 27}, "vocabulary=27: the public authors use 26 words"),
        ({"window": 0}, "window=0"),
        ({"min_words": 0}, "min_words=0"),
        ({"public_users": 0}, "public_users=0"),
        ({"users": 15}, "users=15: 20 people have enough data, of whom 14 can be drawn"),
        ({"seed": -1}, "seed=-1"),
        ({"min_words": 10**6}, "0 people have enough data"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        load(corpus(), **options)


# The real corpora.


def test_real_blogs(real_data):
    people = blogs(root=real_data)
    assert len(people.train.user_names) == 50
    assert int(people.train.users.bincount().min()) >= 1280
    assert people.train.classes[:2] == (".", "the")
    assert int(people.train.inputs.max()) == 400
    parts = parts_of(people)
    assert len(set.union(*parts)) == sum(map(len, parts))
    other = blogs(root=real_data, seed=1)
    assert other.train.classes == people.train.classes
    assert not parts[2] & (parts_of(other)[0] | parts_of(other)[1])
    for how in ("random", "chrono"):
        assert split_clients(people.train, how, samples=640).counts.tolist() == [640] * 100
    assert int(split_clients(people.train, "album").counts.min()) > 300


def test_real_shakespeare(real_data):
    people = shakespeare(root=real_data)
    assert len(people.train.user_names) == 40
    assert int(people.train.users.bincount().min()) >= 300
    assert {name.partition(":")[0] for name in people.train.user_names} == {
        "a_and_c",
        "dream",
        "hamlet",
        "j_caesar",
        "macbeth",
        "merchant",
        "othello",
        "r_and_j",
    }
    parts = parts_of(people)
    assert len(set.union(*parts)) == sum(map(len, parts))
    for how in SPLITS:
        assert int(split_clients(people.train, how).counts.min()) >= 80
