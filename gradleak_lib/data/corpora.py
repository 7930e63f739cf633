"""Readers of corpora whose texts have authors and an order: blogs, plays, reviews."""

import html
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from gradleak_lib.data.root import CorruptData, MissingData

# The bloggers' own settings chose the language of the months: January to December in English, French, German,
# Spanish, Italian, Portuguese, Dutch, Swedish, Danish, Finnish and Polish, where they differ.
_MONTHS = (
    "january janvier januar enero gennaio janeiro januari tammikuu styczeń",
    "february février februar febrero febbraio fevereiro februari helmikuu luty",
    "march mars märz marzo março maart marts maaliskuu marzec",
    "april avril abril aprile huhtikuu kwiecień",
    "may mai mayo maggio maio mei maj toukokuu",
    "june juin juni junio giugno junho kesäkuu czerwiec",
    "july juillet juli julio luglio julho heinäkuu lipiec",
    "august août agosto augustus augusti elokuu sierpień",
    "september septembre septiembre settembre setembro syyskuu wrzesień",
    "october octobre oktober octubre ottobre outubro lokakuu październik",
    "november novembre noviembre novembro marraskuu listopad",
    "december décembre dezember diciembre dicembre dezembro joulukuu grudzień",
)
_MONTH_OF = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
# One post as it follows "<date>"; the last one of a file is followed by "</Blog>".
_POST = re.compile(rb"([^<]{0,100})</date>\s*<post>(.*?)</post>\s*(?:</Blog>\s*)?", re.DOTALL)


@dataclass(frozen=True)
class Post:
    """A text that somebody wrote.

    Parameters
    ----------
    author
        Name or pseudonym.
    text
        The text as it was written.
    time
        When, in days or any other unit that orders the posts of an author.
    album
        Day or scene: what the text was written together with.
    """

    author: str
    text: str
    time: float
    album: str | int


def read_blogs(folder: Path, *, skip_undated: bool = False) -> list[Post]:
    """Read the Blog Authorship corpus, a file ``<id>.<gender>.<age>.<industry>.<sign>.xml`` per blogger.

    The files only look like XML: posts hold bare ampersands and tags, and bytes of Latin-1 and of UTF-8, by turns.
    The word "urlLink", which the makers of the corpus put for an address, is left out.

    Parameters
    ----------
    folder
        Folder of the files.
    skip_undated
        Whether to leave out posts whose date cannot be read. Months are known in eleven languages of Europe; the
        full corpus has some in others, and some posts without any date.

    Returns
    -------
    list of Post
        Blogger by blogger; times are days, albums too: the order within a day is unknown.

    Raises
    ------
    MissingData
        If there is no such file.
    CorruptData
        If a post is not closed, or its date cannot be read.

    References
    ----------
    Schler et al. 2006 (Effects of Age and Gender on Blogging).
    """
    paths = sorted(folder.glob("*.xml"))
    if not paths:
        raise MissingData(
            f"blogs: {folder} holds no .xml file: get the Blog Authorship corpus (Schler et al. 2006) and put its "
            "files <id>.<gender>.<age>.<industry>.<sign>.xml there"
        )
    return [post for path in paths for post in _read_blog(path, skip_undated)]


def read_shakespeare(root: Path) -> list[Post]:
    """Read eight of Shakespeare's plays from NLTK's corpus ``shakespeare.zip``.

    Parameters
    ----------
    root
        Folder that holds ``nltk_data/corpora/shakespeare.zip`` or ``corpora/shakespeare.zip``.

    Returns
    -------
    list of Post
        A post is a speech; its author is ``"play: SPEAKER"``. Speeches of several speakers, or of "All", belong to
        nobody and are left out. Times are numbers of speeches, albums are scenes (and prologues).

    Raises
    ------
    MissingData
        If the archive is not there.
    CorruptData
        If it, or a play in it, cannot be read.
    """
    places = [root / parent / "shakespeare.zip" for parent in ("nltk_data/corpora", "corpora")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise MissingData(
            f'shakespeare: {places[0]} is missing: get the corpus "shakespeare" of NLTK\'s data and put its '
            "archive there"
        )
    plays = []
    name = "it is no archive"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".xml"):
                    plays.append((PurePosixPath(name).stem, ElementTree.fromstring(archive.read(name))))
    except (zipfile.BadZipFile, zlib.error, EOFError, ElementTree.ParseError) as error:
        raise CorruptData(f"{path} is corrupt ({name}): delete it and get it again") from error
    if not plays:
        raise CorruptData(f"{path} holds no play (.xml): get the archive again")
    return [post for play, root_element in plays for post in _speeches(play, root_element)]


def read_yelp(path: Path, *, min_posts: int = 100) -> list[Post]:
    """Read the reviews of people who wrote many, from ``yelp_academic_dataset_review.json``.

    The file (5 GB) has one JSON object per line, with ``user_id``, ``text`` and ``date``. It is read twice: first
    the authors are counted, then the reviews of those with enough are kept; only these lie in memory.

    Parameters
    ----------
    path
        The file.
    min_posts
        Number of reviews that an author has at least, 1 or more.

    Returns
    -------
    list of Post
        In the order of the file. Times are in days (older releases give no time of day), albums are days.

    Raises
    ------
    ValueError
        If ``min_posts`` is out of range.
    MissingData
        If there is no such file.
    CorruptData
        If a line is no review.
    """
    if min_posts < 1:
        raise ValueError(f"min_posts={min_posts}: it must be 1 or more")
    if not path.is_file():
        raise MissingData(
            f"yelp: {path} is missing: get the Yelp Open Dataset (JSON) from Yelp and put its file of reviews there"
        )
    counts = Counter(str(review["user_id"]) for _, review in _reviews(path))
    posts = []
    for number, review in _reviews(path):
        author = str(review["user_id"])
        if counts[author] >= min_posts:
            try:
                when = datetime.fromisoformat(str(review["date"]))
            except ValueError as error:
                raise CorruptData(f"{path}: line {number}: date {review['date']!r} is no date") from error
            day = when.toordinal()
            time = day + (when - datetime.combine(when, datetime.min.time())).total_seconds() / 86_400
            posts.append(Post(author, str(review["text"]), time, day))
    return posts


def _read_blog(path: Path, skip_undated: bool) -> Iterator[Post]:
    """Give the posts of one blogger."""
    _, *chunks = path.read_bytes().split(b"<date>")
    if not chunks:
        raise CorruptData(f"{path} holds no post: it is no file of the Blog Authorship corpus, or cut off")
    author = path.name.partition(".")[0]
    for number, chunk in enumerate(chunks, 1):
        found = _POST.fullmatch(chunk)
        if found is None:
            raise CorruptData(f"{path}: post {number} is cut off, or has no <post> after its <date>")
        written = _decode(found[1])
        day = _day(written)
        if day is not None:
            text = html.unescape(_decode(found[2])).replace("urlLink", " ")
            yield Post(author, text, float(day), day)
        elif not skip_undated:
            raise CorruptData(
                f"{path}: post {number} has the date {written!r}, which is no DD,Month,YYYY in a language that is "
                "known here: skip_undated=True leaves such posts out"
            )


def _decode(content: bytes) -> str:
    """Decode UTF-8, or Latin-1 (as Windows extends it) where it is not that."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _day(written: str) -> int | None:
    """Return the number of a day that is written DD,Month,YYYY; None where it is no day."""
    try:
        day, month, year = written.split(",")
        return date(int(year), _MONTH_OF[month.strip().lower()], int(day)).toordinal()
    except (ValueError, KeyError):
        return None


def _speeches(play: str, root: ElementTree.Element) -> Iterator[Post]:
    """Give the speeches of a play in their order."""
    scene = speech = 0
    for element in root.iter():
        if element.tag in ("SCENE", "PROLOGUE", "EPILOGUE", "INDUCTION"):
            scene += 1
        if element.tag == "SPEECH":
            speech += 1
            speakers = ["".join(part.itertext()).strip() for part in element.findall("SPEAKER")]
            if len(speakers) == 1 and speakers[0].lower() not in ("", "all", "both"):
                lines = ["".join(part.itertext()) for part in element.findall("LINE")]
                yield Post(
                    f"{play}: {speakers[0]}", "\n".join(lines), float(speech), f"{play}: scene {scene}"
                )


def _reviews(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Give each line of the file of reviews with its number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                review = json.loads(line)
                absent = [key for key in ("user_id", "text", "date") if key not in review]
            except (ValueError, TypeError) as error:
                raise CorruptData(f"{path}: line {number} is no JSON object, or cut off") from error
            if absent or not isinstance(review, dict):
                raise CorruptData(f"{path}: line {number} is no review: it has no {', '.join(absent)}")
            yield number, review
